//! The group's topics, its progress, and records that stop it.

use std::io::IsTerminal;

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::{NewTopics, ProducerConfig, ResetPlan, ResetTo};

use super::Done;
use super::cluster::ClusterArgs;
use super::failure::{Exit, Failure};
use super::halves::WhoAndWhy;
use super::output::{self, Output, plain, printable};

/// Topics as a producer would make them.
fn defaults() -> ProducerConfig {
    ProducerConfig::new(KafkaConfig::new(""), "", "")
}

/// `halfmsg topics`.
#[derive(Debug, clap::Args)]
pub(crate) struct TopicsArgs {
    /// Create those that are missing
    #[arg(long)]
    create: bool,
    /// Partitions of topics that are created
    #[arg(long, env = "HALFMSG_STORE_PARTITIONS", default_value_t = defaults().store_partitions, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Replication factor of topics that are created; -1 is the broker's default
    #[arg(
        long,
        env = "HALFMSG_REPLICATION_FACTOR",
        default_value_t = defaults().replication_factor,
        value_parser = clap::value_parser!(i32).range(-1..=100),
        allow_hyphen_values = true
    )]
    replication_factor: i32,
    /// min.insync.replicas of topics that are created; -1 is the broker's default
    #[arg(
        long,
        env = "HALFMSG_MIN_INSYNC_REPLICAS",
        default_value_t = defaults().min_insync_replicas,
        value_parser = clap::value_parser!(i32).range(-1..=100),
        allow_hyphen_values = true
    )]
    min_insync_replicas: i32,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl TopicsArgs {
    pub(crate) async fn run(self) -> Done {
        let Self { create, partitions, replication_factor, min_insync_replicas, cluster } = self;
        let new = NewTopics { partitions, replication_factor, min_insync_replicas };
        let create = create.then_some(new);
        let topics = cluster.client()?.topics(create).await?;
        if cluster.output == Output::Json {
            return output::json(&serde_json::json!({ "items": topics, "next_cursor": null }));
        }
        let mut table = plain(&["TOPIC", "STATUS", "PARTITIONS"]);
        for topic in topics {
            table.add_row([topic.name, topic.status.to_owned(), topic.partitions.to_string()]);
        }
        println!("{table}");
        Ok(())
    }
}

