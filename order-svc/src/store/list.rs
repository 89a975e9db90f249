//! Pages of orders, newest first. A page begins where the last one ended, whatever was stored
//! meanwhile.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};
use uuid::Uuid;

use super::entity::{order_line, orders};
use super::{OrderStore, StoreError, to_order};
use crate::model::{Order, OrderStatus};

/// Orders in one page, if the client does not say.
pub const DEFAULT_LIMIT: u64 = 50;
/// The most orders in one page.
pub const MAX_LIMIT: u64 = 500;

/// Digits of a moment in microseconds, up to the year 9999.
const MAX_MICROS_DIGITS: usize = 17;

/// Which orders are to be listed.
#[derive(Debug, Clone, Copy)]
pub struct OrderFilter {
    /// Only these; all if unset.
    pub status: Option<OrderStatus>,
    /// Only those that were placed before this moment.
    pub before: Option<DateTime<Utc>>,
    /// At most so many, 1 to [`MAX_LIMIT`].
    pub limit: u64,
    /// After this place.
    pub after: Option<Place>,
}

/// The place of an order in the list. Its text is what clients get as a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    created_at: DateTime<Utc>,
    id: Uuid,
}

impl Place {
    /// The place of this order.
    pub fn of(order: &Order) -> Self {
        Self { created_at: order.created_at, id: order.id.as_uuid() }
    }

    /// The place that a cursor names.
    pub fn parse(cursor: &str) -> Option<Self> {
        let (micros, id) = cursor.split_once('.')?;
        // No sign, no more digits: within the years that every database can compare with.
        if micros.len() > MAX_MICROS_DIGITS || !micros.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let created_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
        Some(Self { created_at, id: id.parse().ok()? })
    }

    /// The cursor of this place.
    pub fn to_cursor(self) -> String {
        format!("{}.{}", self.created_at.timestamp_micros(), self.id.simple())
    }
}

/// A part of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderPage {
    /// The orders, newest first.
    pub orders: Vec<Order>,
    /// Where the next part begins; none if this is the last.
    pub next: Option<Place>,
}

impl OrderStore {
    /// A page of orders, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, filter: OrderFilter) -> Result<OrderPage, StoreError> {
        self.bounded(self.read_page(filter)).await
    }

    async fn read_page(&self, filter: OrderFilter) -> Result<OrderPage, StoreError> {
        use orders::Column::{CreatedAt, Id, Status};
        let limit = filter.limit.clamp(1, MAX_LIMIT);
        let mut rows = orders::Entity::find()
            .apply_if(filter.status, |rows, status| rows.filter(Status.eq(status.as_str())))
            .apply_if(filter.before, |rows, before| rows.filter(CreatedAt.lt(before)))
            .apply_if(filter.after, |rows, Place { created_at, id }| {
                let same = Condition::all().add(CreatedAt.eq(created_at)).add(Id.gt(id));
                rows.filter(Condition::any().add(CreatedAt.lt(created_at)).add(same))
            })
            .order_by_desc(CreatedAt)
            .order_by_asc(Id)
            .limit(limit + 1)
            .all(&self.requests)
            .await?;
        let more = rows.len() as u64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let ids = rows.iter().map(|row| row.id);
        let mut lines: HashMap<Uuid, Vec<order_line::Model>> = HashMap::new();
        let found = order_line::Entity::find()
            .filter(order_line::Column::OrderId.is_in(ids))
            .order_by_asc(order_line::Column::LineNo)
            .all(&self.requests)
            .await?;
        for line in found {
            lines.entry(line.order_id).or_default().push(line);
        }
        let order = |row: orders::Model| {
            let lines = lines.remove(&row.id).unwrap_or_default();
            to_order(row, lines)
        };
        let orders = rows.into_iter().map(order).collect::<Result<Vec<_>, _>>()?;
        let next = if more { orders.last().map(Place::of) } else { None };
        Ok(OrderPage { orders, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_names_a_place_and_nothing_else_does() {
        let place = Place { created_at: halfmsg_service_kit::db::now(), id: Uuid::now_v7() };
        assert_eq!(Place::parse(&place.to_cursor()), Some(place));
        for wrong in ["", ".", "1", "1.", "x.y", "99999999999999999999.0", "-1.zz"] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }
}
