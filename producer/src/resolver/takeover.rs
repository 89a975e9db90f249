//! Takes partitions over: fences their former owners, then finds where each is to be taken up: its
//! stored progress, its log, and what the parked topic says.
//!
//! The order matters: only once the former owner is fenced does its progress stand still.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use halfmsg_protocol::{Progress, Takeover};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::Input;
use super::assignment::StoreContext;
use super::emitter::{Emitter, EmitterParts, Ready};
use crate::config::ProducerConfig;
use crate::parked::{self, ParkedPartition};
use crate::scan::{self, Patience, Unread};
use crate::stored::{self, Place};

/// The group has changed its mind; what it says now is another takeover's business.
pub(super) const WITHDRAWN: &str = "the partitions were given up, or assigned anew, meanwhile";
/// One look-up of offsets or watermarks.
const LOOKUP: Duration = Duration::from_secs(5);
/// Reading the parked topic, without progress: what operators have left in it may be large.
pub(super) const PARKED_PATIENCE: Patience = Patience::Idle(Duration::from_secs(15));
/// Fencing all former owners, in parallel.
const READY_DEADLINE: Duration = Duration::from_secs(25);

/// A partition that was taken over, and what carries its outcomes out.
pub(crate) struct Taken {
    pub(crate) found: Found,
    pub(crate) emitter: Emitter,
}

/// How taking over ended for these partitions.
pub(crate) struct TakeoverEnd {
    pub(crate) generation: u64,
    pub(crate) taken: Vec<Taken>,
    /// To be tried again.
    pub(crate) failed: Vec<i32>,
    /// Why some or all could not be taken, if that is known.
    pub(crate) why: Option<String>,
}

/// Takes partitions over on a thread of its own, because everything here blocks; the end comes as
/// [`Input::TakenOver`].
pub(crate) fn start(parts: EmitterParts, partitions: Vec<i32>) -> std::io::Result<()> {
    let run = move || {
        let (inputs, generation) = (parts.inputs.clone(), parts.generation);
        let end = take(&parts, &partitions).unwrap_or_else(|error| {
            tracing::warn!(error, ?partitions, "the store's partitions cannot be taken over yet");
            let (taken, failed) = (Vec::new(), partitions.clone());
            TakeoverEnd { generation, taken, failed, why: Some(error) }
        });
        // The resolver may have ended; the next owner takes them.
        drop(inputs.send(Input::TakenOver(end)));
    };
    std::thread::Builder::new().name("halfmsg-takeover".into()).spawn(run).map(drop)
}

fn take(parts: &EmitterParts, partitions: &[i32]) -> Result<TakeoverEnd, String> {
    // Before anybody is fenced: one that cannot be read is asked about every second.
    let mut left_out = without_leader(parts, partitions)?;
    let led: Vec<i32> =
        partitions.iter().copied().filter(|of| !left_out.contains_key(of)).collect();
    if led.is_empty() {
        return Err(cannot_be_read(&parts.config.store_topic(), &left_out).unwrap_or_default());
    }
    let mut emitters = fence(parts, &led)?;
    if parts.claim.is_withdrawn() {
        return Err(WITHDRAWN.into());
    }
    let too_few = without_parked(parts, &mut emitters)?;
    let ready: Vec<i32> = emitters.keys().copied().collect();
    let (found, unread) = read(&parts.config, &parts.consumer, &ready, &mut left_out)?;
    let unseen = cannot_be_read(&parts.config.store_topic(), &left_out);
    if let Some(why) = &unseen {
        tracing::warn!(why, "some of the store's partitions cannot be taken over yet");
    }
    let why = too_few.or(unseen).or(unread);
    let own =
        |found: Found| emitters.remove(&found.partition).map(|emitter| Taken { found, emitter });
    let taken: Vec<Taken> = found.into_iter().filter_map(own).collect();
    let is_taken = |of: &i32| taken.iter().any(|taken| taken.found.partition == *of);
    let failed = partitions.iter().filter(|of| !is_taken(of)).copied().collect();
    Ok(TakeoverEnd { generation: parts.generation, taken, failed, why })
}

/// The store's partitions that nobody can be asked about now: they wait, and hold up no others.
fn without_leader(parts: &EmitterParts, partitions: &[i32]) -> Result<Unread, String> {
    let store = parts.config.store_topic();
    // This also makes the client know the topic: else the first record comes half a second late.
    scan::without_leader(&parts.consumer, &store, partitions, LOOKUP)
        .map_err(|error| format!("looking the store up: {error}"))
}

/// Which of the store's partitions are left out, and what to do about it.
fn cannot_be_read(store: &str, left_out: &Unread) -> Option<String> {
    let (partition, error) = left_out.iter().next()?;
    let why = format!(
        "{store}[{partition}] cannot be read ({error}), so nothing of the store's partitions {:?} is \
         carried out, and half messages for them are refused: look at the leaders of that topic's \
         partitions, with kafka-topics.sh --describe --topic {store}, and bring their brokers back; \
         they are taken over as soon as they have a leader",
        left_out.keys()
    );
    Some(why)
}

