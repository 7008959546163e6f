//! Hears when the host's addresses or default routes change, so that nothing is polled for them.

use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use weft_netlink::{Drained, Event, EventStream};

/// include/uapi/linux/rtnetlink.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// A burst of changes is one change.
const SETTLE: Duration = Duration::from_millis(500);

/// Sends one `()` after each burst of changes, until the receiver is gone.
///
/// # Errors
/// A sentence when the kernel does not tell.
pub async fn follow(changed: mpsc::Sender<()>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("follow this node's addresses: {error}");
    let stream = EventStream::route().map_err(failed)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the stream owns its descriptor and never changes it"
    )]
    let mut stream = AsyncFd::new(stream).map_err(failed)?;
    loop {
        stream.readable_mut().await.map_err(failed)?.clear_ready();
        tokio::time::sleep(SETTLE).await;
        // What happened is read from the kernel's tables, not from the events.
        let mut matters = false;
        let drained =
            stream.get_mut().drain(|event| matters |= concerns_addresses(&event)).map_err(failed)?;
        if !matters && drained == Drained::Complete {
            continue;
        }
        // A message that waits already says the same.
        if changed.try_send(()).is_err() && changed.is_closed() {
            return Ok(());
        }
    }
}

/// Addresses, and default routes: their prefix length, the second byte of `struct rtmsg`, is 0.
fn concerns_addresses(event: &Event<'_>) -> bool {
    match event.kind {
        RTM_NEWADDR | RTM_DELADDR => true,
        RTM_NEWROUTE | RTM_DELROUTE => event.body.get(1) == Some(&0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_default_routes_matter() {
        let matters = |kind, body: &[u8]| concerns_addresses(&Event { kind, port_id: 0, body });
        assert!(matters(RTM_NEWADDR, &[2, 24]) && matters(RTM_DELADDR, &[2, 24]));
        assert!(matters(RTM_NEWROUTE, &[2, 0]) && matters(RTM_DELROUTE, &[10, 0]));
        assert!(!matters(RTM_NEWROUTE, &[2, 26]) && !matters(RTM_NEWROUTE, &[]));
        assert!(!matters(16, &[0, 0]), "a pod's link comes and goes");
    }
}
