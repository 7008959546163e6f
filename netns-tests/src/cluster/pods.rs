//! Pods of a cluster, by the real plugin through the conflist that `weftd` installed; and who reaches whom.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::Value;

use super::PATIENCE;
use crate::chain::Chain;
use crate::inside::{Inside, Place};
use crate::node::Node;
use crate::pod::Pod;
use crate::require::weft_bin_dir;
use crate::seen::Listener;
use crate::wait::poll;

/// Where each pod tells callers the address that it sees.
const PORT: u16 = 7;
const CONFLIST: &str = "/etc/cni/net.d/10-weft.conflist";

/// A running pod.
#[derive(Debug)]
pub struct ClusterPod {
    /// What the runtime made.
    pub pod: Pod,
    /// The node that it runs on.
    pub node: Node,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// What ADD answered.
    pub result: Value,
    chain: Arc<Chain>,
    _listener: Listener,
}

impl Inside for ClusterPod {
    fn place(&self) -> &Place {
        self.pod.place()
    }
}

/// One that does not reach another as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached(pub String);

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ClusterPod {
    pub(super) fn start(node: &Node, name: &str) -> Result<Self, String> {
        let chain = Arc::new(chain(node)?);
        let pod = node.pod(name);
        let result = chain.add(&pod).map_err(|failure| failure.to_string())?;
        let ips = result["ips"].as_array().into_iter().flatten();
        let ips = ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect();
        let listener = pod.listen(PORT);
        Ok(Self { pod, node: node.clone(), ips, result, chain, _listener: listener })
    }

    /// Its address of the same family as `like`.
    pub fn ip_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4())
    }

    /// Its first address.
    pub fn ip(&self) -> IpAddr {
        *self.ips.first().expect("a pod has an address")
    }

    /// DEL, as the runtime does it; panics with the plugin's sentence if it fails.
    pub fn stop(&self) {
        self.chain.del(&self.pod).unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// CHECK.
    ///
    /// # Errors
    /// The plugin's sentence.
    pub fn check(&self) -> Result<(), String> {
        self.chain.check(&self.pod).map_err(|failure| failure.to_string())
    }

    /// Where another one can ask [`Inside::seen_by`] it.
    pub fn server(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, PORT)
    }
}

/// The network that the runtime of a node would use, with the programs under test.
///
/// # Errors
/// When there is none, or none that can be read.
pub fn chain(node: &Node) -> Result<Chain, String> {
    Ok(node.chain(&conflist(node)?, [weft_bin_dir()]))
}

/// The same with the programs of a folder of the node.
///
/// # Errors
/// As [`chain`].
pub fn chain_from(node: &Node, dir: &str) -> Result<Chain, String> {
    Ok(node.chain(&conflist(node)?, [node.path(dir)]))
}

fn conflist(node: &Node) -> Result<Value, String> {
    let text = std::fs::read_to_string(node.path(CONFLIST))
        .map_err(|error| format!("the network of {} is not there: {error}", node.name()))?;
    let mut conflist: Value =
        serde_json::from_str(&text).map_err(|error| format!("the conflist: {error}"))?;
    // A runtime of today picks the newest that it knows.
    if let Some(Value::Array(versions)) = conflist.get("cniVersions").cloned() {
        conflist["cniVersion"] = versions.last().cloned().unwrap_or_default();
    }
    Ok(conflist)
}

/// STATUS as the runtime of a node asks it.
///
/// # Errors
/// The plugin's sentence.
pub fn status(node: &Node) -> Result<(), String> {
    chain(node)?.status().map_err(|failure| failure.to_string())
}

/// Who does not reach whom, by echo request and by TCP, or is seen under another address than its own.
pub fn unreached(pods: &[&ClusterPod]) -> Vec<Unreached> {
    std::thread::scope(|scope| {
        let from = |from: &'_ ClusterPod| {
            let others = pods.iter().filter(|to| to.pod.netns_path() != from.pod.netns_path());
            others
                .flat_map(|to| to.ips.iter().filter_map(|ip| reach(from, to, *ip).err()))
                .collect::<Vec<_>>()
        };
        let askers: Vec<_> = pods.iter().map(|pod| scope.spawn(move || from(pod))).collect();
        askers
            .into_iter()
            .flat_map(|asker| asker.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    })
}

fn reach(from: &ClusterPod, to: &ClusterPod, ip: IpAddr) -> Result<(), Unreached> {
    let name = |pod: &ClusterPod| pod.place().name.clone();
    let fail = |what: String| Err(Unreached(format!("{} → {} at {ip}: {what}", name(from), name(to))));
    if !from.ping(ip, 1) {
        return fail("no echo reply".to_owned());
    }
    match from.seen_by(to.server(ip)) {
        Ok(seen) if Some(seen) == from.ip_like(ip) => Ok(()),
        Ok(seen) => fail(format!("is seen as {seen}")),
        Err(error) => fail(error.to_string()),
    }
}

/// Waits until every pod reaches every other; panics with what did not.
#[track_caller]
pub fn assert_all_reach_all(pods: &[&ClusterPod]) {
    assert!(pods.len() > 1, "nobody to reach");
    let mut last = Vec::new();
    let reached = poll(PATIENCE, || {
        last = unreached(pods);
        last.is_empty().then_some(())
    });
    if reached.is_none() {
        let lines: Vec<String> = last.iter().map(ToString::to_string).collect();
        panic!("not every pod reaches every other:\n{}", lines.join("\n"));
    }
}
