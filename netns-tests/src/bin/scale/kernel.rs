//! What a node's kernel has, seen past `weftd`: counted, and heard of.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_netlink::{EventStream, Socket, fdb, link, neigh, route};

use crate::Outcome;

const VXLAN: &str = "weft-vx";

/// Routes to other nodes, neighbours and forwarding entries.
pub fn count(node: &Node) -> Outcome<usize> {
    node.enter(|| {
        let mut socket = Socket::route()?;
        let mut count = route::own(&mut socket, true)?.iter().filter(|route| route.gateway.is_some()).count();
        if let Some(device) = link::by_name(&mut socket, VXLAN)? {
            count += neigh::permanent_of_link(&mut socket, device.index)?.len();
            count += fdb::of_link(&mut socket, device.index)?.len();
        }
        Ok(count)
    })
}

/// By what a change is known.
#[derive(Clone, Copy, Debug)]
pub enum Sign {
    /// The route to a block comes or goes.
    Route(IpAddr),
    /// Something leads to a node at this address now: a route, or a forwarding entry.
    Way(IpAddr),
}

impl Sign {
    fn is(self, kind: u16, body: &[u8]) -> bool {
        let routes = route::parse_event(kind, body).map(|(routes, _)| routes).unwrap_or_default();
        match self {
            Self::Route(block) => routes.iter().any(|route| route.destination.0 == block),
            Self::Way(node) => {
                let entry = fdb::parse_event(kind, body);
                entry.is_some_and(|(entry, present)| present && entry.remote == node)
                    || routes.iter().any(|route| route.gateway == Some(node))
            }
        }
    }
}

/// Hears of a kernel's changes.
#[derive(Debug)]
pub struct Ear(EventStream);

impl Ear {
    pub fn new(node: &Node) -> Outcome<Self> {
        node.enter(|| {
            let stream = EventStream::route()?;
            if let Some(device) = link::by_name(&mut Socket::route()?, VXLAN)? {
                stream.follow_neighbours([device.index, 0])?;
            }
            Ok(Self(stream))
        })
    }

    /// Reads what waits; how many changes, and whether one of them is `sign`.
    pub fn hear(&mut self, sign: Sign) -> Outcome<(usize, bool)> {
        let (mut events, mut found) = (0, false);
        self.0.drain(|event| {
            events += 1;
            found |= sign.is(event.kind, event.body);
        })?;
        Ok((events, found))
    }
}

/// Waits until a kernel has not changed for a second: what follows from a node's own block is done.
pub fn wait_rest(node: &Node) -> Outcome<()> {
    let (mut ear, since) = (Ear::new(node)?, Instant::now());
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(1) {
        if since.elapsed() > Duration::from_secs(40) {
            return Err(format!("the kernel of {} does not come to rest", node.name()).into());
        }
        std::thread::sleep(Duration::from_millis(50));
        if ear.hear(Sign::Route([0, 0, 0, 0].into()))?.0 > 0 {
            quiet = Instant::now();
        }
    }
    Ok(())
}

/// Waits until each of them has heard of `sign`; how long after `since` each did, and all changes.
pub fn wait(ears: &mut [Ear], sign: Sign, since: Instant) -> Outcome<(Vec<Duration>, usize)> {
    let mut heard: Vec<Option<Duration>> = vec![None; ears.len()];
    let mut events = 0;
    while heard.iter().any(Option::is_none) {
        if since.elapsed() > Duration::from_secs(20) {
            let late = heard.iter().filter(|at| at.is_none()).count();
            return Err(format!("{late} kernels have not seen {sign:?} after 20 s").into());
        }
        let mut fds: Vec<_> = ears.iter().map(|ear| PollFd::new(ear.0.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut fds, PollTimeout::from(1000_u16))?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for ((ear, at), _) in ears.iter_mut().zip(&mut heard).zip(ready).filter(|(_, ready)| *ready) {
            let (more, found) = ear.hear(sign)?;
            events += more;
            if found {
                at.get_or_insert(since.elapsed());
            }
        }
    }
    Ok((heard.into_iter().flatten().collect(), events))
}
