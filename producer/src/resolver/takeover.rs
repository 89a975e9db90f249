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
use crate::stored::{self, Cut, Place};

#[cfg(test)]
mod tests;

/// The group has changed its mind; what it says now is another takeover's business.
pub(super) const WITHDRAWN: &str = "the partitions were given up, or assigned anew, meanwhile";
/// One look-up of offsets or watermarks.
const LOOKUP: Duration = Duration::from_secs(5);
/// Reading the parked topic, without progress: what operators have left in it may be large.
pub(super) const PARKED_PATIENCE: Patience = Patience::Idle(Duration::from_secs(15));
/// Fencing all former owners, in parallel.
const READY_DEADLINE: Duration = Duration::from_secs(25);
/// How long what is ours already waits for the others, so that most takeovers are one.
const TOGETHER: Duration = Duration::from_secs(1);

/// A partition that was taken over, and what carries its outcomes out.
pub(crate) struct Taken {
    pub(crate) found: Found,
    pub(crate) emitter: Emitter,
}

/// How a takeover ended; what it took was handed over before.
pub(crate) struct TakeoverEnd {
    pub(crate) generation: u64,
    /// To be tried again.
    pub(crate) failed: Vec<i32>,
    /// Why some or all could not be taken, if that is known.
    pub(crate) why: Option<String>,
}

/// Takes partitions over on a thread of its own, because everything here blocks; what is ours comes as
/// [`Input::Taken`], the end as [`Input::TakenOver`].
/// `seen` is how far this process has read each partition that it owned.
pub(crate) fn start(
    parts: EmitterParts,
    partitions: Vec<i32>,
    seen: BTreeMap<i32, i64>,
) -> std::io::Result<()> {
    let run = move || {
        let (inputs, generation) = (parts.inputs.clone(), parts.generation);
        let mut left = partitions;
        let why = take(&parts, &mut left, &seen).unwrap_or_else(|error| {
            tracing::warn!(error, partitions = ?left, "the store's partitions cannot be taken over yet");
            Some(error)
        });
        // The resolver may have ended; the next owner takes them.
        drop(inputs.send(Input::TakenOver(TakeoverEnd { generation, failed: left, why })));
    };
    std::thread::Builder::new().name("halfmsg-takeover".into()).spawn(run).map(drop)
}

/// Takes over and hands over, as they become ours, what is then no longer `left`; why not all, if that
/// is known.
fn take(
    parts: &EmitterParts,
    left: &mut Vec<i32>,
    seen: &BTreeMap<i32, i64>,
) -> Result<Option<String>, String> {
    let store = parts.config.store_topic();
    // Before anybody is fenced: one that cannot be read is asked about every second.
    let mut left_out = without_leader(parts, left)?;
    let led: Vec<i32> = left.iter().copied().filter(|of| !left_out.contains_key(of)).collect();
    if led.is_empty() {
        return Err(cannot_be_read(&store, &left_out).unwrap_or_default());
    }
    let (mut fences, mut why) = (Fences::start(parts, &led)?, None);
    loop {
        let fenced = fences.next();
        if parts.claim.is_withdrawn() {
            return Err(WITHDRAWN.into());
        }
        if fenced.is_empty() {
            break;
        }
        let (taken, because) = look_up(parts, fenced, &mut left_out, seen)?;
        why = why.or(because);
        left.retain(|of| taken.iter().all(|taken| taken.found.partition != *of));
        // Nobody hears of it: as at the end.
        drop(parts.inputs.send(Input::Taken { generation: parts.generation, taken }));
    }
    let unseen = cannot_be_read(&store, &left_out);
    if let Some(why) = &unseen {
        tracing::warn!(why, "some of the store's partitions cannot be taken over yet");
    }
    Ok(fences.why_not_all()?.or(why).or(unseen))
}

