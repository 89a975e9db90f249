//! One question of a core, on its way to the listeners and back: bodies that are not in memory are
//! read first. Whatever becomes of the task that asks, the core hears of each half once and then that
//! the question is over; unless the partition is given up, which ends the question.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use halfmsg_protocol::{Answer, HalfRef, NotAsked, Question};
use halfmsg_traces::opentelemetry::trace::SpanContext;
use tokio_util::sync::CancellationToken;

use super::Input;
use crate::bodies::Bodies;
use crate::checker::{Asked, Checker};
use crate::message::HalfMessage;
use crate::spans;

/// The questions of one ownership of a partition. Dropped, it ends them: whoever owns the partition
/// next asks again, and nobody hears of the answers.
#[derive(Default)]
pub(super) struct Questions(CancellationToken);

impl Questions {
    /// They are answered for nobody any more.
    pub(super) fn end(&self) {
        self.0.cancel();
    }

    pub(super) fn ended(&self) -> CancellationToken {
        self.0.clone()
    }
}

impl Drop for Questions {
    fn drop(&mut self) {
        self.end();
    }
}

/// A question under way. What nobody answered for when it is dropped, as when its task panics, was
/// not asked.
pub(super) struct Asking {
    inputs: mpsc::Sender<Input>,
    /// The partition, and which ownership of it.
    of: (i32, u64),
    untold: Mutex<HashSet<HalfRef>>,
    ended: CancellationToken,
}

impl Asking {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        of: (i32, u64),
        questions: &[Question],
        ended: CancellationToken,
    ) -> Self {
        let untold = Mutex::new(questions.iter().map(|question| question.of).collect());
        Self { inputs, of, untold, ended }
    }

    /// Asks about those whose body is in memory at once; the others' bodies are read meanwhile. One
    /// that cannot be read waits, and holds up no other.
    pub(super) async fn ask(
        self,
        checker: Arc<Checker>,
        bodies: Arc<Bodies>,
        questions: Vec<Question>,
    ) {
        let (stubs, whole): (Vec<_>, Vec<_>) =
            questions.into_iter().partition(|question| question.half.is_stub);
        let read_and_ask = async {
            if stubs.is_empty() {
                return;
            }
            let (read, unread) = read(bodies, self.of.0, stubs).await;
            for of in unread {
                self.tell(of, Answer::NotAsked(NotAsked::Unread), None);
            }
            self.ask_about(&checker, read).await;
        };
        let all = async { tokio::join!(self.ask_about(&checker, whole), read_and_ask) };
        self.ended.run_until_cancelled(all).await;
    }

    async fn ask_about(&self, checker: &Checker, questions: Vec<Question>) {
        let asked = questions.iter().map(|question| asked(self.of.0, question)).collect();
        let tell = |at: usize, answer: Answer| {
            let Question { of, half, .. } = &questions[at];
            self.tell(*of, answer, spans::carried_by(&half.body.headers));
        };
        checker.ask_each(asked, &tell).await;
    }

    fn tell(&self, of: HalfRef, answer: Answer, context: Option<SpanContext>) {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner).remove(&of);
        let (partition, generation) = self.of;
        // The resolver may have ended meanwhile; its successor asks again.
        drop(self.inputs.send(Input::Answered { partition, generation, of, answer, context }));
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.ended.is_cancelled() {
            return;
        }
        let untold = std::mem::take(&mut self.untold).into_inner();
        for of in untold.unwrap_or_else(PoisonError::into_inner) {
            self.tell(of, Answer::NotAsked(NotAsked::Busy), None);
        }
        let (partition, generation) = self.of;
        drop(self.inputs.send(Input::BatchOver { partition, generation }));
    }
}

/// The questions with the bodies that memory had no room for, and those whose bodies cannot be read
/// now.
async fn read(
    bodies: Arc<Bodies>,
    partition: i32,
    questions: Vec<Question>,
) -> (Vec<Question>, Vec<HalfRef>) {
    let of: Vec<HalfRef> = questions.iter().map(|question| question.of).collect();
    let read = tokio::task::spawn_blocking(move || {
        let halves: Vec<_> = questions.iter().map(|question| &question.half).collect();
        let (whole, unread) = bodies.open_but(partition, &halves);
        if let Some(first) = unread.first() {
            let (error, halves) = (first.to_string(), questions.len() - whole.len());
            tracing::warn!(partition, error, halves, "halves cannot be read to ask about them");
        }
        let mut left = Vec::new();
        let with_body = |mut question: Question| match whole.get(&question.half.stored_at) {
            Some(half) => {
                question.half = Arc::clone(half);
                Some(question)
            }
            None => {
                left.push(question.of);
                None
            }
        };
        let read = questions.into_iter().filter_map(with_body).collect();
        (read, left)
    });
    read.await.unwrap_or_else(|error| {
        tracing::error!(partition, %error, "reading halves to ask about them");
        (Vec::new(), of)
    })
}

