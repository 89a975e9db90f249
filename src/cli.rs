//! The operator's command line. It talks to the brokers and databases, not to the service, so it helps
//! when the service is down; only `check` needs a running replica, because only the application knows what
//! became of its local transaction.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused (needs force, contradicts
//! the check, closed already), 5 Kafka away, 6 incomplete: a list shows what it can, 7 stored, and its
//! effect could not be seen: look again.
//!
//! # Layout
//! - [`cluster`]: which group of which cluster; [`progress`]: the bar while a look at it takes long
//! - [`halves`]: seeing and settling half messages; [`check`]: asking the application
//! - [`journal`]: what operators did
//! - [`watch`]: the changes, live
//! - [`store`]: the group's topics and progress
//! - [`migrate`]: the schemas of the services
//! - [`dead_letters`]: what a consumer has given up on, in its database
//! - [`output`]: text and JSON; [`failure`]: exit codes

mod check;
mod cluster;
mod dead_letters;
mod failure;
mod halves;
mod journal;
mod migrate;
mod output;
mod progress;
mod store;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;
use clap_complete::Shell;

use failure::Failure;
use output::Output;

/// What an operator can do.
#[derive(Subcommand)]
pub(crate) enum Operate {
    /// Lists the open half messages
    Pending(halves::ListArgs),
    /// Lists the parked half messages, with the reason of each
    Parked(halves::ParkedArgs),
    /// Shows a half message with payload and history
    Show(halves::ShowArgs),
    /// Delivers a half message, open or parked
    Commit(halves::SettleArgs),
    /// Drops a half message, open or parked
    Rollback(halves::SettleArgs),
    /// Asks the application now what became of the local transaction
    Check(check::CheckArgs),
    /// Opens a parked half message again; the application is asked at once
    Resume(halves::SettleArgs),
    /// Shows half messages as they come, change and go, until Ctrl-C
    Watch(watch::WatchArgs),
    /// Sends a delivered message again, with the same transaction id
    Redeliver(halves::SettleArgs),
    /// Lists what operators did, newest first: who, when, why, and how it ended
    Journal(journal::JournalArgs),
    /// Verifies the group's own topics, or creates those that are missing
    Topics(store::TopicsArgs),
    /// Sets where the replay of a partition begins; all replicas must be stopped
    ResetProgress(store::ResetArgs),
    /// Passes a record of a newer format, at which its partition stands still
    Skip(store::SkipArgs),
    /// Brings the schema of a service's database up to date
    Migrate(migrate::MigrateArgs),
    /// Lists, replays and discards messages that a consumer has given up on
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// Prints the completion script of a shell
    Completion {
        /// The shell
        shell: Shell,
    },
}

impl Operate {
    /// Does it, and says how it went.
    pub(crate) async fn run(self, program: &mut clap::Command) -> ExitCode {
        let output = self.output();
        let done = match self {
            Self::Pending(args) => args.run(halfmsg_producer::HalfState::Open).await,
            Self::Parked(args) => args.run().await,
            Self::Show(args) => args.run().await,
            Self::Commit(args) => args.run(halves::Settle::Commit).await,
            Self::Rollback(args) => args.run(halves::Settle::Rollback).await,
            Self::Resume(args) => args.run(halves::Settle::Resume).await,
            Self::Redeliver(args) => args.run(halves::Settle::Redeliver).await,
            Self::Check(args) => args.run().await,
            Self::Watch(args) => args.run().await,
            Self::Journal(args) => args.run().await,
            Self::Topics(args) => args.run().await,
            Self::ResetProgress(args) => args.run().await,
            Self::Skip(args) => args.run().await,
            Self::Migrate(args) => args.run().await,
            Self::DeadLetters(command) => command.run().await,
            Self::Completion { shell } => {
                clap_complete::generate(shell, program, "halfmsg", &mut std::io::stdout());
                Ok(())
            }
        };
        done.map_or_else(|failure| failure.report(output), |()| ExitCode::SUCCESS)
    }

    fn output(&self) -> Output {
        match self {
            Self::Pending(args) => args.cluster.output,
            Self::Parked(args) => args.list.cluster.output,
            Self::Show(args) => args.cluster.output,
            Self::Commit(args)
            | Self::Rollback(args)
            | Self::Resume(args)
            | Self::Redeliver(args) => args.cluster.output,
            Self::Check(args) => args.output,
            Self::Watch(args) => args.cluster.output,
            Self::Journal(args) => args.list.cluster.output,
            Self::Topics(args) => args.cluster.output,
            Self::ResetProgress(args) => args.cluster.output,
            Self::Skip(args) => args.cluster.output,
            Self::DeadLetters(command) => command.output(),
            Self::Migrate(args) => args.output,
            Self::Completion { .. } => Output::Text,
        }
    }
}

/// How a command ends.
type Done = Result<(), Failure>;
