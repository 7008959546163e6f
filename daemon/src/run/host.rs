//! Hears when the host's addresses or default routes change, and when a route to a pod goes, so that nothing is polled
//! for them.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use weft_netlink::{Drained, Event, EventStream, route};

/// include/uapi/linux/rtnetlink.h.
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// A burst of changes is one change.
const SETTLE: Duration = Duration::from_millis(200);
/// So many messages are read before others get their turn: in a burst of pods the kernel writes as fast as one reads,
/// and who waits for a block would wait for the burst's end.
const AT_ONCE: usize = 256;

/// What a burst of changes was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// An address or a default route came or went.
    pub addresses: bool,
    /// A route of Weft's to a single address went: a pod's, or what its DEL took.
    pub pod_route_lost: bool,
}

/// Says what changed after each burst of changes, until the receiver is gone.
///
/// # Errors
/// A sentence when the kernel does not tell.
pub async fn follow(changed: mpsc::Sender<Changed>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("follow this node's addresses: {error}");
    let stream = EventStream::route().map_err(failed)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the stream owns its descriptor and never changes it"
    )]
    let mut stream = AsyncFd::new(stream).map_err(failed)?;
    let mut news = Changed::default();
    let mut more = false;
    loop {
        if !more {
            stream.readable_mut().await.map_err(failed)?.clear_ready();
        }
        tokio::time::sleep(SETTLE).await;
        // What happened is read from the kernel's tables; the events only say that it is time to.
        let hear = |event: Event<'_>| {
            news.addresses |= concerns_addresses(&event);
            news.pod_route_lost |= is_lost_pod_route(&event);
        };
        let drained = stream.get_mut().drain_some(AT_ONCE, hear).map_err(failed)?;
        more = drained != Drained::Complete;
        if drained == Drained::Lost {
            news = Changed { addresses: true, pod_route_lost: true };
        }
        if news != Changed::default() && changed.send(std::mem::take(&mut news)).await.is_err() {
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

fn is_lost_pod_route(event: &Event<'_>) -> bool {
    let Some((routes, false)) = route::parse_event(event.kind, event.body) else { return false };
    let single = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    routes.iter().any(|route| {
        route.protocol == route::PROTOCOL
            && !route.unreachable
            && route.destination.1 == single(route.destination.0)
    })
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
