//! What flows B and C add to the books: each message has its answer, each cancellation its one
//! message, and the report is the sum of the orders.

use std::collections::{BTreeMap, HashMap};

use halfmsg_protocol::Verdict;
use uuid::Uuid;

use super::{Books, HalfRow, OrderRow, Sums};

/// The purposes of half messages.
pub(super) const CREATED: &str = "order.created";
pub(super) const CANCEL: &str = "order.cancel";
/// The flow whose orders ask for their stock by a message.
pub(super) const SAGA: &str = "saga";

impl HalfRow {
    /// The decision that follows from this row of its order.
    pub(super) fn expected(&self, order: &OrderRow) -> Verdict {
        let commit = match self.purpose.as_str() {
            CREATED => order.status != "void",
            CANCEL => order.status == "cancelled",
            _ => order.status == "void" && !order.stock_untouched,
        };
        if commit { Verdict::Commit } else { Verdict::Rollback }
    }
}

impl Books {
    /// A cancelled order has exactly one committed half message that says so.
    pub(super) fn audit_cancels(&self, findings: &mut Vec<String>) {
        let mut committed: HashMap<Uuid, usize> = HashMap::new();
        for half in self.halves.values().filter(|half| half.purpose == CANCEL) {
            if half.verdict == Some(Verdict::Commit) {
                *committed.entry(half.order_id).or_default() += 1;
            }
        }
        for (id, order) in &self.orders {
            let (expected, found) =
                (usize::from(order.status == "cancelled"), committed.get(id).copied());
            if found.unwrap_or_default() != expected {
                let status = &order.status;
                findings.push(format!("order {id} is {status}, {found:?} cancellations committed"));
            }
        }
    }

    /// Every message that asked for stock has one answer, which was received once and says what
    /// the order became.
    pub(super) fn audit_answers(&self, findings: &mut Vec<String>) {
        let mut of_order: HashMap<Uuid, &str> = HashMap::new();
        for (id, (answer, _)) in &self.answers {
            let (order_id, outcome) = (answer.order_id, answer.outcome.as_str());
            if of_order.insert(order_id, outcome).is_some() {
                findings.push(format!("order {order_id} has two answers"));
            }
            if !self.answered.contains(&id.to_string()) {
                findings.push(format!("answer {id} of order {order_id} was not received"));
            }
        }
        if self.answered.len() != self.answers.len() {
            let (received, sent) = (self.answered.len(), self.answers.len());
            findings.push(format!("{received} answers received, {sent} sent"));
        }
        for (id, order) in &self.orders {
            let asked = order.flow == SAGA && order.status != "void";
            let right = match (of_order.get(id).copied(), order.status.as_str()) {
                (None, _) => !asked,
                (Some(_), "cancelled") => asked,
                (Some("deducted"), status) => asked && status == "confirmed",
                (Some("refused"), status) => asked && status == "rejected",
                _ => false,
            };
            if !right {
                findings.push(format!("order {id} was answered {:?}: {order:?}", of_order.get(id)));
            }
        }
    }

    /// The report is what the orders of flow B give, read without any event.
    pub(super) fn audit_report(&self, findings: &mut Vec<String>) {
        let mut expected: BTreeMap<&str, Sums> = BTreeMap::new();
        let announced = |order: &&OrderRow| order.flow == SAGA && order.status != "void";
        for order in self.orders.values().filter(announced) {
            let ending = match order.status.as_str() {
                "confirmed" => 1,
                "rejected" => 2,
                "cancelled" => 3,
                _ => continue,
            };
            for (sku, quantity) in &order.items {
                let cents = quantity * order.prices.get(sku).copied().unwrap_or_default();
                let sums = expected.entry(sku).or_default();
                for column in [0, ending] {
                    sums[column].0 += quantity;
                    sums[column].1 += cents;
                }
            }
        }
        let report: BTreeMap<&str, Sums> =
            self.report.iter().map(|(sku, sums)| (sku.as_str(), *sums)).collect();
        if report != expected {
            findings.push(format!("the report is {report:?}, the orders give {expected:?}"));
        }
    }
}

/// An auditor that finds nothing proves nothing: each of these books is wrong in one place.
#[cfg(test)]
mod tests {
    use super::super::{AnswerRow, MovementRow};
    use super::*;

    const CONFIRMED: Uuid = Uuid::from_u128(1);
    const REJECTED: Uuid = Uuid::from_u128(2);
    const CANCELLED: Uuid = Uuid::from_u128(3);
    const ORDERS: [(Uuid, &str); 3] =
        [(CONFIRMED, "confirmed"), (REJECTED, "rejected"), (CANCELLED, "cancelled")];
    /// The half messages of two cancellations, of which the first did it.
    const FIRST: Uuid = Uuid::from_u128(31);
    const SECOND: Uuid = Uuid::from_u128(32);

