//! A batch as records, and whose their reports are. It must never judge a report.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use halfmsg_protocol::TransactionId;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Worker;
use crate::bodies::Whole;
use crate::parked::ParkedRecord;
use crate::resolver::delivery::{self, Outgoing, Report, Reports};
use crate::resolver::emitter::{Job, Trouble, Work};

/// Until a full queue of the client is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
/// Marks a report that belongs to nothing of the job.
const NO_ITEM: usize = usize::MAX;
/// Set in the index of a record of the parked topic: that one is no reason to blame the target.
pub(super) const MARK: usize = 1 << (usize::BITS - 2);
/// Set in the index of one of the job's `clears`.
pub(super) const CLEAR: usize = 1 << (usize::BITS - 3);

impl Worker<'_> {
    /// Puts the records of all items but these on their way. Without a transaction the marks of
    /// deliveries wait for [`Worker::send_marks`].
    pub(super) fn send(
        &self,
        job: &Job,
        whole: &Whole,
        without: &[(usize, Trouble)],
    ) -> Arc<Reports> {
        let with_marks = self.is_transactional();
        let left_out: HashSet<usize> = without.iter().map(|(index, _)| *index).collect();
        let items = || job.items.iter().enumerate().filter(|(index, _)| !left_out.contains(index));
        let is_two = |work: &Work| with_marks && matches!(work, Work::Deliver(_, Some(_)));
        let records = |work: &Work| if is_two(work) { 2 } else { 1 };
        let count = items().map(|(_, item)| records(&item.work)).sum::<usize>() + job.clears.len();
        // One more, given back at the end: it cannot come to its end while records are added.
        let reports = Reports::of(count + 1);
        for (index, item) in items() {
            let report = || Report { batch: Arc::clone(&reports), index };
            match &item.work {
                Work::Deliver(half, settled) => {
                    let half = whole.get(&half.stored_at).unwrap_or(half);
                    debug_assert!(!half.is_stub, "a stub has nothing to deliver");
                    self.push(delivery::delivery(half, report()));
                    if let Some(of) = settled.filter(|_| with_marks) {
                        self.push_parked(&ParkedRecord::settled(of, item.at), mark(report()));
                    }
                }
                Work::Settle(of) => {
                    self.push_parked(&ParkedRecord::settled(*of, item.at), mark(report()));
                }
                Work::Park(parked) => {
                    let half = whole.get(&parked.half.stored_at).unwrap_or(&parked.half);
                    self.push_parked(&ParkedRecord::parked(parked, half), mark(report()));
                }
                Work::Foreign(record) => self.push_parked(record, mark(report())),
            }
        }
        for (index, id) in job.clears.iter().enumerate() {
            let report = Report { batch: Arc::clone(&reports), index: index | CLEAR };
            self.push_parked(&ParkedRecord::cleared(*id), report);
        }
        reports.done(NO_ITEM, Ok(()));
        reports
    }

    /// Puts the marks of those deliveries on their way that have succeeded: all but these. A mark in
    /// front of its delivery could replace the entry with which another owner, of whom this one does not
    /// know yet, has parked the message because its target refused it; and with the delivery
    /// refused here too, nobody would know of the message any more.
    pub(super) fn send_marks(&self, job: &Job, without: &[(usize, Trouble)]) -> Arc<Reports> {
        let left_out: HashSet<usize> = without.iter().map(|(index, _)| *index).collect();
        let marks = job.items.iter().enumerate().filter_map(|(index, item)| match &item.work {
            Work::Deliver(_, Some(of)) if !left_out.contains(&index) => {
                Some((index, ParkedRecord::settled(*of, item.at)))
            }
            _ => None,
        });
        let marks: Vec<_> = marks.collect();
        let reports = Reports::of(marks.len());
        for (index, record) in marks {
            self.push_parked(&record, mark(Report { batch: Arc::clone(&reports), index }));
        }
        reports
    }

    /// Puts a record of the parked topic on its way that says nothing of any message: it is only to be
    /// seen whether the topic takes it.
    pub(super) fn send_probe(&self) -> Arc<Reports> {
        let reports = Reports::of(1);
        let nobody = TransactionId::from_bytes([0; 16]);
        let report = Report { batch: Arc::clone(&reports), index: NO_ITEM };
        self.push_parked(&ParkedRecord::cleared(nobody), report);
        reports
    }

    fn push_parked(&self, record: &ParkedRecord, report: Report) {
        self.push(delivery::parked(&self.parked_topic, self.partition, record, report));
    }

    fn push(&self, record: Outgoing<'_>) {
        let mut record = record;
        loop {
            match self.client.send(record) {
                Ok(()) => return,
                Err((error, refused)) if is_full(&error) && !self.stop.load(Ordering::Relaxed) => {
                    record = refused;
                    std::thread::sleep(QUEUE_PAUSE);
                }
                Err((error, refused)) => {
                    let report = refused.delivery_opaque;
                    return report.batch.done(report.index, Err(error));
                }
            }
        }
    }
}

fn mark(report: Report) -> Report {
    Report { index: report.index | MARK, ..report }
}

fn is_full(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
}
