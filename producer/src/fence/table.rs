//! What is said to the table `halfmsg_fence`. Its schema is `halfmsg_migrations::producer`.
//!
//! Every comparison is one of keys: a transaction id begins with the moment it was made at, so no
//! clock, and no database's idea of a moment, has a part in what was cleaned.

use std::collections::HashMap;

use chrono::{DateTime, TimeZone, Utc};
use halfmsg_db::{DbFault, begin_write, now};
use halfmsg_protocol::TransactionId;
use sea_orm::sea_query::{
    Expr, ExprTrait, LockBehavior, LockType, OnConflict, Order, Query, SelectStatement,
};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult, Value,
};
use uuid::Uuid;

use super::FenceError;

const TABLE: &str = "halfmsg_fence";
const KEY: &str = "transaction_id";
const STATE: &str = "state";
const MOMENT: &str = "created_at";
/// The state of the mark.
const CLEANED: &str = "cleaned";
/// The key of the mark.
const MARK_KEY: TransactionId = TransactionId::from_uuid(Uuid::nil());

/// Who wrote the row of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The local transaction.
    Entered,
    /// A check-back.
    Tombstone,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Entered => "entered",
            Self::Tombstone => "tombstone",
        }
    }

    fn of(name: &str) -> Result<Self, DbErr> {
        let known = [Self::Entered, Self::Tombstone].into_iter().find(|state| state.name() == name);
        known.ok_or_else(|| DbErr::Custom(format!("the state '{name}' in {TABLE} is not known")))
    }
}

/// Up to where rows have been cleaned away: ids that were made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(TransactionId);

impl Mark {
    /// The mark at a moment, cut to the milliseconds that an id has.
    pub(super) fn at(moment: DateTime<Utc>) -> Self {
        let millis = u64::try_from(moment.timestamp_millis()).unwrap_or(0);
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        Self(TransactionId::from_bytes(bytes))
    }

    /// Whether the row of this id, if there was one, may have been deleted.
    pub(super) fn covers(self, id: TransactionId) -> bool {
        id < self.0
    }

    fn moment(self) -> DateTime<Utc> {
        made_at(self.0)
    }
}

/// The moment at which an id was made, as it says itself.
pub(super) fn made_at(id: TransactionId) -> DateTime<Utc> {
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&id.as_bytes()[..6]);
    // 48 bits of milliseconds are within what a moment can be.
    let millis = i64::from_be_bytes(millis);
    Utc.timestamp_millis_opt(millis).single().unwrap_or(DateTime::<Utc>::UNIX_EPOCH)
}

/// What a batch of transactions has come to; one that is not there has no row.
pub(super) struct Rows {
    pub(super) states: HashMap<TransactionId, Result<State, FenceError>>,
    pub(super) mark: Mark,
}

/// Reads the rows of these transactions and the mark, in one statement.
pub(super) async fn read(
    db: &DatabaseConnection,
    ids: &[TransactionId],
) -> Result<Rows, FenceError> {
    let keys = ids.iter().chain([&MARK_KEY]).map(|id| id.as_uuid());
    let select = Query::select()
        .columns([KEY, STATE, MOMENT])
        .from(TABLE)
        .and_where(Expr::col(KEY).is_in(keys))
        .to_owned();
    let found = if db.get_database_backend() == DbBackend::MySql {
        // A server may be configured to show what is not committed: here it must not.
        let tx = begin_write(db).await?;
        let found = tx.query_all(&select).await;
        tx.rollback().await?;
        found?
    } else {
        db.query_all(&select).await?
    };
    let (mut states, mut mark) = (HashMap::with_capacity(found.len()), None);
    for row in found {
        let id = TransactionId::from_uuid(row.try_get("", KEY)?);
        if id == MARK_KEY {
            mark = Some(mark_of(&row)?);
        } else {
            states.insert(id, state_of(&row).map_err(FenceError::from));
        }
    }
    Ok(Rows { states, mark: mark.ok_or(FenceError::NoMark)? })
}

/// Inserts the row of a transaction, unless it has one; true if it is ours.
///
/// PostgreSQL and MySQL wait here for a transaction that has inserted the same row and not ended.
pub(super) async fn insert_in_tx(
    tx: &DatabaseTransaction,
    id: TransactionId,
    state: State,
) -> Result<bool, DbErr> {
    let row: [Value; 3] = [id.as_uuid().into(), state.name().into(), now().into()];
    let mut insert = Query::insert();
    insert.into_table(TABLE).columns([KEY, STATE, MOMENT]).values_panic(row.map(Into::into));
    if tx.get_database_backend() == DbBackend::MySql {
        // Not `ON DUPLICATE KEY UPDATE id = id`: the driver has MySQL count the rows that it found
        // (CLIENT_FOUND_ROWS), so that one row is counted either way. A duplicate fails the
        // statement there, not the transaction.
        return match tx.execute(&insert).await {
            Ok(_) => Ok(true),
            Err(error) if DbFault::of(&error) == DbFault::UniqueViolation => Ok(false),
            Err(error) => Err(error),
        };
    }
    insert.on_conflict(OnConflict::column(KEY).do_nothing().to_owned());
    Ok(tx.execute(&insert).await?.rows_affected() == 1)
}

/// The state of a transaction as it is now, whatever an older snapshot of this one says.
pub(super) async fn lock_state_in_tx(
    tx: &DatabaseTransaction,
    id: TransactionId,
) -> Result<Option<State>, DbErr> {
    let mut select = select_one(id);
    if tx.get_database_backend() == DbBackend::MySql {
        select.lock(LockType::Share);
    }
    tx.query_one(&select).await?.map(|row| state_of(&row)).transpose()
}

