//! Transactions without a pause, from several senders at once, while something happens to the replicas
//! or to the broker; and what must have become of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use halfmsg_producer::{Emission, Message, ProducerConfig, TransactionProducer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::random::Random;
use super::reader::{Delivered, counts};
use super::setup::Setup;
use super::told::{Do, PURPOSE, Told};
use super::{PATIENCE, until};

/// Senders; each has a key of its own, and one transaction at a time.
const SENDERS: usize = 8;
/// From one transaction of a sender to its next: a load that two cores carry beside three replicas.
const PACE: Duration = Duration::from_millis(40);

/// What became of the transactions of one sender, by what their callers know.
#[derive(Debug, Default)]
struct Sent {
    /// Committed, in this order, and told so.
    committed: Vec<String>,
    /// Committed by a decision whose acknowledgement did not come, or by the check.
    in_the_end: Vec<String>,
    /// Not known to be stored: at most once.
    unknown: Vec<String>,
}

/// The senders. They send through one producer at a time.
pub(crate) struct Load {
    through: watch::Sender<TransactionProducer>,
    stop: CancellationToken,
    begun: Arc<AtomicUsize>,
    senders: JoinSet<Sent>,
}

impl Load {
    /// Begins to send through the producer of this setup, whose listener must roll back what it was
    /// told nothing of.
    pub(crate) fn on(setup: &Setup) -> Self {
        let through = watch::Sender::new(setup.producer.clone());
        let (stop, begun) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut senders = JoinSet::new();
        for key in 0..SENDERS {
            let sender = Sender {
                key,
                target: setup.target.clone(),
                told: setup.told.clone(),
                through: through.subscribe(),
                begun: Arc::clone(&begun),
            };
            senders.spawn(sender.run(stop.clone()));
        }
        Self { through, stop, begun, senders }
    }

    /// From now on sends through this one.
    pub(crate) fn go_through(&self, producer: &TransactionProducer) {
        self.through.send_replace(producer.clone());
    }

    /// Waits until so many more have begun.
    pub(crate) async fn goes_on(&self, more: usize) {
        let before = self.begun.load(Ordering::Relaxed);
        // However slow the machine, some are begun in each second.
        let within = PATIENCE * u32::try_from(1 + more / 200).expect("a few");
        until(within, &format!("{more} more transactions"), async || {
            let begun = self.begun.load(Ordering::Relaxed) - before;
            if begun >= more { Ok(()) } else { Err(format!("{begun} have begun")) }
        })
        .await;
    }

    /// Stops; what was delivered in the end is exactly what was committed, each message once, those
    /// of a key in the order of their commits. In at-least-once mode: all of it, and nothing else.
    pub(crate) async fn ends(mut self, setup: &Setup) {
        self.stop.cancel();
        let mut sent = Vec::new();
        while let Some(ended) = self.senders.join_next().await {
            sent.push(ended.expect("a sender does not panic"));
        }
        drop(self.through);
        setup.none_open().await;
        let delivered = setup.reader.everything_of(&setup.config).await;
        hold_against(&setup.config, &sent, &delivered);
    }
}

struct Sender {
    key: usize,
    target: String,
    told: Told,
    through: watch::Receiver<TransactionProducer>,
    begun: Arc<AtomicUsize>,
}

impl Sender {
    async fn run(self, stop: CancellationToken) -> Sent {
        let mut random = Random::new(u64::try_from(self.key).expect("a few"));
        let mut sent = Sent::default();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        while !stop.is_cancelled() {
            pace.tick().await;
            self.one(format!("{}/{number}", self.key), random.below(10), &mut sent).await;
            number += 1;
        }
        sent
    }

    /// One transaction: committed, rolled back, or left to a check that does either.
    async fn one(&self, text: String, draw: u64, sent: &mut Sent) {
        let (commits, left_open) = (draw < 7, matches!(draw, 6 | 7));
        if commits {
            self.told.check(text.clone(), &[Do::Commit]);
        }
        let producer = self.through.borrow().clone();
        let message = Message::new(&self.target, text.clone()).key(format!("key {}", self.key));
        let Ok(transaction) = producer.begin(PURPOSE, message).await else {
            if commits {
                sent.unknown.push(text);
            }
            return;
        };
        self.begun.fetch_add(1, Ordering::Relaxed);
        match (commits, left_open) {
            (_, true) => drop(transaction.leave_open()),
            // Not acknowledged: the check says the same.
            (false, _) => drop(transaction.rollback().await),
            (true, _) if transaction.commit().await.is_ok() => return sent.committed.push(text),
            (true, _) => {}
        }
        if commits {
            sent.in_the_end.push(text);
        }
    }
}

fn hold_against(config: &ProducerConfig, sent: &[Sent], delivered: &[Delivered]) {
    let found = counts(delivered);
    let again: BTreeMap<_, _> = found.iter().filter(|(_, times)| **times > 1).collect();
    let of = |list: fn(&Sent) -> &Vec<String>| sent.iter().flat_map(list).cloned();
    let must: BTreeSet<String> =
        of(|sent| &sent.committed).chain(of(|sent| &sent.in_the_end)).collect();
    let may: BTreeSet<String> = of(|sent| &sent.unknown).collect();
    let found: BTreeSet<String> = found.keys().cloned().collect();
    let lost: Vec<_> = must.difference(&found).collect();
    let too_many: Vec<_> =
        found.iter().filter(|of| !must.contains(*of) && !may.contains(*of)).collect();
    assert!(!must.is_empty(), "nothing was sent");
    println!("{} delivered, {} not known to be stored", found.len(), may.len());
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(too_many.is_empty(), "never committed: {too_many:?}");
    if config.emission == Emission::AtLeastOnce {
        return;
    }
    assert!(again.is_empty(), "delivered again: {again:?}");
    for sent in sent {
        let told: BTreeSet<&String> = sent.committed.iter().collect();
        let in_order = delivered.iter().map(Delivered::text).filter(|text| told.contains(text));
        let in_order: Vec<String> = in_order.collect();
        assert!(in_order == sent.committed, "another order than that of the commits: {in_order:?}");
    }
}
