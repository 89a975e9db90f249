//! The composed demonstration, as far as it can be known without a container engine: what
//! docker-compose.yml says is whole, the settings in it are settings of the services, and the commands
//! and addresses in the documents are its own. That the images build and the containers get healthy,
//! only an engine shows: scripts/try-compose asks it, with the commands of README.md.

use std::collections::BTreeSet;

use clap::Parser;
use halfmsg_service_kit::settings::parse_flags;
use serde_yaml_ng::{Mapping, Value};

use super::CURL_FAULT;
use super::found::{block, blocks, inline, root};
use crate::suite::Env;

pub(super) const FILE: &str = "docker-compose.yml";
pub(super) const COMMAND: &str = "docker compose ";
const TRY: &str = "scripts/try-compose";
/// What the documents use of it: the verb, and the flags that it takes.
const VERBS: [(&str, &[&str]); 4] =
    [("up", &["--build", "--wait"]), ("start", &[]), ("kill", &[]), ("down", &["--volumes"])];
/// Our services, and where README.md says that they answer.
pub(super) const OURS: [(&str, &str); 2] =
    [("order-svc", "127.0.0.1:8080"), ("stock-svc", "127.0.0.1:8081")];
/// Every variable of the file: the images can be replaced, all others are in docs/configuration.md.
pub(super) const VARIABLES: [&str; 7] = [
    "KAFKA_IMAGE",
    "POSTGRES_IMAGE",
    "HALFMSG_ADMIN_TOKEN",
    "HALFMSG_DB_PASSWORD",
    "HALFMSG_FAULTS",
    "HALFMSG_ORDER_PORT",
    "HALFMSG_STOCK_PORT",
];
const IMAGES: usize = 2;

pub(crate) async fn documented_composed(_: Env) {
    variables_are_documented();
    let file = file(|_, default| default.to_owned());
    let services = file["services"].as_mapping().expect("services");
    commands_fit(services);
    for (name, service) in services {
        let name = name.as_str().expect("a name");
        is_whole(name, service, &file);
        if let Some((_, address)) = OURS.iter().find(|(ours, _)| *ours == name) {
            is_reached_at(address, service);
        }
    }
    let order: order_svc::Settings = settings(&services["order-svc"]);
    let order = order.validate().unwrap_or_else(|mistakes| panic!("order-svc: {mistakes:?}"));
    let stock: stock_svc::Settings = settings(&services["stock-svc"]);
    let stock = stock.validate().unwrap_or_else(|mistakes| panic!("stock-svc: {mistakes:?}"));
    assert!(order.common.faults && stock.common.faults, "README.md's demonstration needs them");
}

fn text() -> String {
    std::fs::read_to_string(root().join(FILE)).expect("the file of the demonstration")
}

/// As it is where each variable has the value that is said of its name and its default.
pub(super) fn file(value: impl Fn(&str, &str) -> String) -> Value {
    let text = text();
    let mut parts = text.split("${");
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').expect("a variable's end");
        let (name, default) = variable.split_once(":-").expect("each has a default");
        found.push_str(&value(name, default));
        found.push_str(rest);
    }
    let mut file: Value = serde_yaml_ng::from_str(&found).expect("YAML");
    file.apply_merge().expect("what is merged is there");
    file
}

fn variables_are_documented() {
    let reference = std::fs::read_to_string(root().join("docs/configuration.md"));
    let reference = reference.expect("docs/configuration.md");
    let text = text();
    let used = text.split("${").skip(1).filter_map(|part| part.split([':', '}']).next());
    let used: BTreeSet<_> = used.collect();
    assert_eq!(used, BTreeSet::from(VARIABLES));
    for name in &VARIABLES[IMAGES..] {
        assert!(reference.contains(&format!("`{name}`")), "docs/configuration.md: {name}");
    }
}

/// Every command about it in the documents, without its comment.
pub(super) fn commands() -> Vec<String> {
    let all = blocks().into_iter().flat_map(|block| block.commands());
    let all = all.chain(inline().into_iter().map(|(_, command)| command));
    let all = all.filter(|command| command.starts_with(COMMAND));
    all.map(|command| command.split(" #").next().unwrap_or_default().trim_end().into()).collect()
}

