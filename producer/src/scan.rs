//! Reads partitions of a small topic from their beginning to their end. One that cannot be read keeps
//! no other from being read.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

/// One wait for a message.
const POLL: Duration = Duration::from_millis(50);
/// One question about one partition.
const STEP: Duration = Duration::from_secs(5);

/// Whether the broker says that this client has no right to what it asks for: waiting does not help.
pub(crate) fn is_denied(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
        )
    )
}

/// Reading needs no right to the group.
fn is_of_the_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// How long reading may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// In all.
    Whole(Duration),
    /// Without progress: a topic that takes long to read is read all the same.
    Idle(Duration),
}

/// When patience ends; from the last progress, if that counts.
struct Until {
    patience: Patience,
    since: Instant,
}

impl Until {
    fn progress(&mut self) {
        if matches!(self.patience, Patience::Idle(_)) {
            self.since = Instant::now();
        }
    }

    /// Never nothing, which clients take for "for ever".
    fn left(&self) -> Duration {
        let (Patience::Whole(all) | Patience::Idle(all)) = self.patience;
        all.saturating_sub(self.since.elapsed()).max(Duration::from_millis(1))
    }

    fn is_over(&self) -> bool {
        let (Patience::Whole(all) | Patience::Idle(all)) = self.patience;
        self.since.elapsed() > all
    }
}

/// Partitions that could not be read to their end, and why.
pub(crate) type Unread = BTreeMap<i32, KafkaError>;

/// Shows every record that these partitions held when it began; all of them, or an error.
///
/// # Errors
/// As for [`scan`]; and that of a partition that could not be read.
pub(crate) fn scan_all(
    kafka: &KafkaConfig,
    topic: &str,
    partitions: &[i32],
    patience: Patience,
    show: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), KafkaError> {
    let unread = scan(kafka, topic, partitions, patience, show)?;
    unread.into_values().next().map_or(Ok(()), Err)
}

/// Shows every record that these partitions held when it began. Blocks, as long as patience lasts:
/// the partitions that are not read by then are named, with [`KafkaError::NoMessageReceived`].
///
/// # Errors
/// What the client says of all of them, at once if it has no right to read.
pub(crate) fn scan(
    kafka: &KafkaConfig,
    topic: &str,
    partitions: &[i32],
    patience: Patience,
    mut show: impl FnMut(&BorrowedMessage<'_>),
) -> Result<Unread, KafkaError> {
    let mut until = Until { patience, since: Instant::now() };
    // The client needs a group's name, although nothing is committed: the topic's is one that this
    // application has the right to.
    let mut config = kafka.consumer(topic);
    let consumer: BaseConsumer = config.set("isolation.level", "read_committed").create()?;
    let mut unread = without_leader(&consumer, topic, partitions, until.left())?;
    let mut ends: HashMap<i32, i64> = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        if unread.contains_key(partition) {
            continue;
        }
        match consumer.fetch_watermarks(topic, *partition, until.left().min(STEP)) {
            Ok((low, high)) if high > low => {
                ends.insert(*partition, high);
                assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
            }
            Ok(_) => {}
            Err(error) if is_denied(&error) => return Err(error),
            Err(error) => drop(unread.insert(*partition, error)),
        }
        until.progress();
    }
    if !ends.is_empty() {
        consumer.assign(&assignment)?;
    }
    while !ends.is_empty() {
        if until.is_over() {
            let late = ends.into_keys().map(|late| (late, KafkaError::NoMessageReceived));
            unread.extend(late);
            return Ok(unread);
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                show(&message);
                if takes_further(&mut ends, message.partition(), message.offset()) {
                    until.progress();
                }
            }
            Some(Err(error)) if is_denied(&error) && !is_of_the_group(&error) => return Err(error),
            Some(Err(error)) => tracing::debug!(%error, topic, "reading to the end"),
            // Compaction and transactions leave gaps at the end: ask where the consumer stands.
            None => {
                let position = consumer.position()?;
                ends.retain(|partition, end| {
                    let at = position.find_partition(topic, *partition).map(|found| found.offset());
                    !matches!(at, Some(Offset::Offset(at)) if at >= *end)
                });
            }
        }
    }
    Ok(unread)
}

