//! The token that ends a service, and a server that obeys it.

use std::io::{self, Read};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The status after a second signal, when the first did not end the process fast enough.
const IMPATIENT_EXIT: i32 = 130;

/// A token that is cancelled by SIGTERM or SIGINT and, with `parent_pipe`, by end-of-file on
/// standard input, so that a child does not outlive the launcher that holds the other end.
///
/// Installing handlers also makes these signals work for process 1 of a container, which has no
/// default action for them. A second signal ends the process at once.
///
/// # Errors
/// When the operating system refuses a handler or a thread. Needs a tokio runtime.
pub fn token(parent_pipe: bool) -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if cancel.is_cancelled() {
                std::process::exit(IMPATIENT_EXIT);
            }
            tracing::info!("{name}: stopping");
            cancel.cancel();
        }
    });
    if parent_pipe {
        watch_parent(token.clone())?;
    }
    Ok(token)
}

/// A thread of its own and not tokio's standard input, whose blocked read would keep the runtime
/// from ending.
fn watch_parent(token: CancellationToken) -> io::Result<()> {
    std::thread::Builder::new().name("parent-pipe".into()).spawn(move || {
        let mut ignored = [0_u8; 64];
        let mut input = io::stdin().lock();
        loop {
            match input.read(&mut ignored) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        tracing::info!("the launcher is gone: stopping");
        token.cancel();
    })?;
    Ok(())
}

/// Serves until the token is cancelled, then lets running requests end, at most for
/// `drain_deadline`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    token: CancellationToken,
    drain_deadline: Duration,
) -> io::Result<()> {
    let stop = token.clone();
    let server =
        axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(drain_deadline).await;
    };
    tokio::select! {
        served = async { server.await } => served,
        () = overdue => {
            tracing::warn!(?drain_deadline, "requests were still running: they are cut off");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;

    use super::*;

    /// Long enough for a busy machine; only a failing test waits as long.
    const PATIENCE: Duration = Duration::from_secs(120);

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    async fn a_stuck_request_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, wait) = tokio::sync::mpsc::channel::<()>(1);
        let stuck = get(move || async move {
            let _ = entered.send(()).await;
            std::future::pending::<()>().await;
        });
        let token = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            Router::new().route("/", stuck),
            token.clone(),
            Duration::from_millis(20),
        ));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut wait = wait;
        wait.recv().await.unwrap();
        token.cancel();
        tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_idle_server_ends_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = CancellationToken::new();
        token.cancel();
        let served = serve(listener, Router::new(), token, 10 * PATIENCE);
        tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
    }
}
