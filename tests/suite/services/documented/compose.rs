//! A real Compose, and no engine: it reads docker-compose.yml as the tests read it, with defaults and
//! with every variable set, and every command of the documents gets as far as asking for the engine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_yaml_ng::Value;
use tokio::process::Command;

use super::composed::{self, COMMAND, FILE, OURS, VARIABLES};
use super::found::root;
use crate::suite::Env;

/// How Compose is called; scripts/test names it.
const COMPOSE: &str = "HALFMSG_TEST_COMPOSE";
/// Where no engine answers.
const NO_ENGINE: &str = "unix:///nonexistent/engine.sock";
const DEADLINE: Duration = Duration::from_secs(120);
/// What versions 1 and 2 say where they look for the engine in vain.
const ENGINE_AWAY: [&str; 2] =
    ["Cannot connect to the Docker daemon", "Error while fetching server API version"];
/// What version 1, which is Debian 12's, does not know: in the file, and of commands.
const NOT_IN_1: (&str, &str) = ("name: halfmsg\n", "--wait");

/// The Compose that is there.
struct Compose {
    words: Vec<String>,
    is_1: bool,
}

struct Ended {
    is_ok: bool,
    output: String,
    errors: String,
}

impl Compose {
    async fn find() -> Self {
        let words = std::env::var(COMPOSE).unwrap_or_else(|_| "docker compose".into());
        let words = words.split_whitespace().map(str::to_owned).collect();
        let mut found = Self { words, is_1: false };
        let version = found.run("version --short", &[]).await;
        assert!(version.is_ok, "{:?} does not run: {}", found.words, version.errors);
        found.is_1 = version.output.trim_start_matches('v').starts_with("1.");
        println!("Compose {}", version.output.trim());
        found
    }

    async fn run(&self, arguments: &str, variables: &[(&str, &str)]) -> Ended {
        let file = self.file();
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(["--file", "-", "--project-directory"]).arg(root());
        command.args(arguments.split_whitespace()).kill_on_drop(true);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.env("DOCKER_HOST", NO_ENGINE).envs(variables.iter().copied());
        let directory = tempfile::tempdir().expect("a temporary directory");
        let input = directory.path().join("input");
        std::fs::write(&input, file).expect("a file for its input");
        command.stdin(std::fs::File::open(&input).expect("the same"));
        let ended = tokio::time::timeout(DEADLINE, command.output()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it does not end: {arguments}"));
        let ended = ended.unwrap_or_else(|error| panic!("{:?}: {error}", self.words));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (output, errors) = (text(ended.stdout), text(ended.stderr));
        Ended { is_ok: ended.status.success(), output, errors }
    }

    fn file(&self) -> String {
        let text = std::fs::read_to_string(root().join(FILE)).expect("the composed demonstration");
        assert!(text.contains(NOT_IN_1.0), "its project has a name");
        if self.is_1 { text.replace(NOT_IN_1.0, "") } else { text }
    }
}

/// What Compose makes of the file is what the tests hold against the programs' settings.
pub(crate) async fn documented_compose_reads_the_file(_: Env) {
    let compose = Compose::find().await;
    let set = VARIABLES.map(|name| match name {
        "HALFMSG_ORDER_PORT" => (name, "9080"),
        "HALFMSG_STOCK_PORT" => (name, "9081"),
        "HALFMSG_FAULTS" => (name, "off"),
        _ => (name, "other"),
    });
    let mut seen = Vec::new();
    for variables in [&[][..], &set] {
        let ended = compose.run("config", variables).await;
        assert!(ended.is_ok, "{}", ended.errors);
        let read: Value = serde_yaml_ng::from_str(&ended.output).expect("YAML");
        let expected = composed::file(|name, default| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map_or(default, |(_, value)| value).to_owned()
        });
        let (read, expected) = (&read["services"], &expected["services"]);
        let names = |services: &Value| {
            let names = services.as_mapping().expect("services").keys();
            let mut names: Vec<_> = names.filter_map(Value::as_str).map(str::to_owned).collect();
            names.sort();
            names
        };
        assert_eq!(names(read), names(expected));
        for name in names(expected) {
            let (read, expected) = (&read[&name], &expected[&name]);
            assert_eq!(read["image"], expected["image"], "{name}");
            assert_eq!(environment(read), environment(expected), "{name}");
            assert_eq!(published(read), published(expected), "{name}");
        }
        seen.push(ended.output);
    }
    assert_ne!(seen[0], seen[1], "variables change something");
    for (name, value) in set.iter().filter(|(_, value)| value.starts_with("90")) {
        assert!(seen[1].contains(value) && !seen[0].contains(value), "{name}");
    }
}

/// Words and flags are known, and the services that are named are there: only the engine is missing.
pub(crate) async fn documented_compose_takes_the_commands(_: Env) {
    let compose = Compose::find().await;
    let mut commands = composed::commands();
    commands.push(format!("{COMMAND}down --volumes"));
    assert!(commands.len() > 3, "{commands:?}");
    for command in &commands {
        let command = command.strip_prefix(COMMAND).expect("one of Compose");
        let command = if compose.is_1 { command.replace(NOT_IN_1.1, "") } else { command.into() };
        let ended = compose.run(&command, &[]).await;
        let is_away = ENGINE_AWAY.iter().any(|words| ended.errors.contains(words));
        assert!(!ended.is_ok && is_away, "{command}: {}", ended.errors);
    }
    let wrong = compose.run("up --nonsense", &[]).await;
    let is_away = ENGINE_AWAY.iter().any(|words| wrong.errors.contains(words));
    assert!(!is_away, "what is wrong is found before: {}", wrong.errors);
}

/// As text: one version keeps numbers, the other does not.
fn environment(service: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(is) => is.to_string(),
        Value::Null => String::new(),
        other => panic!("{other:?}"),
    };
    let all = service["environment"].as_mapping().into_iter().flatten();
    all.map(|(name, value)| (text(name), text(value))).collect()
}

/// Where its ports are published: short, or in parts.
fn published(service: &Value) -> Vec<String> {
    let all = service["ports"].as_sequence().into_iter().flatten();
    let found = all.map(|port| match port.as_str() {
        Some(short) => short.trim_end_matches("/tcp").to_owned(),
        None => {
            let part = |name: &str| match &port[name] {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                other => panic!("{name} of {port:?}: {other:?}"),
            };
            [part("host_ip"), part("published"), part("target")].join(":")
        }
    });
    let found: Vec<_> = found.collect();
    assert!(found.len() <= OURS.len());
    found
}
