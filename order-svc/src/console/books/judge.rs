//! Whether the books agree: what stands still for too long, with nothing under way that could mend
//! it, is broken. Pure: it must never ask anybody, and the time comes in as a parameter.
//!
//! The difference of a product that is bought all the time moves and is never 0, and what stands still in
//! it is its floor: [`Floor`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::store::live::Live;

/// A difference is broken when it has stood still, and nothing under way has explained it, for so long:
/// a delivered message takes a moment to be consumed.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at a difference that stands still; after a longer pause it is a new one. Longer
/// than the slowest reading, its rest, and the page's pause.
pub(super) const LOOKS_APART: Duration = Duration::from_secs(40);
/// How much later than a difference was first seen its cause may seem to have begun: two clocks. What
/// began later is not its cause, however long that one has been over: else traffic would hide it.
pub(super) const CLOCKS_APART: TimeDelta = TimeDelta::seconds(10);
/// The two sides are read so far apart at most, and what is under way behind them: what was taken or
/// given back in so long may differ although nothing is under way any more.
pub(super) const READ_WITHIN: Duration = Duration::from_millis(250);
/// stock-svc brings its gauges up to date every 5 s: what it says of its consumers may be so old.
pub(super) const GAUGES_BEHIND: Duration = Duration::from_secs(15);

/// What stock-svc counts of a product.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
pub(super) struct Counted {
    pub(super) sku: String,
    pub(super) name: String,
    pub(super) price_cents: i64,
    pub(super) available: i64,
    pub(super) received: i64,
    pub(super) deducted: i64,
    pub(super) restored: i64,
}

/// One product in the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct Line {
    #[serde(flatten)]
    pub(super) counted: Counted,
    /// What confirmed orders hold.
    pub(super) live: i64,
    /// What waits for stock.
    pub(super) pending: i64,
    /// Taken out of the stock, and held by no confirmed order.
    pub(super) difference: i64,
    /// stock-svc's own sum: available = received - deducted + restored, and not negative.
    pub(super) adds_up: bool,
}

impl Line {
    pub(super) fn new(counted: Counted, live: Live) -> Self {
        let Counted { available, received, deducted, restored, .. } = counted;
        Self {
            difference: deducted - restored - live.confirmed,
            adds_up: available == received - deducted + restored && available >= 0,
            live: live.confirmed,
            pending: live.pending,
            counted,
        }
    }
}

/// Whether the books agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Every product adds up.
    Balanced,
    /// It does not yet; something is under way that will mend it, or waits for an operator.
    Settling,
    /// It does not, and nothing under way is old enough to mend it.
    Broken,
}

/// What could mend a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct UnderWay {
    pub(super) open_halves: usize,
    pub(super) parked_halves: usize,
    pub(super) dead_letters: usize,
    /// Messages that stock-svc has not taken, has in hand or tries again.
    pub(super) waiting: u64,
    /// Not everything could be looked at: nothing is called broken then.
    pub(super) unknown: bool,
}

/// What was under way, and what that explains.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looked {
    pub(super) under_way: UnderWay,
    /// When the first of the half messages and dead letters began; the beginning of time if it is
    /// not known.
    pub(super) oldest: Option<DateTime<Utc>>,
}

impl Looked {
    pub(super) const UNKNOWN: Self = Self {
        under_way: UnderWay {
            open_halves: 0,
            parked_halves: 0,
            dead_letters: 0,
            waiting: 0,
            unknown: true,
        },
        oldest: Some(DateTime::<Utc>::MIN_UTC),
    };
}

/// A difference that has stayed the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Since {
    difference: i64,
    /// When it was first seen, by both clocks.
    at: Instant,
    wall: DateTime<Utc>,
    /// The last look that found what may have caused it, or could not tell; else the first look.
    caused: Instant,
    /// The last look that found anything that may mend it; else the first look.
    explained: Instant,
    /// Orders have waited for stock of it at every look.
    pended: bool,
}

impl Since {
    fn new(line: &Line, now: Instant, wall: DateTime<Utc>) -> Self {
        let (difference, pended) = (line.difference, line.pending != 0);
        Self { difference, at: now, wall, caused: now, explained: now, pended }
    }

    /// What was under way at this look, and when last nothing waited at stock-svc.
    fn weigh(&mut self, now: Instant, pending: i64, looked: &Looked, quiet: Option<Instant>) {
        self.pended &= pending != 0;
        if looked.oldest.is_some_and(|oldest| oldest <= self.wall + CLOCKS_APART) {
            (self.caused, self.explained) = (now, now);
        }
        // Its message was delivered behind that look at the earliest, and has waited ever since.
        let may_wait = quiet.is_none_or(|quiet| quiet < self.caused + GAUGES_BEHIND);
        if self.pended || (looked.under_way.waiting > 0 && may_wait) {
            self.explained = now;
        }
    }

    /// Whether what explained it may only just have ended: then no look says that it is always there.
    fn is_ending(&self, now: Instant) -> bool {
        self.explained > self.at && now.duration_since(self.explained) < SETTLE_WITHIN
    }
}

/// What of a difference is always there, as long as it has one sign. Only looks count at which nothing
/// was under way: where something was, the difference may be all its doing, for as long as you like, of
/// one thing after the other.
#[derive(Debug, Clone, Copy)]
struct Floor {
    is_more: bool,
    /// What was ever taken and given back, by the last look, and when that was.
    moved: i64,
    at: Instant,
    /// What of the difference the two readings' distance may be; not known at the first look.
    slack: Option<i64>,
    seen: Option<Seen>,
}

