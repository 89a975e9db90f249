//! The store's second client, for dense records of many callers. It is made when it is first wanted, by
//! whoever looks after the clients and never by a caller, and used only once it has reached the cluster: what is
//! wrong with it never holds up a record that the first client could take.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio::sync::Notify;

use super::channel::{Channel, Outgoing, Refused, Settings, is_fatal};

pub(super) struct Patient {
    /// None if there is to be none.
    settings: Option<Settings>,
    channel: OnceLock<Channel>,
    is_usable: AtomicBool,
    is_wanted: AtomicBool,
    pub(super) wanted: Notify,
}

impl Patient {
    pub(super) fn new(settings: Option<Settings>) -> Self {
        let (channel, wanted) = Default::default();
        let (is_usable, is_wanted) = Default::default();
        Self { settings, channel, is_usable, is_wanted, wanted }
    }

    /// Whether it may be used now; if not, it is asked for.
    pub(super) fn is_usable(&self) -> bool {
        let is_usable = self.is_usable.load(Ordering::Relaxed);
        if !is_usable && !self.is_wanted.swap(true, Ordering::Relaxed) {
            self.wanted.notify_one();
        }
        is_usable
    }

    /// Hands a record to it; what comes back, another client has to take. Only a fatal error gives a record
    /// back, with which everything before it fails as well: a full queue refuses it, so that it overtakes nothing.
    pub(super) fn offer<'a>(
        &self,
        record: Outgoing<'a>,
    ) -> Result<Option<Outgoing<'a>>, KafkaError> {
        let Some(channel) = self.channel.get() else { return Ok(Some(record)) };
        let Err(refused) = channel.offer(record) else { return Ok(None) };
        let Refused { error, record } = *refused;
        if !is_fatal(&error) {
            return Err(error);
        }
        self.is_usable.store(false, Ordering::Relaxed);
        Ok(Some(record))
    }

    /// Makes it if somebody has asked for it, replaces it if it has failed, and finds out whether it reaches
    /// the cluster. Blocks up to the deadline.
    pub(super) fn look_after(&self, deadline: Duration) {
        let Some(settings) = &self.settings else { return };
        if !self.is_wanted.load(Ordering::Relaxed) {
            return;
        }
        let looked = match self.channel.get() {
            Some(channel) => channel.look_after(deadline).map_err(|error| error.to_string()),
            None => {
                Channel::new(settings.clone()).map_err(|error| error.to_string()).and_then(|made| {
                    let channel = self.channel.get_or_init(|| made);
                    channel.look_after(deadline).map_err(|error| error.to_string())
                })
            }
        };
        let is_usable =
            looked.is_ok() && self.channel.get().is_some_and(|of| of.problem().is_none());
        if let Err(error) = looked {
            tracing::warn!(error, "{} is not used: the first takes all records", settings.name);
        }
        self.is_usable.store(is_usable, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.client.get(name)
    }

    #[cfg(test)]
    pub(super) fn has_failed(&self) -> bool {
        self.channel.get().is_some_and(|channel| channel.problem().is_some())
    }

    pub(super) fn flush(&self, deadline: Duration) {
        if let Some(channel) = self.channel.get() {
            channel.flush(deadline);
        }
    }
}
