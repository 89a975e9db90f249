//! One partition's outcomes on their way: which wait, which are in the batch under way, and what
//! follows from its end.
//!
//! Outcomes wait in the order of their records. In exactly-once mode a batch is always the first of
//! them: so the progress that is stored with it covers everything that it delivers. A broker that is
//! away holds everything up and loses nothing. A message that its target refuses holds nothing else
//! up; one whose target is missing holds up those for the same target, and in exactly-once mode all
//! behind it, until it is refused (`MISSING_FOR`).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use halfmsg_protocol::{Progress, ResolverCore, TransactionId};

use super::emitter::{Emitter, Item, Job};
use crate::config::{Emission, ProducerConfig};

mod batch;
mod ending;
#[cfg(test)]
mod tests;

/// Between two times that progress is stored although nothing was delivered.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// A batch of so many says that more are coming: the next one waits for them, up to the linger.
const LOAD_FROM: usize = 16;

/// The bounds of a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) batch_messages: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) linger: Duration,
    pub(crate) queued_messages: usize,
    pub(crate) queued_bytes: usize,
    pub(crate) exactly_once: bool,
}

impl Limits {
    pub(crate) fn of(config: &ProducerConfig) -> Self {
        Self {
            batch_messages: config.batch_messages,
            batch_bytes: config.batch_bytes,
            linger: config.batch_linger,
            queued_messages: config.max_queued_messages,
            queued_bytes: config.max_queued_bytes,
            exactly_once: config.emission == Emission::ExactlyOnce,
        }
    }
}

/// What the end of a batch led to.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Carried out: the record, and whether a message was delivered.
    pub(crate) done: Vec<(i64, bool)>,
    /// Delivered, and not carried out before that is marked.
    pub(crate) unmarked: Vec<i64>,
    /// Refused for good: the decision, and why.
    pub(crate) refused: Vec<(i64, String)>,
    /// Progress that is stored now.
    pub(crate) stored: Option<Progress>,
}

/// A batch that progress would not cover.
struct Uncovered;

/// Outcomes of one partition.
pub(crate) struct Lane {
    emitter: Emitter,
    limits: Limits,
    /// In the order of their records.
    queue: VecDeque<Item>,
    queued_bytes: usize,
    /// Bytes of the batch under way.
    busy_bytes: usize,
    /// Since when the first of them waits.
    waiting_since: Option<Instant>,
    clears: Vec<TransactionId>,
    /// Those of the batch under way.
    clears_under_way: Vec<TransactionId>,
    /// A batch with some was aborted: from then on they are tried by themselves, so that a parked
    /// topic that takes none holds up nothing else.
    clears_alone_from: Option<Instant>,
    busy: bool,
    /// Since when the oldest outcome of the batch under way waits.
    under_way_since: Option<Duration>,
    /// Why the outcome of this record is not carried out yet.
    trouble: Option<(i64, String)>,
    /// Somebody up to this record is to blame: they go out by halves until it is known who.
    suspected_up_to: Option<i64>,
    /// The most deliveries of a batch after one was to blame; doubles as they succeed.
    cautious: Option<usize>,
    /// Targets that nothing is sent to before then.
    held: HashMap<String, Instant>,
    not_before: Option<Instant>,
    /// When the last batch began, if it was a large one.
    loaded: Option<Instant>,
    stored: Option<Progress>,
    stored_at: Option<Instant>,
}

impl Lane {
    pub(crate) fn new(emitter: Emitter, limits: Limits) -> Self {
        Self {
            emitter,
            limits,
            queue: VecDeque::new(),
            queued_bytes: 0,
            busy_bytes: 0,
            waiting_since: None,
            clears: Vec::new(),
            clears_under_way: Vec::new(),
            clears_alone_from: None,
            busy: false,
            under_way_since: None,
            trouble: None,
            suspected_up_to: None,
            cautious: None,
            held: HashMap::new(),
            not_before: None,
            loaded: None,
            stored: None,
            stored_at: None,
        }
    }

