//! Partitions come and go: taking over, giving up, losing, stopping.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use halfmsg_protocol::ResolverCore;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use super::asking::Questions;
use super::assignment::{self, Change};
use super::claim::Claim;
use super::emitter::EmitterParts;
use super::lane::Lane;
use super::progress::ProgressWriter;
use super::reading::POLL;
use super::takeover::{self, Taken, TakeoverEnd};
use super::wanted::{LONGEST_PAUSE, pause_after};
use super::watch::{Renewal, Uncounted};
use super::{Input, Owned, Resolver};
use crate::clock;
use crate::config::{Assignment, Emission, RETRY_DELAY};

#[cfg(test)]
mod tests;

/// Threads that still hold the consumer, when stopping.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);

impl Resolver {
    pub(super) fn follow_assignment(&mut self) {
        let is_due = |renewal: &Renewal| Instant::now() >= renewal.due;
        if !self.is_renewed && self.renewal.as_ref().is_none_or(is_due) {
            self.renew_consumer();
        }
        for change in self.consumer.context().take_changes() {
            match change {
                Change::Assigned(partitions) => self.assigned(partitions),
                Change::Revoked => self.give_up_partitions(),
            }
        }
        let due = self.wanted.due();
        if !due.is_empty() {
            self.take_over(due);
        }
    }

    /// The group has given them to us. They are read only once they are taken over; until then
    /// nothing is assigned, so that the group can go on.
    fn assigned(&mut self, partitions: Vec<i32>) {
        tracing::info!(topic = self.store, ?partitions, "the group has assigned partitions");
        self.owned.clear();
        self.wanted.clear();
        self.shared.takeover_failed(None);
        // Of those that there are, it is told together with their being taken over: said alone, the
        // replica would pass for ready in between.
        if partitions.is_empty() {
            self.shared.joined();
        }
        // What the old consumer was still told does not end its replacement.
        if self.is_renewed {
            self.renewal = None;
        }
        self.wanted.add(partitions, Instant::now());
        self.reassign();
    }

    fn give_up_partitions(&mut self) {
        // First: as soon as they are given up, whoever is fenced is their new owner.
        self.wanted.withdraw();
        self.drain(assignment::REVOKE_DEADLINE);
        self.owned.clear();
        self.wanted.clear();
        if let Err(error) = assignment::unassign(&self.consumer) {
            tracing::error!(%error, "the partitions cannot be given up");
        }
        tracing::info!(topic = self.store, "the store's partitions are given up");
    }

    fn take_over(&mut self, partitions: Vec<i32>) {
        self.generation += 1;
        let claim = Arc::<Claim>::default();
        let parts = EmitterParts {
            config: Arc::clone(&self.config),
            consumer: Arc::clone(&self.consumer),
            targets: Arc::clone(&self.targets),
            inputs: self.to_self.clone(),
            generation: self.generation,
            claim: Arc::clone(&claim),
        };
        match takeover::start(parts, partitions.clone(), self.seen.clone()) {
            Ok(()) => self.wanted.takes(self.generation, claim),
            Err(error) => {
                tracing::error!(%error, "no thread for taking partitions over");
                self.wanted.add(partitions, Instant::now() + RETRY_DELAY);
            }
        }
    }

    /// The takeover under way hands these over; others may follow.
    pub(super) fn taken(&mut self, generation: u64, taken: Vec<Taken>) {
        // Given up meanwhile: what was taken is let go.
        if !self.wanted.is_taking(generation) || taken.is_empty() {
            return;
        }
        let now = Instant::now();
        self.replay = Some((now, None));
        for taken in taken {
            self.own(taken, generation);
        }
        self.reassign();
    }

    pub(super) fn taken_over(&mut self, end: TakeoverEnd) {
        if self.wanted.taken(end.generation) {
            self.shared.takeover_failed(end.why);
            self.wanted.add(end.failed, Instant::now() + RETRY_DELAY);
        }
    }

