//! What operators did, who and why.

use halfmsg_producer::{ActView, JournalFilter, TransactionId};

use super::Done;
use super::halves::{ListArgs, all_shown};
use super::output::{self, Output};

/// `halfmsg journal`.
#[derive(Debug, clap::Args)]
pub(crate) struct JournalArgs {
    /// Only what was done about the message with this transaction id
    #[arg(long)]
    id: Option<TransactionId>,
    #[command(flatten)]
    pub(crate) list: ListArgs,
}

impl JournalArgs {
    pub(crate) async fn run(self) -> Done {
        let ListArgs { limit, cursor, cluster } = self.list;
        let filter = JournalFilter { id: self.id, limit: limit.into(), cursor };
        let journal = cluster.client()?.journal(filter).await?;
        output::journal(cluster.output, &journal)?;
        if journal.unreadable > 0 && cluster.output == Output::Text {
            eprintln!(
                "halfmsg: {} records under the journal's keys could not be read",
                journal.unreadable
            );
        }
        all_shown(&journal.page.missing_partitions)
    }
}

/// What an act was about.
pub(super) fn of(act: &ActView) -> String {
    match (&act.transaction_id, act.offset) {
        (Some(id), _) => id.clone(),
        (None, Some(offset)) => format!("{}@{offset}", act.partition),
        (None, None) => format!("partition {}", act.partition),
    }
}

/// How it ended, in words.
pub(super) fn end(act: &ActView) -> &str {
    match (&act.ended_at, &act.transaction_id) {
        (Some(_), _) => &act.outcome,
        (None, Some(_)) => "its end is not written down: look at the message",
        (None, None) => "its end is not written down: look at the partition",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_whose_end_is_not_written_down_is_said_to_be_one() {
        let skip = ActView {
            began_at: String::new(),
            ended_at: None,
            operator: String::new(),
            action: "skip".into(),
            transaction_id: None,
            partition: 3,
            offset: Some(17),
            reason: String::new(),
            forced: None,
            outcome: "begun".into(),
        };
        assert_eq!(
            (of(&skip), end(&skip).ends_with("look at the partition")),
            ("3@17".into(), true)
        );
        let of_one = ActView { transaction_id: Some("id".into()), ..skip.clone() };
        assert_eq!(
            (of(&of_one), end(&of_one).ends_with("look at the message")),
            ("id".into(), true)
        );
        let ended = ActView { ended_at: Some(String::new()), outcome: "done".into(), ..of_one };
        assert_eq!(end(&ended), "done");
        assert_eq!(of(&ActView { offset: None, ..skip }), "partition 3");
    }
}
