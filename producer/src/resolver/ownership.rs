//! Partitions come and go: taking over, giving up, stopping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_protocol::ResolverCore;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};

use super::assignment::{self, Change};
use super::progress::ProgressWriter;
use super::{Input, Owned, POLL, Resolver, takeover};
use crate::clock;
use crate::config::{Assignment, RETRY_DELAY};

impl Resolver {
    /// Waits for what is under way, stores progress, leaves the group.
    pub(super) fn finish(mut self) {
        // From here on the group gets its partitions back at once when it asks.
        self.consumer.context().close();
        if !self.consumer.context().take_changes().is_empty()
            && let Err(error) = self.consumer.unassign()
        {
            tracing::debug!(%error, "giving partitions up while closing");
        }
        self.drain(self.config.shutdown_deadline);
        self.log.flush(Duration::from_secs(1));
        // The consumer leaves the group when the last one who holds it lets go: here and now.
        let Self { progress, consumer, .. } = self;
        progress.end();
        drop(consumer);
    }

    /// Waits, up to the deadline, until deliveries are acknowledged and progress is stored.
    fn drain(&mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        while Instant::now() < until {
            while let Ok(input) = self.inputs.try_recv() {
                match input {
                    Input::Ack(ack) => self.acknowledged(ack),
                    Input::TopicFound { topic, found } => self.topic_found(&topic, found),
                    Input::Query(query) => self.query(query),
                    Input::Stop => self.stop_asked = true,
                    // About halves that the next owner asks about again.
                    Input::Answered { .. }
                    | Input::BatchOver { .. }
                    | Input::AppendFailed { .. } => {}
                }
            }
            self.progress.hurry();
            self.store_progress();
            if self.outbox.is_empty() && self.progress.is_current(&self.owned) {
                return;
            }
            // Paused or not, records read now would be read again by the next owner: only the
            // callbacks of this poll matter.
            self.pause_all();
            drop(self.consumer.poll(POLL));
        }
        tracing::warn!("not all deliveries were acknowledged in time; the next owner repeats them");
    }

    fn pause_all(&self) {
        if let Ok(assigned) = self.consumer.assignment()
            && let Err(error) = self.consumer.pause(&assigned)
        {
            tracing::debug!(%error, "pausing the store");
        }
    }

    pub(super) fn follow_assignment(&mut self) {
        for change in self.consumer.context().take_changes() {
            match change {
                Change::Assigned(partitions) => {
                    self.to_take = Some(partitions);
                    self.retry_take_at = Instant::now();
                }
                Change::Revoked => self.give_up_partitions(),
            }
        }
        if self.to_take.is_some() && Instant::now() >= self.retry_take_at {
            self.take_over();
        }
    }

    fn give_up_partitions(&mut self) {
        self.drain(assignment::REVOKE_DEADLINE);
        self.outbox.abandon();
        self.owned.clear();
        self.to_take = None;
        if let Err(error) = self.consumer.unassign() {
            tracing::error!(%error, "the partitions cannot be given up");
        }
        tracing::info!(topic = self.store, "the store's partitions are given up");
    }

    fn take_over(&mut self) {
        let Some(partitions) = self.to_take.clone() else { return };
        match takeover::read(&self.config, &self.consumer, &partitions) {
            Ok(found) => {
                self.to_take = None;
                self.begin(found);
            }
            Err(error) => {
                self.retry_take_at = Instant::now() + RETRY_DELAY;
                tracing::warn!(%error, "the store's partitions cannot be taken over yet");
            }
        }
    }

    fn begin(&mut self, found: Vec<takeover::Found>) {
        let mut assignment = TopicPartitionList::new();
        let (now, wall_ms) = (self.started.elapsed(), clock::wall_ms());
        self.generation += 1;
        self.progress.restart();
        self.owned.clear();
        let mut stopped = Vec::new();
        for found in found {
            let from = Offset::Offset(found.progress.low_water);
            if let Err(error) = assignment.add_partition_offset(&self.store, found.partition, from)
            {
                tracing::error!(%error, partition = found.partition, "no such offset");
                continue;
            }
            if let Some(reason) = &found.stopped {
                stopped.push((found.partition, reason.clone()));
            }
            let (partition, end_at_takeover) = (found.partition, found.end);
            let found_lost = found.stopped.is_some();
            let takeover = found.takeover(wall_ms, now);
            let core = ResolverCore::new(self.config.core(), takeover);
            let owned = Owned {
                core,
                generation: self.generation,
                stopped: None,
                is_lost: found_lost,
                end_at_takeover,
                caught_up: false,
            };
            self.owned.insert(partition, owned);
        }
        if let Err(error) = self.consumer.assign(&assignment) {
            tracing::error!(%error, "the store's partitions cannot be assigned");
            self.owned.clear();
            self.to_take = Some(assignment::partitions_of(&assignment));
            self.retry_take_at = Instant::now() + RETRY_DELAY;
        }
        // A partition that was paused when it was given up is still paused: librdkafka remembers.
        if let Err(error) = self.consumer.resume(&assignment) {
            tracing::error!(%error, "the store cannot be read on");
        }
        self.throttled = false;
        self.replay_reported = self.owned.is_empty();
        for (partition, reason) in stopped {
            self.halt(partition, reason);
        }
    }

    /// The client has given up fetching: where it stands is looked up again, and tried until it
    /// answers.
    pub(super) fn take_over_anew(&mut self) {
        self.outbox.abandon();
        self.to_take = Some(std::mem::take(&mut self.owned).into_keys().collect());
        self.retry_take_at = Instant::now() + RETRY_DELAY;
    }

    pub(super) fn renew_consumer(&mut self) {
        self.outbox.abandon();
        let mut partitions: Vec<i32> = self.owned.keys().copied().collect();
        partitions.sort_unstable();
        self.owned.clear();
        self.consumer.context().close();
        match assignment::consumer(&self.config) {
            Ok(consumer) => {
                self.progress = ProgressWriter::new(self.store.clone(), Arc::clone(&consumer));
                self.consumer = consumer;
            }
            Err(error) => tracing::error!(%error, "the consumer cannot be made anew"),
        }
        match self.config.assignment {
            Assignment::All => self.to_take = Some(partitions),
            Assignment::Shared => {
                if let Err(error) = self.consumer.subscribe(&[&self.store]) {
                    tracing::error!(%error, "subscribing to the store");
                }
            }
        }
        self.retry_take_at = Instant::now() + RETRY_DELAY;
    }
}