    fn own(&mut self, taken: Taken, generation: u64) {
        let Taken { found, emitter } = taken;
        let (partition, end_at_takeover) = (found.partition, found.end);
        let trimmed_below = found.start;
        self.wanted.owned(partition);
        if let Some(progress) = &mut self.progress {
            progress.forget(partition);
        }
        let (stopped, is_lost) = (found.stopped.clone(), found.stopped.is_some());
        let cut = found.cut.clone();
        if cut.is_some() {
            self.metrics.log_cut();
        }
        if found.is_progress_unknown {
            self.metrics.progress_unknown();
        }
        let skipped = found.skipped();
        let takeover = found.takeover(clock::wall_ms(), self.now);
        let mut core = ResolverCore::new(self.config.core(), takeover);
        core.deleted(trimmed_below);
        let owned = Owned {
            core,
            lane: Lane::new(emitter, self.limits),
            questions: Questions::default(),
            generation,
            stopped,
            stopped_at: None,
            skipped,
            is_throttled: false,
            is_lost,
            cut,
            end_at_takeover,
            caught_up: false,
            uncounted: Uncounted::default(),
            stored: None,
            trimmed_below,
        };
        self.owned.insert(partition, owned);
    }

    /// Reads all owned partitions on from where each ledger stands.
    pub(super) fn reassign(&mut self) {
        let mut places = TopicPartitionList::new();
        for (partition, owned) in &self.owned {
            let from = Offset::Offset(owned.core.ledger().position());
            if let Err(error) = places.add_partition_offset(&self.store, *partition, from) {
                tracing::error!(%error, partition, "no such offset");
            }
        }
        if let Err(error) = assignment::assign(&self.consumer, &places) {
            tracing::error!(%error, "the store's partitions cannot be assigned; trying again");
            return self.take_over_anew();
        }
        // A partition that was paused when it was given up is still paused: librdkafka remembers.
        if let Err(error) = self.consumer.resume(&places) {
            tracing::error!(%error, "the store cannot be read on");
        }
        for (partition, owned) in &self.owned {
            if owned.stopped.is_some() || owned.is_throttled {
                self.pause(*partition, true);
            }
        }
    }

    /// The partition's lane cannot go on: it is taken over anew, unless the group says by then that
    /// it is another's.
    pub(super) fn lost(&mut self, partition: i32, why: &str) {
        self.owned.remove(&partition);
        let pause = self.wanted.lost(partition);
        self.metrics.lane_lost();
        self.shared.takeover_failed(Some(format!(
            "{}[{partition}] was lost ({why}); it is taken over anew in {pause:?}, if it is still ours",
            self.store
        )));
        tracing::warn!(
            topic = self.store,
            partition,
            why,
            ?pause,
            "the partition's outcomes cannot be carried out any more: another replica has fenced \
             this one, or its client failed; it is taken over anew if it is still ours then"
        );
        self.reassign();
    }

    /// The client has given up fetching: where it stands is looked up again, and tried until it
    /// answers.
    pub(super) fn take_over_anew(&mut self) {
        self.note_seen();
        let partitions: Vec<i32> = std::mem::take(&mut self.owned).into_keys().collect();
        self.wanted.add(partitions, Instant::now() + RETRY_DELAY);
    }

    /// What is read of a log that is not another's tells it from one that is made anew under its name.
    pub(super) fn note_seen(&mut self) {
        let read = self.owned.iter().filter(|(_, owned)| owned.stopped.is_none());
        self.seen.extend(read.map(|(of, owned)| (*of, owned.core.ledger().position())));
    }

    /// A fatal error is told only once, to who polls then: that may have been a drain.
    pub(super) fn look_for_fatal(&mut self) {
        if !self.is_renewed {
            return;
        }
        if let Some((code, _)) = self.consumer.client().fatal_error() {
            self.give_consumer_up(code);
        }
    }

    /// A fatal error: another process has our `group.instance.id`, or the client is beyond repair.
    pub(super) fn give_consumer_up(&mut self, code: RDKafkaErrorCode) {
        let pause = pause_after(self.renewals);
        self.renewals += 1;
        let instance = self.config.instance_id.as_deref().unwrap_or("(none)");
        tracing::error!(
            %code, instance, ?pause,
            "the store cannot be read any more; the consumer is made anew. If this repeats, \
             another replica has the same instance id: give each its own, or none"
        );
        self.owned.clear();
        self.wanted.clear();
        let why = format!(
            "the store cannot be read ({code}): its consumer is made anew; if this repeats, another \
             replica has the instance id {instance}: give each its own, or none"
        );
        self.renew_in(pause, why);
        self.is_renewed = false;
    }