/// scripts/try-compose runs every command of the documents about it, and the orders that README.md
/// says work here too: each stands there as a line or a string of its own.
pub(crate) async fn documented_try_compose(_: Env) {
    let script = std::fs::read_to_string(root().join(TRY)).expect("the script");
    let has = |command: &str| {
        let quoted = format!("='{command}'\n");
        script.contains(&quoted) || script.contains(&format!("\n{command}\n"))
    };
    let orders = block("README.md", CURL_FAULT);
    let orders = orders.text.lines().map(|line| line.split("  #").next().unwrap_or_default());
    let orders: Vec<_> = orders.map(|line| line.trim_end().to_owned()).collect();
    assert_eq!(orders.len(), 4, "three commands, the first of two lines: {orders:?}");
    for command in commands().iter().chain(&orders) {
        assert!(has(command), "{TRY} does not run {command}");
    }
}

/// Every command about it in the documents has a verb and flags of the list above, and names services
/// that there are.
fn commands_fit(services: &Mapping) {
    let mut seen = BTreeSet::new();
    for command in commands() {
        let mut words = command[COMMAND.len()..].split_whitespace();
        let verb = words.next().expect("a verb");
        let known = VERBS.iter().find(|(known, _)| *known == verb);
        let (verb, flags) = known.unwrap_or_else(|| panic!("{command}"));
        seen.insert(*verb);
        for word in words {
            let fits = if word.starts_with('-') {
                flags.contains(&word)
            } else {
                services.contains_key(word)
            };
            assert!(fits, "'{word}' of {command}");
        }
    }
    assert_eq!(seen.len(), VERBS.len(), "{seen:?}");
}

/// What it names is there, it says when it is healthy, and it is started again when it dies.
fn is_whole(name: &str, service: &Value, file: &Value) {
    assert!(service["image"].is_string(), "{name}");
    assert!(service["healthcheck"]["test"].is_sequence(), "{name} says when it is healthy");
    assert_eq!(service["restart"], "unless-stopped", "{name}");
    for (other, how) in service["depends_on"].as_mapping().into_iter().flatten() {
        let other = other.as_str().expect("a name");
        assert_eq!(how["condition"], "service_healthy", "{name} waits for {other}");
        assert!(file["services"][other].is_mapping(), "{name} waits for {other}");
    }
    if let Some(build) = service["build"].as_str() {
        assert!(root().join(build).join("Dockerfile").is_file(), "{name} is built");
    }
    for volume in service["volumes"].as_sequence().into_iter().flatten() {
        let volume = volume.as_str().expect("a short form");
        let source = volume.split(':').next().unwrap_or_default();
        let is_there = match source.strip_prefix("./") {
            Some(path) => root().join(path).is_file(),
            None => file["volumes"].as_mapping().is_some_and(|all| all.contains_key(source)),
        };
        assert!(is_there, "{name} mounts {volume}");
    }
}

/// Published where the documents say, at the port on which it listens and is asked for its health.
fn is_reached_at(address: &str, service: &Value) {
    let listens = service["environment"]["HALFMSG_LISTEN"].as_str().expect("an address");
    let (_, port) = listens.split_once(':').expect("a port");
    let published: Vec<_> = service["ports"].as_sequence().into_iter().flatten().collect();
    assert_eq!(published, [&Value::from(format!("{address}:{port}"))]);
    let asked = service["healthcheck"]["test"].as_sequence().and_then(|test| test.last());
    let expected = format!("http://127.0.0.1:{port}/health/ready");
    assert_eq!(asked.and_then(Value::as_str), Some(expected.as_str()));
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    assert!(readme.contains(address), "README.md says {address}");
}

/// Its environment as flags: each is a setting of the service, which its command names.
fn settings<P: Parser>(service: &Value) -> P {
    let command = P::command();
    assert_eq!(service["command"][0], command.get_name());
    let mut arguments = vec![command.get_name().to_owned()];
    for (name, value) in service["environment"].as_mapping().expect("its environment") {
        let name = name.as_str().expect("a name");
        let mut known = command.get_arguments();
        let flag = known.find(|one| one.get_env().is_some_and(|env| env == name));
        let flag = flag.and_then(clap::Arg::get_long);
        let flag = flag.unwrap_or_else(|| panic!("{} has no setting {name}", arguments[0]));
        let value = match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            // YAML's own words for switches.
            Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
            other => panic!("{name} is {other:?}"),
        };
        arguments.push(format!("--{flag}={value}"));
    }
    parse_flags(arguments).unwrap_or_else(|error| panic!("{error}"))
}
