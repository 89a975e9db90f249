//! The end-to-end tests on the embedded broker and SQLite: they need nothing but this machine.

#[path = "../suite/mod.rs"]
mod suite;

suite::cases!(embedded);
