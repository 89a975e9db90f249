//! One purpose's part of a question, in as many calls as it takes: a call that fails as a whole, by
//! time, panic or count, says nothing of any single half, so its halves are asked about again by
//! halves, until the one to blame is alone. It must never tell that a half failed about which no call
//! of this question asked: after `max_age` of failures it would be given up unasked.
//!
//! In the order in which they are asked about: halves of which nothing bad is known; parts of calls
//! that failed; those that an earlier question did not single out (in doubt); those that failed alone
//! before (suspects). The bounds: a question takes at most `check_deadline` for each halving of it,
//! and two more, and so many calls may fail as find [`CULPRITS`]; of that, those in doubt and the
//! suspects have as many deadlines as there may be culprits. What is left of the suspects had no place
//! ([`NotAsked::NoPlace`]): its intervals grow as if it had failed. What is left of the others waits for
//! the next question, or had no place where nothing at all was answered.

use std::sync::Arc;

use halfmsg_protocol::{Answer, NotAsked};
use tokio::time::Instant;

use super::call::{Called, Part, is_not_reached};
use super::claims::Claim;
use super::pace::Pace;
use super::{Checker, Kind};
use crate::message::HalfMessage;

/// Halves to blame that one question finds; so many of those in doubt and of the suspects may hang in
/// it.
pub(super) const CULPRITS: u32 = 4;

/// A half, and where its answer goes.
pub(super) struct Placed {
    pub(super) at: usize,
    pub(super) half: HalfMessage,
    pub(super) claim: Arc<Claim>,
}

type Place = (usize, Arc<Claim>);
pub(super) type Tell<'a> = &'a (dyn Fn(usize, Answer) + Send + Sync);

/// What is left of a question.
struct Rest {
    clean: std::vec::IntoIter<Placed>,
    /// Parts of calls; the last comes first.
    parts: Vec<(Kind, Vec<Placed>)>,
    doubted: std::vec::IntoIter<Placed>,
    /// Those that failed alone longest ago first: none is kept from being asked by others.
    suspects: std::vec::IntoIter<Placed>,
}

/// What a question may still cost.
struct Bounds {
    until: Instant,
    failures_left: u32,
    /// For those in doubt and the suspects; from the first of them on.
    blamed_until: Option<Instant>,
    is_of_one: bool,
}

impl Rest {
    fn new(halves: Vec<Placed>, pace: &Pace) -> Self {
        let (mut clean, mut doubted, mut suspects) = (Vec::new(), Vec::new(), Vec::new());
        for placed in halves {
            match pace.kind(placed.half.transaction_id) {
                Kind::Suspect => suspects.push(placed),
                Kind::Doubted => doubted.push(placed),
                _ => clean.push(placed),
            }
        }
        suspects.sort_by_key(|placed| pace.blamed_at(placed.half.transaction_id));
        let (clean, doubted) = (clean.into_iter(), doubted.into_iter());
        Self { clean, parts: Vec::new(), doubted, suspects: suspects.into_iter() }
    }

    fn next(&mut self, pace: &Pace) -> Option<(Kind, Vec<Placed>)> {
        let some = |halves: &mut std::vec::IntoIter<Placed>, kind| {
            let most = pace.most(kind);
            let halves: Vec<Placed> = halves.by_ref().take(most).collect();
            (!halves.is_empty()).then_some((kind, halves))
        };
        some(&mut self.clean, Kind::Clean)
            .or_else(|| self.parts.pop())
            .or_else(|| some(&mut self.doubted, Kind::Doubted))
            .or_else(|| some(&mut self.suspects, Kind::Suspect))
    }

    /// Puts a part back that there was no time for.
    fn put_back(&mut self, kind: Kind, halves: Vec<Placed>) {
        self.parts.push((kind, halves));
    }

    fn all(self) -> impl Iterator<Item = (Kind, Placed)> {
        let parts = self.parts.into_iter();
        parts
            .flat_map(|(kind, halves)| halves.into_iter().map(move |half| (kind, half)))
            .chain(self.clean.map(|half| (Kind::Clean, half)))
            .chain(self.doubted.map(|half| (Kind::Doubted, half)))
            .chain(self.suspects.map(|half| (Kind::Suspect, half)))
    }
}

