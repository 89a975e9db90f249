//! A right or a topic that is missing: since when, and when it is back.
//!
//! librdkafka tells once that a topic may not be read, goes on asking, and never tells that it may again; nor
//! does a poll say which topic it is about. Pausing and resuming makes it tell anew what it still meets. So
//! nothing here may take silence for consent before it was made to tell.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use halfmsg_kafka::partition_count;
use rdkafka::consumer::Consumer;

use super::{Client, Poller};
use crate::health::Cause;

/// How long a client that was made to tell has for it: librdkafka fetches from a partition that it may not read
/// ten times as seldom as after other errors, every 5 s.
const SILENCE: Duration = Duration::from_secs(10);
/// How long one question about a topic may take.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// A topic that is denied.
#[derive(Debug, Clone, Copy)]
enum Topic {
    /// So it was told, then.
    Told(Instant),
    /// Nothing more was told since the client was made to tell, then.
    Asked(Instant),
}

#[derive(Debug, Default)]
struct State {
    /// It is over with the next assignment.
    group: bool,
    topic: Option<Topic>,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    /// Make the client tell.
    Ask,
    /// It was silent for long enough.
    Over,
}

/// What the broker denies a client.
#[derive(Debug, Default)]
pub(super) struct Denied(Mutex<State>);

impl Denied {
    pub(super) fn group(&self) {
        self.state().group = true;
    }

    pub(super) fn topic(&self) {
        self.state().topic = Some(Topic::Told(Instant::now()));
    }

    /// Partitions were assigned, of every topic or only of some. True if something was denied and nothing is any
    /// more; a topic that may not be read is told anew then.
    pub(super) fn assigned(&self, every_topic: bool) -> bool {
        let mut state = self.state();
        let before = state.group || state.topic.is_some();
        state.group = false;
        if every_topic {
            state.topic = None;
        }
        before && state.topic.is_none()
    }

    fn next(&self, at: Instant) -> Next {
        match self.state().topic {
            Some(Topic::Told(told)) if at.duration_since(told) >= SILENCE => Next::Ask,
            Some(Topic::Asked(then)) if at.duration_since(then) >= SILENCE => Next::Over,
            _ => Next::Wait,
        }
    }

    /// The client was made to tell.
    fn asked(&self) {
        self.state().topic = Some(Topic::Asked(Instant::now()));
    }

    /// No topic is denied any more. True if the group is not either.
    fn topic_is_over(&self) -> bool {
        let mut state = self.state();
        state.topic = None;
        !state.group
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Poller {
    /// Finds out, now and then, whether what was denied is given again. Only between batches: what was fetched
    /// ahead is fetched once more.
    pub(super) fn look_for_rights(&self, client: &Client) {
        let denied = &client.context().denied;
        match denied.next(Instant::now()) {
            Next::Wait => {}
            Next::Ask => {
                let known = |topic: &String| partition_count(client.client(), topic, LOOK_DEADLINE);
                let asked = self.topics.iter().try_for_each(|topic| known(topic).map(drop));
                let asked = asked.map_err(|error| error.to_string()).and_then(|()| {
                    let all = client.assignment().map_err(|error| error.to_string())?;
                    let told = client.pause(&all).and_then(|()| client.resume(&all));
                    told.map_err(|error| error.to_string())
                });
                match asked {
                    Ok(()) => denied.asked(),
                    Err(error) => {
                        tracing::debug!(
                            error,
                            "what was denied is denied still, or nobody can tell"
                        );
                        denied.topic();
                    }
                }
            }
            Next::Over => {
                if denied.topic_is_over() && self.health.good(Cause::Client) {
                    tracing::info!(topics = ?self.topics, "nothing is denied any more");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_behind_a_question_is_an_answer() {
        let denied = Denied::default();
        let later = |silences: u32| Instant::now() + SILENCE * silences;
        assert_eq!(denied.next(later(9)), Next::Wait);
        denied.topic();
        assert_eq!(denied.next(Instant::now()), Next::Wait);
        // However long: it was not asked for.
        assert_eq!(denied.next(later(9)), Next::Ask);
        denied.asked();
        assert_eq!(denied.next(Instant::now()), Next::Wait);
        // Told anew: still denied.
        denied.topic();
        assert_eq!(denied.next(later(1)), Next::Ask);
        denied.asked();
        assert_eq!(denied.next(later(1)), Next::Over);
    }

    #[test]
    fn an_assignment_ends_what_it_says_something_of() {
        let denied = Denied::default();
        assert!(!denied.assigned(true));
        denied.group();
        assert!(denied.assigned(false) && !denied.assigned(false));
        denied.topic();
        // As where the group goes on without the topic.
        assert!(!denied.assigned(false));
        // Nor where the group was denied as well.
        denied.group();
        assert!(!denied.assigned(false));
        assert!(denied.assigned(true));
        assert_eq!(denied.next(Instant::now() + 9 * SILENCE), Next::Wait);
    }
}
