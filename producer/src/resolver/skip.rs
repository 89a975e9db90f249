//! A partition that is stopped at a record of a newer format goes on once an operator says so, by a
//! record of the parked topic.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::takeover::PARKED_PATIENCE;
use super::{Input, Resolver};
use crate::parked;

/// Between two looks at what operators have said.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

impl Resolver {
    /// From time to time, while a partition is stopped; in the background.
    pub(super) fn look_for_skips(&mut self) {
        // One look at a time.
        let under_way = Arc::strong_count(&self.skip_look) > 1;
        if under_way || self.skips_looked_at.elapsed() < LOOK_INTERVAL {
            return;
        }
        self.skips_looked_at = Instant::now();
        let stopped: Vec<(i32, u64)> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.stopped_at.is_some())
            .map(|(partition, owned)| (*partition, owned.generation))
            .collect();
        if stopped.is_empty() {
            return;
        }
        let (kafka, topic) = (self.config.kafka.clone(), self.config.parked_topic());
        let (inputs, under_way) = (self.to_self.clone(), Arc::clone(&self.skip_look));
        self.runtime.spawn_blocking(move || {
            let _until_the_end = under_way;
            let partitions: Vec<i32> = stopped.iter().map(|(partition, _)| *partition).collect();
            let mut found = match parked::read(&kafka, &topic, &partitions, PARKED_PATIENCE) {
                Ok((found, _)) => found,
                Err(error) => return tracing::debug!(%error, "looking for skipped records"),
            };
            for (partition, generation) in stopped {
                let skipped = found.remove(&partition).unwrap_or_default().skipped;
                // The resolver may have ended meanwhile; its successor looks again.
                drop(inputs.send(Input::Skipped { partition, generation, skipped }));
            }
        });
    }

    pub(super) fn skipped(&mut self, partition: i32, generation: u64, skipped: BTreeSet<i64>) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let goes_on = owned.stopped_at.is_some_and(|at| skipped.contains(&at));
        if owned.generation != generation || !goes_on {
            return;
        }
        (owned.skipped, owned.stopped, owned.stopped_at) = (skipped, None, None);
        tracing::warn!(topic = self.store, partition, "an operator lets the partition go on");
        self.reassign();
    }
}
