//! The one implementation of what operators see and do: whoever asks, a replica of the application
//! or a program without listener and membership.
//!
//! What a replica owns is answered from its memory, everything else by a look at the brokers.
//! It must never join the group, and never keep what it saw.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::HalfOffset;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    AdminError, ForeignFilter, ForeignView, HalfDetail, HalfFilter, HalfView, MAX_PAGE,
    MissingPartition, Page, view,
};
use crate::TransactionId;
use crate::bodies::Bodies;
use crate::config::ProducerConfig;
use crate::life;
use crate::log::StoreLog;
use crate::operator::journal::told::Acts;
use crate::operator::{JournalFilter, JournalPage};
use crate::producer::TransactionProducer;
use crate::resolver::Input;
use crate::resolver::query::{HalfState, Known, Query, Seen, select, sharing};
use crate::snapshot::{
    self, Look, Part, Report, SnapshotError, SnapshotLimits, Taken, Wanted, Where,
};

/// Waiting for the resolver to answer from memory.
const QUERY_DEADLINE: Duration = Duration::from_secs(2);
/// Looks at the brokers at once; more wait. They are what an unknown caller of a view can cause.
pub(crate) const LOOKS_AT_ONCE: usize = 2;
/// The same for what operators do: whoever asks for views holds none of them up.
pub(crate) const ACTS_AT_ONCE: usize = 2;

/// Where views come from and decisions go to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) config: Arc<ProducerConfig>,
    pub(crate) log: Arc<StoreLog>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) looks: Arc<Semaphore>,
    pub(crate) limits: SnapshotLimits,
    pub(crate) report: Option<Report>,
    /// The replica that this desk is in, with its memory and its listeners.
    pub(crate) replica: Option<TransactionProducer>,
}

/// A half as it was found, and if that was at the brokers, its partition.
pub(crate) struct Looked {
    pub(crate) seen: Seen,
    pub(super) part: Option<Part>,
}

impl Desk {
    pub(crate) async fn list(&self, filter: HalfFilter) -> Result<Page<HalfView>, AdminError> {
        self.page(filter.state, begin(filter.cursor.as_deref())?, filter.limit.clamp(1, MAX_PAGE))
            .await
    }

    /// From the parked topic, whoever owns the partitions: nobody keeps these in memory.
    pub(crate) async fn foreign(
        &self,
        filter: ForeignFilter,
    ) -> Result<Page<ForeignView>, AdminError> {
        let (from, limit) = (begin(filter.cursor.as_deref())?, filter.limit.clamp(1, MAX_PAGE));
        let config = Arc::clone(&self.config);
        let looked = self.look(move |look| snapshot::foreign(&config, (from, limit), look)).await;
        let (copies, unread) = looked?;
        let (copies, next) = copies.page(limit);
        if copies.is_empty() && next.is_none() {
            all_of(&unread)?;
        }
        let mut missing = Missing::default();
        missing.add(unread, false);
        let items = copies.into_iter().map(|(place, copy)| ForeignView::of(place, copy));
        Ok(Page {
            items: items.collect(),
            next_cursor: next.map(view::cursor),
            missing_partitions: missing.0.into_values().collect(),
        })
    }

    /// From the parked topic, as [`Desk::foreign`].
    pub(crate) async fn journal(&self, filter: JournalFilter) -> Result<JournalPage, AdminError> {
        let acts = Acts::new(&filter, filter.limit.clamp(1, MAX_PAGE))?;
        let config = Arc::clone(&self.config);
        let looked = self.look(move |look| snapshot::journal(&config, acts, look)).await;
        let (acts, unread) = looked?;
        let mut journal = acts.page();
        if journal.page.items.is_empty() && journal.page.next_cursor.is_none() {
            all_of(&unread)?;
        }
        let mut missing = Missing::default();
        missing.add(unread, false);
        journal.page.missing_partitions = missing.0.into_values().collect();
        Ok(journal)
    }

    /// All of them, of one look: what it costs does not grow with the number of pages. Without a
    /// replica it is bounded by what a look may read.
    pub(crate) async fn everything(&self) -> Result<Page<HalfView>, AdminError> {
        self.page(None, (0, 0), usize::MAX - 1).await
    }

