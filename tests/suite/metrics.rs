//! What a producer counts, as an operator's scraper reads it.

use halfmsg_producer::TransactionProducer;
use prometheus_client::registry::Registry;

fn text(producer: &TransactionProducer) -> String {
    let mut registry = Registry::default();
    producer.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text can be written");
    text
}

/// How many samples there are whose names and labels begin so.
pub(crate) fn samples(producer: &TransactionProducer, sample: &str) -> usize {
    text(producer).lines().filter(|line| line.starts_with(sample)).count()
}

/// The value of the first sample whose name and labels begin so; nothing counted is 0.
pub(crate) fn metric(producer: &TransactionProducer, sample: &str) -> u64 {
    let text = text(producer);
    let line = text.lines().find(|line| line.starts_with(sample));
    let count = line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse().ok());
    count.unwrap_or(0)
}
