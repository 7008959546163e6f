//! A cluster in a lab: a wire, a router, a real etcd, nodes with a real `weftd` each, pods by the real plugin.
//!
//! ```no_run
//! use netns_tests::cluster::{ClusterLab, Layout, Network};
//! let lab = ClusterLab::new("demo", &Layout::default());
//! lab.start_all(&Network::default());
//! let pods = lab.pod_on_each("web");
//! lab.assert_all_reach_all(&pods);
//! ```

mod conf;
mod etcd;
mod etcd_api;
mod grants;
mod ledger;
mod monitor;
mod pods;
mod proc;
mod slow;
mod tls;
mod traffic;
mod underlay;
mod weftd;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use conf::{Network, WeftdConf};
pub use etcd::{Etcd, EtcdOptions, Snapshot};
pub use etcd_api::KeyValue;
pub use grants::{StopAtEnd, Watched, watch_grants};
pub use ledger::{addresses_given, blocks_giving, doubly_given};
pub use monitor::Monitor;
pub use pods::{ClusterPod, Unreached, assert_all_reach_all, chain, chain_from, status, unreached};
pub use proc::{Process, timed};
pub use slow::SlowLink;
pub use tls::{Authority, Identity};
pub use traffic::{Flow, FlowReport, ProbeReport, Prober, df_passes, is_largest, transfer};
pub use underlay::{Layout, Segment, Underlay, Wire};
pub use weftd::{Weftd, complaint, ended_within};

use crate::inside::Inside;
use crate::lab::Lab;
use crate::node::Node;
use crate::require;

/// Generous, because tests share two slow cores: nothing that works needs so long.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Whether durations shall be those of the issue, and not short ones that show the same: `WEFT_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("WEFT_LONG").is_some_and(|value| value == "1")
}

/// `short`, or with `WEFT_LONG=1` the real thing.
pub fn long_or<T>(long_one: T, short: T) -> T {
    if long() { long_one } else { short }
}

/// [`require()`], and an etcd and a `weftd` are there.
pub fn require_cluster() -> bool {
    require() && require::granted(require::installed("etcd").and_then(|()| weftd_program().map(drop)))
}

/// The `weftd` under test: where the other programs are.
fn weftd_program() -> Result<PathBuf, String> {
    let program = require::weft_bin_dir().join("weftd");
    if program.is_file() { Ok(program) } else { Err(format!("there is no {}", program.display())) }
}

/// A cluster. Dropping it takes everything away.
#[derive(Debug)]
pub struct ClusterLab {
    /// The etcd of the cluster, running.
    pub etcd: Etcd,
    /// The nodes, in order: `a`, `b`, `c`.
    pub nodes: Vec<ClusterNode>,
    /// The wire between them.
    pub wire: Wire,
    layout: Layout,
    /// Last: it ends what lives in the namespaces of the above.
    lab: Lab,
}

/// A node of a cluster.
#[derive(Debug)]
pub struct ClusterNode {
    /// The machine.
    pub node: Node,
    /// Its place on the wire.
    pub segment: Segment,
    /// Its addresses with prefix length.
    pub addresses: Vec<String>,
    weftd: OnceLock<Weftd>,
}

impl Inside for ClusterNode {
    fn place(&self) -> &crate::Place {
        self.node.place()
    }
}

impl ClusterNode {
    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Its daemon; panics if none was started yet.
    pub fn weftd(&self) -> &Weftd {
        self.weftd.get().unwrap_or_else(|| panic!("no weftd was started on {}", self.name()))
    }
}

impl ClusterNode {
    /// What a reboot takes: the daemon, pods, records, links, routes and rules. `/var/lib/weft` stays.
    pub fn reboot(&self, pods: &[ClusterPod]) {
        static BOOTS: AtomicU32 = AtomicU32::new(1);
        self.lose_everything(pods);
        let boot = BOOTS.fetch_add(1, Ordering::Relaxed);
        self.node.set_boot_id(&format!("11111111-2222-3333-4444-{boot:012}"));
    }

    /// The same within one boot: all that is not on disk has to be made again.
    pub fn lose_everything(&self, pods: &[ClusterPod]) {
        self.weftd().kill();
        pods.iter().for_each(|pod| pod.pod.destroy_netns());
        self.run(["sh", "-c", "rm -rf /run/weft/* /run/weftd/* /etc/cni/net.d/*"]);
        self.run(["nft", "flush", "ruleset"]);
        let links = self.json(["ip", "-j", "link", "show"]);
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        for name in names.filter(|name| name.starts_with("weft") || *name == "cbr0") {
            let _went_with_another = self.try_run(["ip", "link", "delete", name]);
        }
        for family in ["-4", "-6"] {
            let _none = self.try_run(["ip", family, "route", "flush", "proto", "87"]);
        }
        self.run(["ip", "address", "flush", "dev", "lo", "scope", "global"]);
    }
}

impl ClusterLab {
    /// Wire, router, etcd and nodes; no daemon runs yet.
    pub fn new(name: &str, layout: &Layout) -> Self {
        let lab = Lab::new(name);
        let mut wire = Wire::new(&lab, layout);
        let etcd = Etcd::start(&lab, &mut wire, &layout.etcd);
        let nodes = layout.nodes.iter().zip(["a", "b", "c", "d", "e"]).enumerate();
        let nodes = nodes.map(|(index, (segment, name))| {
            let node = lab.node(name);
            // Each machine has its own, or all would be clones of one.
            node.set_machine_id(&format!("{:032x}", 0xc0ffee_u64 << 8 | index as u64));
            let addresses = wire.plug(&lab, &node, *segment, index + 1);
            ClusterNode { node, segment: *segment, addresses, weftd: OnceLock::new() }
        });
        let nodes = nodes.collect();
        Self { etcd, nodes, wire, layout: layout.clone(), lab }
    }