    async fn page(
        &self,
        state: Option<HalfState>,
        from: (i32, i64),
        limit: usize,
    ) -> Result<Page<HalfView>, AdminError> {
        let wanted = limit + 1;
        let known = self.memory(|reply| Query::List { state, from, limit: wanted, reply }).await;
        let Known { partitions: known, what: mut seen, stopped } = known.unwrap_or_default();
        let mut missing = Missing::default();
        missing.add(stopped, true);
        if !self.is_all(&known) {
            let knows_none = known.is_empty();
            let wanted_parts = Wanted { except: known, least: from.0, ..Wanted::default() };
            let Taken { parts, missing: unseen } = self.snapshot(wanted_parts).await?;
            if knows_none && parts.is_empty() {
                all_of(&unseen)?;
            }
            missing.add(unseen, false);
            for part in &parts {
                let begin = HalfOffset(if part.partition == from.0 { from.1 } else { 0 });
                let (open, parked) = select(&part.ledger, state, begin, wanted);
                seen.extend(open.into_iter().map(|open| part.open(open)));
                seen.extend(parked.into_iter().map(|parked| part.parked(parked)));
            }
            missing.add(standing_still(&parts), true);
            seen.sort_by_key(Seen::place);
            seen.truncate(wanted);
        }
        let next_cursor = (seen.len() > limit).then(|| seen.pop()).flatten();
        Ok(Page {
            items: seen.iter().map(HalfView::of).collect(),
            next_cursor: next_cursor.map(|seen| view::cursor(seen.place())),
            missing_partitions: missing.0.into_values().collect(),
        })
    }

    /// One half with its life. What is closed longer than the store is replayed is searched for in
    /// the whole log; for a replica, whose views can be asked for by anybody, only in its end, and from
    /// the beginning of a partition where that end may begin with a second message of the id.
    pub(crate) async fn get(&self, id: TransactionId) -> Result<Option<HalfDetail>, AdminError> {
        let found = self.look_up(id).await?;
        let place = match &found {
            Ok(Looked { seen, .. }) => Where::From(seen.partition, HalfOffset(seen.place().1)),
            Err(_) if self.replica.is_none() => Where::Everywhere,
            // No half has such an id: nothing is read for whoever asks for it.
            Err(_) if id.as_uuid().get_version_num() != 7 => return Ok(None),
            Err(unfound) if self.is_all(&unfound.known) => return Ok(None),
            Err(unfound) => Where::Lately(unfound.known.clone(), snapshot::LATELY),
        };
        let config = Arc::clone(&self.config);
        let traced = self.look(move |look| snapshot::trace(&config, id, place, look)).await;
        match (found, traced) {
            (Ok(Looked { seen, .. }), Ok(traced)) => {
                Ok(Some(HalfDetail::of(&self.with_body(seen).await?, traced.as_ref())))
            }
            // Its state is known; only its history is short then.
            (Ok(Looked { seen, .. }), Err(error)) => {
                let key = life::text(seen.key());
                tracing::warn!(%error, transaction_id = %id, key, "the history cannot be read");
                Ok(Some(HalfDetail::of(&self.with_body(seen).await?, None)))
            }
            (Err(unfound), traced) => match traced? {
                None => unfound.may_be_behind().map_or(Ok(None), Err),
                Some(traced) => {
                    Ok(traced.seen(id).map(|seen| HalfDetail::of(&seen, Some(&traced))))
                }
            },
        }
    }

    /// The message wherever it is; else where it is not.
    pub(crate) async fn look_up(
        &self,
        id: TransactionId,
    ) -> Result<Result<Looked, Unfound>, AdminError> {
        let (partitions, mut stopped) = match self.memory(|reply| Query::Find { id, reply }).await {
            Some(Known { what: Some(seen), .. }) => return Ok(Ok(Looked { seen, part: None })),
            Some(known) => (known.partitions, known.stopped),
            None => Default::default(),
        };
        if !self.is_all(&partitions) {
            let except = partitions.clone();
            let wanted = Wanted { except, body_of: Some(id), ..Wanted::default() };
            let Taken { parts, missing } = self.snapshot(wanted).await?;
            stopped.extend(standing_still(&parts));
            if let Some((seen, part)) =
                parts.into_iter().find_map(|part| Some((part.find(id)?, part)))
            {
                return Ok(Ok(Looked { seen, part: Some(part) }));
            }
            // It may be in one of those.
            all_of(&missing)?;
        }
        let known = partitions.into_iter().filter(|partition| !stopped.contains_key(partition));
        Ok(Err(Unfound { known: known.collect(), stopped }))
    }

    /// The messages, wherever they are, that share this local transaction and are not decided.
    pub(super) async fn sharing(
        &self,
        local: TransactionId,
    ) -> Result<Vec<TransactionId>, AdminError> {
        let known = self.memory(|reply| Query::Sharing { local, reply }).await;
        let Known { partitions: known, mut stopped, what: mut found } = known.unwrap_or_default();
        if !self.is_all(&known) {
            let wanted = Wanted { except: known, ..Wanted::default() };
            let parts = self.snapshot_of_all(wanted).await?;
            stopped.extend(standing_still(&parts));
            found.extend(parts.iter().flat_map(|part| sharing(&part.ledger, local)));
        }
        let unfound = Unfound { known: BTreeSet::new(), stopped };
        unfound.may_be_behind().map_or(Ok(found), Err)
    }

