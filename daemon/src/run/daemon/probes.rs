//! Tries out what can only be tried out; see [`crate::probe`]. Each node asks the three that follow it by name, so that in a
//! large cluster each is asked by three.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use tokio::time::{Duration, Instant};
use weft_overlay::wanted::{Backend, Direct, Peer, Wanted};

use super::{Daemon, Event};
use crate::probe::{self, Found, Target};
use crate::run::aside::aside;
use crate::run::notices::Notice;

/// How many nodes are asked.
const SAMPLE: usize = 3;
/// While something could not be told.
const SOON: Duration = Duration::from_secs(60);
/// When all was told.
const LATER: Duration = Duration::from_secs(600);

/// What is known from trying.
#[derive(Debug, Default)]
pub(super) struct Probes {
    sample: Vec<(Arc<str>, Arc<Peer>)>,
    busy: bool,
    not_before: Option<Instant>,
    spoiled: Option<bool>,
    /// By node: the size that does not get through, or `None` where all is well.
    paths: BTreeMap<String, Option<u32>>,
}

impl Probes {
    /// Whatever was found may not hold any more.
    pub(super) fn hurry(&mut self) {
        self.not_before = None;
    }

    /// Takes note of who follows this node.
    pub(super) fn follow(&mut self, wanted: &Wanted) {
        let own = &*wanted.this.name;
        let behind = wanted.peers.range::<str, _>((Excluded(own), Unbounded));
        let before = wanted.peers.range::<str, _>((Unbounded, Excluded(own)));
        let sample: Vec<_> =
            behind.chain(before).take(SAMPLE).map(|(name, peer)| (name.clone(), peer.clone())).collect();
        if sample != self.sample {
            self.sample = sample;
            self.hurry();
        }
    }
}

impl Daemon {
    /// Asks if it is time to, on a thread of its own.
    pub(super) fn probe(&mut self) {
        let in_sync = self.report.as_ref().is_some_and(|report| report.in_sync);
        let waits = self.probes.not_before.is_some_and(|at| Instant::now() < at);
        if self.probes.busy || waits || !in_sync {
            return;
        }
        let targets: Vec<Target> = self.targets();
        if targets.is_empty() {
            return;
        }
        self.probes.busy = true;
        let (known, events) = (self.probes.spoiled == Some(true), self.events.0.clone());
        self.tasks.spawn(async move {
            let found = aside("probe", move || probe::run(&targets, known)).await;
            let _ending = events.send(Event::Probed(found)).await;
        });
    }

    fn targets(&self) -> Vec<Target> {
        let (Some(wanted), Some(report)) = (&self.wanted, &self.report) else { return Vec::new() };
        let target = |(name, peer): &(Arc<str>, Arc<Peer>)| {
            let outer = report.underlay.iter().find_map(|way| {
                let to = peer.published(way.family == "IPv4")?;
                Some((to.addr(), way.mtu))
            });
            let inner = wanted.this.node_address(true).zip(peer.inner(true));
            Target { name: name.to_string(), inner: inner.filter(|_| takes_vxlan(wanted, peer)), outer }
        };
        self.probes.sample.iter().map(target).collect()
    }

    pub(super) fn probed(&mut self, found: Result<Found, String>) {
        let probes = &mut self.probes;
        probes.busy = false;
        let wants_checksums =
            self.wanted.as_ref().is_some_and(|wanted| matches!(wanted.backend, Backend::Vxlan { .. }));
        match found {
            Ok(found) => {
                probes.spoiled = found.spoiled.or(probes.spoiled);
                probes.paths.extend(found.small_path);
            }
            Err(sentence) => tracing::warn!("{sentence}"),
        }
        let told = (probes.spoiled.is_some() || !wants_checksums)
            && probes.sample.iter().all(|(name, _)| probes.paths.contains_key(&**name));
        probes.not_before = Some(Instant::now() + if told { LATER } else { SOON });
        let sample = &probes.sample;
        probes.paths.retain(|name, _| sample.iter().any(|(sampled, _)| **sampled == **name));
        let small = probes.paths.iter().filter_map(|(name, size)| Some(small_path(name, (*size)?)));
        let mut notices: Vec<Notice> = small.collect();
        notices.extend((probes.spoiled == Some(true) && wants_checksums).then(spoiled));
        self.notices.replace("probe-", notices);
    }
}

/// Whether packets between the two nodes' own addresses take VXLAN.
fn takes_vxlan(wanted: &Wanted, peer: &Peer) -> bool {
    let ours = &wanted.this.published;
    let neighbours =
        ours.iter().any(|own| peer.published.iter().any(|published| published.subnet() == own.subnet()));
    matches!(wanted.backend, Backend::Vxlan { .. }) && !(wanted.direct == Direct::SameSubnet && neighbours)
}

fn small_path(name: &str, size: u32) -> Notice {
    Notice {
        code: "probe-small-path".to_owned(),
        subject: name.to_owned(),
        sentence: format!(
            "packets of {size} bytes do not get through to node {name}, small ones do: the path is smaller than this node's \
             link, and large packets of pods vanish or go in pieces"
        ),
        way_out: "Raise the MTU on the way, or set network.mtu on every node to what the way carries less the backend's overhead"
            .to_owned(),
    }
}

fn spoiled() -> Notice {
    Notice {
        code: "probe-vxlan-checksum".to_owned(),
        subject: String::new(),
        sentence: "this machine's network card, or its driver, spoils the checksums of packets inside VXLAN: weftd has switched \
                   the checksum offload of weft-vx off, which costs throughput"
            .to_owned(),
        way_out: "Update the card's driver or firmware; then: ethtool -K weft-vx tx on, and restart weftd".to_owned(),
    }
}