/// Fails with a lock error, at once, if a transaction has written this row and not ended (MySQL,
/// where an insert would wait for seconds at least; does nothing elsewhere).
pub(super) async fn refuse_to_wait_in_tx(
    tx: &DatabaseTransaction,
    id: TransactionId,
) -> Result<(), DbErr> {
    if tx.get_database_backend() == DbBackend::MySql {
        let mut select = select_one(id);
        // Under READ COMMITTED a row that is not there is not locked, nor is the gap where it
        // would be. FOR UPDATE: the one form with NOWAIT that MySQL and MariaDB share.
        select.lock_with_behavior(LockType::Update, LockBehavior::Nowait);
        tx.query_one(&select).await?;
    }
    Ok(())
}

/// The mark.
pub(super) async fn mark_in(db: &impl ConnectionTrait) -> Result<Mark, FenceError> {
    let row = db.query_one(&select_one(MARK_KEY)).await?.ok_or(FenceError::NoMark)?;
    Ok(mark_of(&row)?)
}

/// Moves the mark forward to `to`, never back, and gives the mark as it is then.
pub(super) async fn move_mark_in_tx(
    tx: &DatabaseTransaction,
    to: Mark,
) -> Result<Mark, FenceError> {
    let mut select = select_one(MARK_KEY);
    // SQLite has no row locks; its transaction is the only writer.
    if tx.get_database_backend() != DbBackend::Sqlite {
        select.lock(LockType::Update);
    }
    let row = tx.query_one(&select).await?.ok_or(FenceError::NoMark)?;
    let is = mark_of(&row)?;
    if to <= is {
        return Ok(is);
    }
    let update = Query::update()
        .table(TABLE)
        .value(MOMENT, to.moment())
        .and_where(Expr::col(KEY).eq(MARK_KEY.as_uuid()))
        .to_owned();
    tx.execute(&update).await?;
    Ok(to)
}

/// The newest transaction that has a row.
pub(super) async fn newest(db: &DatabaseConnection) -> Result<Option<TransactionId>, DbErr> {
    let mut select = Query::select();
    select.column(KEY).from(TABLE).and_where(Expr::col(KEY).gt(MARK_KEY.as_uuid()));
    select.order_by(KEY, Order::Desc).limit(1);
    let row = db.query_one(&select).await?;
    row.map(|row| Ok(TransactionId::from_uuid(row.try_get("", KEY)?))).transpose()
}

/// Deletes the oldest rows that the mark covers, at most `limit`, and says how many.
pub(super) async fn delete_in_tx(
    tx: &DatabaseTransaction,
    mark: Mark,
    limit: u64,
) -> Result<u64, DbErr> {
    let mut oldest = Query::select();
    oldest
        .column(KEY)
        .from(TABLE)
        .and_where(Expr::col(KEY).gt(MARK_KEY.as_uuid()))
        .and_where(Expr::col(KEY).lt(mark.0.as_uuid()))
        .order_by(KEY, Order::Asc)
        .limit(limit);
    let Some(last) = tx.query_all(&oldest).await?.pop() else {
        return Ok(0);
    };
    let last: Uuid = last.try_get("", KEY)?;
    // Not by a subquery with a limit, which MySQL does not take.
    let delete = Query::delete()
        .from_table(TABLE)
        .and_where(Expr::col(KEY).gt(MARK_KEY.as_uuid()))
        .and_where(Expr::col(KEY).lte(last))
        .to_owned();
    Ok(tx.execute(&delete).await?.rows_affected())
}

/// One row by its key alone, which locks no other.
fn select_one(id: TransactionId) -> SelectStatement {
    let mut select = Query::select();
    select.columns([STATE, MOMENT]).from(TABLE).and_where(Expr::col(KEY).eq(id.as_uuid()));
    select
}

fn state_of(row: &QueryResult) -> Result<State, DbErr> {
    State::of(&row.try_get::<String>("", STATE)?)
}

fn mark_of(row: &QueryResult) -> Result<Mark, DbErr> {
    let state: String = row.try_get("", STATE)?;
    if state != CLEANED {
        return Err(DbErr::Custom(format!("the mark in {TABLE} has the state '{state}'")));
    }
    Ok(Mark::at(row.try_get("", MOMENT)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(millis: i64, rest: u8) -> TransactionId {
        let mut bytes = [rest; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        TransactionId::from_bytes(bytes)
    }

    #[test]
    fn the_mark_covers_what_was_made_before_its_millisecond() {
        let moment = Utc.timestamp_millis_opt(1_760_000_000_123).unwrap();
        let mark = Mark::at(moment + chrono::TimeDelta::microseconds(999));
        assert_eq!(mark.moment(), moment);
        assert!(mark.covers(id(1_760_000_000_122, 0xff)));
        assert!(!mark.covers(id(1_760_000_000_123, 0)));
        assert!(mark.covers(MARK_KEY), "nil, whose row is the mark, is no transaction");
        assert!(!Mark::at(DateTime::<Utc>::UNIX_EPOCH).covers(id(0, 0)));
    }

    #[test]
    fn an_id_says_when_it_was_made() {
        let before = now();
        let made = made_at(TransactionId::from_uuid(Uuid::now_v7()));
        // It says the millisecond, and may be ahead by some.
        let by = chrono::TimeDelta::seconds(1);
        assert!(made > before - by && made < now() + by, "{made} {before}");
        assert!(made_at(id(0xffff_ffff_ffff, 0xff)) > before, "the last that can be said");
    }
}