impl Checker {
    /// Asks one purpose's listener about these.
    pub(super) async fn ask_purpose(&self, purpose: &str, halves: Vec<Placed>, tell: Tell<'_>) {
        let mut bounds = self.bounds(halves.len());
        let mut rest = self.paced(purpose, |pace| Rest::new(halves, pace));
        // What is told of those that no call answered for when it is over.
        let mut left: Option<Answer> = None;
        while let Some((kind, halves)) = self.paced(purpose, |pace| rest.next(pace)) {
            let Some(until) = self.time_for(kind, &mut bounds, left.is_some()) else {
                rest.put_back(kind, halves);
                break;
            };
            let (places, halves) = unplaced(halves);
            let claims = places.iter().map(|(_, claim)| Arc::clone(claim)).collect();
            let part = Part { halves: Arc::clone(&halves), claims, kind };
            match self.call(purpose, part, until).await {
                Called::Answered(answers) => {
                    left = Some(Answer::NotAsked(NotAsked::Busy));
                    self.paced(purpose, |pace| pace.answered(kind, &halves, &answers));
                    let not_reached = answered(places, halves, answers, tell);
                    if !not_reached.is_empty() {
                        rest.parts.push((Kind::NotReached, not_reached));
                    }
                }
                Called::Failed(why) => {
                    // Where nothing is answered the listener fails, and no single half.
                    left.get_or_insert_with(|| Answer::Failed(why.clone()));
                    bounds.failures_left = bounds.failures_left.saturating_sub(1);
                    self.paced(purpose, |pace| pace.failed(kind, &halves));
                    let mut first = placed(places, halves);
                    if first.len() == 1 {
                        answer_all(first, &Answer::Failed(why), tell);
                        continue;
                    }
                    let second = first.split_off(first.len() / 2);
                    rest.parts.extend([(Kind::Failed, second), (Kind::Failed, first)]);
                }
                Called::Blocked(why) => {
                    left.get_or_insert_with(|| Answer::Failed(why.clone()));
                    bounds.failures_left = bounds.failures_left.saturating_sub(1);
                    self.paced(purpose, |pace| pace.blocked(&halves));
                    answer_all(placed(places, halves), &Answer::Failed(why), tell);
                }
                Called::NoPlace => {
                    rest.put_back(kind, placed(places, halves));
                    break;
                }
                Called::Ended => {
                    rest.put_back(kind, placed(places, halves));
                    let rest = rest.all().map(|(_, half)| half).collect();
                    return answer_all(rest, &Answer::NotAsked(NotAsked::Busy), tell);
                }
            }
        }
        self.leave(purpose, rest, left, tell);
    }

    fn bounds(&self, halves: usize) -> Bounds {
        let halvings = halves.max(1).ilog2();
        Bounds {
            until: Instant::now() + self.deadline * (halvings + 2),
            failures_left: CULPRITS * (halvings + 1),
            blamed_until: None,
            is_of_one: halves == 1,
        }
    }

    /// Until when a call of these may wait for its place; none if the question is over for them. The
    /// first call is always made.
    fn time_for(&self, kind: Kind, bounds: &mut Bounds, is_begun: bool) -> Option<Instant> {
        let now = Instant::now();
        let until = match kind {
            Kind::Doubted | Kind::Suspect => {
                *bounds.blamed_until.get_or_insert(now + self.deadline * CULPRITS)
            }
            _ => bounds.until,
        };
        if is_begun && (bounds.failures_left == 0 || now >= until) {
            return None;
        }
        // A question that waited for a place to ask suspects would keep others from being asked.
        let waits = kind != Kind::Suspect || bounds.is_of_one;
        Some(if waits { until } else { now })
    }

    /// Answers for those that no call answered for.
    fn leave(&self, purpose: &str, rest: Rest, left: Option<Answer>, tell: Tell<'_>) {
        let left = left.unwrap_or(Answer::NotAsked(NotAsked::Busy));
        let has_failed = matches!(left, Answer::Failed(_));
        for (kind, Placed { at, half, claim }) in rest.all() {
            let answer = match kind {
                Kind::Failed => {
                    self.paced(purpose, |pace| pace.doubt(half.transaction_id));
                    left.clone()
                }
                Kind::Suspect => Answer::NotAsked(NotAsked::NoPlace),
                _ if has_failed => Answer::NotAsked(NotAsked::NoPlace),
                _ => Answer::NotAsked(NotAsked::Busy),
            };
            drop(claim);
            tell(at, answer);
        }
    }
}

/// Tells the answers; gives those back that the call did not reach.
fn answered(
    places: Vec<Place>,
    halves: Arc<Vec<HalfMessage>>,
    answers: Vec<Answer>,
    tell: Tell<'_>,
) -> Vec<Placed> {
    let reached_all = !answers.iter().any(is_not_reached);
    if reached_all {
        for ((at, claim), answer) in places.into_iter().zip(answers) {
            // Whoever is told may ask again at once.
            drop(claim);
            tell(at, answer);
        }
        return Vec::new();
    }
    let mut not_reached = Vec::new();
    for (one, answer) in placed(places, halves).into_iter().zip(answers) {
        if is_not_reached(&answer) {
            not_reached.push(one);
        } else {
            drop(one.claim);
            tell(one.at, answer);
        }
    }
    not_reached
}

fn answer_all(halves: Vec<Placed>, answer: &Answer, tell: Tell<'_>) {
    for Placed { at, claim, .. } in halves {
        drop(claim);
        tell(at, answer.clone());
    }
}

fn unplaced(halves: Vec<Placed>) -> (Vec<Place>, Arc<Vec<HalfMessage>>) {
    let apart = |Placed { at, half, claim }: Placed| ((at, claim), half);
    let (places, halves): (_, Vec<HalfMessage>) = halves.into_iter().map(apart).unzip();
    (places, Arc::new(halves))
}

/// A call that goes on may still hold the halves.
fn placed(places: Vec<Place>, halves: Arc<Vec<HalfMessage>>) -> Vec<Placed> {
    let halves = Arc::try_unwrap(halves).unwrap_or_else(|shared| shared.to_vec());
    let together = |((at, claim), half): (Place, HalfMessage)| Placed { at, half, claim };
    places.into_iter().zip(halves).map(together).collect()
}
