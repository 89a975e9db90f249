//! Seeing half messages, and settling them by hand.

use halfmsg_producer::{
    ForeignFilter, HalfFilter, HalfState, MissingPartition, OperatorRequest, TransactionId,
};

use super::Done;
use super::cluster::ClusterArgs;
use super::failure::{Exit, Failure};
use super::output::{self, Output};

/// `halfmsg pending`, and of `halfmsg parked` and `halfmsg journal` what is the same.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// At most so many, up to 1000
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(super) limit: u16,
    /// Where the last list ended
    #[arg(long)]
    pub(super) cursor: Option<String>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl ListArgs {
    pub(crate) async fn run(self, state: HalfState) -> Done {
        let client = self.cluster.client()?;
        let filter =
            HalfFilter { state: Some(state), limit: self.limit.into(), cursor: self.cursor };
        let page = client.list(filter).await?;
        let what = match state {
            HalfState::Open => "open",
            HalfState::Parked => "parked",
        };
        output::page(self.cluster.output, &page, what)?;
        all_shown(&page.missing_partitions)
    }
}

/// `halfmsg parked`.
#[derive(Debug, clap::Args)]
pub(crate) struct ParkedArgs {
    /// List the copies of records of the store that are none of ours, in place of half messages
    #[arg(long)]
    foreign: bool,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

impl ParkedArgs {
    pub(crate) async fn run(self) -> Done {
        if !self.foreign {
            return self.list.run(HalfState::Parked).await;
        }
        let ListArgs { limit, cursor, cluster } = self.list;
        let filter = ForeignFilter { limit: limit.into(), cursor };
        let page = cluster.client()?.foreign(filter).await?;
        output::foreign(cluster.output, &page)?;
        all_shown(&page.missing_partitions)
    }
}

/// A failure, behind the list of what there is to show, if not all is.
pub(super) fn all_shown(missing: &[MissingPartition]) -> Done {
    if missing.is_empty() {
        return Ok(());
    }
    let unseen = |of: &MissingPartition| match of.stopped {
        true => format!(
            "partition {} stands still, what lies behind is not shown: {}",
            of.partition, of.reason
        ),
        false => {
            format!("what is in partition {} is not shown: {}", of.partition, of.reason)
        }
    };
    let detail: Vec<String> = missing.iter().map(unseen).collect();
    Err(Failure::new(Exit::Incomplete, "incomplete", detail.join("; ")))
}

/// `halfmsg show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The transaction id
    id: TransactionId,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl ShowArgs {
    pub(crate) async fn run(self) -> Done {
        let detail = self.cluster.client()?.show(self.id).await?;
        output::detail(self.cluster.output, &detail)
    }
}

/// Who does it, and why: both are kept in the journal.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WhoAndWhy {
    /// Why; kept in the journal
    #[arg(long)]
    pub(crate) reason: String,
    /// Your name; kept in the journal
    #[arg(long, env = "USER")]
    pub(crate) operator: String,
    /// Do it although nobody can tell what became of the local transaction, or although messages
    /// are lost or repeated
    #[arg(long)]
    pub(crate) force: bool,
}

impl From<WhoAndWhy> for OperatorRequest {
    fn from(WhoAndWhy { reason, operator, force }: WhoAndWhy) -> Self {
        Self { operator, reason, force }
    }
}

/// `halfmsg commit|rollback|resume|redeliver`.
#[derive(Debug, clap::Args)]
pub(crate) struct SettleArgs {
    /// The transaction id
    id: TransactionId,
    #[command(flatten)]
    why: WhoAndWhy,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// What is to be done with a half message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    Commit,
    Rollback,
    Resume,
    Redeliver,
}

impl SettleArgs {
    pub(crate) async fn run(self, what: Settle) -> Done {
        let client = self.cluster.client()?;
        let (id, request, output) = (self.id, self.why.into(), self.cluster.output);
        let half = match what {
            Settle::Commit => client.commit(id, request).await?,
            Settle::Rollback => client.rollback(id, request).await?,
            Settle::Resume => client.resume(id, request).await?,
            Settle::Redeliver => {
                let copy = client.redeliver(id, request).await?;
                if output == Output::Json {
                    return output::json(&copy);
                }
                println!("{id} stands again at {}[{}]@{}", copy.topic, copy.partition, copy.offset);
                return Ok(());
            }
        };
        output::settled(output, &half)
    }
}
