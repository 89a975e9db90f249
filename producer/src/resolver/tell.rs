//! What an observer hears of the records that are read, beyond what the core commands: who decided,
//! and that a message is open again. Nothing is kept, and nothing done, if nobody observes.

use std::collections::HashMap;
use std::sync::Arc;

use halfmsg_protocol::{Answer, Body, Event, Half, HalfRef, Record, Reopen};

use super::Resolver;
use super::emitter::{Item, Work};
use crate::life::{Life, Read};

/// The messages that a batch delivers, by the offset of their decisions; none if nobody observes.
pub(super) fn deliveries(life: &Life, items: &[Item]) -> HashMap<i64, Arc<Half>> {
    if !life.is_observed() {
        return HashMap::new();
    }
    let delivery = |item: &Item| match &item.work {
        Work::Deliver(half, _) => Some((item.at, Arc::clone(half))),
        Work::Settle(_) | Work::Park(_) | Work::Foreign(_) => None,
    };
    items.iter().filter_map(delivery).collect()
}

impl Resolver {
    /// Feeds a record to its partition's core, and tells what the core's commands do not say.
    pub(super) fn step_record(
        &mut self,
        partition: i32,
        (offset, appended_ms): (i64, i64),
        record: Record,
        body: Body,
    ) {
        let mut reopen = None;
        if self.life.is_observed() {
            match &record {
                Record::Decision(decision) => {
                    let record = decision.clone();
                    self.decision = Some(Read { at_ms: appended_ms, record });
                }
                Record::Reopen(record) if self.is_shut(partition, record) => {
                    reopen = Some(Read { at_ms: appended_ms, record: Reopen::clone(record) });
                }
                _ => {}
            }
        }
        self.step(partition, None, Event::Record { offset, appended_ms, record, body });
        self.decision = None;
        let Some(reopen) = reopen else { return };
        let owned = self.owned.get(&partition);
        if let Some(open) = owned.and_then(|owned| owned.core.ledger().open(reopen.record.of.half))
        {
            self.life.reopened(&open.half, &reopen);
        }
    }

    /// Whether this REOPEN, if it counts, is news: not of a replay, and not a second one.
    fn is_shut(&self, partition: i32, reopen: &Reopen) -> bool {
        self.owned.get(&partition).is_some_and(|owned| {
            !owned.core.is_replaying() && owned.core.ledger().open(reopen.of.half).is_none()
        })
    }

    pub(super) fn tell_checked(&self, partition: i32, of: HalfRef, answer: &Answer) {
        let owned = self.owned.get(&partition);
        let open = owned.and_then(|owned| owned.core.ledger().open(of.half));
        let key = open.and_then(|open| open.half.body.key.as_deref());
        match open.filter(|open| open.epoch == of.epoch) {
            Some(_) => self.life.checked(of.id, key, answer),
            None => self.life.answered(of.id, key, answer),
        }
    }
}
