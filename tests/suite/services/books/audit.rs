//! Whether the books agree: nothing lost, nothing doubled, no stock created or destroyed.

use std::collections::{BTreeMap, HashSet};

use halfmsg_protocol::Verdict;
use uuid::Uuid;

use super::saga::{CANCEL, SAGA};
use super::{Books, OrderRow};

/// The most findings that are told; a hundred more would say the same.
const TOLD: usize = 10;

impl Books {
    /// Everything that must hold when nothing is under way any more.
    ///
    /// # Errors
    /// What does not hold, in words.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut findings = Vec::new();
        self.audit_halves(&mut findings);
        self.audit_deliveries(&mut findings);
        self.audit_orders(&mut findings);
        self.audit_deductions(&mut findings);
        self.audit_stock(&mut findings);
        self.audit_cancels(&mut findings);
        self.audit_answers(&mut findings);
        self.audit_report(&mut findings);
        if findings.is_empty() {
            return Ok(());
        }
        let more = findings.len().saturating_sub(TOLD);
        findings.truncate(TOLD);
        Err(format!("{} (and {more} more)", findings.join("; ")))
    }

    /// Each half is decided as its order's row says, and each has a row.
    fn audit_halves(&self, findings: &mut Vec<String>) {
        for (id, half) in &self.halves {
            let order_id = half.order_id;
            let Some(order) = self.orders.get(&order_id) else {
                findings.push(format!("half {id}: order {order_id} has no row"));
                continue;
            };
            if half.verdict.is_none() || Some(half.expected(order)) == half.verdict {
                continue;
            }
            // Which of several cancellations did it is not in the row: see `audit_cancels`.
            if half.purpose != CANCEL || order.status != "cancelled" {
                findings.push(format!("half {id}: {half:?}, but {order:?}"));
            }
        }
        let open = self.halves.iter().filter(|(_, half)| half.verdict.is_none());
        findings.extend(open.map(|(id, half)| format!("half {id} is open: {half:?}")));
    }

    /// No message is at its target twice, as exactly-once promises.
    ///
    /// # Errors
    /// Those that are, in words.
    pub(crate) fn audit_once(&self) -> Result<(), String> {
        let again = self.delivered.iter().filter(|(_, times)| **times > 1);
        let again: Vec<_> = again.map(|(id, _)| (id, self.places.get(id))).collect();
        if again.is_empty() { Ok(()) } else { Err(format!("delivered again: {again:?}")) }
    }

    /// Exactly the committed halves are delivered, and the inbox has each once.
    fn audit_deliveries(&self, findings: &mut Vec<String>) {
        let committed = |half: &super::HalfRow| half.verdict == Some(Verdict::Commit);
        for id in self.delivered.keys() {
            if !self.halves.get(id).is_some_and(committed) {
                findings.push(format!("{id} was delivered and never committed"));
            }
        }
        for (id, _) in self.halves.iter().filter(|(_, half)| committed(half)) {
            if !self.delivered.contains_key(id) {
                findings.push(format!("{id} was committed and not delivered"));
            }
            if !self.inbox.contains(&id.to_string()) {
                findings.push(format!("{id} was committed and is not in the inbox"));
            }
        }
        // Its primary key is the message's: a row too many is one that was never delivered.
        if self.inbox.len() != self.delivered.len() {
            let (inbox, delivered) = (self.inbox.len(), self.delivered.len());
            findings.push(format!("{inbox} messages in the inbox, {delivered} delivered"));
        }
    }

    fn audit_orders(&self, findings: &mut Vec<String>) {
        let mut transactions = HashSet::new();
        for (id, order) in &self.orders {
            let OrderRow { status, transaction_id, .. } = order;
            let ends: &[&str] = if order.flow == SAGA {
                &["confirmed", "rejected", "cancelled", "void"]
            } else {
                &["confirmed", "cancelled", "void"]
            };
            if !ends.contains(&status.as_str()) {
                findings.push(format!("order {id} is {status}"));
            }
            if !transactions.insert(transaction_id) {
                findings.push(format!("two orders of half message {transaction_id}"));
            }
            let deducted = self.deductions.get(id).map(String::as_str) == Some("deducted");
            if (status == "confirmed") != deducted {
                findings.push(format!("order {id} is {status}, deducted: {deducted}"));
            }
            if status == "confirmed" && self.moved(*id, "deduct") != order.items {
                findings.push(format!("order {id}: deducted is not what was ordered"));
            }
        }
    }

    /// Every deduction belongs to a confirmed order, or is restored; nothing was taken for others.
    fn audit_deductions(&self, findings: &mut Vec<String>) {
        for (id, state) in &self.deductions {
            let Some(order) = self.orders.get(id) else {
                findings.push(format!("{state} for order {id}, which has no row"));
                continue;
            };
            let (taken, given) = (self.moved(*id, "deduct"), self.moved(*id, "restore"));
            let saga = order.flow == SAGA;
            let undone = match order.status.as_str() {
                "void" => !saga,
                "cancelled" => true,
                _ => false,
            };
            let right = match state.as_str() {
                "deducted" => order.status == "confirmed" && !taken.is_empty() && given.is_empty(),
                "restored" => undone && !taken.is_empty() && given == taken,
                // A refused order of flow B may be cancelled before it hears of it.
                "refused" => {
                    let refused = if saga { "rejected" } else { "void" };
                    let ended = order.status == refused || (saga && order.status == "cancelled");
                    ended && taken.is_empty() && given.is_empty()
                }
                "void" => undone && taken.is_empty() && given.is_empty(),
                _ => false,
            };
            if !right {
                findings.push(format!("deduction of {id} is {state}: {taken:?}, {given:?}"));
            }
        }
    }

    /// For every sku: received = available + quantities of live orders = available + movements.
    fn audit_stock(&self, findings: &mut Vec<String>) {
        let mut sold: BTreeMap<&str, i64> = BTreeMap::new();
        for order in self.orders.values().filter(|order| order.status == "confirmed") {
            for (sku, quantity) in &order.items {
                *sold.entry(sku).or_default() += quantity;
            }
        }
        for (sku, available) in &self.available {
            let received = self.received.get(sku).copied().unwrap_or_default();
            let live = sold.get(sku.as_str()).copied().unwrap_or_default();
            let sum = |kind: &str| {
                let of_kind =
                    self.movements.iter().filter(|row| row.kind == kind && row.sku == *sku);
                of_kind.map(|row| row.quantity).sum::<i64>()
            };
            if received != available + live {
                findings.push(format!("{sku}: received {received}, {available} + {live} live"));
            }
            if received - sum("deduct") + sum("restore") != *available {
                findings.push(format!("{sku}: the movements do not give {available}"));
            }
            if *available < 0 {
                findings.push(format!("{sku}: {available} available"));
            }
        }
    }

    /// What an order moved in one direction, by sku.
    fn moved(&self, order_id: Uuid, kind: &str) -> BTreeMap<String, i64> {
        let of_order = self.movements.iter().filter(|row| row.order_id == Some(order_id));
        let of_kind = of_order.filter(|row| row.kind == kind);
        of_kind.map(|row| (row.sku.clone(), row.quantity)).collect()
    }
}

