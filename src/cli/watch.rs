//! Half messages as they come, change and go.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use halfmsg_producer::{HalfView, MissingPartition, OperatorClient, Page};
use serde::Serialize;

use super::Done;
use super::cluster::ClusterArgs;
use super::failure::Failure;
use super::halves::all_shown;
use super::output::{self, Output, cell, place, printable};

/// Of so many that are gone at once it is looked up what became of them; of more it is not.
const ENDS_LOOKED_UP: usize = 5;
/// A look that failed is repeated after this time at most.
const AGAIN: Duration = Duration::from_secs(1);

/// `halfmsg watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    /// From the end of one look at the brokers to the next, in seconds; each costs what pending costs
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

type Seen = BTreeMap<String, HalfView>;
type Missing = Vec<MissingPartition>;

#[derive(Serialize)]
struct Change<'a> {
    at: String,
    /// `new`, `changed` or `closed`.
    change: &'static str,
    half: &'a HalfView,
}

impl WatchArgs {
    /// Until Ctrl-C. A broker that goes away meanwhile is said, and looked at again.
    pub(crate) async fn run(self) -> Done {
        let client = self.cluster.quiet_client()?;
        let (output, every) = (self.cluster.output, Duration::from_secs(self.every));
        let follow = async {
            let (mut seen, mut missing) = (Seen::new(), Missing::new());
            let mut first = true;
            loop {
                let mut pause = every;
                match client.everything().await.map_err(Failure::from) {
                    Ok(Page { items, missing_partitions: unseen, .. }) => {
                        let named = |half: HalfView| (half.transaction_id.clone(), half);
                        let mut now: Seen = items.into_iter().map(named).collect();
                        if unseen != missing
                            && let Err(incomplete) = all_shown(&unseen)
                        {
                            let _ = incomplete.report(output);
                        }
                        missing = unseen;
                        for (id, half) in not_looked_at(&seen, &missing) {
                            now.entry(id).or_insert(half);
                        }
                        report(output, &client, &mut seen, now).await?;
                    }
                    Err(failure) if first => return Err(failure),
                    Err(failure) => {
                        let _ = failure.report(output);
                        pause = pause.min(AGAIN);
                    }
                }
                first = false;
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            ended = follow => ended,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::failed),
        }
    }
}

/// What was seen before in partitions of which not everything is shown now: it is not gone for that.
fn not_looked_at(seen: &Seen, missing: &[MissingPartition]) -> Seen {
    let is_missing = |half: &HalfView| missing.iter().any(|of| of.partition == half.partition);
    let kept = seen.iter().filter(|(_, half)| is_missing(half));
    kept.map(|(id, half)| (id.clone(), half.clone())).collect()
}

async fn report(
    output: Output,
    client: &OperatorClient,
    seen: &mut Seen,
    now: Seen,
) -> Result<(), Failure> {
    for (id, half) in &now {
        match seen.get(id) {
            None => say(output, "new", half)?,
            Some(before) if state(before) != state(half) => say(output, "changed", half)?,
            Some(_) => {}
        }
    }
    let gone: Vec<&HalfView> =
        seen.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, half)| half).collect();
    let look_up = gone.len() <= ENDS_LOOKED_UP;
    for half in gone {
        let mut end = HalfView { state: "closed", ..half.clone() };
        if let Ok(id) = half.transaction_id.parse()
            && look_up
            && let Ok(detail) = client.show(id).await
        {
            end = detail.half;
        }
        say(output, "closed", &end)?;
    }
    *seen = now;
    Ok(())
}

/// What makes a half another one; its age does not.
fn state(half: &HalfView) -> (&str, u32, u32, Option<&str>) {
    (half.state, half.epoch, half.attempts, half.last_outcome.as_deref())
}

fn say(output: Output, change: &'static str, half: &HalfView) -> Result<(), Failure> {
    let at = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    if output == Output::Json {
        return output::json(&Change { at, change, half });
    }
    let last = half.last_outcome.as_deref().map(cell).unwrap_or_default();
    println!(
        "{at} {change:<8} {} {:<12} {} -> {} {} {last}",
        half.transaction_id,
        half.state,
        printable(&half.purpose),
        printable(&half.topic),
        place(half),
    );
    Ok(())
}
