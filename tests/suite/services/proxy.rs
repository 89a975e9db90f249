//! A TCP proxy between a service and its database, which can be cut as a cable can.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::ports;
use crate::suite::{PATIENCE, until};

/// Taking its own port back; nobody else should have it.
const LISTEN_DEADLINE: Duration = PATIENCE;

/// Passes connections on until it is cut.
pub(crate) struct Proxy {
    port: u16,
    upstream: String,
    /// Ends the listener and every connection of now.
    cable: Mutex<CancellationToken>,
}

impl Proxy {
    /// A proxy to `host:port`.
    pub(crate) async fn to(upstream: &str) -> Self {
        let proxy =
            Self { port: ports::free(), upstream: upstream.to_owned(), cable: Mutex::default() };
        proxy.mend().await;
        proxy
    }

    /// The port that it listens on, on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        self.cable.lock().unwrap_or_else(PoisonError::into_inner).cancel();
    }

    /// Lets connections pass again.
    pub(crate) async fn mend(&self) {
        let listener = until(LISTEN_DEADLINE, "the proxy's port", async || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await
        })
        .await;
        let cable = CancellationToken::new();
        *self.cable.lock().unwrap_or_else(PoisonError::into_inner) = cable.clone();
        tokio::spawn(pass_on(listener, Arc::from(self.upstream.as_str()), cable));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn pass_on(listener: TcpListener, upstream: Arc<str>, cable: CancellationToken) {
    while let Some(Ok((mut client, _))) = cable.run_until_cancelled(listener.accept()).await {
        let (upstream, cable) = (Arc::clone(&upstream), cable.clone());
        tokio::spawn(async move {
            let exchange = async {
                let mut server = TcpStream::connect(&*upstream).await?;
                copy_bidirectional(&mut client, &mut server).await
            };
            // However it ends, both sides are closed.
            drop(cable.run_until_cancelled(exchange).await);
        });
    }
}
