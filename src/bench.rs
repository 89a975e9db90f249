//! `halfmsg bench`: the engine beside the least that could do its work, on one broker.
//!
//! The bare loop writes HALF, COMMIT and target records with nothing else: no ledger to speak of, no
//! timers, no checks. It runs twice in each emission: as the client is by default, which lets records wait
//! 5 ms for company (the reference), and without that wait (bare), which no loop here has outrun. Rounds of all kinds are interleaved, so that what a machine does at some minute
//! hits all of them; each run is a process of its own, so that CPU and memory are its own. Figures
//! compare with figures of the same invocation only; the in-process broker says nothing about Kafka.
//!
//! # Layout
//! - `run`: one run, in its own process: warm-up, full speed, two latencies, the audit
//! - `bare`, `engine`: what is measured; `check_back`: unresolved halves; `large`: memory; `replay`
//! - `stock`: stock-svc's database work, alone and together
//! - `phase`: the transactions of one phase and when they were committed
//! - `reader`: sees them; `audit`: counts what the target holds at the end
//! - `topics`, `usage`, `report`: topics of a run, what it used, what is printed

use std::process::Stdio;

use anyhow::{Context, ensure};

mod audit;
mod bare;
mod check_back;
mod engine;
mod large;
mod phase;
mod reader;
mod replay;
mod report;
mod run;
mod stock;
mod topics;
mod usage;

use report::{Figures, Report};

/// Passed on to the runs' processes, too: a value may be a secret, which no command line may show.
const KAFKA_PROPERTIES: &str = "HALFMSG_KAFKA_PROPERTIES";
/// Rounds of one invocation.
const MAX_RUNS: u32 = 1_000;

/// `halfmsg bench`.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct BenchArgs {
    /// host:port of the brokers; unset, the in-process broker (the engine at-least-once only)
    #[arg(long, env = "KAFKA_BROKERS", default_value = "")]
    brokers: String,
    /// librdkafka properties for every client of every kind: name=value, separated by commas
    #[arg(
        long,
        env = KAFKA_PROPERTIES,
        default_value = "",
        hide_default_value = true,
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    kafka_properties: String,
    /// What to run
    #[arg(long, value_enum, default_value = "all")]
    mode: Mode,
    /// Rounds; each runs every kind once
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Transactions at full speed
    #[arg(long, default_value_t = 300_000)]
    transactions: u64,
    /// Transactions under way at once
    #[arg(long, default_value_t = 4_096)]
    in_flight: u64,
    /// Bytes of each payload, 16 at least
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    /// Transactions per second at low load
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Seconds at low load, and again at 70 % load; 0 leaves both out
    #[arg(long, default_value_t = 10)]
    latency_seconds: u64,
    /// Half messages that the check-back resolves
    #[arg(long, default_value_t = 20_000)]
    halves: u64,
    /// With --mode stock: where; unset, SQLite in a temporary directory
    #[arg(long, env = "DATABASE_URL", default_value = "", hide_env_values = true)]
    database_url: String,
    /// With --mode stock: deductions of each run
    #[arg(long, default_value_t = 10_000)]
    deductions: u64,
    /// With --mode stock: messages of a transaction that restores, as HALFMSG_MESSAGES_TOGETHER
    #[arg(long, default_value_t = stock_svc::service::DEFAULT_MESSAGES)]
    messages: usize,
    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
    /// One run in this process, its figures as a line of JSON: what the command starts itself
    #[arg(long, hide = true)]
    one: bool,
}

/// What is measured.
#[derive(
    clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Every kind, interleaved
    All,
    /// The bare loop with the client's own linger of 5 ms, whatever is set by hand, at-least-once
    ReferenceAlo,
    /// The bare loop with the linger that is set by hand, else none, at-least-once
    BareAlo,
    /// The engine, at-least-once
    EngineAlo,
    /// The bare loop with the client's own linger of 5 ms, whatever is set by hand, exactly-once
    ReferenceEos,
    /// The bare loop with the linger that is set by hand, else none, exactly-once
    BareEos,
    /// The engine, exactly-once
    EngineEos,
    /// Unresolved half messages that the check-back commits
    CheckBack,
    /// The same after a restart, with more payload than the budget: the memory that it takes
    Memory,
    /// A restart with a long log behind an open half message: records replayed per second
    Replay,
    /// Deductions and restores of stock-svc, together and in a transaction each; without Kafka
    Stock,
}

