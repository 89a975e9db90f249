//! The in-process broker: librdkafka's mock cluster.
//!
//! Good for a demonstration and for fault injection, no proof of anything durable: it keeps
//! 5 MiB per partition in memory, knows no transactions and ends with its process.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::config::KafkaConfig;

/// A broker that lives as long as this value. Other processes on the machine can connect to it.
///
/// The cluster stays on a thread of its own, because librdkafka's handle must not move; this
/// value may be shared and moved.
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Answer = Result<(), KafkaError>;

struct Order {
    act: Box<dyn FnOnce(&Cluster) -> Answer + Send>,
    reply: Sender<Answer>,
}

/// The mock cluster has one broker; its identifier.
const BROKER: i32 = 1;

impl EmbeddedBroker {
    /// Starts a broker on a free loopback port.
    ///
    /// # Errors
    /// What librdkafka says when it cannot listen.
    pub fn start() -> Result<Self, KafkaError> {
        let (orders, received) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let thread = std::thread::spawn(move || host(&started, &received));
        let bootstrap_servers = start.recv().map_err(|_| KafkaError::Canceled)??;
        Ok(Self { bootstrap_servers, orders: Some(orders), thread: Some(thread) })
    }

    /// Creates a topic; the mock cluster answers no CreateTopics request.
    ///
    /// # Errors
    /// When the topic exists already.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), KafkaError> {
        let name = name.to_owned();
        self.order(move |cluster| cluster.create_topic(&name, partitions, 1))
    }

    /// Closes every connection and accepts none until [`EmbeddedBroker::resume`].
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn stop(&self) -> Result<(), KafkaError> {
        self.order(|cluster| cluster.broker_down(BROKER))
    }

    /// Accepts connections again; records and offsets are as before.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn resume(&self) -> Result<(), KafkaError> {
        self.order(|cluster| cluster.broker_up(BROKER))
    }

    /// Answers the next requests of this kind with these errors, one after the other.
    ///
    /// # Errors
    /// When the broker's thread has ended.
    pub fn refuse(
        &self,
        requests: RDKafkaApiKey,
        errors: &[RDKafkaRespErr],
    ) -> Result<(), KafkaError> {
        let errors = errors.to_vec();
        self.order(move |cluster| {
            cluster.request_errors(requests, &errors);
            Ok(())
        })
    }

    /// Lets every answer take so long at least.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn round_trip_time(&self, time: Duration) -> Result<(), KafkaError> {
        self.order(move |cluster| cluster.broker_round_trip_time(BROKER, time))
    }

    /// Leaves a partition without a leader: it can be neither written to nor read.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn without_leader(&self, topic: &str, partition: i32) -> Result<(), KafkaError> {
        let topic = topic.to_owned();
        self.order(move |cluster| cluster.partition_leader(&topic, partition, None))
    }

    /// Gives a partition its leader back.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn with_leader(&self, topic: &str, partition: i32) -> Result<(), KafkaError> {
        let topic = topic.to_owned();
        self.order(move |cluster| cluster.partition_leader(&topic, partition, Some(BROKER)))
    }

    /// Settings for clients of this broker.
    pub fn config(&self) -> KafkaConfig {
        KafkaConfig { embedded: true, ..KafkaConfig::new(&self.bootstrap_servers) }
    }

    fn order(&self, act: impl FnOnce(&Cluster) -> Answer + Send + 'static) -> Answer {
        let (reply, answer) = mpsc::channel();
        let order = Order { act: Box::new(act), reply };
        let orders = self.orders.as_ref().ok_or(KafkaError::Canceled)?;
        orders.send(order).map_err(|_| KafkaError::Canceled)?;
        answer.recv().map_err(|_| KafkaError::Canceled)?
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the embedded broker's thread panicked");
        }
    }
}

fn host(started: &Sender<Result<String, KafkaError>>, orders: &Receiver<Order>) {
    let cluster = match Cluster::new(1) {
        Ok(cluster) => cluster,
        // Nobody waits any more if this is not taken.
        Err(error) => return drop(started.send(Err(error))),
    };
    if started.send(Ok(cluster.bootstrap_servers())).is_err() {
        return;
    }
    while let Ok(Order { act, reply }) = orders.recv() {
        drop(reply.send(act(&cluster)));
    }
}
