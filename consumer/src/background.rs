//! What goes on beside the messages: replies that were left behind, the inbox's retention, gauges.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use halfmsg_db::now;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::deliver::Deliverer;
use crate::metrics::ConsumerMetrics;
use crate::sender::Sender;
use crate::{dead_letter, inbox, record, reply};

/// How often replies that were left behind are looked for, and the gauges set.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Rows of the inbox that one statement deletes.
pub(crate) const CLEAN_BATCH: u64 = 1_000;

/// The background of one consumer.
pub(crate) struct Background {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) first_backoff: Duration,
    pub(crate) inbox_retention: Option<Duration>,
    pub(crate) clean_interval: Duration,
    pub(crate) shutdown: CancellationToken,
}

impl Background {
    /// Runs until shutdown. Cancelling loses nothing.
    pub(crate) async fn run(&self) {
        tokio::join!(self.sweep(), self.clean());
    }

    /// At first everything that an earlier life may have left, then what nobody has sent in time.
    async fn sweep(&self) {
        let (mut all, mut failed) = (true, 0);
        while !self.shutdown.is_cancelled() {
            let pause = match self.sender.send_left_behind(all).await {
                Ok(()) => {
                    (all, failed) = (false, 0);
                    self.gauge().await;
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

    async fn gauge(&self) {
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
        let Some(retention) = self.inbox_retention else { return };
        let retention = TimeDelta::from_std(retention).unwrap_or(TimeDelta::MAX);
        while !self.shutdown.is_cancelled() {
            // Jittered, so that replicas that started together do not clean together.
            self.wait(backoff::pause(self.clean_interval, self.clean_interval, 0)).await;
            let Some(before) = now().checked_sub_signed(retention) else { return };
            while !self.shutdown.is_cancelled() {
                let Deliverer { database, subscriber, .. } = &*self.deliverer;
                match inbox::clean(database, subscriber, before, CLEAN_BATCH).await {
                    Ok(forgotten) => {
                        self.metrics.forgotten.inc_by(forgotten);
                        if forgotten < CLEAN_BATCH {
                            break;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the inbox is not cleaned");
                        break;
                    }
                }
            }
        }
    }

    async fn wait(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.shutdown.cancelled() => {}
        }
    }
}
