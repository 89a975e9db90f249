//! What a person types in the work tree: `cargo run`. It replaces the program that other tests start, and
//! cargo runs one binary of tests after the other; so this one is its own.

#[path = "../suite/mod.rs"]
mod suite;

suite::cases!(typed);
