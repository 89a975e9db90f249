//! Who is let in, and what those hear who are not.

use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::Message;

use super::super::told::{Do, PURPOSE};
use super::super::{Env, PATIENCE, until};
use super::ground::{Ground, START_DEADLINE};

/// A refused login is told well before the wait for a broker that is away would end.
const SOON: Duration = Duration::from_secs(START_DEADLINE.as_secs() / 2);
/// The whole wait, where it is waited for.
const WAITED: Duration = Duration::from_secs(10);

/// By PLAIN, SCRAM, a client certificate, and both kinds of SCRAM over TLS: a message is stored, decided,
/// delivered and consumed, with the rights that the documentation lists and no others.
pub(crate) async fn secure_round_trip_over_every_listener(env: Env) {
    let ground = Ground::new(env).await;
    let scram = |user: &str| ground.sasl("SCRAM-SHA-256", user, &format!("{user}-secret"));
    let tls_256 = |user: &str| ground.sasl_tls("SCRAM-SHA-256", user, "ca.pem");
    let tls_512 = |user: &str| ground.sasl_tls("SCRAM-SHA-512", user, "ca.pem");
    let (sends, consumes) = (ground.producer_rights(), ground.consumer_rights());
    ground.only("alice", sends.clone()).await;
    ground.only("bob", consumes.clone()).await;
    ground.only("tls", [sends, consumes].concat()).await;
    for (sender, receiver, what) in [
        (ground.plain("alice"), ground.plain("bob"), "PLAIN"),
        (scram("alice"), scram("bob"), "SCRAM"),
        (ground.tls(), ground.tls(), "a client certificate"),
        (tls_256("alice"), tls_256("bob"), "SCRAM over TLS"),
        (tls_512("alice"), tls_512("bob"), "SCRAM-SHA-512 over TLS"),
    ] {
        assert_eq!(sender.validate(), Ok(()), "{what}");
        // It creates the topic.
        let consumer = ground.consumer(receiver).await;
        consumer.ready().await;
        let producer = ground.producer(sender).await;
        let producer = producer.unwrap_or_else(|error| panic!("{what}: {error}"));
        let message = Message::new(&ground.target, what);
        let sent = producer.send_in_transaction(PURPOSE, message, Do::Commit).await;
        sent.unwrap_or_else(|error| panic!("{what}: {error}"));
        consumer.sees(what).await;
        consumer.stop().await;
        producer.shutdown().await;
    }
}

/// Wrong passwords, an authority that is not trusted, the wrong kind of listener: the start fails,
/// soon, and says what is wrong.
pub(crate) async fn secure_refused_logins_are_told(env: Env) {
    let ground = Ground::new(env).await;
    let certificate = [("security.protocol", "ssl"), ("ssl.ca.location", &ground.file("ca.pem"))];
    let refused = [
        (ground.sasl("PLAIN", "alice", "wrong"), "Invalid username or password"),
        (ground.sasl("SCRAM-SHA-256", "alice", "wrong"), "invalid credentials"),
        (ground.sasl("SCRAM-SHA-256", "nobody", "wrong"), "invalid credentials"),
        (ground.sasl("SCRAM-SHA-512", "alice", "alice-secret"), "SCRAM-SHA-512"),
        (ground.sasl_tls("SCRAM-SHA-256", "alice", "client.crt"), "certificate verify failed"),
        (ground.client("KAFKA_TLS_BROKERS", &certificate), "certificate"),
    ];
    for (kafka, part) in refused {
        let began = Instant::now();
        let Err(error) = ground.producer(kafka.clone()).await else { panic!("let in: {part}") };
        let text = error.to_string();
        assert!(text.contains(part) && text.contains("HALFMSG_KAFKA_PROPERTIES"), "{part}: {text}");
        assert!(!text.contains("alice-secret") && !text.contains("wrong\""), "{text}");
        assert!(began.elapsed() < SOON, "{part}: after {:?}", began.elapsed());
        let told = ground.consumer(kafka).await.complaint(part).await;
        assert!(told.contains(part) && told.contains("HALFMSG_KAFKA_PROPERTIES"), "{part}: {told}");
    }
    the_wrong_listener_is_told(&ground, &certificate).await;
    a_missing_login_is_told(&ground).await;
    a_missing_file_is_told(&ground).await;
}

/// TLS at a listener without it looks like a broker that hangs up, too.
async fn the_wrong_listener_is_told(ground: &Ground, certificate: &[(&str, &str)]) {
    let kafka = ground.client("KAFKA_SASL_BROKERS", certificate);
    let error = refusal(ground, &kafka, "SSL").await;
    let told = ground.consumer(kafka).await.complaint("SSL").await;
    for text in [error, told] {
        assert!(text.contains("SSL") && text.contains("HALFMSG_KAFKA_PROPERTIES"), "{text}");
    }
}

/// A client that does not log in where it must looks like a broker that hangs up: it may pass, so
/// it is waited for, and the reason is told at the end.
async fn a_missing_login_is_told(ground: &Ground) {
    for listener in ["KAFKA_SASL_BROKERS", "KAFKA_TLS_BROKERS"] {
        refusal(ground, &ground.client(listener, &[]), "security.protocol").await;
    }
}

/// What is told at the end of the wait, once this stands in it: a broker that stands still meanwhile has said
/// nothing.
async fn refusal(ground: &Ground, kafka: &KafkaConfig, part: &str) -> String {
    until(PATIENCE, &format!("a refusal for {part}"), async || {
        let Err(error) = ground.producer_within(WAITED, kafka.clone()).await else {
            panic!("let in where it must be refused for {part}")
        };
        let text = error.to_string();
        if text.contains(part) { Ok(text) } else { Err(text) }
    })
    .await
}

/// A file that is not there: told at once, not waited for.
async fn a_missing_file_is_told(ground: &Ground) {
    let kafka = ground.sasl_tls("SCRAM-SHA-512", "alice", "missing.pem");
    let began = Instant::now();
    let Err(error) = ground.producer(kafka.clone()).await else { panic!("it started") };
    assert!(error.to_string().contains("ssl.ca.location"), "{error}");
    assert!(began.elapsed() < SOON);
    let told = ground.consumer(kafka).await.complaint("ssl.ca.location").await;
    assert!(told.contains("ssl.ca.location"), "{told}");
}
