//! Feeds events to a partition's core and carries out what it commands.

use std::sync::Arc;

use halfmsg_protocol::{
    Answer, Command, Event, HalfRef, Ignored, NotAsked, Progress, Question, Record,
};

use super::emitter::{Item, JobEnd, Work};
use super::watch::observe_deliveries;
use super::{Input, Resolver, tell};
use crate::bodies::Bodies;
use crate::checker::Asked;
use crate::clock;
use crate::log::Waiter;
use crate::message::HalfMessage;
use crate::parked::ParkedRecord;

impl Resolver {
    /// A batch has come to its end.
    pub(super) fn emitted(
        &mut self,
        (partition, generation): (i32, u64),
        items: Vec<Item>,
        progress: Option<Progress>,
        end: JobEnd,
    ) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        if owned.generation != generation {
            return;
        }
        if let JobEnd::Lost(why) = &end {
            return self.lost(partition, why);
        }
        self.metrics.batch_ended(matches!(end, JobEnd::Done(_)));
        let halves = tell::deliveries(&self.life, &items);
        observe_deliveries(&self.metrics, &items, &end);
        let ended = owned.lane.ended(items, progress, end);
        if !ended.done.is_empty() || ended.stored.is_some() {
            self.wanted.works(partition);
            self.renewals = 0;
        }
        for (at, delivered) in ended.done {
            if delivered {
                self.metrics.delivered();
            }
            if let Some(half) = halves.get(&at) {
                self.life.delivered(half);
            }
            self.step(partition, Some(generation), Event::CarriedOut { at });
        }
        for (at, reason) in ended.refused {
            let refused = Event::DeliveryRefused { at, reason, wall_ms: clock::wall_ms() };
            self.step(partition, Some(generation), refused);
        }
        if let Some(progress) = ended.stored {
            self.progress_stored(partition, progress);
        }
    }

    /// Feeds one event to a partition's core and carries out what follows. An event of an earlier
    /// ownership, or for a stopped partition's records, is dropped.
    pub(super) fn step(&mut self, partition: i32, generation: Option<u64>, event: Event) {
        let now = self.now;
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        if generation.is_some_and(|generation| generation != owned.generation) {
            return;
        }
        if owned.stopped.is_some() && generation.is_none() {
            return;
        }
        let generation = owned.generation;
        let mut commands = std::mem::take(&mut self.commands);
        owned.core.step(now, event, &mut commands);
        for command in commands.drain(..) {
            self.carry_out(partition, generation, command);
        }
        self.commands = commands;
    }

    fn carry_out(&mut self, partition: i32, generation: u64, command: Command) {
        let (since, appended_ms) = (self.now, self.appended_ms);
        let mut send = |at, work| {
            if let Some(owned) = self.owned.get_mut(&partition) {
                owned.lane.push(Item { at, since, appended_ms, work });
            }
        };
        match command {
            Command::Deliver { at, half, settled } => {
                self.life.delivering(&half, self.decision.as_ref());
                send(at, Work::Deliver(half, settled));
            }
            Command::Settle { at, settled } => send(at, Work::Settle(settled)),
            Command::WriteParked { at, parked } => {
                self.life.parked(&parked);
                let cause = parked.cause;
                send(at, Work::Park(parked));
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.uncounted.parked(at, cause);
                }
            }
            Command::CopyForeign { at } => {
                let body = std::mem::take(&mut self.foreign);
                send(at, Work::Foreign(ParkedRecord::foreign(partition, at, body)));
            }
            Command::Ask(questions) => self.ask(partition, generation, questions),
            Command::Append(record) => self.append(partition, generation, &record),
            Command::Note { id, at, why } => {
                self.metrics.ignored(why);
                if why == Ignored::Conflict {
                    tracing::warn!(
                        transaction_id = %id, partition, offset = at,
                        "a decision contradicts an earlier one, or came while the message was \
                         parked; the first one holds"
                    );
                }
            }
            Command::Dropped { half, origin, reason } => {
                self.metrics.dropped();
                self.life.dropped(&half, origin.as_str(), &reason, self.decision.as_ref());
            }
        }
    }

    fn append(&mut self, partition: i32, generation: u64, record: &Record) {
        let of = match record {
            Record::Decision(decision) => decision.of,
            Record::Checked(checked) => checked.of,
            Record::Park(park) => park.of,
            Record::Reopen(reopen) => reopen.of,
            Record::Half(_) => return,
        };
        let mut span = None;
        if let Record::Decision(decision) = record {
            self.metrics.decided(decision.origin, decision.verdict);
            span = self.decision_span(partition, decision);
        }
        let inputs = self.to_self.clone();
        let waiter = Waiter::Resolver { inputs, partition, generation, of, span: span.into() };
        self.log.append(partition, record, &Default::default(), waiter);
    }

    fn ask(&mut self, partition: i32, generation: u64, questions: Vec<Question>) {
        let (checker, inputs) = (Arc::clone(&self.checker), self.to_self.clone());
        let bodies = Arc::clone(&self.bodies);
        let of: Vec<HalfRef> = questions.iter().map(|question| question.of).collect();
        self.runtime.spawn(async move {
            let answers = match whole(bodies, partition, questions).await {
                Ok(questions) => {
                    let asked = questions.iter().map(|question| asked(partition, question));
                    checker.ask(asked.collect()).await
                }
                Err(error) => {
                    tracing::warn!(partition, error, "halves cannot be read to ask about them");
                    vec![Answer::NotAsked(NotAsked::Busy); of.len()]
                }
            };
            for (of, answer) in of.into_iter().zip(answers) {
                // The resolver may have ended meanwhile; its successor asks again.
                drop(inputs.send(Input::Answered { partition, generation, of, answer }));
            }
            drop(inputs.send(Input::BatchOver { partition, generation }));
        });
    }
}

/// The questions with the bodies that memory had no room for.
async fn whole(
    bodies: Arc<Bodies>,
    partition: i32,
    mut questions: Vec<Question>,
) -> Result<Vec<Question>, String> {
    if questions.iter().all(|question| !question.half.is_stub) {
        return Ok(questions);
    }
    let read = tokio::task::spawn_blocking(move || {
        let halves: Vec<_> = questions.iter().map(|question| &question.half).collect();
        let whole = bodies.open(partition, &halves).map_err(|error| error.to_string())?;
        for question in &mut questions {
            if let Some(half) = whole.get(&question.half.stored_at) {
                question.half = Arc::clone(half);
            }
        }
        Ok(questions)
    });
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn asked(partition: i32, question: &Question) -> Asked {
    Asked {
        application: question.half.meta.application.clone(),
        half: HalfMessage::new(partition, &question.half, question.of.epoch.0, question.attempts),
    }
}