/// Looks the place of each of these up, which nobody else moves any more; and why not of all.
fn look_up(
    parts: &EmitterParts,
    mut fenced: BTreeMap<i32, Emitter>,
    left_out: &mut Unread,
    seen: &BTreeMap<i32, i64>,
) -> Result<(Vec<Taken>, Option<String>), String> {
    let too_few = without_parked(parts, &mut fenced)?;
    let ready: Vec<i32> = fenced.keys().copied().collect();
    if ready.is_empty() {
        return Ok((Vec::new(), too_few));
    }
    let (found, unread) = read(&parts.config, &parts.consumer, &ready, left_out, seen)?;
    let own =
        |found: Found| fenced.remove(&found.partition).map(|emitter| Taken { found, emitter });
    Ok((found.into_iter().filter_map(own).collect(), too_few.or(unread)))
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
    let Some(last) = missing.last() else {
        return Ok(None);
    };
    emitters.retain(|partition, _| *partition < count);
    let why = format!(
        "the topic '{topic}' has {count} partitions, fewer than the store: nothing of partitions \
         {missing:?} is carried out; give it as many with kafka-topics.sh --alter --topic {topic} \
         --partitions {}",
        last + 1
    );
    tracing::warn!(why, "some of the store's partitions cannot be taken over yet");
    Ok(Some(why))
}

/// The former owners, who are fenced all at once: each may have a transaction that the broker ends first.
struct Fences {
    of: Vec<i32>,
    /// Their lanes, as long as they have not answered.
    silent: BTreeMap<i32, Emitter>,
    answers: mpsc::Receiver<Ready>,
    until: Instant,
    /// Partitions that are ours, and of the others why not.
    fenced: BTreeSet<i32>,
    why: String,
}

impl Fences {
    fn start(parts: &EmitterParts, partitions: &[i32]) -> Result<Self, String> {
        let (ready, answers) = mpsc::channel::<Ready>();
        let mut silent = BTreeMap::new();
        for partition in partitions {
            let emitter = Emitter::start(parts.clone(), *partition, ready.clone());
            silent.insert(*partition, emitter.map_err(|error| error.to_string())?);
        }
        Ok(Self::of(silent, answers))
    }

    fn of(silent: BTreeMap<i32, Emitter>, answers: mpsc::Receiver<Ready>) -> Self {
        Self {
            of: silent.keys().copied().collect(),
            silent,
            answers,
            until: Instant::now() + READY_DEADLINE,
            fenced: BTreeSet::new(),
            why: format!("no answer within {READY_DEADLINE:?}"),
        }
    }

    /// The next partitions that are ours: all that are left, if they answer soon; else those that have,
    /// and a silent coordinator holds up only its own. None once nobody is waited for any more.
    fn next(&mut self) -> BTreeMap<i32, Emitter> {
        let mut ours = BTreeMap::new();
        let mut until = self.until;
        while !self.silent.is_empty() {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((partition, Ok(()))) => {
                    if ours.is_empty() {
                        until = self.until.min(Instant::now() + TOGETHER);
                    }
                    ours.extend(self.silent.remove(&partition).map(|lane| (partition, lane)));
                    self.fenced.insert(partition);
                }
                Ok((partition, Err(error))) => {
                    tracing::warn!(
                        partition,
                        error,
                        "the partition's former owner cannot be fenced yet"
                    );
                    self.silent.remove(&partition);
                    self.why = error;
                }
                Err(_) => break,
            }
        }
        if !ours.is_empty() && !self.silent.is_empty() {
            tracing::warn!(
                partitions = ?self.silent.keys(),
                "the former owners of these are not fenced yet; the others do not wait for them"
            );
        }
        ours
    }

    /// Why some are not ours; an error if none is.
    fn why_not_all(&self) -> Result<Option<String>, String> {
        let why = &self.why;
        if self.fenced.is_empty() {
            return Err(format!("no former owner could be fenced: {why}"));
        }
        let missing: Vec<_> = self.of.iter().filter(|of| !self.fenced.contains(of)).collect();
        Ok((!missing.is_empty()).then(|| {
            format!("nothing of the store's partitions {missing:?} is carried out: {why}")
        }))
    }
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
    /// What is missing of its log although it was needed.
    pub(crate) cut: Option<String>,
    /// The log holds records, and nobody has stored how far they are carried out.
    pub(crate) is_progress_unknown: bool,
    parked: ParkedPartition,
}

