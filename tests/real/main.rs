//! The end-to-end tests on Apache Kafka and PostgreSQL: the servers that KAFKA_BROKERS and
//! DATABASE_URL name, as `scripts/test real` sets them. Without them every test fails.

#[path = "../suite/mod.rs"]
mod suite;

suite::cases!(real);
