//! Carries batches of one partition's outcomes out, on a thread of its own because Kafka's
//! transactional calls block.
//!
//! In exactly-once mode a batch and the progress behind it are one Kafka transaction; in
//! at-least-once mode it is just its records. It must never decide what follows from a failure:
//! that is the lane's business.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use halfmsg_protocol::{Half, HalfRef, ParkedHalf, Progress, TransactionId};
use rdkafka::consumer::BaseConsumer;

use super::Input;
use super::assignment::StoreContext;
use super::claim::Claim;
use super::worker::Worker;
use crate::clock;
use crate::config::ProducerConfig;
use crate::parked::ParkedRecord;
use crate::targets::Targets;

#[cfg(test)]
pub(super) mod tests;

/// One outcome to be carried out.
pub(crate) struct Item {
    /// The record that led to it.
    pub(crate) at: i64,
    /// When it came up, on the resolver's clock.
    pub(crate) since: Duration,
    /// When the store's broker took that record, on its clock, in milliseconds since the epoch.
    pub(crate) appended_ms: i64,
    pub(crate) work: Work,
}

/// What is to be written.
pub(crate) enum Work {
    /// The message to its target; with a mark, also that to the parked topic.
    Deliver(Arc<Half>, Option<HalfRef>),
    /// Nothing but the mark of a settled message.
    Settle(HalfRef),
    /// The message to the parked topic.
    Park(Box<ParkedHalf>),
    /// A copy of a record that is none of ours, to the parked topic.
    Foreign(Box<ParkedRecord>),
}

impl Item {
    /// Bytes of what is to be written.
    pub(crate) fn bytes(&self) -> usize {
        match &self.work {
            Work::Deliver(half, _) => half.bytes,
            Work::Settle(_) => 0,
            Work::Park(parked) => parked.half.bytes + parked.history.bytes().map_or(0, <[u8]>::len),
            Work::Foreign(record) => record.payload.as_ref().map_or(0, bytes::Bytes::len),
        }
    }

    /// The topic that it goes to; of what goes to the parked topic, no name.
    pub(crate) fn target(&self) -> &str {
        match &self.work {
            Work::Deliver(half, _) => &half.meta.topic,
            Work::Settle(_) | Work::Park(_) | Work::Foreign(_) => "",
        }
    }

    /// Whose outcome it is, for the log; of somebody else's record, nobody's.
    pub(crate) fn transaction_id(&self) -> Option<tracing::field::DisplayValue<TransactionId>> {
        let id = match &self.work {
            Work::Deliver(half, _) => half.meta.id,
            Work::Settle(of) => of.id,
            Work::Park(parked) => parked.half.meta.id,
            Work::Foreign(_) => return None,
        };
        Some(tracing::field::display(id))
    }

    /// Its message's ordering key, likewise.
    pub(crate) fn key(&self) -> Option<tracing::field::DisplayValue<&str>> {
        crate::life::text(self.half()?.body.key.as_deref())
    }

    /// The message that it is about, if its body is to be written.
    pub(crate) fn half(&self) -> Option<&Arc<Half>> {
        match &self.work {
            Work::Deliver(half, _) => Some(half),
            Work::Park(parked) => Some(&parked.half),
            Work::Settle(_) | Work::Foreign(_) => None,
        }
    }
}

/// A batch.
pub(crate) struct Job {
    /// In the order of their records.
    pub(crate) items: Vec<Item>,
    /// Messages of which the parked topic needs to know nothing any more.
    pub(crate) clears: Vec<TransactionId>,
    /// What is stored with it, in exactly-once mode.
    pub(crate) progress: Option<Progress>,
}

/// Why an item was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its target refuses it for good.
    Refused(String),
    /// It was in a batch that the broker refuses as a whole: it may be to blame, or a neighbour. Of
    /// what goes to the parked topic: it is too large for it, or a neighbour is.
    Suspect(String),
    /// A passing reason.
    Passing(String),
    /// It is delivered; the mark of it is not written yet.
    Unmarked(String),
}

