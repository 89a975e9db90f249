//! Columns as all tables have them.

use sea_orm_migration::prelude::{ColumnDef, Expr, ExprTrait, IntoIden};

/// A UUID that must be there: `uuid` on PostgreSQL, sixteen bytes on SQLite.
pub(crate) fn uuid(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).uuid().not_null().take()
}

/// A text that must be there.
pub(crate) fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().not_null().take()
}

/// A text out of a known set.
pub(crate) fn one_of(name: &'static str, values: &[&'static str]) -> ColumnDef {
    let known = Expr::col(name.into_iden()).is_in(values.iter().copied());
    ColumnDef::new(name).text().not_null().check(known).take()
}

/// A 64-bit number that must be there and at least `least`.
pub(crate) fn number(name: &'static str, least: i64) -> ColumnDef {
    let enough = Expr::col(name.into_iden()).gte(least);
    ColumnDef::new(name).big_integer().not_null().check(enough).take()
}

/// A moment, in UTC, that must be there.
pub(crate) fn moment(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).timestamp_with_time_zone().not_null().take()
}