    fn renew_in(&mut self, pause: Duration, why: String) {
        self.renewal = Some(Renewal { due: Instant::now() + pause, why });
    }

    fn renew_consumer(&mut self) {
        self.consumer.context().close();
        let partitions = self.shared.partitions();
        let consumer = match assignment::consumer(&self.config, partitions, self.metrics.clone()) {
            Ok(consumer) => consumer,
            Err(error) => {
                tracing::error!(%error, "the consumer cannot be made anew");
                let why = format!("the store's consumer cannot be made anew: {error}");
                return self.renew_in(LONGEST_PAUSE, why);
            }
        };
        if self.config.emission == Emission::AtLeastOnce {
            let progress = ProgressWriter::new(self.store.clone(), Arc::clone(&consumer));
            self.progress = Some(progress);
        }
        self.consumer = consumer;
        self.is_renewed = true;
        let subscribed = match self.config.assignment {
            Assignment::All => {
                self.wanted.add(0..self.shared.partitions(), Instant::now());
                Ok(())
            }
            Assignment::Shared => self.consumer.subscribe(&[&self.store]),
        };
        if let Err(error) = subscribed {
            tracing::error!(%error, "subscribing to the store");
            let why = format!("the store cannot be subscribed to: {error}");
            self.renew_in(LONGEST_PAUSE, why);
            self.is_renewed = false;
        }
    }

    /// Waits for what is under way, stores progress, leaves the group.
    pub(super) fn finish(mut self) {
        // From here on the group gets its partitions back at once when it asks.
        self.consumer.context().close();
        if !self.consumer.context().take_changes().is_empty()
            && let Err(error) = assignment::unassign(&self.consumer)
        {
            tracing::debug!(%error, "giving partitions up while closing");
        }
        self.wanted.withdraw();
        self.drain(self.config.shutdown_deadline);
        self.trim_last();
        self.log.flush(Duration::from_secs(1));
        // The consumer leaves the group when the last one who holds it lets go: here and now.
        let Self { progress, consumer, owned, .. } = self;
        drop(owned);
        if let Some(progress) = progress {
            progress.end();
        }
        let until = Instant::now() + RELEASE_DEADLINE;
        while Arc::strong_count(&consumer) > 1 && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        drop(consumer);
    }

    /// Waits, up to the deadline, until outcomes are carried out and progress is stored.
    fn drain(&mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        // The next owner asks again; nobody here hears of the answers.
        self.owned.values().for_each(|owned| owned.questions.end());
        while Instant::now() < until {
            self.drain_inputs();
            self.owned.values_mut().for_each(|owned| owned.lane.hurry());
            self.begin_batches(true);
            if let Some(progress) = &mut self.progress {
                progress.hurry();
            }
            self.store_progress();
            let stored = self.progress.as_ref().is_none_or(|of| of.is_current(&self.owned));
            let settled = stored && self.owned.values().all(Owned::is_settled);
            if settled && self.wanted.is_quiet() {
                return;
            }
            // Paused or not, records read now would be read again by the next owner: only the
            // callbacks of this poll matter. An error that it tells is told again, or, if it is fatal,
            // asked for by the next tick.
            self.pause_all();
            drop(self.consumer.poll(POLL));
        }
        tracing::warn!(
            "not all that was under way came to its end in time; the next owner repeats it"
        );
    }

    fn drain_inputs(&mut self) {
        loop {
            match self.inputs.try_recv() {
                // About halves that the next owner asks about again.
                Ok(
                    Input::Answered { .. }
                    | Input::BatchOver { .. }
                    | Input::AppendFailed { .. }
                    | Input::Skipped { .. }
                    | Input::Taken { .. }
                    | Input::TakenOver(_),
                ) => {}
                Ok(input) => self.input(input),
                Err(mpsc::TryRecvError::Empty | mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }

    fn pause_all(&self) {
        if let Ok(assigned) = self.consumer.assignment()
            && let Err(error) = self.consumer.pause(&assigned)
        {
            tracing::debug!(%error, "pausing the store");
        }
    }
}
