//! What follows from the end of a batch: what is done, what goes out again, whom it is blamed on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use halfmsg_protocol::Progress;

use super::{Ended, Lane};
use crate::config::RETRY_DELAY;
use crate::resolver::emitter::{Item, JobEnd, Trouble, Work};

impl Lane {
    /// Takes the end of the batch under way in.
    pub(crate) fn ended(
        &mut self,
        items: Vec<Item>,
        progress: Option<Progress>,
        end: JobEnd,
    ) -> Ended {
        self.busy = false;
        self.busy_bytes = 0;
        self.under_way_since = None;
        let mut ended = Ended::default();
        let (troubles, none_is_done) = match end {
            JobEnd::Done(troubles) => (troubles, false),
            JobEnd::Aborted(troubles) => (troubles, true),
            // The lane is given up: whatever it was, the next owner finds what is stored.
            JobEnd::Lost(_) => return ended,
        };
        self.clears_ended(none_is_done);
        if !none_is_done && progress.is_some() {
            (self.stored, self.stored_at) = (progress, Some(Instant::now()));
            ended.stored = progress;
        }
        // What was only to be cleared has a pause of its own, and holds up nothing else.
        let only_clears = items.is_empty() && progress.is_none();
        if none_is_done && troubles.is_empty() && !only_clears {
            self.not_before = Some(Instant::now() + RETRY_DELAY);
        }
        let by_itself = items.len() == 1;
        let suspected = troubles.iter().any(|(_, of)| matches!(of, Trouble::Suspect(_)));
        let hold_until = Instant::now() + RETRY_DELAY;
        // A mark that failed is told behind all deliveries, and is about an item among them.
        let mut troubles: BTreeMap<usize, Trouble> = troubles.into_iter().collect();
        let mut again = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            match troubles.remove(&index) {
                None if none_is_done => again.push(item),
                None => ended.done.push((item.at, matches!(item.work, Work::Deliver(..)))),
                Some(Trouble::Refused(why)) => {
                    undeliverable(&item, &why);
                    ended.refused.push((item.at, why));
                }
                Some(Trouble::Suspect(why)) if by_itself => {
                    (self.suspected_up_to, self.cautious) = (None, Some(1));
                    match item.work {
                        Work::Deliver(..) => {
                            undeliverable(&item, &why);
                            ended.refused.push((item.at, why));
                        }
                        _ => again.push(self.too_large(item, why)),
                    }
                }
                Some(Trouble::Suspect(_)) => {
                    self.suspected_up_to = Some(item.at);
                    again.push(item);
                }
                Some(Trouble::Unmarked(why)) => {
                    let (transaction_id, key) = (item.transaction_id(), item.key());
                    let offset = item.at;
                    tracing::warn!(
                        transaction_id,
                        key,
                        offset,
                        why,
                        "a delivery is not marked yet"
                    );
                    let item = match item.work {
                        Work::Deliver(_, Some(of)) => Item { work: Work::Settle(of), ..item },
                        _ => item,
                    };
                    ended.unmarked.push(item.at);
                    self.trouble = Some((item.at, why));
                    self.held.insert(item.target().to_owned(), hold_until);
                    again.push(item);
                }
                Some(Trouble::Passing(why)) => {
                    let (transaction_id, key) = (item.transaction_id(), item.key());
                    let offset = item.at;
                    tracing::warn!(
                        transaction_id,
                        key,
                        offset,
                        why,
                        "an outcome is not carried out yet"
                    );
                    self.trouble = Some((item.at, why));
                    // It may only have been in the suspects' batch.
                    if !suspected {
                        self.held.insert(item.target().to_owned(), hold_until);
                    }
                    again.push(item);
                }
            }
        }
        let done = ended.done.iter().map(|(at, _)| at);
        let over: BTreeSet<&i64> = match self.trouble {
            Some(_) => done.chain(ended.refused.iter().map(|(at, _)| at)).collect(),
            None => BTreeSet::new(),
        };
        self.trouble.take_if(|(at, _)| over.contains(at));
        let delivered = ended.done.iter().any(|(_, delivered)| *delivered);
        if !suspected && (delivered || !ended.unmarked.is_empty()) {
            self.trust_more();
        }
        again.into_iter().for_each(|item| self.push(item));
        ended
    }

    /// The parked topic does not take it. Of somebody else's record only what is known of it is kept
    /// then. But of a half message the parked topic is to be the only place, once the store is
    /// trimmed: that progress passes it without its payload would lose a message that may be
    /// committed yet, or is. So the partition waits, and health says for what.
    fn too_large(&mut self, item: Item, why: String) -> Item {
        if let Work::Foreign(record) = &item.work
            && let Some(less) = record.without_payload(&why)
        {
            tracing::error!(offset = item.at, why, "a foreign record is kept without its payload");
            return Item { work: Work::Foreign(Box::new(less)), ..item };
        }
        let (transaction_id, key, offset) = (item.transaction_id(), item.key(), item.at);
        tracing::error!(
            transaction_id,
            key,
            offset,
            why,
            "the partition waits for the parked topic"
        );
        self.held.insert(item.target().to_owned(), Instant::now() + RETRY_DELAY);
        self.trouble = Some((item.at, why));
        item
    }

    /// A batch was delivered after one was to blame: larger ones may be as well.
    fn trust_more(&mut self) {
        if self.suspected_up_to.is_none() {
            let doubled = self.cautious.map(|most| most.saturating_mul(2));
            self.cautious = doubled.filter(|most| *most < self.limits.batch_messages);
        }
    }

    /// Nobody names them again: those of an aborted batch wait for another.
    fn clears_ended(&mut self, aborted: bool) {
        let mut ended = std::mem::take(&mut self.clears_under_way);
        if ended.is_empty() {
            return;
        }
        self.clears_alone_from = aborted.then(|| Instant::now() + RETRY_DELAY);
        if aborted {
            ended.append(&mut self.clears);
            self.clears = ended;
        }
    }
}

fn undeliverable(item: &Item, reason: &str) {
    let (transaction_id, key, offset) = (item.transaction_id(), item.key(), item.at);
    tracing::error!(transaction_id, key, offset, reason, "undeliverable; parking it");
}