impl Mode {
    fn rounds(self, embedded: bool) -> &'static [Self] {
        match self {
            // The in-process broker knows no transactions, and forgets what is beyond 5 MiB.
            Self::All if embedded => &[Self::EngineAlo],
            Self::All => &[
                Self::ReferenceAlo,
                Self::BareAlo,
                Self::EngineAlo,
                Self::ReferenceEos,
                Self::BareEos,
                Self::EngineEos,
                Self::CheckBack,
            ],
            Self::ReferenceAlo => &[Self::ReferenceAlo],
            Self::BareAlo => &[Self::BareAlo],
            Self::EngineAlo => &[Self::EngineAlo],
            Self::ReferenceEos => &[Self::ReferenceEos],
            Self::BareEos => &[Self::BareEos],
            Self::EngineEos => &[Self::EngineEos],
            Self::CheckBack => &[Self::CheckBack],
            Self::Memory => &[Self::Memory],
            Self::Replay => &[Self::Replay],
            // It has rounds of its own.
            Self::Stock => &[],
        }
    }

    /// The name as it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::ReferenceAlo => "reference-alo",
            Self::ReferenceEos => "reference-eos",
            Self::BareAlo => "bare-alo",
            Self::EngineAlo => "engine-alo",
            Self::BareEos => "bare-eos",
            Self::EngineEos => "engine-eos",
            Self::CheckBack => "check-back",
            Self::Memory => "memory",
            Self::Replay => "replay",
            Self::Stock => "stock",
        }
    }
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Table,
    Json,
}

/// Runs and prints.
///
/// # Errors
/// A broker that does not answer; a message that was lost, or seen twice where that must not be.
pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    validate(&args)?;
    if args.one {
        let figures = run::one(&args).await?;
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    if args.mode == Mode::Stock {
        return stock::run(&args).await;
    }
    let mut report = Report::default();
    for round in 1..=args.runs {
        for mode in args.mode.rounds(args.brokers.is_empty()) {
            let figures = child(&args, *mode)
                .await
                .with_context(|| format!("round {round}, {}", mode.name()))?;
            eprintln!("round {round}: {figures}");
            report.add(figures);
        }
    }
    match args.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report.summary())?),
    }
    report.verdict()
}

pub(crate) fn validate(args: &BenchArgs) -> anyhow::Result<()> {
    ensure!(args.payload_bytes >= phase::STAMP_BYTES, "--payload-bytes must be 16 at least");
    ensure!((1..=MAX_RUNS).contains(&args.runs), "--runs must be 1 to {MAX_RUNS}");
    for (name, value, most) in [
        ("--transactions", args.transactions, 100_000_000),
        ("--in-flight", args.in_flight, 50_000),
        ("--rate", args.rate, 1_000_000),
        ("--halves", args.halves, 10_000_000),
        ("--deductions", args.deductions, 100_000_000),
    ] {
        ensure!((1..=most).contains(&value), "{name} is {value}: it must be 1 to {most}");
    }
    let needs_kafka =
        !matches!(args.mode, Mode::All | Mode::EngineAlo | Mode::CheckBack | Mode::Stock);
    ensure!(
        !(args.brokers.is_empty() && needs_kafka),
        "--mode {} needs --brokers: the in-process broker knows no transactions",
        args.mode.name()
    );
    ensure!(!args.one || args.mode != Mode::All, "--one needs a --mode");
    Ok(())
}

/// One run as a process of its own.
async fn child(args: &BenchArgs, mode: Mode) -> anyhow::Result<Figures> {
    let program = std::env::current_exe().context("this program's own file")?;
    let numbers = [
        ("--transactions", args.transactions),
        ("--in-flight", args.in_flight),
        ("--payload-bytes", args.payload_bytes as u64),
        ("--rate", args.rate),
        ("--latency-seconds", args.latency_seconds),
        ("--halves", args.halves),
    ];
    let mut command = tokio::process::Command::new(program);
    command.args(["bench", "--one", "--brokers", &args.brokers, "--mode", mode.name()]);
    for (name, value) in numbers {
        command.arg(name).arg(value.to_string());
    }
    let output = command
        .env(KAFKA_PROPERTIES, &args.kafka_properties)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .context("starting the run's process")?;
    ensure!(output.status.success(), "the run failed ({})", output.status);
    serde_json::from_slice(&output.stdout).context("the run printed something else than figures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_both_bare_loops_before_the_engine_in_both_emissions() {
        let round = Mode::All.rounds(false);
        for all in [
            [Mode::ReferenceAlo, Mode::BareAlo, Mode::EngineAlo],
            [Mode::ReferenceEos, Mode::BareEos, Mode::EngineEos],
        ] {
            assert!(round.windows(3).any(|found| found == all), "{round:?}");
        }
    }
}
