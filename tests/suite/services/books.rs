//! The books of a shop: what its databases and its topics say, read whole, and whether they agree.
//!
//! It trusts no answer of a service: orders, stock, movements and inbox come from the databases,
//! half messages and deliveries from the topics.
//!
//! # Layout
//! - this file: reading
//! - [`audit`]: whether the books agree; [`saga`]: what flows B and C and the report add to that

mod audit;
mod saga;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use halfmsg_protocol::{HEADER, Record, TRANSACTION_ID_HEADER, Verdict, codec};
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, TryGetable};
use serde_json::Value;
use uuid::Uuid;

use super::events::{self, CREATED_SCHEMA, OUTBOUND_SCHEMA, ROLLBACK_SCHEMA};
use super::ground::Ground;
use crate::suite::topic::{Entry, read_all};

/// An order's row.
#[derive(Debug, Clone)]
pub(crate) struct OrderRow {
    pub(crate) transaction_id: Uuid,
    pub(crate) flow: String,
    pub(crate) user_id: Option<String>,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) stock_untouched: bool,
    /// Quantities by sku.
    pub(crate) items: BTreeMap<String, i64>,
    /// What one costs, in cents, where that is known.
    pub(crate) prices: BTreeMap<String, i64>,
}

/// A half message of the store, and the first decision about it.
#[derive(Debug, Clone)]
pub(crate) struct HalfRow {
    pub(crate) purpose: String,
    pub(crate) order_id: Uuid,
    pub(crate) verdict: Option<Verdict>,
}

/// One change of the stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MovementRow {
    pub(crate) order_id: Option<Uuid>,
    pub(crate) sku: String,
    pub(crate) kind: String,
    pub(crate) quantity: i64,
}

/// An answer of stock-svc, as it stands in its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerRow {
    pub(crate) order_id: Uuid,
    pub(crate) outcome: String,
}

/// The sums of one product in the report: (quantity, cents) ordered, confirmed, rejected,
/// cancelled.
pub(crate) type Sums = [(i64, i64); 4];

/// Everything at one moment.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) orders: HashMap<Uuid, OrderRow>,
    /// Half messages by transaction id.
    pub(crate) halves: HashMap<Uuid, HalfRow>,
    /// How often each transaction's message is in its target topic.
    pub(crate) delivered: HashMap<Uuid, usize>,
    /// The keys in the inbox of stock-svc.
    pub(crate) inbox: BTreeSet<String>,
    /// Where each of them is, for a finding: topic, partition, offset.
    pub(crate) places: HashMap<Uuid, Vec<String>>,
    /// Answers by their identity, and how often each is in its topic.
    pub(crate) answers: HashMap<Uuid, (AnswerRow, usize)>,
    /// The keys of answers in the inbox of order-svc.
    pub(crate) answered: BTreeSet<String>,
    /// The product report.
    pub(crate) report: BTreeMap<String, Sums>,
    /// States of deductions by order.
    pub(crate) deductions: HashMap<Uuid, String>,
    pub(crate) movements: Vec<MovementRow>,
    /// What was received, by sku.
    pub(crate) received: BTreeMap<String, i64>,
    /// What is available, by sku.
    pub(crate) available: BTreeMap<String, i64>,
}

impl Books {
    /// Reads everything. Store and orders come first: what moves meanwhile shows as a difference,
    /// and the reader comes again.
    ///
    /// # Errors
    /// Whatever could not be read, in words.
    pub(crate) async fn read(
        ground: &Ground,
        orders: &DatabaseConnection,
        stock: &DatabaseConnection,
    ) -> Result<Self, String> {
        let mut books = Self::default();
        books.read_store(read_all(&ground.kafka(), &ground.group.store_topic()).await)?;
        for (topic, schema) in
            [(&ground.rollback_topic, ROLLBACK_SCHEMA), (&ground.created_topic, CREATED_SCHEMA)]
        {
            books.read_deliveries(topic, read_all(&ground.kafka(), topic).await, schema)?;
        }
        books.read_answers(read_all(&ground.kafka(), &ground.outbound_topic).await)?;
        books.read_orders(orders).await.map_err(|error| format!("orders: {error}"))?;
        books.read_stock(stock).await.map_err(|error| format!("stock: {error}"))?;
        Ok(books)
    }

