//! What the books say of differences, as time passes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::judge::*;
use super::*;
use crate::store::live::Live;

fn line(available: i64, deducted: i64, restored: i64, live: Live) -> Line {
    let (sku, name) = ("apple".to_owned(), "Apple".to_owned());
    let counted =
        Counted { sku, name, price_cents: 1, available, received: 100, deducted, restored };
    Line::new(counted, live)
}

fn confirmed(confirmed: i64) -> Live {
    Live { confirmed, pending: 0 }
}

/// The verdict when a difference of these lines was looked at every few seconds for so long.
fn after(lines: &[Line], looked: Looked, time: Duration) -> Verdict {
    let (begin, wall) = (Instant::now(), at(0));
    let mut standing = Standing::default();
    let mut passed = Duration::ZERO;
    loop {
        standing.look(lines, (begin + passed, wall));
        standing.weigh(lines, Some(looked));
        if passed >= time {
            return judge(lines, looked.under_way.unknown, &standing, begin + passed);
        }
        passed = time.min(passed + Duration::from_secs(5));
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + seconds, 0).expect("a moment")
}

fn begun(seconds: i64) -> Looked {
    let under_way = UnderWay { open_halves: 1, ..UnderWay::default() };
    Looked { under_way, oldest: Some(at(seconds)) }
}

fn waits(waiting: u64) -> Looked {
    Looked { under_way: UnderWay { waiting, ..UnderWay::default() }, oldest: None }
}

#[test]
fn what_adds_up_is_balanced_whatever_is_under_way() {
    let lines = [line(95, 8, 3, confirmed(5))];
    assert_eq!(after(&lines, begun(-9), Duration::ZERO), Verdict::Balanced);
}

#[test]
fn a_difference_is_broken_when_nothing_can_mend_it_any_more() {
    let lines = [line(92, 8, 0, confirmed(5))];
    assert_eq!(lines[0].difference, 3);
    let nothing = Looked::default();
    assert_eq!(after(&lines, nothing, SETTLE_WITHIN), Verdict::Broken);
    assert_eq!(after(&lines, nothing, SETTLE_WITHIN / 2), Verdict::Settling);
    for busy in [begun(-9), begun(5), waits(1), Looked::UNKNOWN] {
        assert_eq!(after(&lines, busy, SETTLE_WITHIN * 9), Verdict::Settling, "{busy:?}");
    }
    let waiting = [line(92, 8, 0, Live { confirmed: 5, pending: 3 })];
    assert_eq!(after(&waiting, nothing, SETTLE_WITHIN), Verdict::Settling);
}

#[test]
fn what_began_later_hides_no_difference() {
    let lines = [line(92, 8, 0, confirmed(5))];
    assert_eq!(after(&lines, begun(30), SETTLE_WITHIN), Verdict::Broken);
}

#[test]
fn one_product_that_is_busy_hides_no_other() {
    let (begin, mut standing) = (Instant::now(), Standing::default());
    let still = line(92, 8, 0, confirmed(5));
    let mut lines = vec![still.clone(), still];
    lines[1].counted.sku = "pear".to_owned();
    for second in 0..=60 {
        lines[1].difference = 1 + i64::try_from(second % 2).expect("small");
        standing.look(&lines, (begin + Duration::from_secs(second), at(0)));
    }
    let now = begin + SETTLE_WITHIN;
    assert_eq!(judge(&lines, false, &standing, now), Verdict::Broken);
    assert_eq!(judge(&lines[1..], false, &standing, now), Verdict::Settling);
}

/// Differences of a busy product, a second apart, with so much under way, and the verdict after them.
fn moving(differences: &[i64], seconds: usize, per_second: i64, looked: Looked) -> Verdict {
    let (begin, mut standing) = (Instant::now(), Standing::default());
    let mut verdict = Verdict::Balanced;
    let taken = |second: usize| 100 + per_second * i64::try_from(second).expect("small");
    for second in 0..=seconds {
        let difference = differences[second % differences.len()];
        let deducted = taken(second);
        let sold = confirmed(deducted - difference);
        let mut line = line(0, deducted, 0, sold);
        line.counted.received = deducted;
        let lines = [Line::new(line.counted, sold)];
        assert_eq!((lines[0].difference, lines[0].adds_up), (difference, true));
        let wall = at(i64::try_from(second).expect("small"));
        let now = begin + Duration::from_secs(u64::try_from(second).expect("small"));
        standing.look(&lines, (now, wall));
        standing.weigh(&lines, Some(looked));
        verdict = judge(&lines, looked.under_way.unknown, &standing, now);
    }
    verdict
}