/// An auditor that finds nothing proves nothing: each of these books is wrong in one place.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::services::books::{HalfRow, MovementRow};

    const CONFIRMED: Uuid = Uuid::from_u128(1);
    const VOID: Uuid = Uuid::from_u128(2);
    /// The half messages of the two.
    const DROPPED: Uuid = Uuid::from_u128(3);
    const DELIVERED: Uuid = Uuid::from_u128(4);

    fn order(transaction_id: Uuid, status: &str) -> OrderRow {
        OrderRow {
            transaction_id,
            flow: "rollback".into(),
            user_id: Some("ann".into()),
            status: status.into(),
            reason: None,
            stock_untouched: false,
            items: [("apple".to_owned(), 3)].into(),
            prices: [("apple".to_owned(), 5)].into(),
        }
    }

    fn movement(order_id: Uuid, kind: &str) -> MovementRow {
        let (sku, kind) = ("apple".to_owned(), kind.to_owned());
        MovementRow { order_id: Some(order_id), sku, kind, quantity: 3 }
    }

    /// A confirmed order, and one that failed after its deduction.
    fn good() -> Books {
        let half = |order_id, verdict| {
            let purpose = "order.rollback".into();
            HalfRow { purpose, order_id, verdict: Some(verdict) }
        };
        let deduct = |order_id| movement(order_id, "deduct");
        Books {
            orders: [(CONFIRMED, order(DROPPED, "confirmed")), (VOID, order(DELIVERED, "void"))]
                .into(),
            halves: [
                (DROPPED, half(CONFIRMED, Verdict::Rollback)),
                (DELIVERED, half(VOID, Verdict::Commit)),
            ]
            .into(),
            delivered: [(DELIVERED, 2)].into(),
            inbox: [DELIVERED.to_string()].into(),
            deductions: [(CONFIRMED, "deducted".into()), (VOID, "restored".into())].into(),
            movements: vec![deduct(CONFIRMED), deduct(VOID), movement(VOID, "restore")],
            received: [("apple".into(), 10)].into(),
            available: [("apple".into(), 7)].into(),
            ..Books::default()
        }
    }

    /// What is wrong, in the order of [`spoil`].
    const FAULTS: [&str; 17] = [
        "a half without an order",
        "an open half",
        "a lost message",
        "a live order undone",
        "not delivered",
        "delivered although dropped",
        "not applied",
        "applied twice",
        "an order without its end",
        "a live order without stock",
        "a void order with stock",
        "two orders of one half",
        "another quantity",
        "restored too little",
        "restored twice",
        "stock created",
        "stock destroyed",
    ];

    fn spoil(books: &mut Books, fault: usize) {
        match fault {
            0 => _ = books.orders.remove(&VOID),
            1 => half(books, DELIVERED).verdict = None,
            2 => half(books, DELIVERED).verdict = Some(Verdict::Rollback),
            3 => half(books, DROPPED).verdict = Some(Verdict::Commit),
            4 => _ = books.delivered.remove(&DELIVERED),
            5 => _ = books.delivered.insert(DROPPED, 1),
            6 => books.inbox.clear(),
            7 => _ = books.inbox.insert("foreign-0-1".into()),
            8 => row(books, VOID).status = "pending_stock".into(),
            9 => _ = books.deductions.remove(&CONFIRMED),
            10 => _ = books.deductions.insert(VOID, "deducted".into()),
            11 => row(books, VOID).transaction_id = DROPPED,
            12 => books.movements[0].quantity = 2,
            13 => books.movements[2].quantity = 2,
            14 => books.movements.push(movement(VOID, "restore")),
            15 => _ = books.available.insert("apple".into(), 8),
            _ => _ = books.available.insert("apple".into(), 6),
        }
    }

    #[test]
    fn the_audit_finds_every_fault() {
        assert_eq!(good().audit(), Ok(()));
        for (number, fault) in FAULTS.iter().enumerate() {
            let mut books = good();
            spoil(&mut books, number);
            assert!(books.audit().is_err(), "{fault}: not found");
        }
    }

    #[test]
    fn the_audit_finds_what_was_delivered_twice() {
        let mut books = good();
        assert!(books.audit_once().is_err());
        books.delivered.insert(DELIVERED, 1);
        assert_eq!(books.audit_once(), Ok(()));
    }

    fn half(books: &mut Books, id: Uuid) -> &mut HalfRow {
        books.halves.get_mut(&id).expect("it is there")
    }

    fn row(books: &mut Books, id: Uuid) -> &mut OrderRow {
        books.orders.get_mut(&id).expect("it is there")
    }
}