    /// Whether the partition must not be read on.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.limits.queued_messages
            || self.queued_bytes >= self.limits.queued_bytes
    }

    /// Whether there is room enough to read it on, once it was full.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() <= self.limits.queued_messages / 2
            && self.queued_bytes <= self.limits.queued_bytes / 2
    }

    /// Bytes of what waits and of what is under way; of that, the client has a copy.
    pub(crate) fn bytes(&self) -> usize {
        self.queued_bytes + 2 * self.busy_bytes
    }

    /// Whether nothing waits and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        !self.busy && self.queue.is_empty()
    }

    /// Since when, on the resolver's clock, the oldest outcome is not carried out.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.under_way_since.into_iter().chain(self.queue.front().map(|item| item.since)).min()
    }

    /// Why an outcome is not carried out yet, if something was said of one.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(_, why)| why.as_str())
    }

    /// Whether something waits for a batch, and not for a target.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty() && self.held.is_empty()
    }

    /// Whether everything that may be stored is stored, as far as this lane stores it.
    pub(crate) fn is_current(&self, core: &ResolverCore) -> bool {
        let progress = core.progress();
        !self.limits.exactly_once || progress.is_none() || progress == self.stored
    }

    /// An outcome is to be carried out.
    pub(crate) fn push(&mut self, item: Item) {
        self.queued_bytes += item.bytes();
        self.waiting_since.get_or_insert_with(Instant::now);
        // Behind what waits, but for a refused delivery that is parked instead.
        let place = match self.queue.back() {
            Some(last) if last.at > item.at => {
                self.queue.partition_point(|waiting| waiting.at < item.at)
            }
            _ => self.queue.len(),
        };
        self.queue.insert(place, item);
    }

    /// The parked topic needs to know nothing of these any more.
    pub(crate) fn clear(&mut self, ids: Vec<TransactionId>) {
        self.clears.extend(ids);
    }

    /// Begins the next batch if it is time. `idle`: the store has nothing more to read now.
    ///
    /// False if it cannot, because its emitter is gone: the partition must be taken over anew.
    pub(crate) fn begin(&mut self, idle: bool, core: &ResolverCore) -> bool {
        let now = Instant::now();
        if self.busy || self.not_before.is_some_and(|until| now < until) {
            return true;
        }
        let items = if self.is_due(now, idle) { self.take(now) } else { Vec::new() };
        let Ok(progress) = self.progress_with(&items, core) else { return false };
        let stores = progress.is_some() && self.is_progress_due(now);
        let clears = self.take_clears(now, items.is_empty() && !stores);
        if items.is_empty() && clears.is_empty() && !stores {
            return true;
        }
        let alone = self.clears_alone_from.is_some() && !clears.is_empty();
        let progress = progress.filter(|_| !alone);
        self.busy = true;
        self.under_way_since = items.first().map(|item| item.since);
        self.not_before = None;
        self.clears_under_way.clone_from(&clears);
        self.emitter.begin(Job { items, clears, progress }).is_ok()
    }

    fn take_clears(&mut self, now: Instant, is_free: bool) -> Vec<TransactionId> {
        match self.clears_alone_from {
            Some(from) if !is_free || now < from => Vec::new(),
            _ => std::mem::take(&mut self.clears),
        }
    }

    /// Nothing waits for company, and progress is stored with the next batch, or now if there is
    /// none.
    pub(crate) fn hurry(&mut self) {
        self.loaded = None;
        self.stored_at = None;
        self.not_before = None;
    }

    /// What is stored together with these; nothing in at-least-once mode, or if it is stored.
    ///
    /// # Errors
    /// If progress would not cover the batch: after a crash it would be delivered again. It never
    /// happens, because a batch is the first of what is pending; it is not believed.
    fn progress_with(
        &self,
        items: &[Item],
        core: &ResolverCore,
    ) -> Result<Option<Progress>, Uncovered> {
        if !self.limits.exactly_once {
            return Ok(None);
        }
        let batch: Vec<i64> = items.iter().map(|item| item.at).collect();
        let progress = core.progress_after(&batch);
        let covers = |last: &i64| progress.is_some_and(|progress| *last < progress.position);
        if !batch.last().is_none_or(covers) {
            tracing::error!(?progress, last = ?batch.last(), "progress does not cover the batch");
            return Err(Uncovered);
        }
        Ok(progress.filter(|progress| Some(*progress) != self.stored))
    }
}