/// Whether a record is one of those that are wanted; behind the last one its partition is done. What
/// is written meanwhile is no progress: a busy partition would hide for ever that another stands
/// still.
fn takes_further(ends: &mut HashMap<i32, i64>, partition: i32, offset: i64) -> bool {
    let Some(end) = ends.get(&partition).copied() else { return false };
    if offset + 1 >= end {
        ends.remove(&partition);
    }
    offset < end
}

/// Those that nobody can be asked about now, or that are not there: the client would wait for them.
pub(crate) fn without_leader<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
    deadline: Duration,
) -> Result<Unread, KafkaError> {
    let metadata = consumer.fetch_metadata(Some(topic), deadline)?;
    let found: Vec<_> = metadata.topics().iter().flat_map(|topic| topic.partitions()).collect();
    let problem = |partition: &i32| {
        let found = found.iter().find(|found| found.id() == *partition);
        let code = match found {
            None => RDKafkaErrorCode::UnknownPartition,
            Some(found) if found.leader() < 0 => RDKafkaErrorCode::LeaderNotAvailable,
            Some(_) => return None,
        };
        Some((*partition, KafkaError::MetadataFetch(code)))
    };
    Ok(partitions.iter().filter_map(problem).collect())
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn written(broker: &EmbeddedBroker, topic: &str, records: usize) {
        broker.create_topic(topic, 2).expect("a topic");
        let producer: BaseProducer = broker.config().producer().create().expect("a client");
        for number in 0..records {
            let partition = i32::from(number % 2 == 1);
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
            let record = record.partition(partition).payload(b"x");
            producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(PATIENCE).expect("stored");
    }

    #[test]
    fn a_partition_that_cannot_be_read_keeps_no_other_from_being_read() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        written(&broker, "t", 10);
        broker.without_leader("t", 1).expect("it runs");
        let look = || {
            let mut shown = Vec::new();
            let patience = Patience::Idle(PATIENCE);
            let unread = scan(&broker.config(), "t", &[0, 1, 7], patience, |message| {
                shown.push((message.partition(), message.offset()));
            });
            (unread.expect("the broker answers").into_keys().collect::<Vec<_>>(), shown)
        };
        let (mut unread, mut shown) = look();
        // One question has a deadline of its own, and the machine may stand still once, or twice.
        for _ in 0..2 {
            if unread.contains(&0) {
                (unread, shown) = look();
            }
        }
        assert_eq!(unread, [1, 7]);
        assert_eq!(shown, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]);
        let all = scan_all(&broker.config(), "t", &[0, 1], Patience::Idle(PATIENCE), |_| {});
        assert!(all.is_err(), "whoever needs all of them is told");
    }

    #[test]
    fn only_records_that_are_wanted_are_progress() {
        let mut ends = HashMap::from([(0, 2), (1, 5)]);
        assert!(takes_further(&mut ends, 0, 0) && takes_further(&mut ends, 0, 1));
        assert!(!takes_further(&mut ends, 0, 2), "written meanwhile");
        assert!(!takes_further(&mut ends, 1, 7), "the end was taken away by compaction");
        assert!(ends.is_empty());
    }

    #[test]
    fn patience_without_progress_is_renewed_by_progress() {
        let since = Instant::now().checked_sub(PATIENCE * 2).expect("the machine runs for longer");
        let mut idle = Until { patience: Patience::Idle(PATIENCE), since };
        let mut whole = Until { patience: Patience::Whole(PATIENCE), since };
        assert!(idle.is_over() && whole.is_over());
        idle.progress();
        whole.progress();
        assert!(!idle.is_over() && whole.is_over());
    }
}
