//! The launcher. Without a command it runs everything on this machine with nothing installed; the
//! services and the health probe are commands of the same binary, so that one image and one
//! `cargo run` serve all.
//!
//! # Layout
//! - [`embedded`]: the demonstration: broker, databases, both services
//! - [`child`]: a service as a child process that is started again when it dies
//! - [`banner`]: what the demonstration prints
//! - [`health`]: the probe for containers
//! - [`cli`]: what operators see and do
//! - [`mod@bench`]: transactions per second and latency against a broker
//! - `reference`: a test that writes docs/configuration.md out of the settings' own definitions

mod banner;
mod bench;
mod child;
mod cli;
mod embedded;
mod health;
#[cfg(test)]
mod reference;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use halfmsg_service_kit::settings;

/// Half of what a transaction costs in this process is memory that comes and goes between threads, the
/// Kafka client's too: this one takes it all over from glibc's allocator, which is slower at that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Transactional half messages with check-back for Kafka.
///
/// Without a command: runs order-svc and stock-svc on an in-process broker and SQLite, to try it
/// out. Nothing is kept after it ends.
///
/// Exit codes of the operators' commands: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused,
/// 5 Kafka away, 6 incomplete, 7 stored and its effect not seen.
#[derive(Parser)]
#[command(name = "halfmsg", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    embedded: embedded::EmbeddedArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the order service
    OrderSvc(Box<order_svc::Settings>),
    /// Runs the stock service
    StockSvc(Box<stock_svc::Settings>),
    /// Asks a health address; exit code 0 if it answers with success
    Health(health::HealthArgs),
    /// Measures transactions per second and latency against a broker
    Bench(bench::BenchArgs),
    #[command(flatten)]
    Operate(cli::Operate),
}

fn main() -> ExitCode {
    let cli: Cli = settings::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("halfmsg: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli));
    // Nothing that still blocks (a look-up of a broker that is away) may hold the end up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("halfmsg: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        None => embedded::run(cli.embedded).await?,
        Some(Command::OrderSvc(settings)) => order_svc::main(*settings).await?,
        Some(Command::StockSvc(settings)) => stock_svc::main(*settings).await?,
        Some(Command::Health(args)) => return Ok(health::probe(&args).await),
        Some(Command::Bench(args)) => bench::run(args).await?,
        Some(Command::Operate(operate)) => return Ok(operate.run(&mut Cli::command()).await),
    }
    Ok(ExitCode::SUCCESS)
}