impl Found {
    /// Where a partition is taken up, or why it is stopped. Of outcomes that are gone an operator must
    /// know before anything hides it; the embedded broker, which forgets what is beyond its size,
    /// has none, and what it loses is only told.
    pub(super) fn at(
        (store, partition): (&str, i32),
        place: Place,
        parked: ParkedPartition,
        is_embedded: bool,
    ) -> Self {
        let Place { start, end, stored } = place;
        let is_progress_unknown = stored.is_none() && end > start;
        let named = |why: String| format!("{store}[{partition}]: {why}");
        let (cut, lacks_outcomes) = match place.cut() {
            None => (None, false),
            Some(Cut::Open(why)) => (
                Some(named(why + "; what was open there is not asked about, and not delivered")),
                false,
            ),
            Some(Cut::Outcomes(why)) => (
                Some(named(format!(
                    "{why}; what was open or decided there is not asked about, and not delivered: \
                     compare with your database, then stop the replicas and set its progress with \
                     halfmsg reset-progress {partition} --to start"
                ))),
                !is_embedded,
            ),
        };
        let begin = place.begin().map_err(named);
        let stopped = begin.as_ref().err().or(cut.as_ref().filter(|_| lacks_outcomes)).cloned();
        let progress = match begin {
            Ok(progress) if stopped.is_none() => progress,
            _ => Progress { low_water: end, position: end },
        };
        Self { partition, progress, start, end, stopped, cut, is_progress_unknown, parked }
    }

    /// It must not be read.
    fn stop(&mut self, why: String) {
        self.progress = Progress { low_water: self.end, position: self.end };
        self.stopped = Some(why);
    }

    /// Records of a newer format that an operator has skipped.
    pub(crate) fn skipped(&self) -> BTreeSet<i64> {
        self.parked.skipped.clone()
    }

    pub(crate) fn takeover(self, wall_ms: i64, now: Duration) -> Takeover {
        Takeover { progress: self.progress, parked: self.parked.states, wall_ms, now }
    }
}

/// Whether the store was deleted and made anew under this process, and what to do: the brokers forget
/// progress with its topic, and of what this process has read (`seen`) one log ends before that. One
/// partition tells it of all for which nothing is stored: which of them this replica owned is chance.
fn made_anew(
    store: &str,
    places: &BTreeMap<i32, Place>,
    seen: &BTreeMap<i32, i64>,
    end_of: impl Fn(i32) -> Option<i64>,
) -> Option<String> {
    if places.values().all(|place| place.stored.is_some()) {
        return None;
    }
    let end_of = |of: i32| places.get(&of).map(|place| place.end).or_else(|| end_of(of));
    let read_beyond = |(of, read): (&i32, &i64)| {
        let end = end_of(*of).filter(|end| end < read)?;
        Some(format!(
            "no progress is stored, and this process has read {store}[{of}] up to {read}, but its log \
             ends at {end}: this is another log (was the topic made anew?). What was open or not yet \
             delivered in the former one is gone: compare with your database, then stop all replicas \
             and set where they begin with halfmsg reset-progress"
        ))
    };
    seen.iter().find_map(read_beyond)
}

/// Looks everything up. Blocks; fails as a whole, to be tried again, but leaves a partition out that
/// has lost its leader (`left_out`), or whose part of the parked topic cannot be read, and says so.
fn read(
    config: &ProducerConfig,
    consumer: &BaseConsumer<StoreContext>,
    partitions: &[i32],
    left_out: &mut Unread,
    seen: &BTreeMap<i32, i64>,
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
    let end_of =
        |partition| consumer.fetch_watermarks(&store, partition, LOOKUP).ok().map(|(_, end)| end);
    let anew = made_anew(&store, &places, seen, end_of);
    let mut found = Vec::with_capacity(partitions.len());
    let mut unknown = Vec::new();
    for (partition, place) in places {
        if unread.contains_key(&partition) {
            continue;
        }
        let parked = parked.remove(&partition).unwrap_or_default();
        let mut at = Found::at((&store, partition), place, parked, config.kafka.embedded);
        if let Some(why) = anew.as_ref().filter(|_| place.stored.is_none()) {
            at.stop(format!("{store}[{partition}]: {why} {partition} --to start"));
        }
        if let Some(reason) = &at.stopped {
            tracing::error!(reason, "the partition is stopped");
        } else if let Some(cut) = &at.cut {
            tracing::error!(cut, "half messages were deleted that were open");
        } else if at.is_progress_unknown {
            unknown.push(partition);
        }
        found.push(at);
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