/// The smallest of them, above the slack, and the first and the last look that saw one.
#[derive(Debug, Clone, Copy)]
struct Seen {
    least: i64,
    first: Instant,
    last: Instant,
}

impl Floor {
    fn new(line: &Line, at: Instant) -> Self {
        let Counted { deducted, restored, .. } = line.counted;
        let moved = deducted.saturating_add(restored);
        Self { is_more: line.difference > 0, moved, at, slack: None, seen: None }
    }

    /// The next look at it.
    fn then(self, next: Self) -> Self {
        let moved = next.moved.saturating_sub(self.moved).max(0);
        let time = next.at.duration_since(self.at);
        let within = i128::from(moved) * i128::try_from(READ_WITHIN.as_millis()).unwrap_or(0);
        let slack = within / i128::try_from(time.as_millis()).unwrap_or(i128::MAX).max(1);
        Self { slack: i64::try_from(slack).ok(), seen: self.seen, ..next }
    }

    /// At a look at which nothing was under way.
    fn see(&mut self, difference: i64) {
        let Some(slack) = self.slack else { return };
        let stands = difference.saturating_abs().saturating_sub(slack);
        if stands <= 0 {
            return;
        }
        let seen = self.seen.unwrap_or(Seen { least: stands, first: self.at, last: self.at });
        self.seen = Some(Seen { least: seen.least.min(stands), last: self.at, ..seen });
    }

    fn stands(&self) -> bool {
        self.seen.is_some_and(|Seen { least, first, last }| {
            least > 0 && last.duration_since(first) >= SETTLE_WITHIN
        })
    }
}

/// What stands still.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) by_sku: BTreeMap<String, Since>,
    floors: BTreeMap<String, Floor>,
    /// The last look, and the last at which nothing waited at stock-svc.
    looked: Option<Instant>,
    quiet: Option<Instant>,
}

impl Standing {
    /// A new look at the differences.
    pub(super) fn look(&mut self, lines: &[Line], (now, wall): (Instant, DateTime<Utc>)) {
        let goes_on = self.looked.is_some_and(|last| now.duration_since(last) <= LOOKS_APART);
        let former = std::mem::take(&mut self.by_sku);
        let floors = std::mem::take(&mut self.floors);
        for line in lines.iter().filter(|line| line.difference != 0) {
            let (sku, difference) = (&line.counted.sku, line.difference);
            let same = former.get(sku).filter(|since| goes_on && since.difference == difference);
            let since = same.copied().unwrap_or_else(|| Since::new(line, now, wall));
            self.by_sku.insert(sku.clone(), since);
            let next = Floor::new(line, now);
            let floor = floors.get(sku).filter(|floor| goes_on && floor.is_more == next.is_more);
            self.floors.insert(sku.clone(), floor.map_or(next, |floor| floor.then(next)));
        }
        self.looked = Some(now);
    }

    /// What was under way at this look; none if there is no difference.
    pub(super) fn weigh(&mut self, lines: &[Line], looked: Option<Looked>) {
        let Some(now) = self.looked else { return };
        let under_way = looked.map(|looked| looked.under_way);
        if under_way.is_none_or(|under_way| !under_way.unknown && under_way.waiting == 0) {
            self.quiet = looked.map(|_| now);
        }
        let Some(looked) = looked else { return };
        let is_quiet = looked.under_way == UnderWay::default();
        for line in lines {
            let sku = &line.counted.sku;
            let Some(since) = self.by_sku.get_mut(sku) else { continue };
            since.weigh(now, line.pending, &looked, self.quiet);
            let counts = is_quiet && line.pending == 0 && !since.is_ending(now);
            if let Some(floor) = self.floors.get_mut(sku).filter(|_| counts) {
                floor.see(line.difference);
            }
        }
    }

    fn has_floor(&self, sku: &str) -> bool {
        self.floors.get(sku).is_some_and(Floor::stands)
    }
}

/// Every product of either side. One that only orders know is left out if products are.
pub(super) fn lines(
    counted: Vec<Counted>,
    live: BTreeMap<String, Live>,
    truncated: bool,
) -> Vec<Line> {
    let mut live = live;
    let mut lines: Vec<Line> = counted
        .into_iter()
        .map(|counted| {
            let held = live.remove(&counted.sku).unwrap_or_default();
            Line::new(counted, held)
        })
        .collect();
    if !truncated {
        lines.extend(live.into_iter().map(|(sku, live)| {
            let name = sku.clone();
            let counted = Counted {
                sku,
                name,
                price_cents: 0,
                available: 0,
                received: 0,
                deducted: 0,
                restored: 0,
            };
            Line::new(counted, live)
        }));
    }
    lines
}

/// What the books say at this moment, which `standing` has seen and weighed; something could not be
/// looked at if `unknown`.
pub(super) fn judge(lines: &[Line], unknown: bool, standing: &Standing, now: Instant) -> Verdict {
    if !lines.iter().all(|line| line.adds_up) {
        return Verdict::Broken;
    }
    if lines.iter().all(|line| line.difference == 0) {
        return Verdict::Balanced;
    }
    // What is under way now may be newer than a floor that was seen.
    let may_settle = |line: &Line| unknown || line.pending != 0;
    let stood_still = |line: &Line| {
        let since = standing.by_sku.get(&line.counted.sku);
        since.is_some_and(|since| now.duration_since(since.explained) >= SETTLE_WITHIN)
    };
    let is_broken = |line: &Line| {
        !may_settle(line) && (stood_still(line) || standing.has_floor(&line.counted.sku))
    };
    if lines.iter().any(is_broken) { Verdict::Broken } else { Verdict::Settling }
}