/// Leaves out the partitions that the parked topic does not have, because somebody has given more
/// of them to the store alone: they wait, and hold up no others. Says so, if there are any.
fn without_parked(
    parts: &EmitterParts,
    emitters: &mut BTreeMap<i32, Emitter>,
) -> Result<Option<String>, String> {
    let topic = parts.config.parked_topic();
    let count = halfmsg_kafka::partition_count(parts.consumer.client(), &topic, LOOKUP)
        .map_err(|error| error.to_string())?;
    let missing: Vec<i32> = emitters.keys().copied().filter(|of| *of >= count).collect();
    let Some(last) = missing.last() else { return Ok(None) };
    emitters.retain(|partition, _| *partition < count);
    let why = format!(
        "the topic '{topic}' has {count} partitions, fewer than the store: nothing of partitions \
         {missing:?} is carried out; give it as many with kafka-topics.sh --alter --topic {topic} \
         --partitions {}",
        last + 1
    );
    if emitters.is_empty() {
        return Err(why);
    }
    tracing::warn!(why, "some of the store's partitions cannot be taken over yet");
    Ok(Some(why))
}

/// Fences the former owners, all at once: each may have a transaction that the broker ends first.
fn fence(parts: &EmitterParts, partitions: &[i32]) -> Result<BTreeMap<i32, Emitter>, String> {
    let (ready, answers) = mpsc::channel::<Ready>();
    let mut emitters = BTreeMap::new();
    for partition in partitions {
        let emitter = Emitter::start(parts.clone(), *partition, ready.clone());
        emitters.insert(*partition, emitter.map_err(|error| error.to_string())?);
    }
    drop(ready);
    let until = Instant::now() + READY_DEADLINE;
    let (mut fenced, mut answered) = (BTreeSet::new(), 0);
    let mut why = format!("no answer within {READY_DEADLINE:?}");
    // One that fails at once holds the others up no longer.
    while answered < partitions.len() {
        answered += 1;
        match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((partition, Ok(()))) => drop(fenced.insert(partition)),
            Ok((partition, Err(error))) => {
                tracing::warn!(
                    partition,
                    error,
                    "the partition's former owner cannot be fenced yet"
                );
                why = error;
            }
            Err(_) => break,
        }
    }
    emitters.retain(|partition, _| fenced.contains(partition));
    if emitters.is_empty() && !partitions.is_empty() {
        return Err(format!("no former owner could be fenced: {why}"));
    }
    Ok(emitters)
}

/// A partition as it was found.
pub(crate) struct Found {
    pub(crate) partition: i32,
    pub(crate) progress: Progress,
    /// The start of its log.
    pub(crate) start: i64,
    /// The end of its log.
    pub(crate) end: i64,
    /// Why it must not be read, if it must not.
    pub(crate) stopped: Option<String>,
    parked: ParkedPartition,
}

impl Found {
    /// Records of a newer format that an operator has skipped.
    pub(crate) fn skipped(&self) -> BTreeSet<i64> {
        self.parked.skipped.clone()
    }

    pub(crate) fn takeover(self, wall_ms: i64, now: Duration) -> Takeover {
        Takeover { progress: self.progress, parked: self.parked.states, wall_ms, now }
    }
}

/// Looks everything up. Blocks; fails as a whole, to be tried again, but leaves a partition out that
/// has lost its leader (`left_out`), or whose part of the parked topic cannot be read, and says so.
fn read(
    config: &ProducerConfig,
    consumer: &BaseConsumer<StoreContext>,
    partitions: &[i32],
    left_out: &mut Unread,
) -> Result<(Vec<Found>, Option<String>), String> {
    let failed = |what: &'static str| move |error: KafkaError| format!("{what}: {error}");
    let (store, topic) = (config.store_topic(), config.parked_topic());
    // Read-committed: it would wait for an open transaction of the former owner, were there one.
    let (places, unseen) = stored::places_but(consumer, &store, partitions, LOOKUP)
        .map_err(failed("reading the stored progress and the ends of the store"))?;
    left_out.extend(unseen);
    let (mut parked, unread) = parked::read(&config.kafka, &topic, partitions, PARKED_PATIENCE)
        .map_err(failed("reading the parked topic"))?;
    let why = unread.iter().next().map(|(partition, error)| {
        let why = format!(
            "{topic}[{partition}] cannot be read ({error}), so nothing of the store's partitions {:?} \
             is carried out: look at the leaders of that topic's partitions",
            unread.keys()
        );
        tracing::warn!(why, "some of the store's partitions cannot be taken over yet");
        why
    });
    let mut found = Vec::with_capacity(partitions.len());
    let mut unknown = Vec::new();
    for (partition, place) in places {
        if unread.contains_key(&partition) {
            continue;
        }
        let Place { start, end, stored } = place;
        if stored.is_none() && end > start {
            unknown.push(partition);
        }
        let (progress, stopped) = match place.begin() {
            Ok(progress) => (progress, None),
            Err(why) => {
                let reason = format!("{store}[{partition}]: {why}");
                tracing::error!(reason, "the partition is stopped");
                (Progress { low_water: end, position: end }, Some(reason))
            }
        };
        let parked = parked.remove(&partition).unwrap_or_default();
        found.push(Found { partition, progress, start, end, stopped, parked });
    }
    if !unknown.is_empty() {
        tracing::warn!(
            topic = store, partitions = ?unknown,
            "no progress is stored for a log that is not empty (the group is new, or its offsets \
             expired): what was committed in it may be delivered again"
        );
    }
    Ok((found, why))
}
