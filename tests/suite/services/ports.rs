//! Ports that stay free between their choice and their use.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the system takes ports of its own choice: a port from there could
/// be taken by any outgoing connection while its service is being restarted. Above those of the servers
/// that the scripts start (`free_port` in scripts/lib/common.sh), for the same reason.
const FIRST: u16 = 18_000;
const COUNT: u16 = 12_000;

/// A loopback port that nobody listens on, and that no other test of this process is given.
pub(crate) fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at once begin at different places.
    let begin = u16::try_from(std::process::id() % u32::from(COUNT)).expect("it is below COUNT");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (begin + step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT - 1);
}