    /// Whether these are all partitions, as far as this replica knows.
    fn is_all(&self, known: &BTreeSet<i32>) -> bool {
        let Some(replica) = &self.replica else { return false };
        (0..replica.inner.shared.counted()).all(|partition| known.contains(&partition))
    }

    /// A resolver that does not answer, because it takes partitions over or has ended, knows
    /// nothing: then the brokers are asked about everything.
    async fn memory<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<Known<T>>) -> Query,
    ) -> Option<Known<T>> {
        self.replica.as_ref()?;
        self.ask(query).await.ok()
    }

    pub(super) async fn ask<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Result<T, AdminError> {
        let (reply, answer) = oneshot::channel();
        let ended = || AdminError::Unavailable("the resolver has ended".into());
        let replica = self.replica.as_ref().ok_or_else(ended)?;
        replica.inner.inputs.send(Input::Query(query(reply))).map_err(|_| ended())?;
        match tokio::time::timeout(QUERY_DEADLINE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ended()),
            Err(_) => Err(AdminError::Unavailable("the resolver is busy".into())),
        }
    }

    /// The partitions that are wanted, all of them.
    pub(crate) async fn snapshot_of_all(&self, wanted: Wanted) -> Result<Vec<Part>, AdminError> {
        let Taken { parts, missing } = self.snapshot(wanted).await?;
        all_of(&missing).map(|()| parts)
    }

    async fn snapshot(&self, wanted: Wanted) -> Result<Taken, AdminError> {
        let config = Arc::clone(&self.config);
        self.look(move |look| snapshot::take(&config, &wanted, look)).await
    }

    /// Looks at the brokers on a thread of its own. When nobody waits any more, it ends soon.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Look) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let acquired = Arc::clone(&self.looks).acquire_owned();
        let place = match tokio::time::timeout(self.limits.deadline, acquired).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) | Err(_) => {
                let what = "too many look at the store at once: try again later";
                return Err(AdminError::Incomplete(what.into()));
            }
        };
        let cancelled = CancellationToken::new();
        let _until_dropped = cancelled.clone().drop_guard();
        let bounds = Look::new(self.limits, cancelled, self.report.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let _place = place;
            look(&bounds)
        });
        match looked.await {
            Ok(looked) => Ok(looked?),
            Err(error) => Err(AdminError::Incomplete(format!("the look failed: {error}"))),
        }
    }
}

/// Where a list begins.
fn begin(cursor: Option<&str>) -> Result<(i32, i64), AdminError> {
    let Some(cursor) = cursor else { return Ok((0, 0)) };
    let begin = view::parse_cursor(cursor);
    begin.ok_or(AdminError::Invalid("the cursor is none that a list has given"))
}

/// Partitions of which not everything is shown.
#[derive(Default)]
struct Missing(BTreeMap<i32, MissingPartition>);

impl Missing {
    fn add(&mut self, found: impl IntoIterator<Item = (i32, String)>, stopped: bool) {
        let named =
            |(partition, reason)| (partition, MissingPartition { partition, reason, stopped });
        self.0.extend(found.into_iter().map(named));
    }
}

/// Where a message is not.
pub(crate) struct Unfound {
    /// Partitions of which the memory of this replica knows everything.
    known: BTreeSet<i32>,
    /// Those that stand still, and why: it may be behind that.
    stopped: BTreeMap<i32, String>,
}

impl Unfound {
    /// Why it may be there all the same.
    pub(super) fn may_be_behind(&self) -> Option<AdminError> {
        let (partition, reason) = self.stopped.first_key_value()?;
        Some(AdminError::Incomplete(format!(
            "partition {partition} of the store stands still, and what is looked for may be behind \
             that: {reason}"
        )))
    }
}

/// The parts that stand still, and why.
fn standing_still(parts: &[Part]) -> impl Iterator<Item = (i32, String)> {
    parts.iter().filter_map(|part| Some((part.partition, part.stopped.clone()?)))
}

/// An error if a partition is missing that may have what is looked for.
fn all_of(missing: &BTreeMap<i32, String>) -> Result<(), AdminError> {
    let Some(first) = missing.values().next() else { return Ok(()) };
    let partitions: Vec<&i32> = missing.keys().collect();
    Err(AdminError::Incomplete(format!(
        "partitions {partitions:?} of the store could not be looked at ({first}), and what is looked \
         for may be there: try again when they have a leader"
    )))
}
