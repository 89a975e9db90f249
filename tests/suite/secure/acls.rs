//! Access control entries: those that the documentation lists, and granting them. rdkafka has no
//! call for it, so the request is written by hand, to the listener that may do everything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The list that is tested is the one that people read.
const DOCUMENTED: &str = include_str!("../../../docs/kafka.md");
/// One request.
const DEADLINE: Duration = Duration::from_secs(60);
const DESCRIBE_ACLS: i16 = 29;
const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
/// The version of both requests: the last one with plain strings, spoken by Kafka 2.0 to 4.
const VERSION: i16 = 1;
const ALLOW: i8 = 3;

/// One right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) resource: String,
    pattern: String,
    pub(crate) name: String,
    pub(crate) operation: String,
}

impl Right {
    fn resource_code(&self) -> i8 {
        match self.resource.as_str() {
            "topic" => 2,
            "group" => 3,
            "transactional-id" => 5,
            other => panic!("docs/kafka.md: no resource '{other}'"),
        }
    }

    fn pattern_code(&self) -> i8 {
        match self.pattern.as_str() {
            "literal" => 3,
            "prefixed" => 4,
            other => panic!("docs/kafka.md: no pattern '{other}'"),
        }
    }

    fn operation_code(&self) -> i8 {
        match self.operation.as_str() {
            "Read" => 3,
            "Write" => 4,
            "Create" => 5,
            "Delete" => 6,
            "Describe" => 8,
            "DescribeConfigs" => 10,
            other => panic!("docs/kafka.md: no operation '{other}'"),
        }
    }
}

/// The names that the documentation leaves open.
pub(crate) struct Names<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) group: &'a str,
    pub(crate) target: &'a str,
    pub(crate) created: &'a str,
    pub(crate) outbound: &'a str,
}

/// What docs/kafka.md lists for this service, with these names.
pub(crate) fn documented(who: &str, names: &Names<'_>) -> Vec<Right> {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = DOCUMENTED.lines().map(cells).filter(|row| row.len() == 7 && row[1] == who);
    let filled = |name: &str| {
        let places = [
            ("<prefix>", names.prefix),
            ("<group>", names.group),
            ("<target>", names.target),
            ("<created>", names.created),
            ("<outbound>", names.outbound),
        ];
        let name = name.trim_matches('`').to_owned();
        places.iter().fold(name, |name, (place, with)| name.replace(place, with))
    };
    let rights = rows.flat_map(|row| {
        let operations: Vec<String> = row[5].split(',').map(|one| one.trim().to_owned()).collect();
        operations.into_iter().map(move |operation| Right {
            resource: row[2].clone(),
            pattern: row[3].clone(),
            name: filled(&row[4]),
            operation,
        })
    });
    let rights: Vec<Right> = rights.collect();
    assert!(!rights.is_empty(), "docs/kafka.md lists nothing for {who}");
    rights
}

/// Grants the rights to the user. Blocks.
pub(crate) fn grant(open_broker: &str, user: &str, rights: &[Right]) {
    let mut body = Vec::new();
    array(&mut body, rights.len());
    for right in rights {
        body.push(right.resource_code() as u8);
        string(&mut body, &right.name);
        body.push(right.pattern_code() as u8);
        string(&mut body, &format!("User:{user}"));
        string(&mut body, "*");
        body.push(right.operation_code() as u8);
        body.push(ALLOW as u8);
    }
    let answer = request(open_broker, CREATE_ACLS, &body);
    // The throttle time and the number of results, then one error code each, here with no text.
    let codes = answer[8..].chunks(4).map(|result| i16::from_be_bytes([result[0], result[1]]));
    let codes: Vec<i16> = codes.collect();
    assert_eq!(codes, vec![0; rights.len()], "granting {rights:?}");
}

/// Takes everything from the user. Blocks.
pub(crate) fn revoke_all(open_broker: &str, user: &str) {
    let mut body = Vec::new();
    array(&mut body, 1);
    body.extend(all_of(user));
    let answer = request(open_broker, DELETE_ACLS, &body);
    assert_eq!(i16::from_be_bytes([answer[8], answer[9]]), 0, "revoking the rights of {user}");
}

/// How many rights the user has by now: the broker follows the controller, which has answered
/// before. Blocks.
pub(crate) fn count(open_broker: &str, user: &str) -> usize {
    let answer = request(open_broker, DESCRIBE_ACLS, &all_of(user));
    // Each has the user's name once, as a principal.
    let principal = format!("User:{user}");
    answer.windows(principal.len()).filter(|part| *part == principal.as_bytes()).count()
}

/// A filter for everything that the user is allowed.
fn all_of(user: &str) -> Vec<u8> {
    const ANY: u8 = 1;
    const NULL: [u8; 2] = (-1_i16).to_be_bytes();
    let mut filter = vec![ANY];
    filter.extend(NULL);
    filter.push(ANY);
    string(&mut filter, &format!("User:{user}"));
    filter.extend(NULL);
    filter.extend([ANY, ANY]);
    filter
}

fn request(broker: &str, key: i16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(key.to_be_bytes());
    message.extend(VERSION.to_be_bytes());
    message.extend(1_i32.to_be_bytes());
    string(&mut message, "tests");
    message.extend(body);
    let mut stream = TcpStream::connect(broker).expect("the broker is there");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
    let length = i32::try_from(message.len()).expect("a short request");
    stream.write_all(&length.to_be_bytes()).expect("it takes requests");
    stream.write_all(&message).expect("it takes requests");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("it answers");
    let length = usize::try_from(i32::from_be_bytes(length)).expect("a length");
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).expect("it answers");
    // Without the correlation id.
    answer.split_off(4)
}

fn array(to: &mut Vec<u8>, length: usize) {
    to.extend(i32::try_from(length).expect("a few").to_be_bytes());
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend(i16::try_from(text.len()).expect("a short text").to_be_bytes());
    to.extend(text.as_bytes());
}
