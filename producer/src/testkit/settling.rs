//! Time passes, and what is due is asked.

use std::time::Duration;

use halfmsg_protocol::{Answer, Event, TransactionId};

use super::world::{Asked, World};
use super::{Inner, KitError, TestKit};
use crate::checker;
use crate::listener::LocalTransactionState;
use crate::message::HalfMessage;

/// Steps of the clock in one [`TestKit::settle_all`]: more than `no_listener_grace` by default
/// takes, with an attempt each second.
const MAX_ROUNDS: usize = 100_000;

/// What [`TestKit::settle_all`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Answers of listeners, each about one half message.
    pub checks: usize,
    /// The time that passed on the virtual clock.
    pub took: Duration,
}

/// A listener that no longer says what it said, or does not agree with what was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// The message.
    pub transaction_id: TransactionId,
    /// What was decided, and carried out.
    pub decided: LocalTransactionState,
    /// What the listener answers now.
    pub answered: LocalTransactionState,
}

impl TestKit {
    /// Lets time pass until no half message is open: each is decided by its check, or parked.
    ///
    /// # Errors
    /// [`KitError::Crashed`], [`KitError::Unsettled`].
    pub async fn settle_all(&self) -> Result<Settled, KitError> {
        let began = self.inner.alive(|world| world.store.now)?;
        let mut checks = 0;
        for _ in 0..MAX_ROUNDS {
            checks += self.inner.run().await?;
            let due = self.inner.alive(|world| {
                let due = world.next_due()?;
                world.store.now = world.store.now.max(due);
                Some(due)
            })?;
            if due.is_none() {
                let took = self.inner.alive(|world| world.store.now)? - began;
                return Ok(Settled { checks, took });
            }
        }
        Err(KitError::Unsettled { open: self.open().len(), rounds: MAX_ROUNDS })
    }

    /// Lets this much time pass; what becomes due meanwhile is asked. How many answers it gave.
    ///
    /// # Errors
    /// [`KitError::Crashed`].
    pub async fn advance(&self, by: Duration) -> Result<usize, KitError> {
        self.inner.advance(by).await
    }

    /// Asks again about every half message that was decided, and gives the answers that contradict.
    /// `Unknown` does not: only a record decides.
    ///
    /// One that appears here was delivered though its local transaction has no effect, or was
    /// dropped though it has one.
    ///
    /// # Errors
    /// [`KitError::Crashed`].
    pub async fn audit(&self) -> Result<Vec<Contradiction>, KitError> {
        let decided = self.inner.alive(|world| world.store.decided.clone())?;
        let asked = decided.iter().map(|(half, _)| self.inner.asked(half.clone())).collect();
        let answers = self.inner.checker.ask(asked).await;
        let mut found = Vec::new();
        for ((half, decided), answer) in decided.into_iter().zip(answers) {
            let answered = match answer {
                Answer::Commit => LocalTransactionState::Commit,
                Answer::Rollback => LocalTransactionState::Rollback,
                Answer::Unknown(_) | Answer::Failed(_) | Answer::NotAsked(_) => continue,
            };
            if answered != decided {
                let transaction_id = half.transaction_id;
                found.push(Contradiction { transaction_id, decided, answered });
            }
        }
        Ok(found)
    }
}

impl Inner {
    /// Carries out everything that is due now; how many answers it took.
    pub(super) async fn run(&self) -> Result<usize, KitError> {
        let mut checks = 0;
        let mut asked = self.alive(World::turn)?;
        while let Some((partition, questions)) = asked.pop() {
            checks += self.ask((partition, questions), &mut asked).await?;
        }
        Ok(checks)
    }

    /// Asks one question; what follows from the answers may be further questions.
    async fn ask(
        &self,
        (partition, questions): Asked,
        more: &mut Vec<Asked>,
    ) -> Result<usize, KitError> {
        let asked = questions.iter().map(|question| checker::Asked {
            application: question.half.meta.application.clone(),
            half: HalfMessage::new(
                partition,
                &question.half,
                question.of.epoch.0,
                question.attempts,
            ),
        });
        let answers = self.checker.ask(asked.collect()).await;
        let real = answers.iter().filter(|answer| !matches!(answer, Answer::NotAsked(_))).count();
        let answered = |(question, answer): (&halfmsg_protocol::Question, Answer)| {
            Event::Answered { of: question.of, answer }
        };
        let mut events: Vec<Event> = questions.iter().zip(answers).map(answered).collect();
        events.push(Event::BatchOver);
        self.alive(|world| world.feed(partition, events, more))?;
        Ok(real)
    }

    pub(super) async fn advance(&self, by: Duration) -> Result<usize, KitError> {
        let until = self.alive(|world| world.store.now)? + by;
        let mut checks = 0;
        loop {
            checks += self.run().await?;
            let due = self.alive(|world| {
                let due = world.next_due().filter(|due| *due <= until);
                world.store.now = world.store.now.max(due.unwrap_or(until));
                due
            })?;
            if due.is_none() {
                return Ok(checks + self.run().await?);
            }
        }
    }

    pub(super) fn asked(&self, half: HalfMessage) -> checker::Asked {
        checker::Asked { application: self.config.application.clone(), half }
    }
}
