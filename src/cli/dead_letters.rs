//! Messages that a consumer has given up on, straight in its database: the service may be down.
//!
//! A replay is queued, because only the service has the handler: a running replica, or the next one
//! that starts, carries it out.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use halfmsg_consumer::{DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterStore};
use halfmsg_service_kit::db::{DbOptions, connect};
use serde_json::json;
use uuid::Uuid;

use super::Done;
use super::failure::{Exit, Failure};
use super::output::{self, Output};

/// `halfmsg dead-letters`.
#[derive(clap::Subcommand)]
pub(crate) enum DeadLetters {
    /// Lists them, the newest first
    List(ListArgs),
    /// Shows one, with its payload
    Show(ShowArgs),
    /// Queues one, or all open ones of a filter, for a replay by the service
    Replay(ReplayArgs),
    /// Gives one up for good, open or queued
    Discard(DiscardArgs),
}

impl DeadLetters {
    pub(crate) async fn run(self) -> Done {
        match self {
            Self::List(args) => args.run().await,
            Self::Show(args) => args.run().await,
            Self::Replay(args) => args.run().await,
            Self::Discard(args) => args.run().await,
        }
    }

    pub(crate) fn output(&self) -> Output {
        match self {
            Self::List(args) => args.place.output,
            Self::Show(args) => args.place.output,
            Self::Replay(args) => args.place.output,
            Self::Discard(args) => args.place.output,
        }
    }
}

/// Whose dead letters.
#[derive(clap::Args)]
struct Place {
    /// postgres://user:password@host:5432/name or sqlite:///path/file.db
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// The consumer group
    #[arg(long, default_value = stock_svc::settings::NAME)]
    subscriber: String,
    /// How results are printed
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

impl Place {
    async fn open(&self) -> Result<DeadLetterStore, Failure> {
        let options =
            DbOptions { application: "halfmsg-dead-letters".into(), ..DbOptions::default() };
        let database = connect(&self.database_url, &options).await.map_err(Failure::failed)?;
        Ok(DeadLetterStore::new(database, &self.subscriber))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Open,
    Queued,
    Replayed,
    Discarded,
}

impl From<State> for DeadLetterState {
    fn from(state: State) -> Self {
        match state {
            State::Open => Self::Open,
            State::Queued => Self::Queued,
            State::Replayed => Self::Replayed,
            State::Discarded => Self::Discarded,
        }
    }
}

#[derive(clap::Args)]
struct Filter {
    /// Of this topic
    #[arg(long)]
    topic: Option<String>,
    /// With this text in the cause
    #[arg(long)]
    cause: Option<String>,
    /// That failed last at this moment or later, as 2026-01-31T12:00:00Z
    #[arg(long)]
    since: Option<DateTime<Utc>>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.topic.is_none() && self.cause.is_none() && self.since.is_none()
    }

    fn with(self, state: Option<DeadLetterState>) -> DeadLetterFilter {
        DeadLetterFilter { topic: self.topic, cause: self.cause, since: self.since, state }
    }
}

/// `halfmsg dead-letters list`.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// In this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// At most so many, up to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
    /// Where the last list ended
    #[arg(long)]
    cursor: Option<Uuid>,
    #[command(flatten)]
    place: Place,
}

impl ListArgs {
    async fn run(self) -> Done {
        let limit = usize::from(self.limit);
        let filter = self.filter.with(self.state.map(Into::into));
        let store = self.place.open().await?;
        let found = store.list(&filter, self.cursor, u64::from(self.limit) + 1).await;
        let mut items = found.map_err(Failure::failed)?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|letter| letter.id);
        if self.place.output == Output::Json {
            return output::json(&json!({ "items": items, "next_cursor": next_cursor }));
        }
        if items.is_empty() {
            println!("no dead letters");
            return Ok(());
        }
        println!("{}", table(&items));
        if let Some(cursor) = next_cursor {
            println!("there are more: --cursor {cursor}");
        }
        Ok(())
    }
}

