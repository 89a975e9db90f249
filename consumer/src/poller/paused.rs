//! While nothing is handed out: all partitions are paused, and polled all the same, so that the group keeps
//! this member.
//!
//! A message that comes out of such a poll must never be lost to the position.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;

use super::{ASK_DEADLINE, Client, POLL, Poller};
use crate::message::ReceivedMessage;

/// How often it is asked for while nothing is fetched, which is how librdkafka learns of it.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// How long one question about the lag may take.
const LAG_DEADLINE: Duration = Duration::from_millis(500);

impl Poller {
    /// Polls with all partitions paused until somebody lets the consumer go on.
    pub(super) fn hold_still(&self, client: &Client) -> Result<(), KafkaError> {
        self.begin_pause(client);
        let (mut held, mut asked) = (Ok(()), Instant::now());
        while held.is_ok() && self.handle.is_paused() && !self.stop.load(Ordering::Acquire) {
            held = self.poll_paused(client);
            self.ask_for_lag(client, &mut asked);
        }
        self.end_pause(client);
        held
    }

    /// The group is kept, and rebalances are served.
    pub(super) fn poll_paused(&self, client: &Client) -> Result<(), KafkaError> {
        self.commit_again(client);
        match client.poll(POLL) {
            // Paused in vain: this message would be lost to the position, so go back to it.
            Some(Ok(message)) => {
                let ReceivedMessage { topic, partition, offset, .. } =
                    ReceivedMessage::own(&message);
                self.pause_all(client);
                let back = Offset::Offset(offset);
                client.seek(&topic, partition, back, ASK_DEADLINE).inspect_err(|error| {
                    tracing::error!(%error, topic, partition, "cannot go back: starting over");
                })
            }
            Some(Err(error)) => self.note(client, error),
            None => Ok(()),
        }
    }

    /// The lag of paused partitions, now and then. A broker that is away is not asked further.
    pub(super) fn ask_for_lag(&self, client: &Client, asked: &mut Instant) {
        if asked.elapsed() < LAG_INTERVAL {
            return;
        }
        *asked = Instant::now();
        let Ok(positions) = client.position() else { return };
        for element in positions.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let Offset::Offset(taken) = element.offset() else { continue };
            let Ok((_, end)) = client.fetch_watermarks(topic, partition, LAG_DEADLINE) else {
                return;
            };
            self.metrics.lag_records.set(topic, partition, Some((end - taken).max(0)));
        }
    }

    pub(super) fn begin_pause(&self, client: &Client) {
        client.context().paused.store(true, Ordering::Release);
        self.metrics.paused.set(1);
        self.pause_all(client);
    }

    pub(super) fn end_pause(&self, client: &Client) {
        client.context().paused.store(false, Ordering::Release);
        self.metrics.paused.set(0);
        if let Err(error) = client.assignment().and_then(|all| client.resume(&all)) {
            tracing::warn!(%error, "cannot resume");
        }
    }

    fn pause_all(&self, client: &Client) {
        if let Err(error) = client.assignment().and_then(|all| client.pause(&all)) {
            tracing::warn!(%error, "cannot pause");
        }
    }
}
