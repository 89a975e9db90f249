//! What goes on beside the messages: replies that were left behind, the inbox's retention, gauges.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_db::now;
use sea_orm::DbErr;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::deliver::Deliverer;
use crate::metrics::ConsumerMetrics;
use crate::sender::Sender;
use crate::{dead_letter, inbox, record, reply};

/// How often replies that were left behind are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How often the gauges are set.
const GAUGE_INTERVAL: Duration = Duration::from_secs(5);
/// Rows of the inbox that one statement deletes.
pub(crate) const CLEAN_BATCH: u64 = 1_000;

/// The background of one consumer.
pub(crate) struct Background {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) first_backoff: Duration,
    pub(crate) inbox_retention: Option<Duration>,
    pub(crate) inbox_per_key: Option<u64>,
    pub(crate) clean_interval: Duration,
    /// Before anything of this life was stored.
    pub(crate) started: DateTime<Utc>,
    pub(crate) shutdown: CancellationToken,
}

impl Background {
    /// Runs until shutdown. Cancelling loses nothing.
    pub(crate) async fn run(&self) {
        tokio::join!(self.sweep(), self.gauge(), self.clean());
    }

    /// At first everything that an earlier life may have left, then what nobody has sent in time. What this
    /// life stores is on its way already. A first look that fails is not made again: what was left is due soon.
    async fn sweep(&self) {
        let (mut earlier, mut failed) = (Some(self.started), 0);
        while !self.shutdown.is_cancelled() {
            let pause = match self.sender.send_left_behind(earlier.take()).await {
                Ok(()) => {
                    failed = 0;
                    SWEEP_INTERVAL
                }
                Err(error) => {
                    tracing::debug!(%error, "replies that were left behind wait");
                    failed += 1;
                    backoff::pause(self.first_backoff, SWEEP_INTERVAL, failed - 1)
                }
            };
            self.wait(pause).await;
        }
    }

    /// Apart from the replies: what waits shows also while none can be sent.
    async fn gauge(&self) {
        while !self.shutdown.is_cancelled() {
            self.gauge_once().await;
            self.wait(GAUGE_INTERVAL).await;
        }
    }

    async fn gauge_once(&self) {
        let Deliverer { database, subscriber, .. } = &*self.deliverer;
        if let Ok(depth) = record::count(database, "retry", subscriber).await {
            self.metrics.retry_depth.set(depth);
        }
        if let Ok(open) = dead_letter::count_open(database, subscriber).await {
            self.metrics.dead_letters_open.set(open);
        }
        if let Ok(waiting) = reply::count(database, subscriber).await {
            self.metrics.replies_waiting.set(waiting);
        }
    }

    async fn clean(&self) {
        if self.inbox_retention.is_none() && self.inbox_per_key.is_none() {
            return;
        }
        while !self.shutdown.is_cancelled() {
            // Jittered, so that replicas that started together do not clean together.
            self.wait(backoff::pause(self.clean_interval, self.clean_interval, 0)).await;
            if let Err(error) = self.clean_once().await {
                tracing::debug!(%error, "the inbox is not cleaned");
            }
        }
    }

    async fn clean_once(&self) -> Result<(), DbErr> {
        let Deliverer { database, subscriber, .. } = &*self.deliverer;
        let retention = self.inbox_retention.and_then(|kept| TimeDelta::from_std(kept).ok());
        if let Some(before) = retention.and_then(|kept| now().checked_sub_signed(kept)) {
            while !self.shutdown.is_cancelled() {
                let forgotten = inbox::clean(database, subscriber, before, CLEAN_BATCH).await?;
                self.metrics.forgotten.inc_by(forgotten);
                if forgotten < CLEAN_BATCH {
                    break;
                }
            }
        }
        if let Some(keep) = self.inbox_per_key {
            tokio::select! {
                forgotten = inbox::clean_by_key(database, subscriber, keep, CLEAN_BATCH) => {
                    self.metrics.forgotten.inc_by(forgotten?);
                }
                () = self.shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    async fn wait(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.shutdown.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use halfmsg_db::begin_write;
    use sea_orm::ConnectionTrait;

    use super::*;
    use crate::config::KeyOrder;
    use crate::handler::NewReply;
    use crate::reply::Reply;
    use crate::worker::tests::{PATIENCE, message, world};

    /// Many looks for replies, of which one topic takes none: what waits is shown, and a reply that the broker
    /// has refused has its pause.
    #[tokio::test]
    async fn what_waits_shows_while_replies_cannot_be_sent() {
        let world = world(u32::MAX, KeyOrder::Keep).await;
        world.process(vec![message(0, "k", "poison")]).await;
        let given = world.worker.sender.give_to_nobody().await;
        let deliverer = world.worker.deliverer.clone();
        let reply = |(index, topic)| NewReply {
            inbox_key: "m".into(),
            index,
            reply: Reply::new(topic, ""),
        };
        let replies: Vec<_> = ["away", "refused"].into_iter().enumerate().map(reply).collect();
        let transaction = begin_write(&deliverer.database).await.unwrap();
        reply::store_in_tx(&transaction, "s", &replies).await.unwrap();
        transaction.commit().await.unwrap();
        let left_behind = "UPDATE reply SET next_at = '2000-01-01 00:00:00+00:00'";
        deliverer.database.execute_unprepared(left_behind).await.unwrap();
        let background = Background {
            deliverer,
            sender: world.worker.sender.clone(),
            metrics: world.worker.metrics.clone(),
            first_backoff: Duration::from_millis(1),
            inbox_retention: None,
            inbox_per_key: None,
            clean_interval: PATIENCE,
            started: now(),
            shutdown: CancellationToken::new(),
        };
        let metrics = &background.metrics;
        let times = |topic: &str| given.lock().unwrap().iter().filter(|one| *one == topic).count();
        let shown = async {
            while times("away") < 5
                || (metrics.retry_depth.get(), metrics.replies_waiting.get()) != (1, 2)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            background.shutdown.cancel();
        };
        let both = async { tokio::join!(background.run(), shown) };
        tokio::time::timeout(PATIENCE, both).await.expect("both are tried, and all is shown");
        assert_eq!(times("refused"), 1);
    }
}
