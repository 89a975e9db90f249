//! The command of docs/kafka.md that grants rights, by Kafka's own tool.

use super::found::block;
use super::shell::Shell;
use crate::suite::Env;
use crate::suite::env::PARTITIONS;
use crate::suite::secure::acls::Right;
use crate::suite::secure::ground::Ground;

pub(super) const ACLS: &str =
    "kafka-acls.sh --bootstrap-server … --add --allow-principal User:orders \\";
/// The user that the broker knows, in place of the document's.
const USER: &str = "alice";

/// What it grants is all that the table has for the topics of the group: with the rights to everything
/// else the producer starts, and not before.
pub(crate) async fn documented_acls(env: Env) {
    let ground = Ground::new(env).await;
    ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
    let prefix = format!("{}.{}.", ground.group.topic_prefix, ground.group.group);
    let all = ground.producer_rights();
    let is_granted = |right: &&Right| right.resource == "topic" && right.name == prefix;
    let (granted, others): (Vec<_>, Vec<_>) = all.iter().partition(is_granted);
    assert!(granted.len() == 4 && !others.is_empty(), "{all:?}");
    ground.only(USER, others.into_iter().cloned().collect()).await;
    let refused = ground.producer(ground.plain(USER)).await.err().expect("it has too few rights");
    assert!(refused.to_string().contains("no right to"), "{refused}");

    let (tool, server) = (ground.acls_tool(), format!("--bootstrap-server {}", ground.open()));
    let (from, to) = (format!("--topic {DOCUMENTED_PREFIX}"), format!("--topic {prefix}"));
    let user = format!("User:{USER}");
    let shell = Shell::with(&[
        ("kafka-acls.sh", &tool),
        ("--bootstrap-server …", &server),
        ("User:orders", &user),
        (&from, &to),
    ]);
    let commands = block("docs/kafka.md", ACLS).commands();
    let [command] = &commands[..] else { panic!("one command: {commands:?}") };
    assert!(command.contains(&from), "{command}");
    let ended = shell.run(command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    ground.has(USER, all.len()).await;
    let producer = ground.producer(ground.plain(USER)).await.expect("it has every right");
    producer.shutdown().await;
}

/// The prefix of order-svc's topics by its default settings.
const DOCUMENTED_PREFIX: &str = "halfmsg.order-svc.";
