//! What a shop stands on: the broker and the two databases of one test, and the names that are its
//! own on them.

use std::collections::BTreeMap;
use std::path::Path;

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::ProducerConfig;
use reqwest::Url;
use tempfile::TempDir;

use super::proxy::Proxy;
use crate::suite::Env;
use crate::suite::broker::Broker;
use crate::suite::database::Database;
use crate::suite::env::PARTITIONS;

/// What can be cut between the services and their databases.
pub(crate) struct Cables {
    pub(crate) orders: Proxy,
    pub(crate) stock: Proxy,
}

/// The broker, the databases, the names.
pub(crate) struct Ground {
    /// The names of the producer group; its times are not the services'.
    pub(crate) group: ProducerConfig,
    pub(crate) stock_group: String,
    pub(crate) rollback_topic: String,
    pub(crate) created_topic: String,
    pub(crate) outbound_topic: String,
    pub(crate) orders: Database,
    pub(crate) stock: Database,
    /// Where the services find their databases, if not where those are.
    ports: Option<(u16, u16)>,
    directory: TempDir,
    // Last: it removes its topics when nobody uses them any more.
    env: Env,
}

impl Ground {
    /// Of this tier, with topics and databases that no other test uses.
    pub(crate) async fn of(env: Env) -> Self {
        let [rollback_topic, created_topic, outbound_topic] =
            ["rollback", "created", "outbound"].map(|what| env.named(what));
        for topic in [&rollback_topic, &created_topic, &outbound_topic] {
            env.broker.expect_topic(topic).await;
        }
        let directory = tempfile::Builder::new().prefix("halfmsg-shop-").tempdir();
        Self {
            group: env.group().await,
            stock_group: env.named("stock"),
            rollback_topic,
            created_topic,
            outbound_topic,
            orders: env.database().await,
            stock: env.database().await,
            ports: None,
            directory: directory.expect("a temporary directory"),
            env,
        }
    }

    /// The same with a proxy between each service and its database, PostgreSQL.
    pub(crate) async fn behind_proxies(env: Env) -> (Self, Cables) {
        let mut ground = Self::of(env).await;
        let orders = proxy_to(&ground.orders).await;
        let stock = proxy_to(&ground.stock).await;
        ground.ports = Some((orders.port(), stock.port()));
        (ground, Cables { orders, stock })
    }

    /// The broker.
    pub(crate) fn broker(&self) -> &Broker {
        &self.env.broker
    }

    /// How to reach it.
    pub(crate) fn kafka(&self) -> KafkaConfig {
        self.env.kafka()
    }

    /// The settings that both services get from it.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        let kafka = self.kafka();
        let partitions = PARTITIONS.to_string();
        let embedded = if kafka.embedded { "on" } else { "off" };
        [
            ("KAFKA_BROKERS", kafka.brokers.as_str()),
            ("HALFMSG_EMBEDDED", embedded),
            ("HALFMSG_TOPIC_PREFIX", &self.group.topic_prefix),
            ("HALFMSG_ROLLBACK_TOPIC", &self.rollback_topic),
            ("HALFMSG_CREATED_TOPIC", &self.created_topic),
            ("HALFMSG_OUTBOUND_TOPIC", &self.outbound_topic),
            // One setting for whichever topic a service makes.
            ("HALFMSG_TOPIC_PARTITIONS", &partitions),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The database of orders, as order-svc reaches it.
    pub(crate) fn orders_url(&self) -> String {
        at_port(&self.orders, self.ports.map(|(orders, _)| orders))
    }

    /// The database of stock-svc, as it reaches it.
    pub(crate) fn stock_url(&self) -> String {
        at_port(&self.stock, self.ports.map(|(_, stock)| stock))
    }

    /// Where logs go; deleted with the ground.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

async fn proxy_to(database: &Database) -> Proxy {
    let url = Url::parse(database.url()).expect("the address of a database");
    let host = url.host_str().expect("a database on a server");
    Proxy::to(&format!("{host}:{}", url.port().unwrap_or(5432))).await
}

fn at_port(database: &Database, port: Option<u16>) -> String {
    let Some(port) = port else { return database.url().to_owned() };
    let mut url = Url::parse(database.url()).expect("the address of a database");
    let moved = url.set_host(Some("127.0.0.1")).is_ok() && url.set_port(Some(port)).is_ok();
    assert!(moved, "the address takes another host and port");
    url.into()
}
