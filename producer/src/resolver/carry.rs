//! Feeds events to a partition's core and carries out what it commands.

use std::sync::Arc;

use halfmsg_kafka::TopicError;
use halfmsg_protocol::{Command, Event, HalfRef, Ignored, Question, Record};

use super::delivery::Ack;
use super::outbox::{Settled, Token, Work};
use super::{Input, Resolver};
use crate::checker::Asked;
use crate::config::CrashPoint;
use crate::life;
use crate::log::Waiter;
use crate::message::HalfMessage;
use crate::parked::ParkedRecord;

impl Resolver {
    pub(super) fn acknowledged(&mut self, ack: Ack) {
        let (partition, generation) = (ack.token.partition, ack.token.generation);
        match self.outbox.acknowledged(ack) {
            Settled::Done { at, delivered } => {
                if delivered {
                    self.metrics.delivered();
                    if self.config.crash_at == Some(CrashPoint::AfterDelivery) {
                        tracing::error!("aborting after a delivery, as configured");
                        std::process::abort();
                    }
                }
                self.step(partition, Some(generation), Event::CarriedOut { at });
            }
            Settled::Refused { token, reason } => self.refused(token, reason),
            Settled::Nothing => {}
        }
    }

    pub(super) fn topic_found(&mut self, topic: &str, found: Result<(), TopicError>) {
        for settled in self.outbox.found(topic, found) {
            if let Settled::Refused { token, reason } = settled {
                self.refused(token, reason);
            }
        }
    }

    fn refused(&mut self, token: Token, reason: String) {
        let Token { partition, generation, at } = token;
        self.step(partition, Some(generation), Event::DeliveryRefused { at, reason });
    }

    /// Feeds one event to a partition's core and carries out what follows. An event of an earlier
    /// ownership, or for a stopped partition's records, is dropped.
    pub(super) fn step(&mut self, partition: i32, generation: Option<u64>, event: Event) {
        let now = self.started.elapsed();
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
        let token = |at| Token { partition, generation, at };
        match command {
            Command::Deliver { at, half, settled } => {
                life::delivering(&half);
                self.outbox.send(token(at), Work::Deliver(half), settled);
            }
            Command::Settle { at, settled } => {
                self.outbox.send(token(at), Work::Settle, Some(settled));
            }
            Command::WriteParked { at, parked } => {
                self.metrics.parked(parked.cause);
                life::parked(&parked);
                self.outbox.send(token(at), Work::Park(ParkedRecord::parked(&parked)), None);
            }
            Command::CopyForeign { at } => self.outbox.send_foreign(token(at)),
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
                life::dropped(&half, origin, &reason);
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
        if let Record::Decision(decision) = record {
            self.metrics.decided(decision.origin, decision.verdict);
        }
        let inputs = self.to_self.clone();
        let waiter = Waiter::Resolver { inputs, partition, generation, of };
        self.log.append(partition, record, &Default::default(), waiter);
    }

    fn ask(&mut self, partition: i32, generation: u64, questions: Vec<Question>) {
        let (checker, inputs) = (Arc::clone(&self.checker), self.to_self.clone());
        let of: Vec<HalfRef> = questions.iter().map(|question| question.of).collect();
        let asked = questions.iter().map(|question| asked(partition, question)).collect();
        self.runtime.spawn(async move {
            let answers = checker.ask(asked).await;
            for (of, answer) in of.into_iter().zip(answers) {
                // The resolver may have ended meanwhile; its successor asks again.
                drop(inputs.send(Input::Answered { partition, generation, of, answer }));
            }
            drop(inputs.send(Input::BatchOver { partition, generation }));
        });
    }
}

fn asked(partition: i32, question: &Question) -> Asked {
    Asked {
        application: question.half.meta.application.clone(),
        half: HalfMessage::new(partition, &question.half, question.of.epoch.0, question.attempts),
    }
}
