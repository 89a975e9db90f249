//! The examples do what they say.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/examples/mod.rs"]
mod examples;

examples::examples! {
    handle_once
    reply
    retry_and_dead_letter
}
