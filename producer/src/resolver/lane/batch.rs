//! When a batch is due, and what is in it.

use std::time::Instant;

use super::{LOAD_FROM, Lane, PROGRESS_INTERVAL};
use crate::resolver::emitter::Item;

impl Lane {
    pub(super) fn is_due(&self, now: Instant, idle: bool) -> bool {
        let lingered = |since: Instant| now.duration_since(since) >= self.limits.linger;
        (idle && !self.is_loaded(now))
            || self.queue.len() >= self.limits.batch_messages
            || self.queued_bytes >= self.limits.batch_bytes
            || self.waiting_since.is_some_and(lingered)
    }

    /// Under load a Kafka transaction for each few messages would cost the broker more than the
    /// messages; when there is little to do, nobody waits.
    fn is_loaded(&self, now: Instant) -> bool {
        self.limits.exactly_once
            && self.loaded.is_some_and(|since| now.duration_since(since) < 2 * self.limits.linger)
    }

    /// Progress alone is no hurry.
    pub(super) fn is_progress_due(&self, now: Instant) -> bool {
        self.stored_at.is_none_or(|at| now.duration_since(at) >= PROGRESS_INTERVAL)
    }

    pub(super) fn take(&mut self, now: Instant) -> Vec<Item> {
        self.held.retain(|_, until| now < *until);
        let most = self.most();
        let mut batch = Vec::with_capacity(most.min(self.queue.len()));
        let (mut held, mut bytes) = (Vec::new(), 0);
        while batch.len() < most
            && let Some(item) = self.queue.pop_front()
        {
            let is_held = self.held.contains_key(item.target());
            let is_too_much = !batch.is_empty() && bytes + item.bytes() > self.limits.batch_bytes;
            if !is_held && !is_too_much {
                bytes += item.bytes();
                batch.push(item);
                continue;
            }
            held.push(item);
            // Exactly once, what is behind it lies beyond the progress that can be stored.
            if is_too_much || self.limits.exactly_once {
                break;
            }
        }
        held.into_iter().rev().for_each(|item| self.queue.push_front(item));
        self.queued_bytes -= bytes;
        if !batch.is_empty() {
            self.busy_bytes = bytes;
            self.waiting_since = (!self.queue.is_empty()).then_some(now);
            self.loaded = (batch.len() >= LOAD_FROM).then_some(now);
        }
        batch
    }

    /// The most items of the next batch.
    fn most(&mut self) -> usize {
        let all = self.limits.batch_messages;
        if let Some(last) = self.suspected_up_to {
            let mut suspects = self.queue.iter().take_while(|item| item.at <= last).peekable();
            let is_over = suspects.peek().is_none();
            match suspects.filter(|item| !self.held.contains_key(item.target())).count() {
                0 if is_over => self.suspected_up_to = None,
                // They go on where they were when their targets are held no longer.
                0 => {}
                count => return count.div_ceil(2).min(all),
            }
        }
        self.cautious.map_or(all, |most| most.min(all))
    }
}
