//! What the events say: the types of their JSON data, and how the document describes the stream.
//!
//! The document is made from these types, so it must not be told of an event anywhere else.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::openapi::schema::{AllOfBuilder, ArrayBuilder, OneOfBuilder};
use utoipa::openapi::{ObjectBuilder, Ref, RefOr, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::model::OrderStatus;

/// What `data:` lines are.
const JSON: &str = "application/json";

/// In the data of every event but `hello` and `reset`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventAbout {
    /// The half message; null where only an order is known.
    #[schema(required)]
    pub(super) transaction_id: Option<Uuid>,
    /// The order, if the message's key is one's id.
    #[schema(required)]
    pub(super) order_id: Option<Uuid>,
    /// When it happened, told again or not: of records of the store, by its broker's clock, else by this
    /// service's. Null where nobody knows: of a delivery that the former owner of a partition may have
    /// made already.
    #[schema(required, format = DateTime)]
    pub(super) at: Option<String>,
}

/// The first event of a stream from which nothing is missing
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Hello {
    /// Whether `X-Fault` is obeyed.
    pub(super) faults: bool,
}

/// The first event of a stream before which events were missed: read the lists again
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reset {
    /// Why: the id is of no event, older than what is kept, or another process's.
    #[schema(pattern = "^(unknown_id|too_old|other_process)$")]
    pub(super) reason: &'static str,
    /// Whether `X-Fault` is obeyed.
    pub(super) faults: bool,
}

/// The half message is in the store
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct HalfStored {
    /// The kind of local transaction.
    pub(super) purpose: String,
    /// The store's partition.
    #[schema(minimum = 0)]
    pub(super) partition: i32,
    /// Its place there.
    #[schema(minimum = 0)]
    pub(super) offset: i64,
}

/// The call of the local transaction has ended, or was given up
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct LocalTransaction {
    /// How.
    #[schema(pattern = "^(commit|rollback|unknown|failed|timed_out)$")]
    pub(super) outcome: &'static str,
    /// Why it failed; may be empty.
    pub(super) reason: String,
}

/// The check-back has asked
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Checked {
    /// What was answered; `failed` is no answer, and is asked again.
    #[schema(pattern = "^(commit|rollback|unknown|failed)$")]
    pub(super) answer: &'static str,
    /// Why; may be empty.
    pub(super) reason: String,
}

/// The first decision was read in the store: it holds
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Decided {
    /// Which way.
    #[schema(pattern = "^(commit|rollback)$")]
    pub(super) verdict: &'static str,
    /// Who said so.
    #[schema(pattern = "^(producer|check-back|operator)$")]
    pub(super) by: &'static str,
    /// The operator's name, if a person decided.
    #[schema(required)]
    pub(super) operator: Option<String>,
    /// Why; may be empty.
    pub(super) reason: String,
}

/// Its topic has the message
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Delivered {
    /// The topic.
    pub(super) topic: String,
}

/// Rolled back: nothing was or will be sent
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Dropped {}

/// Given up on, or refused by its target: an operator decides
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Parked {
    /// The kind of reason.
    #[schema(pattern = "^(max_checks|max_age|no_listener|undeliverable)$")]
    pub(super) cause: &'static str,
    /// The reason.
    pub(super) reason: String,
}

/// An operator has opened the parked message again
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Reopened {
    /// Who.
    pub(super) operator: String,
    /// Why.
    pub(super) reason: String,
}

/// An order has this status now
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct OrderMoved {
    /// The status.
    pub(super) status: OrderStatus,
    /// Why it is void, rejected or cancelled.
    #[schema(required)]
    pub(super) reason: Option<String>,
}

/// A type of data, for the name in `event:`.
struct Kind {
    event: &'static str,
    data: Cow<'static, str>,
    /// Its schema, and those that it refers to.
    schemas: Vec<(String, RefOr<Schema>)>,
    /// Whether it has the members of [`EventAbout`], too.
    is_about: bool,
}

impl Kind {
    fn of<T: ToSchema>(event: &'static str) -> Self {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        Self { event, data: T::name(), schemas, is_about: true }
    }

    fn greeting<T: ToSchema>(event: &'static str) -> Self {
        Self { is_about: false, ..Self::of::<T>(event) }
    }

    /// The event as a whole.
    fn event_schema(&self) -> ObjectBuilder {
        let own = Ref::from_schema_name(&*self.data);
        let about = Ref::from_schema_name(EventAbout::name());
        let data: RefOr<Schema> = match self.is_about {
            true => AllOfBuilder::new().item(about).item(own).into(),
            false => own.into(),
        };
        let text = || ObjectBuilder::new().schema_type(Type::String);
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("id", text().description(Some("For `Last-Event-ID`")))
            .property("event", text().enum_values(Some([self.event])))
            .property("data", text().content_media_type(JSON).content_schema(Some(data)))
            .required("id")
            .required("event")
            .required("data")
    }
}

/// Every event, by its name.
fn kinds() -> [Kind; 11] {
    [
        Kind::greeting::<Hello>(super::stream::HELLO),
        Kind::greeting::<Reset>(super::stream::RESET),
        Kind::of::<HalfStored>("half_stored"),
        Kind::of::<LocalTransaction>("local_transaction"),
        Kind::of::<Checked>("checked"),
        Kind::of::<Decided>("decided"),
        Kind::of::<Delivered>("delivered"),
        Kind::of::<Dropped>("dropped"),
        Kind::of::<Parked>("parked"),
        Kind::of::<Reopened>("reopened"),
        Kind::of::<OrderMoved>("order"),
    ]
}

/// One event of the stream.
struct Event;

impl PartialSchema for Event {
    fn schema() -> RefOr<Schema> {
        let ways =
            kinds().iter().fold(OneOfBuilder::new(), |ways, kind| ways.item(kind.event_schema()));
        let about =
            "One event: its fields as server-sent events have them. `data` is a line of JSON.";
        ways.description(Some(about)).into()
    }
}

impl ToSchema for Event {}

/// What `GET /events` answers with, for the document alone.
pub(super) struct EventStream;

impl PartialSchema for EventStream {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new().items(Ref::from_schema_name(Event::name())).into()
    }
}

impl ToSchema for EventStream {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Event::name().into_owned(), Event::schema()));
        schemas.push((EventAbout::name().into_owned(), EventAbout::schema()));
        schemas.extend(kinds().into_iter().flat_map(|kind| kind.schemas));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_data_of_its_own() {
        let mut schemas = Vec::new();
        EventStream::schemas(&mut schemas);
        let names: std::collections::BTreeSet<_> = schemas.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), schemas.len(), "{names:?}");
        let events: std::collections::BTreeSet<_> = kinds().map(|kind| kind.event).into();
        assert_eq!(events.len(), kinds().len());
    }

    #[test]
    fn data_that_may_be_null_are_there_all_the_same() {
        let decided = serde_json::to_value(Decided::schema()).unwrap();
        assert_eq!(decided["required"], serde_json::json!(["verdict", "by", "operator", "reason"]));
    }
}
