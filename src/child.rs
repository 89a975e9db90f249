//! A service as a child process: started again when it dies, ended when its launcher ends.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use halfmsg_service_kit::telemetry::LIFE_FILTER;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// From a death to the next start.
const RESTART_AFTER: Duration = Duration::from_millis(200);
/// So many deaths within this time are no accident.
const DEATHS_ALLOWED: usize = 10;
const DEATHS_WITHIN: Duration = Duration::from_secs(30);
/// A child that was asked to end is killed after this.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// What to start.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Runs the service until `stop` fires.
///
/// The child watches its standard input: it ends when the launcher closes it, or is killed. It is
/// in a process group of its own, so that Ctrl-C reaches only the launcher, which ends it in order.
///
/// # Errors
/// If it cannot be started, or dies again and again.
pub(crate) async fn supervise(service: Service, stop: CancellationToken) -> anyhow::Result<()> {
    let mut deaths = VecDeque::new();
    loop {
        let mut child = start(&service)?;
        // Held here, because waiting for the child would close it.
        let pipe = child.stdin.take();
        tokio::select! {
            () = stop.cancelled() => {
                drop(pipe);
                return end(service.name, child).await;
            }
            status = child.wait() => {
                let status = status.with_context(|| format!("waiting for {}", service.name))?;
                died(&service, status, &mut deaths)?;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RESTART_AFTER) => {}
        }
    }
}

fn start(service: &Service) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("the path of this program")?;
    Command::new(program)
        .arg(service.name)
        .envs(service.environment.iter().map(|(name, value)| (*name, value.as_str())))
        .envs(life_is_shown().then_some(("HALFMSG_LOG", LIFE_FILTER)))
        .env("HALFMSG_PARENT_PIPE", "on")
        .stdin(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", service.name))
}

/// The demonstration shows the life of each half message, unless somebody has said what to show.
fn life_is_shown() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("HALFMSG_LOG") && !is_set("RUST_LOG")
}

fn died(
    service: &Service,
    status: ExitStatus,
    deaths: &mut VecDeque<Instant>,
) -> anyhow::Result<()> {
    println!("halfmsg: {} died ({status}); starting it again", service.name);
    deaths.push_back(Instant::now());
    while deaths.front().is_some_and(|death| death.elapsed() > DEATHS_WITHIN) {
        deaths.pop_front();
    }
    if deaths.len() >= DEATHS_ALLOWED {
        bail!(
            "{} died {DEATHS_ALLOWED} times within {} s; its last words are above",
            service.name,
            DEATHS_WITHIN.as_secs()
        );
    }
    Ok(())
}

async fn end(name: &str, mut child: Child) -> anyhow::Result<()> {
    if tokio::time::timeout(END_DEADLINE, child.wait()).await.is_err() {
        println!("halfmsg: {name} does not end; killing it");
        child.kill().await.with_context(|| format!("killing {name}"))?;
    }
    Ok(())
}