fn table(letters: &[DeadLetter]) -> comfy_table::Table {
    let header = ["ID", "STATE", "PLACE", "KEY", "ATTEMPTS", "LAST FAILED", "CAUSE"];
    let mut table = output::plain(&header);
    for letter in letters {
        table.add_row([
            letter.id.to_string(),
            letter.state.to_string(),
            place(letter),
            output::cell(letter.key.as_deref().unwrap_or("-")),
            letter.attempts.to_string(),
            letter.last_failed_at.to_rfc3339(),
            output::cell(&letter.cause),
        ]);
    }
    table
}

fn place(letter: &DeadLetter) -> String {
    format!("{}[{}]@{}", output::cell(&letter.topic), letter.partition, letter.offset)
}

/// `halfmsg dead-letters show`.
#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The dead letter
    id: Uuid,
    #[command(flatten)]
    place: Place,
}

impl ShowArgs {
    async fn run(self) -> Done {
        let found = self.place.open().await?.find(self.id).await.map_err(Failure::failed)?;
        let none = || Failure::new(Exit::NotFound, "not_found", format!("there is no {}", self.id));
        show(self.place.output, &found.ok_or_else(none)?)
    }
}

fn show(output: Output, letter: &DeadLetter) -> Done {
    if output == Output::Json {
        return output::json(letter);
    }
    let line = |name: &str, value: &str| println!("{name:<14} {}", output::printable(value));
    let at = |at: Option<DateTime<Utc>>| at.map_or_else(|| "-".into(), |at| at.to_rfc3339());
    line("id", &letter.id.to_string());
    line("state", &letter.state.to_string());
    line("transaction id", &letter.transaction_id.map_or_else(|| "-".into(), |id| id.to_string()));
    line("place", &place(letter));
    line("key", letter.key.as_deref().unwrap_or("-"));
    line("attempts", &letter.attempts.to_string());
    line("first failed", &letter.first_failed_at.to_rfc3339());
    line("last failed", &letter.last_failed_at.to_rfc3339());
    line("cause", &letter.cause);
    line("replayed", &at(letter.replayed_at));
    line("discarded", &at(letter.discarded_at));
    if let Some(reason) = &letter.discard_reason {
        line("reason", reason);
    }
    if let Some(payload) = &letter.payload {
        println!("\npayload\n{}", output::printable(payload));
    }
    Ok(())
}

/// `halfmsg dead-letters replay`.
#[derive(clap::Args)]
pub(crate) struct ReplayArgs {
    /// The dead letter; without it, those of the filter
    #[arg(conflicts_with_all = ["all", "topic", "cause", "since"])]
    id: Option<Uuid>,
    /// All open ones
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// So many a second become due; what became due while no replica ran is tried at once
    #[arg(long, default_value_t = NonZeroU32::new(10).unwrap_or(NonZeroU32::MIN))]
    rate: NonZeroU32,
    #[command(flatten)]
    place: Place,
}

impl ReplayArgs {
    async fn run(self) -> Done {
        if self.id.is_none() && !self.all && self.filter.is_empty() {
            return Err(Failure::usage("say which: an id, --topic, --cause, --since, or --all"));
        }
        let (store, output) = (self.place.open().await?, self.place.output);
        let queued = match self.id {
            Some(id) => store.queue(id).await.map(|()| 1)?,
            None => {
                let queued = store.queue_all(&self.filter.with(None), Some(self.rate)).await;
                queued.map_err(Failure::failed)?
            }
        };
        if output == Output::Json {
            return output::json(&json!({ "queued": queued }));
        }
        println!("{queued} queued: a running replica replays them");
        Ok(())
    }
}

/// `halfmsg dead-letters discard`.
#[derive(clap::Args)]
pub(crate) struct DiscardArgs {
    /// The dead letter
    id: Uuid,
    /// Why; kept with it
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    place: Place,
}

impl DiscardArgs {
    async fn run(self) -> Done {
        if self.reason.trim().is_empty() {
            return Err(Failure::usage("--reason is empty"));
        }
        let letter = self.place.open().await?.discard(self.id, &self.reason).await?;
        if self.place.output == Output::Json {
            return output::json(&letter);
        }
        println!("{} is discarded", letter.id);
        Ok(())
    }
}