#[test]
fn what_is_always_missing_of_a_busy_product_is_broken() {
    let nothing = Looked::default();
    let long = 70;
    for (differences, per_second) in
        [(&[3, 4, 3, 5][..], 3), (&[-3, -4, -3, -5][..], 3), (&[60, 90, 75][..], 200)]
    {
        assert_eq!(moving(differences, long, per_second, nothing), Verdict::Broken);
        assert_eq!(moving(differences, 30, per_second, nothing), Verdict::Settling);
    }
    // It was none for a moment, or of the other sign: it is traffic.
    for differences in [&[3, 4, 0, 5][..], &[3, 4, -1, 5]] {
        assert_eq!(moving(differences, 71, 3, nothing), Verdict::Settling);
    }
    // So many are under way between the two readings.
    assert_eq!(moving(&[30, 40, 20], long, 400, nothing), Verdict::Settling);
    // One failure after the other is under way: what is always missing may be theirs.
    for busy in [begun(65), waits(1), Looked::UNKNOWN] {
        assert_eq!(moving(&[3, 4, 3, 5], long, 3, busy), Verdict::Settling, "{busy:?}");
    }
}

/// What is seen of one difference, a look a second: for so many seconds each, this was under way and so
/// many of its product were in pending orders. The verdicts at the ends.
fn in_turn(turns: &[(u64, Looked, i64)]) -> Vec<Verdict> {
    let (begin, mut standing) = (Instant::now(), Standing::default());
    let (mut second, mut verdicts) = (0, Vec::new());
    for (seconds, looked, pending) in turns {
        let lines = [line(92, 8, 0, Live { confirmed: 5, pending: *pending })];
        let mut verdict = Verdict::Balanced;
        for _ in 0..*seconds {
            let now = begin + Duration::from_secs(second);
            standing.look(&lines, (now, at(i64::try_from(second).expect("small"))));
            standing.weigh(&lines, Some(*looked));
            verdict = judge(&lines, looked.under_way.unknown, &standing, now);
            second += 1;
        }
        verdicts.push(verdict);
    }
    verdicts
}

#[test]
fn messages_that_pass_by_hide_no_difference_and_one_that_stays_may_be_its_cause() {
    use Verdict::{Broken, Settling};
    let nothing = Looked::default();
    assert_eq!(in_turn(&[(600, waits(2), 0)]), [Settling]);
    let gauges_were_old = [(10, nothing, 0), (600, waits(2), 0)];
    assert_eq!(in_turn(&gauges_were_old), [Settling, Settling]);
    let others_pass_by: Vec<_> =
        (0..45).flat_map(|_| [(1, waits(2), 0), (1, nothing, 0)]).collect();
    assert_eq!(in_turn(&others_pass_by).last(), Some(&Broken));
    assert_eq!(in_turn(&[(20, nothing, 0), (60, waits(2), 0)]), [Settling, Broken]);
}

/// The time runs from when the difference was last explained, not from when it was first seen.
#[test]
fn what_was_parked_for_long_has_its_time_to_be_delivered_and_consumed() {
    use Verdict::{Broken, Settling};
    let (parked, nothing) = (begun(0), Looked::default());
    // It is delivered; the gauges are old; it fails at stock-svc, is tried again, and ends.
    let story = [(70, parked, 0), (5, nothing, 0), (600, waits(1), 0), (59, nothing, 0)];
    assert_eq!(in_turn(&story), [Settling; 4]);
    assert_eq!(in_turn(&[(70, parked, 0), (59, nothing, 0)]), [Settling; 2]);
    assert_eq!(in_turn(&[(70, parked, 0), (60, nothing, 0)]), [Settling, Broken]);
    // What began later, or came to wait later, keeps it amber no longer.
    let others = [(70, parked, 0), (16, nothing, 0), (43, waits(1), 0), (1, begun(80), 0)];
    assert_eq!(in_turn(&others), [Settling, Settling, Settling, Broken]);
    // A look that could not tell may have missed its end.
    assert_eq!(in_turn(&[(70, Looked::UNKNOWN, 0), (59, nothing, 0)]), [Settling; 2]);
}

