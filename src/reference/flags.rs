//! What clap knows of flags and variables. A service's setting is proven to be read, and its bounds
//! are learnt, by giving it a wrong value and hearing what the service says.

use clap::{Arg, ArgAction, Command, CommandFactory, Parser};
use halfmsg_service_kit::settings::parse_flags;
use halfmsg_service_kit::telemetry::DEFAULT_FILTER;
use halfmsg_service_kit::{DeliverySettings, Mistakes};

use crate::bench::{self, BenchArgs};
use crate::{Cli, Command as Program};

/// No setting takes it: it is no number, no switch, no name, no address. A filter of the log does.
const WRONG: &str = "a b";
const WRONG_FILTER: &str = "x=loud";
const SERVICES: [&str; 2] = ["order-svc", "stock-svc"];

/// A setting with those who read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    name: String,
    default: String,
    must_be: String,
    meaning: String,
    readers: Vec<String>,
}

impl Row {
    pub(super) fn line(&self) -> String {
        let Self { name, default, must_be, meaning, readers } = self;
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|");
        let cells = [default, must_be, meaning].map(|text| escaped(text));
        let [default, must_be, meaning] = cells;
        format!("| {name} | {default} | {must_be} | {meaning} | {} |", readers.join(", "))
    }

    /// The same setting of another command: one row for both.
    fn is_like(&self, other: &Self) -> bool {
        let key = |row: &Self| {
            (row.name.clone(), row.default.clone(), row.must_be.clone(), row.meaning.clone())
        };
        key(self) == key(other)
    }
}

pub(super) fn services() -> Vec<Row> {
    let mut rows = Vec::new();
    for service in SERVICES {
        let command = sub(service);
        for argument in own(&command) {
            let must_be = told_by_service(service, argument);
            let default = service_default(service, argument);
            add(&mut rows, row(argument, default, must_be, service));
        }
    }
    rows
}

/// Every command but the services, the probe and the measurement.
pub(super) fn operators() -> Vec<Row> {
    let mut rows = Vec::new();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        if !SERVICES.contains(&name) && !["health", "bench", "help"].contains(&name) {
            of_command(&mut rows, name, command);
        }
    }
    rows
}

pub(super) fn rest() -> Vec<Row> {
    let mut rows = Vec::new();
    for argument in own(&Cli::command()) {
        add(&mut rows, row(argument, default(argument), range(&[], argument), "halfmsg"));
    }
    of_command(&mut rows, "health", &sub("health"));
    for argument in own(&sub("bench")) {
        let must_be = match told_by_bench(argument) {
            said if said.is_empty() => range(&["bench"], argument),
            said => said,
        };
        add(&mut rows, row(argument, default(argument), must_be, "bench"));
    }
    rows
}

fn of_command(rows: &mut Vec<Row>, path: &str, command: &Command) {
    let words: Vec<&str> = path.split(' ').collect();
    for argument in own(command) {
        add(rows, row(argument, default(argument), range(&words, argument), path));
    }
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        of_command(rows, &format!("{path} {}", below.get_name()), below);
    }
}

fn sub(name: &str) -> Command {
    let command = Cli::command();
    command.find_subcommand(name).unwrap_or_else(|| panic!("no command {name}")).clone()
}

/// What a person may set.
fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    let shown = |argument: &&Arg| !argument.is_hide_set() && argument.get_id() != "help";
    command.get_arguments().filter(shown).filter(|argument| argument.get_id() != "version")
}

fn add(rows: &mut Vec<Row>, new: Row) {
    match rows.iter_mut().find(|row| row.is_like(&new)) {
        Some(row) => row.readers.extend(new.readers),
        None => rows.push(new),
    }
}

fn row(argument: &Arg, default: String, must_be: String, reader: &str) -> Row {
    let flag = argument.get_long().map(|long| format!("`--{long}`"));
    let variable = argument.get_env().and_then(|name| name.to_str());
    let variable = variable.map(|name| format!("`{name}`"));
    let position = || format!("`<{}>`", argument.get_id().as_str().to_uppercase());
    let name = [variable, flag].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let name = if name.is_empty() { position() } else { name };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    assert!(!help.is_empty(), "{name} has no meaning");
    Row { name, default, must_be, meaning: help, readers: vec![format!("`{reader}`")] }
}

fn default(argument: &Arg) -> String {
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return "off".into();
    }
    let values = argument.get_default_values().iter().filter_map(|value| value.to_str());
    let values = values.filter(|value| !value.is_empty()).collect::<Vec<_>>().join(",");
    if values.is_empty() { values } else { format!("`{values}`") }
}