    /// Without what stands in them about these orders.
    pub(crate) fn without(mut self, orders: &BTreeSet<Uuid>) -> Self {
        let of_them = self.halves.iter().filter(|(_, half)| orders.contains(&half.order_id));
        for id in of_them.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.halves.remove(&id);
            self.delivered.remove(&id);
        }
        self.orders.retain(|id, _| !orders.contains(id));
        self.deductions.retain(|id, _| !orders.contains(id));
        self.movements.retain(|row| row.order_id.is_none_or(|id| !orders.contains(&id)));
        self
    }

    /// How many orders are void for which reason.
    pub(crate) fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for reason in self.orders.values().filter_map(|order| order.reason.as_deref()) {
            *counts.entry(reason.split(": ").next().unwrap_or_default()).or_default() += 1;
        }
        counts
    }

    fn read_store(&mut self, records: Vec<Entry>) -> Result<(), String> {
        for entry in records {
            let header = entry.header(HEADER).ok_or("a record of the store is none of ours")?;
            match codec::decode(header).map_err(|error| format!("a record: {error}"))? {
                Record::Half(meta) => {
                    let order = json(entry.payload.as_deref());
                    let order_id = order["order_id"].as_str().map(str::parse);
                    let order_id = order_id.and_then(Result::ok).ok_or("a half without order")?;
                    let purpose = meta.purpose.clone();
                    let row = HalfRow { purpose, order_id, verdict: None };
                    self.halves.insert(meta.id.as_uuid(), row);
                }
                Record::Decision(decision) => {
                    if let Some(half) = self.halves.get_mut(&decision.of.id.as_uuid()) {
                        half.verdict.get_or_insert(decision.verdict);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_deliveries(
        &mut self,
        topic: &str,
        messages: Vec<Entry>,
        schema: &'static str,
    ) -> Result<(), String> {
        for message in messages {
            events::check(&message, schema);
            let id = identity(&message)?;
            *self.delivered.entry(id).or_default() += 1;
            let place = format!("{topic}[{}]@{}", message.partition, message.offset);
            self.places.entry(id).or_default().push(place);
        }
        Ok(())
    }

    fn read_answers(&mut self, messages: Vec<Entry>) -> Result<(), String> {
        for message in messages {
            events::check(&message, OUTBOUND_SCHEMA);
            let payload = json(message.payload.as_deref());
            let order_id = payload["order_id"].as_str().and_then(|id| id.parse().ok());
            let row = AnswerRow {
                order_id: order_id.ok_or("an answer without an order")?,
                outcome: payload["outcome"].as_str().unwrap_or_default().to_owned(),
            };
            let id = identity(&message)?;
            let seen = self.answers.entry(id).or_insert_with(|| (row.clone(), 0));
            if seen.0 != row {
                return Err(format!("answer {id} is {:?} and {row:?}", seen.0));
            }
            seen.1 += 1;
        }
        Ok(())
    }

    async fn read_orders(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        let columns =
            ["id", "transaction_id", "flow", "user_id", "status", "reason", "stock_untouched"];
        for row in rows(db, "orders", &columns).await? {
            let order = OrderRow {
                transaction_id: get(&row, "transaction_id")?,
                flow: get(&row, "flow")?,
                user_id: get(&row, "user_id")?,
                status: get(&row, "status")?,
                reason: get(&row, "reason")?,
                stock_untouched: get(&row, "stock_untouched")?,
                items: BTreeMap::new(),
                prices: BTreeMap::new(),
            };
            self.orders.insert(get(&row, "id")?, order);
        }
        for row in
            rows(db, "order_line", &["order_id", "sku", "quantity", "unit_price_cents"]).await?
        {
            let (order_id, quantity): (Uuid, i32) =
                (get(&row, "order_id")?, get(&row, "quantity")?);
            // An order that was stored between the two statements.
            if let Some(order) = self.orders.get_mut(&order_id) {
                let sku: String = get(&row, "sku")?;
                if let Some(cents) = get(&row, "unit_price_cents")? {
                    order.prices.insert(sku.clone(), cents);
                }
                order.items.insert(sku, i64::from(quantity));
            }
        }
        for row in rows(db, "inbox", &["subscriber", "message_key"]).await? {
            if get::<String>(&row, "subscriber")?.ends_with(".answers") {
                self.answered.insert(get(&row, "message_key")?);
            }
        }
        self.read_report(db).await
    }

    async fn read_report(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        let columns = [
            "sku",
            "ordered_quantity",
            "ordered_cents",
            "confirmed_quantity",
            "confirmed_cents",
            "rejected_quantity",
            "rejected_cents",
            "cancelled_quantity",
            "cancelled_cents",
        ];
        // What a former reading has left is as if it were not there.
        let current = Query::select().column("reading").from("report_generation").take();
        let mut select = Query::select();
        select.columns(columns).from("report_product");
        select.and_where(Expr::col("reading").in_subquery(current));
        for row in db.query_all(&select).await? {
            let mut sums = Sums::default();
            for (sum, pair) in sums.iter_mut().zip(columns[1..].chunks(2)) {
                *sum = (get(&row, pair[0])?, get(&row, pair[1])?);
            }
            self.report.insert(get(&row, "sku")?, sums);
        }
        Ok(())
    }

    async fn read_stock(&mut self, db: &DatabaseConnection) -> Result<(), DbErr> {
        for row in rows(db, "inbox", &["message_key"]).await? {
            self.inbox.insert(get(&row, "message_key")?);
        }
        for row in rows(db, "deduction", &["order_id", "state"]).await? {
            self.deductions.insert(get(&row, "order_id")?, get(&row, "state")?);
        }
        for row in rows(db, "stock_movement", &["order_id", "sku", "kind", "quantity"]).await? {
            self.movements.push(MovementRow {
                order_id: get(&row, "order_id")?,
                sku: get(&row, "sku")?,
                kind: get(&row, "kind")?,
                quantity: get(&row, "quantity")?,
            });
        }
        for row in rows(db, "receipt", &["sku", "quantity"]).await? {
            *self.received.entry(get(&row, "sku")?).or_default() += get::<i64>(&row, "quantity")?;
        }
        for row in rows(db, "stock", &["sku", "available"]).await? {
            self.available.insert(get(&row, "sku")?, get(&row, "available")?);
        }
        Ok(())
    }
}

async fn rows(
    db: &DatabaseConnection,
    table: &'static str,
    columns: &[&'static str],
) -> Result<Vec<QueryResult>, DbErr> {
    let mut select = Query::select();
    select.columns(columns.iter().copied()).from(table);
    db.query_all(&select).await
}

fn get<T: TryGetable>(row: &QueryResult, column: &str) -> Result<T, DbErr> {
    row.try_get("", column)
}

/// The identity of a delivered message.
fn identity(message: &Entry) -> Result<Uuid, String> {
    let id = message.header(TRANSACTION_ID_HEADER).and_then(|id| Uuid::try_parse_ascii(id).ok());
    id.ok_or_else(|| "a delivered message has no transaction id".into())
}

/// The JSON of a payload; null if it is none.
fn json(payload: Option<&[u8]>) -> Value {
    payload.and_then(|payload| serde_json::from_slice(payload).ok()).unwrap_or_default()
}
