//! What a service's `main` does around it: the log, the traces, the signals, the exit.

use std::future::Future;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::mistakes::Mistakes;
use crate::settings::CommonSettings;
use crate::telemetry::LogSettings;
use crate::{export, shutdown, telemetry};

/// Starts the log, the export of traces and the signal handlers, then runs the service until it ends.
///
/// ```no_run
/// # use halfmsg_service_kit::{process, CommonSettings};
/// # async fn example(settings: CommonSettings) -> anyhow::Result<()> {
/// process::run("order-svc", &settings.clone(), |shutdown| async move {
///     shutdown.cancelled().await;
///     Ok(())
/// })
/// .await
/// # }
/// ```
///
/// # Errors
/// The service's own, or settings of the log, of traces or of the pipe that cannot be read.
pub async fn run<F, Fut>(
    service: &'static str,
    settings: &CommonSettings,
    body: F,
) -> anyhow::Result<()>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let mut mistakes = Mistakes::new();
    let log = settings.log(&mut mistakes);
    let parent_pipe = mistakes.switch("HALFMSG_PARENT_PIPE", &settings.parent_pipe);
    // With a mistake in one of these the service refuses to start, together with all its others.
    let log = if mistakes.lines().is_empty() { log } else { LogSettings::default() };
    telemetry::init(service, &log).map_err(anyhow::Error::msg)?;
    let traces = export::start(service).map_err(anyhow::Error::msg)?;
    let shutdown = shutdown::token(parent_pipe.unwrap_or(false)).context("signal handlers")?;
    let stopped = shutdown.clone();
    let ended = body(shutdown).await;
    if let Some(traces) = traces {
        traces.end().await;
    }
    ended.with_context(|| format!("{service} cannot go on"))?;
    mistakes.finish()?;
    anyhow::ensure!(stopped.is_cancelled(), "{service} ended by itself");
    Ok(())
}