fn asked(partition: i32, question: &Question) -> Asked {
    Asked {
        application: question.half.meta.application.clone(),
        half: HalfMessage::new(partition, &question.half, question.of.epoch.0, question.attempts),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use halfmsg_kafka::{EmbeddedBroker, KafkaConfig};
    use halfmsg_protocol::{Body, Epoch, Half, HalfMeta, HalfOffset, TransactionId};

    use super::*;
    use crate::config::ProducerConfig;

    fn question(number: u8) -> Question {
        let id = TransactionId::from_bytes([number; 16]);
        let meta = HalfMeta {
            id,
            application: "app".into(),
            purpose: "purpose".into(),
            topic: "topic".into(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        };
        let half = HalfOffset(number.into());
        let of = HalfRef { id, half, epoch: Epoch::default() };
        let half = Half::new(meta.into(), Body::default(), half, half.0);
        Question { of, half: Arc::new(half), attempts: 0 }
    }

    /// What the resolver hears of two questions whose task panics.
    async fn heard(ended: bool) -> Vec<Input> {
        let checker = Checker::new("app".into(), HashMap::new(), Duration::from_secs(3), 1);
        checker.panics.store(true, Ordering::Relaxed);
        let config = ProducerConfig::new(KafkaConfig::new("127.0.0.1:1"), "app", "group");
        let bodies = Arc::new(Bodies::new(&config));
        let (inputs, heard) = mpsc::channel();
        let questions = vec![question(1), question(2)];
        let of = Questions::default();
        let asking = Asking::new(inputs, (3, 7), &questions, of.ended());
        if ended {
            drop(of);
        }
        let asked = tokio::spawn(asking.ask(Arc::new(checker), bodies, questions)).await;
        assert_eq!(asked.is_err_and(|error| error.is_panic()), !ended);
        heard.into_iter().collect()
    }

    #[tokio::test]
    async fn a_question_whose_task_panics_is_over_and_asks_again() {
        let mut heard = heard(false).await;
        assert!(matches!(heard.pop(), Some(Input::BatchOver { partition: 3, generation: 7 })));
        let told = heard.into_iter().map(|input| match input {
            Input::Answered { partition: 3, generation: 7, of, answer, context: None } => {
                assert_eq!(answer, Answer::NotAsked(NotAsked::Busy));
                of
            }
            _ => panic!("an input of another kind"),
        });
        let told: HashSet<HalfRef> = told.collect();
        assert_eq!(told, HashSet::from([question(1).of, question(2).of]));
    }

    /// Its record is gone, and it is not in memory: nobody was too busy to ask.
    #[tokio::test]
    async fn what_cannot_be_read_is_told_as_such() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let config = ProducerConfig::new(broker.config(), "app", "group");
        broker.create_topic(&config.store_topic(), 1).expect("a topic");
        let bodies = Arc::new(Bodies::new(&config));
        let checker = Checker::new("app".into(), HashMap::new(), Duration::from_secs(3), 1);
        let mut question = question(9);
        question.half = Arc::new(question.half.stub());
        let (inputs, heard) = mpsc::channel();
        let (questions, of) = (vec![question], Questions::default());
        let asking = Asking::new(inputs, (0, 7), &questions, of.ended());
        asking.ask(Arc::new(checker), bodies, questions).await;
        let told = |input: &Input| match input {
            Input::Answered { answer, .. } => Some(answer.clone()),
            _ => None,
        };
        let told: Vec<Answer> = heard.iter().filter_map(|input| told(&input)).collect();
        assert_eq!(told, [Answer::NotAsked(NotAsked::Unread)]);
    }

    #[tokio::test]
    async fn nothing_is_asked_or_told_of_a_partition_that_was_given_up() {
        assert!(heard(true).await.is_empty());
    }
}