#[test]
fn an_order_that_waited_for_long_may_be_cancelled() {
    use Verdict::{Broken, Settling};
    let nothing = Looked::default();
    assert_eq!(in_turn(&[(70, nothing, 3), (59, begun(70), 0)]), [Settling; 2]);
    assert_eq!(in_turn(&[(70, nothing, 3), (60, begun(70), 0)]), [Settling, Broken]);
    // Others that come to wait later were not its cause.
    assert_eq!(in_turn(&[(1, nothing, 0), (70, nothing, 3), (1, nothing, 0)])[2], Broken);
}

#[test]
fn a_difference_that_nobody_looked_at_has_not_stood_still() {
    let lines = [line(92, 8, 0, confirmed(5))];
    let (begin, mut standing) = (Instant::now(), Standing::default());
    standing.look(&lines, (begin, at(0)));
    let now = begin + SETTLE_WITHIN;
    standing.look(&lines, (now, at(60)));
    assert_eq!(judge(&lines, false, &standing, now), Verdict::Settling);
}

#[test]
fn what_waits_is_the_sum_of_three_gauges() {
    let one = "# TYPE halfmsg_consumer_lag_records gauge\n\
        halfmsg_consumer_lag_records{subscriber=\"a\",topic=\"t\",partition=\"0\"} 4\n\
        halfmsg_consumer_retry_depth{subscriber=\"a\"} 2\n\
        halfmsg_consumer_in_flight{subscriber=\"a\"} 1\n\
        halfmsg_consumer_paused{subscriber=\"a\"} 1\n";
    assert_eq!(waiting(one), Some(7));
    assert_eq!(waiting("up 1\n"), None);
    assert_eq!(waiting("halfmsg_consumer_in_flight{subscriber=\"a\"} many\n"), None);
    assert_eq!(waiting("halfmsg_consumer_in_flight 1\n"), None);
}

/// A subscriber without a partition, or that has just got them, does not know what waits.
#[test]
fn a_lag_that_is_not_told_is_not_nothing() {
    let lag =
        |of: &str| format!("halfmsg_consumer_lag_records{{topic=\"t\",subscriber=\"{of}\"}} 0\n");
    let depth = |of: &str| format!("halfmsg_consumer_retry_depth{{subscriber=\"{of}\"}} 0\n");
    let both = depth("a") + &depth("b");
    assert_eq!(waiting(&both), None);
    assert_eq!(waiting(&(lag("a") + &both)), None);
    assert_eq!(waiting(&(lag("a") + &both + &lag("b"))), Some(0));
}

#[test]
fn a_dead_letter_tells_when_its_message_began() {
    let id = Uuid::parse_str("01990000-0000-7000-8000-000000000000").expect("an id");
    let begun = Letter { transaction_id: Some(id) }.begun().expect("a moment");
    assert_eq!(begun.timestamp_millis(), 0x0199_0000_0000);
    assert_eq!(Letter { transaction_id: None }.begun(), None);
}

#[test]
fn a_stock_that_does_not_add_up_is_broken_at_once() {
    for line in [line(94, 5, 0, confirmed(5)), line(-1, 101, 0, confirmed(101))] {
        assert_eq!(after(&[line], begun(-9), Duration::ZERO), Verdict::Broken);
    }
}

#[test]
fn a_product_that_only_orders_know_is_shown() {
    let live = || BTreeMap::from([("ghost".to_owned(), confirmed(2))]);
    let shown = lines(Vec::new(), live(), false);
    assert_eq!((shown[0].counted.sku.as_str(), shown[0].difference), ("ghost", -2));
    assert_eq!(lines(Vec::new(), live(), true), []);
}
