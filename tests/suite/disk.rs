//! What a topic takes on the broker's disk: asked by DescribeLogDirs, which the Kafka client has no
//! call for. What is deleted counts no more, although its file goes away later.

use std::io::{Error, Read, Result, Write};
use std::net::TcpStream;
use std::time::Duration;

use halfmsg_kafka::KafkaConfig;

/// The request and its version: the first that Kafka 4 takes, and the last without tagged fields.
const DESCRIBE_LOG_DIRS: (i16, i16) = (35, 1);
/// Waiting for the broker, each time.
const DEADLINE: Duration = Duration::from_secs(30);
/// No answer of a test's broker is larger.
const LARGEST_ANSWER: usize = 16 << 20;

/// The bytes of all partitions of a topic, on a cluster of one broker.
pub(crate) async fn bytes_of(kafka: &KafkaConfig, topic: &str) -> std::result::Result<u64, String> {
    let (address, topic) = (kafka.brokers.clone(), topic.to_owned());
    let asked = tokio::task::spawn_blocking(move || ask(&address, &topic));
    asked.await.expect("no panic").map_err(|error| error.to_string())
}

fn ask(address: &str, topic: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let (api, version) = DESCRIBE_LOG_DIRS;
    // A correlation id, no client id, every topic: which partitions there are need not be known.
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend((-1_i32).to_be_bytes());
    stream.write_all(&i32::try_from(request.len()).expect("a few bytes").to_be_bytes())?;
    stream.write_all(&request)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = usize::try_from(i32::from_be_bytes(size)).unwrap_or(usize::MAX);
    if size > LARGEST_ANSWER {
        return Err(Error::other(format!("an answer of {size} bytes")));
    }
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    let bytes = Answer(&answer).bytes_of(topic);
    bytes.ok_or_else(|| Error::other("the answer is no description of directories, or refuses"))
}

/// What of the answer is not read yet.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn bytes_of(&mut self, topic: &str) -> Option<u64> {
        let (mut sum, mut is_known) = (0, false);
        let (_correlation, _throttled) = (self.number::<4>()?, self.number::<4>()?);
        for _directory in 0..self.number::<4>()? {
            if self.number::<2>()? != 0 {
                return None;
            }
            self.text()?;
            for _topic in 0..self.number::<4>()? {
                let is_it = self.text()? == topic.as_bytes();
                for _partition in 0..self.number::<4>()? {
                    let (_index, bytes) = (self.number::<4>()?, self.number::<8>()?);
                    let (_lag, _is_future) = (self.number::<8>()?, self.number::<1>()?);
                    if is_it {
                        (sum, is_known) = (sum + u64::try_from(bytes).ok()?, true);
                    }
                }
            }
        }
        is_known.then_some(sum)
    }

    /// A signed number of so many bytes.
    fn number<const BYTES: usize>(&mut self) -> Option<i64> {
        let (number, rest) = self.0.split_first_chunk::<BYTES>()?;
        self.0 = rest;
        let negative = number[0] & 0x80 != 0;
        let mut whole = if negative { [0xff; 8] } else { [0; 8] };
        whole[8 - BYTES..].copy_from_slice(number);
        Some(i64::from_be_bytes(whole))
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number::<2>()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text.to_vec())
    }
}
