//! Who is to blame when a batch, or an item of it, is not carried out. It must never decide what follows:
//! that is the lane's business.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use halfmsg_kafka::TopicError;
use halfmsg_protocol::Half;
use rdkafka::error::KafkaError;

use super::sending::{CLEAR, MARK};
use super::{STEP, Worker};
use crate::bodies::Unread;
use crate::resolver::delivery::{Blame, blame, is_too_large};
use crate::resolver::emitter::{Item, Job, Trouble, Work};
use crate::targets::MISSING_FOR;

impl Worker<'_> {
    /// Targets are looked at before anything is sent, so that one that is missing does not abort a
    /// transaction, or hold up a partition until the client gives the topic up. Each look may take
    /// its time: nothing if it was told to stop.
    pub(super) fn unknown_targets(&self, job: &Job) -> Option<Vec<(usize, Trouble)>> {
        let mut found: HashMap<&str, Option<Trouble>> = HashMap::new();
        let mut troubles = Vec::new();
        for (index, item) in job.items.iter().enumerate() {
            let Work::Deliver(half, _) = &item.work else { continue };
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let topic = half.meta.topic.as_str();
            let trouble = found.entry(topic).or_insert_with(|| self.look_up(topic));
            troubles.extend(trouble.clone().map(|trouble| (index, trouble)));
        }
        Some(troubles)
    }

    /// One look proves nothing: the broker that is asked may lag behind the others.
    fn look_up(&self, topic: &str) -> Option<Trouble> {
        let targets = &self.parts.targets;
        let error = targets.look(topic, STEP).err()?;
        let is_missing = matches!(error, TopicError::Unknown(_) | TopicError::Forbidden { .. });
        if is_missing && targets.missing_for(topic) >= MISSING_FOR {
            return Some(Trouble::Refused(error.to_string()));
        }
        Some(Trouble::Passing(error.to_string()))
    }

    /// What the failed records say about their items; one trouble for each.
    pub(super) fn judge(
        &self,
        job: &Job,
        failures: Vec<(usize, KafkaError)>,
    ) -> Vec<(usize, Trouble)> {
        let mut troubles: Vec<(usize, Trouble)> = Vec::new();
        for (index, error) in failures {
            if index & CLEAR != 0 {
                let transaction_id = job.clears.get(index & !CLEAR).map(tracing::field::display);
                tracing::warn!(
                    transaction_id,
                    partition = self.partition,
                    %error,
                    "a settled message stays in the parked topic for now"
                );
                continue;
            }
            let (index, is_mark) = (index & !MARK, index & MARK != 0);
            if troubles.iter().any(|(known, _)| *known == index) {
                continue;
            }
            let trouble = match job.items.get(index).map(|item| &item.work) {
                Some(Work::Deliver(half, _)) if !is_mark => {
                    self.blame(half, &error, job.items.len() == 1)
                }
                Some(Work::Park(_) | Work::Foreign(_)) if is_too_large(&error) => {
                    Trouble::Suspect(self.too_large(&error))
                }
                _ => Trouble::Passing(error.to_string()),
            };
            troubles.push((index, trouble));
        }
        troubles
    }

    /// Which deliveries have no mark yet. Only the mark is written again: a parked topic that takes none
    /// for good must not have its messages delivered again and again.
    pub(super) fn unmarked(&self, failures: Vec<(usize, KafkaError)>) -> Vec<(usize, Trouble)> {
        let topic = &self.parked_topic;
        let why =
            |error| format!("delivered; the parked topic '{topic}' does not take that: {error}");
        let unmarked = |(index, error)| (index & !MARK, Trouble::Unmarked(why(error)));
        failures.into_iter().map(unmarked).collect()
    }

    fn too_large(&self, error: &KafkaError) -> String {
        let topic = &self.parked_topic;
        format!(
            "the parked topic refuses it: {error}; the topic must take as much as the store: \
             kafka-configs.sh --alter --topic {topic} --add-config max.message.bytes=..."
        )
    }

    /// One refusal of a message that is alone proves nothing either: a right that is new has not reached
    /// every broker yet.
    pub(super) fn denied(&self, topic: &str, why: &str) -> Trouble {
        let why = format!("topic '{topic}' refuses it: {why}");
        if self.parts.targets.denied_for(topic) < MISSING_FOR {
            return Trouble::Passing(why);
        }
        Trouble::Suspect(why)
    }

    fn blame(&self, half: &Half, error: &KafkaError, is_alone: bool) -> Trouble {
        let topic = &half.meta.topic;
        match blame(error) {
            Blame::Topic => {
                self.parts.targets.forget(topic);
                let trouble = self.look_up(topic);
                trouble.unwrap_or_else(|| Trouble::Passing(error.to_string()))
            }
            Blame::Right if is_alone => self.denied(topic, &error.to_string()),
            Blame::Right | Blame::Batch => {
                Trouble::Suspect(format!("topic '{topic}' refuses it: {error}"))
            }
            Blame::Nobody => Trouble::Passing(error.to_string()),
        }
    }
}

/// The item whose body memory has no room for, and which cannot be read again yet.
pub(super) fn cannot_be_read(job: &Job, unread: &Unread) -> Vec<(usize, Trouble)> {
    let is_it = |item: &Item| item.half().is_some_and(|half| half.stored_at == unread.stored_at);
    let trouble = Trouble::Passing(format!("it cannot be read again: {unread}"));
    job.items.iter().position(is_it).map(|index| (index, trouble)).into_iter().collect()
}
