//! An operator whose process dies at any wait of an act: before its record is stored, or between that and
//! the look at what became of it. Whoever comes next finds it done, or does it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use halfmsg_protocol::Verdict;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::*;

/// An act waits less often.
const MOST_WAITS: u32 = 500;
/// What answers at once is not waited for: so many must run through, each with one wait more.
const SURVIVORS: u32 = 5;
/// Behind all other deliveries.
const END: &str = "end";

/// Nothing if it waits for the so many-th time: it is dropped there, as with its process.
async fn dies_at<T>(waits: u32, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut waited) = (pin!(work), 0);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            waited += 1;
            if waited >= waits { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}

impl Ground {
    /// An open half that its owner has read.
    async fn half(&self, payload: String) -> TransactionId {
        let message = Message::new("target", payload).key("k");
        let begun = self.producer.begin("order", message).await.expect("it is stored");
        let id = begun.leave_open().transaction_id;
        let until = Instant::now() + DEADLINE;
        while self.admin().get(id).await.expect("it answers").is_none() {
            assert!(Instant::now() < until, "its owner has not read it");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        id
    }

    async fn decide(&self, id: TransactionId, verdict: Verdict) -> Result<HalfView, AdminError> {
        let admin = self.admin();
        match verdict {
            Verdict::Commit => admin.commit(id, forced()).await,
            Verdict::Rollback => admin.rollback(id, forced()).await,
        }
    }

    /// The next person decides as the one who died did; whether that was done already.
    async fn decide_again(&self, id: TransactionId, verdict: Verdict) -> bool {
        let (mut tries, until) = (0, Instant::now() + DEADLINE);
        loop {
            tries += 1;
            match self.decide(id, verdict).await {
                Ok(_) => return false,
                Err(AdminError::AlreadyClosed { decision, .. }) => {
                    assert_eq!(decision, verdict.as_str());
                    // Else it may have been done by this one.
                    return tries == 1;
                }
                // It may have been done in the middle of this.
                Err(AdminError::Unavailable(_) | AdminError::Unseen(_)) => {}
                // It did not begin.
                Err(AdminError::Unreachable(_)) => tries -= 1,
                // Where memory did not answer in time, brokers do not tell of what was closed before.
                Err(AdminError::NotFound(_)) => tries -= 1,
                Err(other) => panic!("{other}"),
            }
            assert!(Instant::now() < until, "it cannot be decided");
        }
    }

    /// How often each payload was delivered, by the time that one more is.
    async fn delivered(&self) -> BTreeMap<String, u32> {
        let end = self.producer.begin("order", Message::new("target", END).key("k")).await;
        end.expect("it is stored").commit().await.expect("it is decided");
        let consumer: BaseConsumer =
            self.broker.config().consumer("reader").create().expect("a client");
        let mut places = TopicPartitionList::new();
        places.add_partition_offset("target", 0, Offset::Beginning).expect("an offset");
        consumer.fetch_metadata(Some("target"), DEADLINE).expect("the topic");
        consumer.assign(&places).expect("it is there");
        let (mut counts, until) = (BTreeMap::<String, u32>::new(), Instant::now() + DEADLINE);
        while !counts.contains_key(END) {
            assert!(Instant::now() < until, "the last message does not come: {counts:?}");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                let payload = String::from_utf8_lossy(message.payload().unwrap_or_default());
                *counts.entry(payload.into_owned()).or_default() += 1;
            }
        }
        counts.remove(END);
        counts
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_at_a_wait_of_an_act_leaves_it_done_or_to_be_done() {
    let ground = Ground::new().await;
    let mut committed = BTreeMap::new();
    let (mut deaths, mut behind) = (0, 0);
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        let (mut waits, mut survivors) = (0, 0);
        while survivors < SURVIVORS {
            waits += 1;
            assert!(waits < MOST_WAITS, "it never runs through");
            let payload = format!("{verdict:?} {waits}");
            let id = ground.half(payload.clone()).await;
            let ended = dies_at(waits, ground.decide(id, verdict)).await;
            // Who is not told in time what became of it knows no more than who comes next.
            let unseen = matches!(
                ended,
                Some(Err(AdminError::Unreachable(_)
                    | AdminError::Unavailable(_)
                    | AdminError::Unseen(_)))
            );
            let died = ended.is_none() || unseen;
            let was_done = ground.decide_again(id, verdict).await;
            assert!(died || was_done, "it ran through, and nothing was done");
            survivors = if died { 0 } else { survivors + 1 };
            (deaths, behind) = (deaths + u32::from(died), behind + u32::from(died && was_done));
            if verdict == Verdict::Commit {
                committed.insert(payload, 1);
            }
        }
    }
    println!("{deaths} deaths, {behind} behind the record");
    assert!(behind > 0 && deaths > behind, "{deaths} deaths, {behind} behind the record");
    assert_eq!(ground.delivered().await, committed, "each once, and nothing else");
    let admin = ground.admin();
    let listed = admin.list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
    assert!(listed.expect("it answers").items.is_empty(), "nothing is left");
}
