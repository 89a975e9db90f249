//! Feeds events to a partition's core and carries out what it commands.

use std::sync::Arc;

use halfmsg_protocol::{Command, Event, Ignored, Progress, Question, Record};

use super::asking::Asking;
use super::emitter::{Item, JobEnd, Work};
use super::watch::observe_deliveries;
use super::{Resolver, tell};
use crate::clock;
use crate::life;
use crate::log::Waiter;
use crate::parked::ParkedRecord;

impl Resolver {
    /// A batch has come to its end.
    pub(super) fn emitted(
        &mut self,
        (partition, generation): (i32, u64),
        items: Vec<Item>,
        progress: Option<Progress>,
        (end, ended_ms): (JobEnd, i64),
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
        if !ended.done.is_empty() || !ended.unmarked.is_empty() || ended.stored.is_some() {
            self.wanted.works(partition);
            self.renewals = 0;
        }
        let known_from = owned.end_at_takeover;
        let done = ended.done.iter().filter(|(_, delivered)| *delivered).map(|(at, _)| *at);
        for at in done.chain(ended.unmarked) {
            self.metrics.delivered();
            if let Some(half) = halves.get(&at) {
                // A decision that the log held at the takeover, an earlier owner may have carried out.
                self.life.delivered(half, (at >= known_from).then_some(ended_ms));
            }
        }
        for (at, _) in ended.done {
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
                send(at, Work::Park(Box::new(parked)));
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.uncounted.parked(at, cause);
                }
            }
            Command::CopyForeign { at } => {
                let body = std::mem::take(&mut self.foreign);
                let record = ParkedRecord::foreign(partition, at, body);
                send(at, Work::Foreign(Box::new(record)));
            }
            Command::Ask(questions) => self.ask(partition, generation, questions),
            Command::Append(record) => self.append(partition, generation, &record),
            Command::Note { id, at, why } => {
                self.metrics.ignored(why);
                if why == Ignored::Conflict {
                    let owned = self.owned.get(&partition);
                    let parked = owned.and_then(|owned| owned.core.ledger().find_parked(id));
                    let key = parked.and_then(|parked| parked.half.body.key.as_deref());
                    tracing::warn!(
                        transaction_id = %id, key = life::text(key), partition, offset = at,
                        "a decision contradicts an earlier one, or came while the message was \
                         parked; the first one holds"
                    );
                }
                if let Ignored::Reused { first } = why {
                    tracing::error!(
                        transaction_id = %id, topic = self.store, partition, offset = at,
                        first = first.0,
                        "another message was stored under the id of one that the store holds \
                         already: it is neither delivered nor asked about, and its decision changes \
                         nothing; give each message an id of its own"
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
        let open = self.owned.get(&partition).and_then(|owned| owned.core.ledger().open(of.half));
        let key = open.and_then(|open| open.half.body.key.clone());
        let (inputs, span) = (self.to_self.clone(), span.into());
        let waiter = Waiter::Resolver { inputs, partition, generation, of, key, span };
        self.log.append(partition, record, &Default::default(), waiter);
    }

    fn ask(&mut self, partition: i32, generation: u64, questions: Vec<Question>) {
        let Some(owned) = self.owned.get(&partition) else { return };
        let (inputs, ended) = (self.to_self.clone(), owned.questions.ended());
        let asking = Asking::new(inputs, (partition, generation), &questions, ended);
        let (checker, bodies) = (Arc::clone(&self.checker), Arc::clone(&self.bodies));
        self.runtime.spawn(asking.ask(checker, bodies, questions));
    }
}