/// `halfmsg skip`.
#[derive(Debug, clap::Args)]
pub(crate) struct SkipArgs {
    /// partition@offset, as the error of the stopped partition names it
    #[arg(value_parser = parse_place)]
    place: (i32, i64),
    #[command(flatten)]
    why: WhoAndWhy,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl SkipArgs {
    pub(crate) async fn run(self) -> Done {
        let (partition, offset) = self.place;
        let client = self.cluster.client()?;
        let skipped = client.skip(partition, offset, self.why.into()).await?;
        if self.cluster.output == Output::Json {
            return output::json(&skipped);
        }
        println!(
            "{partition}@{offset} is passed; a replica that stands still at it goes on within \
             seconds ({})",
            printable(&skipped.record)
        );
        Ok(())
    }
}

/// `halfmsg reset-progress`.
#[derive(Debug, clap::Args)]
pub(crate) struct ResetArgs {
    /// The store's partition
    partition: i32,
    /// start, end or an offset
    #[arg(long, value_parser = parse_to)]
    to: ResetTo,
    /// Do not ask before it is done; needed where nobody can be asked: without a terminal, and with --output json
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    why: WhoAndWhy,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

impl ResetArgs {
    pub(crate) async fn run(self) -> Done {
        let text = self.cluster.output == Output::Text;
        if !text && !self.yes {
            return Err(nobody_to_ask());
        }
        let client = self.cluster.client()?;
        let plan = client.plan_reset(self.partition, self.to).await?;
        if text {
            let plan_text = explained(&plan);
            let somebody = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
            let consent = consent(self.yes, somebody, plan.loses() && !self.why.force);
            // Who is asked sees what about, wherever standard output goes.
            match consent {
                Consent::Asked => eprint!("{plan_text}"),
                Consent::Given | Consent::Missing => print!("{plan_text}"),
            }
            match consent {
                Consent::Given => {}
                Consent::Asked if confirmed()? => {}
                Consent::Asked => {
                    return Err(Failure::new(Exit::Refused, "refused", "nothing was changed"));
                }
                Consent::Missing => return Err(nobody_to_ask()),
            }
        }
        client.reset_progress(&plan, self.why.into()).await?;
        if !text {
            return output::json(&plan);
        }
        println!("done: partition {} is replayed from {}", plan.partition, plan.to);
        Ok(())
    }
}

/// What is still needed before something is done that may lose or repeat messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Consent {
    Given,
    Asked,
    Missing,
}

/// Somebody who is there is asked, but not about what is refused whatever the answer is.
fn consent(yes: bool, somebody: bool, is_refused: bool) -> Consent {
    match (yes, somebody) {
        (true, _) => Consent::Given,
        (false, false) => Consent::Missing,
        (false, true) if is_refused => Consent::Given,
        (false, true) => Consent::Asked,
    }
}

fn nobody_to_ask() -> Failure {
    Failure::usage(
        "nothing was changed: without a terminal, and with --output json, nobody is asked whether to \
         go on; repeat with --yes",
    )
}

fn explained(plan: &ResetPlan) -> String {
    let (start, end) = plan.log;
    let mut lines =
        vec![format!("partition {}: the log goes from {start} to {end}", plan.partition)];
    lines.push(match plan.stored {
        Some((low_water, position)) => {
            format!("stored: replay from {low_water}, carried out below {position}")
        }
        None => "stored: nothing".into(),
    });
    lines.push(format!("after it: replay from {0}, carried out below {0}", plan.to));
    for (count, what) in [
        (plan.delivered_again.to_string(), "committed messages may be delivered again"),
        (plan.undelivered.to_string(), "committed messages would NOT be delivered"),
        (plan.unparked.to_string(), "parked messages would be forgotten"),
    ] {
        if count != "0" {
            lines.push(format!("  {count} {what}"));
        }
    }
    if plan.forgotten > 0 {
        lines.push(format!("  {} open messages would be forgotten:", plan.forgotten));
        lines.push(output::table(&plan.forgotten_halves).to_string());
        let named = plan.forgotten_halves.len();
        if named < plan.forgotten {
            lines.push(format!("  and {} more", plan.forgotten - named));
        }
    }
    lines.join("\n") + "\n"
}

fn confirmed() -> Result<bool, Failure> {
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Failure::failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn parse_to(text: &str) -> Result<ResetTo, String> {
    match text {
        "start" => Ok(ResetTo::Start),
        "end" => Ok(ResetTo::End),
        offset => match offset.parse() {
            Ok(offset) if offset >= 0 => Ok(ResetTo::Offset(offset)),
            _ => Err("use start, end or an offset".into()),
        },
    }
}

fn parse_place(text: &str) -> Result<(i32, i64), String> {
    let place = text
        .split_once('@')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    place.ok_or_else(|| "use partition@offset, such as 3@17".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_partition_and_an_offset() {
        assert_eq!(parse_place("3@17"), Ok((3, 17)));
        for wrong in ["3", "@17", "3@", "a@b"] {
            assert!(parse_place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_done_that_nobody_agreed_to() {
        for is_refused in [false, true] {
            assert_eq!(consent(false, false, is_refused), Consent::Missing);
            assert_eq!(consent(true, false, is_refused), Consent::Given);
            assert_eq!(consent(true, true, is_refused), Consent::Given);
        }
        assert_eq!(consent(false, true, false), Consent::Asked);
        // The reason why it is refused is what there is to say.
        assert_eq!(consent(false, true, true), Consent::Given);
    }

    #[test]
    fn progress_goes_to_an_end_or_an_offset() {
        assert_eq!(parse_to("start"), Ok(ResetTo::Start));
        assert_eq!(parse_to("12"), Ok(ResetTo::Offset(12)));
        for wrong in ["", "-1", "begin"] {
            assert!(parse_to(wrong).is_err(), "{wrong}");
        }
    }
}