    /// The lab itself.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What a node's `weftd` is told: node name, endpoints, certificates, and the network.
    pub fn conf(&self, node: usize, network: &Network) -> WeftdConf {
        WeftdConf::new(self.nodes[node].name(), &self.etcd, network)
    }

    /// Starts `weftd` on a node and does not wait; with `--init` on the first.
    pub fn start(&self, node: usize, network: &Network) -> &Weftd {
        self.start_with(node, self.conf(node, network), node == 0)
    }

    /// Starts `weftd` with a configuration of one's own.
    pub fn start_with(&self, node: usize, conf: WeftdConf, init: bool) -> &Weftd {
        self.start_under(node, conf, &[], init)
    }

    /// Starts `weftd` with a clock that is `seconds` ahead of the plugin's: what pods leave has rested so long already.
    pub fn start_ahead(&self, node: usize, conf: WeftdConf, seconds: u64, init: bool) -> &Weftd {
        let seconds = seconds.to_string();
        self.start_under(node, conf, &["unshare", "--time", "--boottime", &seconds], init)
    }

    fn start_under(&self, node: usize, conf: WeftdConf, wrap: &[&str], init: bool) -> &Weftd {
        let it = &self.nodes[node];
        let weftd = Weftd::new(&it.node, &self.lab.shared.dir, conf);
        weftd.start_under(wrap, if init { &["--init"] } else { &[] });
        assert!(it.weftd.set(weftd).is_ok(), "weftd of {} was started before", it.name());
        it.weftd()
    }

    /// Starts `weftd` on every node, all at once, and waits until pods can start on each.
    pub fn start_all(&self, network: &Network) {
        for node in 0..self.nodes.len() {
            self.start(node, network);
        }
        self.wait_ready();
    }

    /// Waits until pods can start on every node, and every node knows the others' blocks.
    pub fn wait_ready(&self) {
        self.nodes.iter().for_each(|node| node.weftd().wait_ready());
        self.nodes.iter().for_each(|node| node.weftd().wait_peers(self.nodes.len() - 1));
    }

    /// Starts a pod on a node.
    pub fn pod(&self, node: usize, name: &str) -> ClusterPod {
        self.try_pod(node, name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a pod on a node; the plugin's sentence if it refuses.
    pub fn try_pod(&self, node: usize, name: &str) -> Result<ClusterPod, String> {
        ClusterPod::start(&self.nodes[node].node, name)
    }

    /// Panics if two pods of the cluster have one address, or two nodes give from one block.
    #[track_caller]
    pub fn assert_nothing_given_twice(&self) {
        let twice = doubly_given(self.nodes.iter().map(|node| &node.node));
        assert!(twice.is_empty(), "given twice:\n{}", twice.join("\n"));
    }

    /// Waits until the record of every node in the store says what the node itself says.
    #[track_caller]
    pub fn assert_records_agree(&self, limit: Duration) {
        let mut last = String::new();
        let agreed = crate::wait::poll(limit, || {
            let odd = self.nodes.iter().find_map(|node| self.disagreement(node));
            last = odd.clone().unwrap_or_default();
            odd.is_none().then_some(())
        });
        assert!(agreed.is_some(), "after {limit:?}: {last}");
    }

    fn disagreement(&self, node: &ClusterNode) -> Option<String> {
        let names = |blocks: &serde_json::Value| -> std::collections::BTreeSet<String> {
            let blocks = blocks.as_array().into_iter().flatten();
            blocks.filter_map(|block| block["cidr"].as_str().map(str::to_owned)).collect()
        };
        let record = self.etcd.get(&format!("/weft/v1/n/{}", node.name()))?.json();
        let status = node.weftd().try_status()?;
        let (stored, own) = (names(&record["blocks"]), names(&status["blocks"]));
        let giving = blocks_giving(&node.node);
        let outside = giving.iter().find(|block| !stored.contains(*block));
        if let Some(block) = outside {
            return Some(format!(
                "{} gives from {block}, which its record does not have: {record}",
                node.name()
            ));
        }
        (stored != own).then(|| format!("{} says {own:?}, its record {stored:?}", node.name()))
    }

    /// A pod on each node, started at once.
    pub fn pod_on_each(&self, name: &str) -> Vec<ClusterPod> {
        let start = |node: usize| self.pod(node, &format!("{name}{node}"));
        std::thread::scope(|scope| {
            let started: Vec<_> =
                (0..self.nodes.len()).map(|node| scope.spawn(move || start(node))).collect();
            started
                .into_iter()
                .map(|pod| pod.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        })
    }

    /// Whether the underlay has IPv4.
    pub fn underlay(&self) -> Underlay {
        self.layout.underlay
    }

    /// Waits until every pod reaches every other under its own address; panics with what did not.
    #[track_caller]
    pub fn assert_all_reach_all(&self, pods: &[ClusterPod]) {
        let pods: Vec<&ClusterPod> = pods.iter().collect();
        assert_all_reach_all(&pods);
    }
}