    /// The half message that asked for the stock of an order, and its answer.
    fn asked(order: Uuid) -> Uuid {
        Uuid::from_u128(order.as_u128() + 10)
    }
    fn answer(order: Uuid) -> Uuid {
        Uuid::from_u128(order.as_u128() + 20)
    }

    fn half(order_id: Uuid, purpose: &str, verdict: Verdict) -> HalfRow {
        HalfRow { purpose: purpose.into(), order_id, verdict: Some(verdict) }
    }

    fn movement(order_id: Uuid, kind: &str) -> MovementRow {
        let (sku, kind) = ("apple".to_owned(), kind.to_owned());
        MovementRow { order_id: Some(order_id), sku, kind, quantity: 3 }
    }

    fn good() -> Books {
        let mut books = Books {
            received: [("apple".into(), 10)].into(),
            available: [("apple".into(), 7)].into(),
            report: [("apple".into(), [(9, 45), (3, 15), (3, 15), (3, 15)])].into(),
            movements: vec![
                movement(CONFIRMED, "deduct"),
                movement(CANCELLED, "deduct"),
                movement(CANCELLED, "restore"),
            ],
            ..Books::default()
        };
        for (id, status) in ORDERS {
            let order = OrderRow {
                transaction_id: asked(id),
                flow: SAGA.into(),
                user_id: None,
                status: status.into(),
                reason: None,
                stock_untouched: false,
                items: [("apple".to_owned(), 3)].into(),
                prices: [("apple".to_owned(), 5)].into(),
            };
            books.orders.insert(id, order);
            books.halves.insert(asked(id), half(id, CREATED, Verdict::Commit));
            let outcome = if status == "rejected" { "refused" } else { "deducted" };
            let row = AnswerRow { order_id: id, outcome: outcome.into() };
            books.answers.insert(answer(id), (row, 1));
            books.answered.insert(answer(id).to_string());
        }
        books.halves.insert(FIRST, half(CANCELLED, CANCEL, Verdict::Commit));
        books.halves.insert(SECOND, half(CANCELLED, CANCEL, Verdict::Rollback));
        for id in [asked(CONFIRMED), asked(REJECTED), asked(CANCELLED), FIRST] {
            books.delivered.insert(id, 1);
            books.inbox.insert(id.to_string());
        }
        let deductions = [(CONFIRMED, "deducted"), (REJECTED, "refused"), (CANCELLED, "restored")];
        books.deductions = deductions.map(|(id, state)| (id, state.to_owned())).into();
        books
    }

    /// What is wrong, in the order of [`spoil`].
    const FAULTS: [&str; 13] = [
        "an order that waits for ever",
        "a message that was never answered",
        "an answer that was not received",
        "an order confirmed against its answer",
        "two cancellations committed",
        "none committed",
        "a cancelled order that keeps its stock",
        "a live order that lost its stock",
        "a standing order whose message was dropped",
        "a report that forgot an order",
        "a report of other amounts",
        "an open half message",
        "two answers",
    ];

    fn spoil(books: &mut Books, fault: usize) {
        let order = |books: &mut Books, id: Uuid, status: &str| {
            books.orders.get_mut(&id).expect("it is there").status = status.into();
        };
        let verdict = |books: &mut Books, id: Uuid, verdict: Option<Verdict>| {
            books.halves.get_mut(&id).expect("it is there").verdict = verdict;
        };
        match fault {
            0 => order(books, CONFIRMED, "pending_stock"),
            1 => {
                books.answers.remove(&answer(CANCELLED));
                books.answered.remove(&answer(CANCELLED).to_string());
            }
            2 => _ = books.answered.remove(&answer(REJECTED).to_string()),
            3 => order(books, REJECTED, "confirmed"),
            4 => verdict(books, SECOND, Some(Verdict::Commit)),
            5 => verdict(books, FIRST, Some(Verdict::Rollback)),
            6 => _ = books.deductions.insert(CANCELLED, "deducted".into()),
            7 => _ = books.deductions.insert(CONFIRMED, "restored".into()),
            8 => verdict(books, asked(CONFIRMED), Some(Verdict::Rollback)),
            9 => books.report.clear(),
            10 => books.report.get_mut("apple").expect("it is there")[1].1 = 14,
            11 => verdict(books, SECOND, None),
            _ => {
                let row = books.answers[&answer(CONFIRMED)].clone();
                books.answers.insert(Uuid::from_u128(99), row);
                books.answered.insert(Uuid::from_u128(99).to_string());
            }
        }
    }

    #[test]
    fn the_audit_finds_every_fault_of_flows_b_and_c() {
        assert_eq!(good().audit(), Ok(()));
        for (number, fault) in FAULTS.iter().enumerate() {
            let mut books = good();
            spoil(&mut books, number);
            assert!(books.audit().is_err(), "{fault}: not found");
        }
    }
}