/// Where a service finds the default itself, what it finds.
fn service_default(service: &str, argument: &Arg) -> String {
    let least = [service, "--kafka-brokers=k:1", "--database-url=sqlite://x"];
    let found = match (service, argument.get_env().and_then(|name| name.to_str())) {
        (_, Some("HALFMSG_RETRY_LEVELS_MS")) => {
            let mut levels = parse_flags::<Delivered>(["x"]).expect("nothing is needed").delivery;
            levels.retry_levels_ms = None;
            let read = levels.read(&mut Mistakes::new()).expect("the defaults are right");
            let delays = read.retry.delays.iter().map(|delay| delay.as_millis().to_string());
            delays.collect::<Vec<_>>().join(",")
        }
        ("order-svc", Some(name)) => {
            let settings: order_svc::Settings = parse_flags(least).expect("known flags");
            let Ok(config) = settings.validate() else { panic!("the defaults are right") };
            match name {
                "HALFMSG_LISTEN" => config.common.listen.to_string(),
                "HALFMSG_LOG" => DEFAULT_FILTER.to_owned(),
                "HALFMSG_EMISSION" => config.producer.emission.as_str().to_owned(),
                _ => return default(argument),
            }
        }
        (_, Some(name)) => {
            let settings: stock_svc::Settings = parse_flags(least).expect("known flags");
            let Ok(config) = settings.validate() else { panic!("the defaults are right") };
            match name {
                "HALFMSG_LISTEN" => config.common.listen.to_string(),
                "HALFMSG_LOG" => DEFAULT_FILTER.to_owned(),
                _ => return default(argument),
            }
        }
        (_, None) => return default(argument),
    };
    format!("`{found}`")
}

/// The consumers' settings alone.
#[derive(Parser)]
struct Delivered {
    #[command(flatten)]
    delivery: DeliverySettings,
}

/// What a service says to a wrong value: that it says anything proves that it reads it.
fn told_by_service(service: &str, argument: &Arg) -> String {
    let flag = argument.get_long().expect("every setting of a service is a flag");
    let name = argument.get_env().and_then(|name| name.to_str()).expect("and a variable");
    let wrong = if flag == "log" { WRONG_FILTER } else { WRONG };
    let mut arguments = vec![service.to_owned(), format!("--{flag}={wrong}")];
    for (least, value) in [("kafka-brokers", "k:1"), ("database-url", "sqlite://x")] {
        if flag != least {
            arguments.push(format!("--{least}={value}"));
        }
    }
    let mistakes = match service {
        "order-svc" => {
            parse_flags(arguments).map(|settings: order_svc::Settings| settings.validate().err())
        }
        _ => parse_flags(arguments).map(|settings: stock_svc::Settings| settings.validate().err()),
    };
    let mistakes = mistakes.expect("known flags").map_or_else(Vec::new, |all| all.lines().to_vec());
    let said = mistakes.iter().find(|line| line.starts_with(name));
    let said = said.unwrap_or_else(|| panic!("{service} does not look at {name}: {mistakes:?}"));
    must_be(said).unwrap_or_else(|| panic!("'{said}' does not say what {name} must be"))
}

/// What the measurement says to nothing and to too much.
fn told_by_bench(argument: &Arg) -> String {
    let flag = format!("--{}", argument.get_long().unwrap_or_default());
    let wrong = |value: &str| {
        let read = Cli::try_parse_from(["halfmsg", "bench", &flag, value]).ok()?;
        let Some(Program::Bench(args)) = read.command else { return None };
        let args: BenchArgs = args;
        let said = bench::validate(&args).err()?.to_string();
        said.starts_with(&flag).then(|| must_be(&said)).flatten()
    };
    wrong("0").unwrap_or_default()
}

fn must_be(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("must be ")?;
    let rest = rest.split([';', '\n']).next()?;
    Some(rest.strip_suffix(", and is not").unwrap_or(rest).to_owned())
}

/// The values that clap takes, if it knows.
fn range(words: &[&str], argument: &Arg) -> String {
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return String::new();
    }
    let named: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !named.is_empty() {
        return named.join(", ");
    }
    let Some(flag) = argument.get_long() else { return String::new() };
    let wrong = format!("--{flag}={}", i64::MAX);
    let arguments = ["halfmsg"].iter().chain(words).copied().chain([wrong.as_str()]);
    let Err(error) = Cli::try_parse_from(arguments) else { return String::new() };
    let said = error.to_string();
    let bounds = said.split_once(" is not in ").map(|(_, rest)| rest);
    let bounds = bounds.and_then(|rest| rest.lines().next()).unwrap_or_default();
    let bounds = bounds.trim();
    // All that the type holds is no bound.
    if bounds.starts_with(&i32::MIN.to_string()) {
        return String::new();
    }
    bounds.replacen("..=", " to ", 1).replacen("..", " to below ", 1)
}
