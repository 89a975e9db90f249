//! The examples do what they say.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/examples/mod.rs"]
mod examples;

examples::examples! {
    begin_and_commit
    check_back
    send_in_transaction
    several
}
