//! Committing what is done and, where the inbox is bounded by key, waiting until the group's coordinator has it.
//!
//! Nothing here may take what was said for what the coordinator has: a commit that nobody waits for reports
//! its end to nobody.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::unconfirmed::Place;
use super::{ASK_DEADLINE, Client, Poller};
use crate::health::Cause;

/// How long the coordinator has to confirm offsets that others wait for, before it is told them again.
const COMMIT_AGAIN: Duration = Duration::from_secs(5);

impl Poller {
    /// All up to here is done. With the inbox bounded by key, what earlier commits failed to say is said
    /// again, and remembered until the coordinator has it.
    pub(super) fn done(&self, client: &Client, next: HashMap<Place, (i64, u64)>) {
        if self.config.inbox_per_key.is_none() {
            let next = next.into_iter().map(|(place, (behind, _))| (place, behind)).collect();
            return self.commit(client, &next);
        }
        let unconfirmed = &client.context().unconfirmed;
        for (place, (behind, messages)) in next {
            unconfirmed.ended(place, behind, messages);
        }
        self.commit(client, &unconfirmed.offsets());
    }

    /// Where the inbox is bounded by key, no message is handed out that could push out of it one that may
    /// be read again: of each partition, at most as many as it remembers of a key lie beyond the offset that
    /// the coordinator is known to have. Beyond that this waits for the coordinator.
    pub(super) fn until_confirmed(&self, client: &Client) -> Result<(), KafkaError> {
        let Some(most) = self.config.most_unconfirmed() else { return Ok(()) };
        if self.has_room(client, most) {
            return Ok(());
        }
        let events = client.context();
        let text = "the group's coordinator confirms no offsets: nothing more is handled";
        self.begin_pause(client);
        let (mut waited, mut asked, mut told) = (Ok(()), Instant::now(), Instant::now());
        while waited.is_ok() && !self.has_room(client, most) && !self.stop.load(Ordering::Acquire) {
            events.commits.failed(&self.health, Cause::Offsets, text);
            waited = self.poll_paused(client);
            self.ask_for_lag(client, &mut asked);
            if told.elapsed() >= COMMIT_AGAIN {
                told = Instant::now();
                self.commit(client, &events.unconfirmed.offsets());
            }
        }
        self.end_pause(client);
        waited
    }

    /// Whether a further batch may be taken. A coordinator that answers, and has not what it was told, is as
    /// good as none: only what it has makes room, and only room says that all is well.
    fn has_room(&self, client: &Client, most: u64) -> bool {
        let events = client.context();
        if events.unconfirmed.most() <= most {
            return true;
        }
        self.ask_confirmed(client);
        let has_room = events.unconfirmed.most() <= most;
        if has_room {
            events.commits.passed(&self.health, Cause::Offsets);
        }
        has_room
    }

    /// Asks the coordinator which offsets it has: a commit that nobody waits for reports its end to nobody.
    fn ask_confirmed(&self, client: &Client) {
        let unconfirmed = &client.context().unconfirmed;
        let mut asked = TopicPartitionList::new();
        for (topic, partition) in unconfirmed.offsets().keys() {
            asked.add_partition(topic, *partition);
        }
        let Ok(found) = client.committed_offsets(asked, ASK_DEADLINE) else { return };
        for element in found.elements().iter().filter(|element| element.error().is_ok()) {
            if let Offset::Offset(offset) = element.offset() {
                unconfirmed.confirmed(element.topic(), element.partition(), offset);
            }
        }
    }

    fn commit(&self, client: &Client, next: &HashMap<Place, i64>) {
        let mut offsets = TopicPartitionList::new();
        for ((topic, partition), offset) in next {
            let offset = Offset::Offset(*offset);
            if let Err(error) = offsets.add_partition_offset(topic, *partition, offset) {
                tracing::warn!(%error, topic, partition, "an offset that cannot be committed");
            }
        }
        let events = client.context();
        next.iter().for_each(|(place, offset)| events.told.tells(place, *offset));
        // Not even sent: as one that was refused, of which nobody hears either.
        if let Err(error) = client.commit(&offsets, CommitMode::Async) {
            tracing::debug!(%error, "offsets not committed");
        }
    }

    /// What the coordinator was told, and has not, is said again: no later commit may come.
    pub(super) fn commit_again(&self, client: &Client) {
        let again = client.context().told.again();
        if !again.is_empty() {
            self.commit(client, &again);
        }
    }
}