/// How a batch ended.
#[derive(Debug)]
pub(crate) enum JobEnd {
    /// All is carried out but these, named by their place in the batch.
    Done(Vec<(usize, Trouble)>),
    /// Nothing is carried out; these are the reason, if any of the items is.
    Aborted(Vec<(usize, Trouble)>),
    /// The partition must be taken over anew: another owner has fenced this one, or the client is
    /// beyond repair. Whether the batch was carried out, only what is stored tells.
    Lost(String),
}

/// The handle of the thread. When it is dropped, the thread ends as soon as it can, and gives up
/// what it does.
pub(crate) struct Emitter {
    jobs: mpsc::Sender<Job>,
    stop: Arc<AtomicBool>,
}

/// What an emitter is made of.
#[derive(Clone)]
pub(crate) struct EmitterParts {
    pub(crate) config: Arc<ProducerConfig>,
    pub(crate) consumer: Arc<BaseConsumer<StoreContext>>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) generation: u64,
    /// Withdrawn when the partitions are given up before they are taken over.
    pub(crate) claim: Arc<Claim>,
}

/// Whether an emitter has made the partition its own.
pub(crate) type Ready = (i32, Result<(), String>);

impl Emitter {
    /// Starts the thread, which fences the partition's former owner first (in exactly-once mode)
    /// and says when that is done.
    pub(crate) fn start(
        parts: EmitterParts,
        partition: i32,
        ready: mpsc::Sender<Ready>,
    ) -> std::io::Result<Self> {
        let (jobs, todo) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name(format!("halfmsg-emit-{partition}"))
            .spawn(move || run(parts, partition, &ready, &todo, &stopped))?;
        Ok(Self { jobs, stop })
    }

    /// One without a thread: the test carries the batches out.
    #[cfg(test)]
    pub(crate) fn by_hand() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, todo) = mpsc::channel();
        (Self { jobs, stop: Arc::default() }, todo)
    }

    /// Hands a batch over; its end comes as [`Input::Emitted`].
    pub(crate) fn begin(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|refused| refused.0)
    }
}

impl Drop for Emitter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(
    parts: EmitterParts,
    partition: i32,
    ready: &mpsc::Sender<Ready>,
    todo: &mpsc::Receiver<Job>,
    stop: &AtomicBool,
) {
    let (inputs, generation) = (parts.inputs.clone(), parts.generation);
    let mut worker = match Worker::open(parts, partition, stop) {
        Ok(worker) => worker,
        Err(error) => return drop(ready.send((partition, Err(error)))),
    };
    if ready.send((partition, Ok(()))).is_err() {
        return;
    }
    let mut ended = Ended { partition, generation, inputs, busy: false };
    while let Ok(job) = todo.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        ended.busy = true;
        let Some(end) = worker.carry_out(&job) else { return ended.busy = false };
        ended.busy = false;
        let Job { items, progress, .. } = job;
        let ended_ms = clock::wall_ms();
        let report = Input::Emitted { partition, generation, items, progress, end, ended_ms };
        if ended.inputs.send(report).is_err() {
            return;
        }
    }
}

/// Tells the resolver if the thread panics: the partition would stand still otherwise.
struct Ended {
    partition: i32,
    generation: u64,
    inputs: mpsc::Sender<Input>,
    busy: bool,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.busy {
            let (partition, generation) = (self.partition, self.generation);
            let end = JobEnd::Lost("the emitter's thread panicked".into());
            let (items, progress, ended_ms) = (Vec::new(), None, clock::wall_ms());
            let report = Input::Emitted { partition, generation, items, progress, end, ended_ms };
            drop(self.inputs.send(report));
        }
    }
}

/// Between two tries of a transactional call that may be repeated.
pub(crate) const STEP_PAUSE: Duration = Duration::from_millis(50);
