//! The store's second client, for dense records of many callers. It is made when it is first wanted, by
//! whoever looks after the clients and never by a caller, and used only while a look at the cluster through it
//! succeeds: else the first client takes all. What its own queue refuses is refused, and what it holds up between
//! two looks is held up.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::error::KafkaError;
use tokio::sync::Notify;

use super::channel::{Channel, Outgoing, Refused, Settings, is_fatal};

/// Until a client that was just made has its producer id, or has failed for want of it.
const PROVING: Duration = Duration::from_millis(100);

/// The second client, if there is one by now.
pub(super) struct Patient {
    /// None if there is to be none.
    settings: Option<Settings>,
    channel: OnceLock<Channel>,
    is_usable: AtomicBool,
    is_wanted: AtomicBool,
    /// Wakes whoever looks after the clients, once.
    woken: Notify,
    /// What is wrong has been told.
    is_told: AtomicBool,
}

impl Patient {
    pub(super) fn new(settings: Option<Settings>) -> Self {
        Self {
            settings,
            channel: OnceLock::new(),
            is_usable: AtomicBool::new(false),
            is_wanted: AtomicBool::new(false),
            woken: Notify::new(),
            is_told: AtomicBool::new(false),
        }
    }

    /// Whether it may be used now; if not, it is asked for.
    pub(super) fn is_usable(&self) -> bool {
        let is_usable = self.is_usable.load(Ordering::Acquire);
        let is_news = || !self.is_wanted.load(Ordering::Relaxed);
        if !is_usable && self.settings.is_some() && is_news() {
            self.is_wanted.store(true, Ordering::Relaxed);
            self.woken.notify_one();
        }
        is_usable
    }

    /// Somebody has asked for it for the first time.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Hands a record to it; what comes back, another client has to take. Only a fatal error gives a record
    /// back, and what is under way then may still be stored, behind it.
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

    /// Makes it if somebody has asked for it, replaces it if it has failed, and finds out whether it works.
    /// Blocks up to the deadline, and a little longer for a new client.
    pub(super) fn look_after(&self, deadline: Duration) {
        let Some(settings) = &self.settings else { return };
        if !self.is_wanted.load(Ordering::Relaxed) {
            return;
        }
        let looked = self.works(settings, deadline);
        self.is_usable.store(looked.is_ok(), Ordering::Release);
        match looked {
            Ok(()) => self.is_told.store(false, Ordering::Relaxed),
            Err(why) if !self.is_told.swap(true, Ordering::Relaxed) => {
                let Settings { name, topic, .. } = settings;
                tracing::warn!(topic, why, "{name} is not used: the first takes all records");
            }
            Err(_) => {}
        }
    }

    fn works(&self, settings: &Settings, deadline: Duration) -> Result<(), String> {
        let before = self.channel.get();
        let was_well = before.is_some_and(|channel| channel.problem().is_none());
        let channel = match before {
            Some(channel) => channel,
            None => {
                let made = Channel::new(settings.clone()).map_err(|error| error.to_string())?;
                self.channel.get_or_init(|| made)
            }
        };
        channel.look_after(deadline).map_err(|error| error.to_string())?;
        if !was_well {
            std::thread::sleep(PROVING);
        }
        match channel.problem() {
            Some(problem) => Err(problem),
            None if channel.stands_still() => Err("nothing of what it sent is acknowledged".into()),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.as_ref()?.client.get(name)
    }

    #[cfg(test)]
    pub(super) fn problem(&self) -> Option<String> {
        self.channel.get()?.problem()
    }

    #[cfg(test)]
    pub(super) fn stands_still(&self) -> bool {
        self.channel.get().is_some_and(Channel::stands_still)
    }

    pub(super) fn under_way(&self) -> usize {
        self.channel.get().map_or(0, Channel::under_way)
    }

    pub(super) fn flush(&self, deadline: Duration) {
        if let Some(channel) = self.channel.get() {
            channel.flush(deadline);
        }
    }
}
