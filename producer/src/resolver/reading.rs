//! Polls the store: records to the cores, errors to where they are mended.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::{Body, DecodeError, Event, Record, codec};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};

use super::Resolver;
use super::replaying::TurnEnd;
use crate::parked::{body_of, packed, users_body};
use crate::scan::is_denied;

/// How long the thread waits for a record before it looks at everything else.
pub(super) const POLL: Duration = Duration::from_millis(10);
/// The same while outcomes wait for the end of a batch.
const BUSY_POLL: Duration = Duration::from_millis(1);
/// Records read between two looks at everything else.
const RECORDS_PER_TURN: usize = 1_024;

/// Bytes read between two looks at the memory that bodies take.
pub(super) const BYTES_PER_TURN: usize = 4 * 1_024 * 1_024;

/// The user's part of a record: only some have one.
pub(super) fn body_for(record: &Record, message: &BorrowedMessage<'_>) -> Body {
    match record {
        Record::Half(_) | Record::Reopen(_) => users_body(message),
        Record::Decision(_) | Record::Checked(_) | Record::Park(_) => Body::default(),
    }
}

impl Resolver {
    /// Reads what is there, up to a bound; true if there is nothing more now.
    pub(super) fn read_store(&mut self) -> bool {
        if !self.is_renewed {
            std::thread::sleep(POLL);
            return true;
        }
        let consumer = Arc::clone(&self.consumer);
        let waiting = self.owned.values().any(|owned| owned.lane.is_waiting());
        let mut wait = if waiting { BUSY_POLL } else { POLL };
        match self.read_replay(&consumer, wait) {
            None => {}
            Some(TurnEnd::Idle) => return true,
            Some(TurnEnd::Bound) => return false,
            Some(TurnEnd::Other(polled)) => return !self.polled(polled),
        }
        let mut bytes = 0;
        for _ in 0..RECORDS_PER_TURN {
            if bytes > BYTES_PER_TURN {
                return false;
            }
            let Some(polled) = consumer.poll(wait) else { return true };
            bytes += polled.as_ref().map_or(0, BorrowedMessage::payload_len);
            if !self.polled(polled) {
                return true;
            }
            wait = Duration::ZERO;
        }
        false
    }

    /// False after an error: there is nothing more to read now.
    fn polled(&mut self, polled: Result<BorrowedMessage<'_>, KafkaError>) -> bool {
        match polled {
            Ok(message) => self.record(&message),
            Err(KafkaError::PartitionEOF(partition)) => self.caught_up(partition),
            Err(error) => {
                self.poll_failed(&error);
                return false;
            }
        }
        true
    }

    fn record(&mut self, message: &BorrowedMessage<'_>) {
        let (partition, offset) = (message.partition(), message.offset());
        let decoded = match packed(message) {
            Some(bytes) => codec::decode(bytes),
            None => Err(DecodeError::Foreign("it has no halfmsg header")),
        };
        match decoded {
            Ok(record) => {
                self.appended_ms = message.timestamp().to_millis().unwrap_or(0);
                let body = body_for(&record, message);
                self.step_record(partition, (offset, self.appended_ms), record, body);
            }
            Err(error @ DecodeError::Foreign(_)) => {
                tracing::error!(
                    topic = self.store, partition, offset, %error,
                    "a record of the store is none of ours; it is copied to the parked topic"
                );
                self.metrics.foreign();
                self.foreign = body_of(message);
                self.step(partition, None, Event::Foreign { offset });
            }
            Err(error @ DecodeError::Newer(_)) => self.stop_partition(partition, offset, &error),
        }
    }

    /// Leaves the partition where it is: it stays ours, and is not read on, unless an operator has
    /// skipped the record.
    fn stop_partition(&mut self, partition: i32, offset: i64, error: &DecodeError) {
        let owned = self.owned.get(&partition);
        if owned.is_some_and(|owned| owned.skipped.contains(&offset)) {
            tracing::warn!(topic = self.store, partition, offset, %error, "skipped by an operator");
            return self.step(partition, None, Event::CaughtUp { position: offset + 1 });
        }
        let reason = format!("{}[{partition}]@{offset}: {error}", self.store);
        tracing::error!(topic = self.store, partition, offset, %error, "the partition is stopped");
        self.pause(partition, true);
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.stopped = Some(reason);
            owned.stopped_at = Some(offset);
        }
    }

    /// Never passes what was not read: after a change of leaders the end can lie below the one that
    /// was seen at the takeover.
    fn caught_up(&mut self, partition: i32) {
        if std::mem::take(&mut self.is_denied) {
            self.shared.denied(None);
        }
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.caught_up = true;
            // The client's own figures come later, and say nothing of what was never fetched.
            self.metrics.lag(partition, Some(0));
        }
    }

    fn poll_failed(&mut self, error: &KafkaError) {
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                tracing::warn!(%error, "the store cannot be read on; its partitions are taken over anew");
                self.take_over_anew();
            }
            KafkaError::MessageConsumptionFatal(code) => self.give_consumer_up(*code),
            error if is_denied(error) => self.denied(error),
            // The broker is away, or moves: librdkafka goes on by itself.
            error => tracing::debug!(%error, "reading the store"),
        }
    }

    /// Not ready until a partition is read again: nothing would be carried out meanwhile.
    fn denied(&mut self, error: &KafkaError) {
        let what = format!(
            "the store '{}' cannot be read: {error}; grant Read on the topic and on the consumer \
             group of the same name",
            self.store
        );
        tracing::error!("{what}");
        self.is_denied = true;
        self.shared.denied(Some(what));
    }

    /// A partition whose lane is full is not read on until it has room again; the group's
    /// membership and everything else go on.
    pub(super) fn throttle(&mut self) {
        let mut changes = Vec::new();
        for (partition, owned) in self.owned.iter_mut().filter(|(_, of)| of.stopped.is_none()) {
            let change = match owned.is_throttled {
                false => owned.lane.is_full(),
                true => owned.lane.has_room(),
            };
            if change {
                owned.is_throttled = !owned.is_throttled;
                changes.push((*partition, owned.is_throttled));
            }
        }
        for (partition, pause) in changes {
            self.pause(partition, pause);
        }
    }

    pub(super) fn pause(&self, partition: i32, pause: bool) {
        let mut one = TopicPartitionList::new();
        one.add_partition(&self.store, partition);
        let changed = if pause { self.consumer.pause(&one) } else { self.consumer.resume(&one) };
        if let Err(error) = changed {
            tracing::warn!(%error, partition, "reading the partition cannot be paused or resumed");
        }
    }
}
