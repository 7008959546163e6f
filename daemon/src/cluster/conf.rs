//! The cluster's configuration: who may create and change it, and what is wrong with it. Every problem is reported.

use std::fmt;

use weft_cni::ip::Subnet;
use weft_overlay::wanted::{Backend, Direct, VXLAN_PORT};

use super::blocks::MAX_BLOCK_BITS;
use super::record::Network;

/// What one node's own file, or a command, says about the cluster. What is `None` is not disagreed with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `network.cidrs`
    pub cidrs: Option<Vec<Subnet>>,
    /// `network.block_size_v4`
    pub block_size_v4: Option<u8>,
    /// `network.block_size_v6`
    pub block_size_v6: Option<u8>,
    /// `network.backend`: whether it is VXLAN, else plain routes.
    pub vxlan: Option<bool>,
    /// `vxlan.vni`
    pub vni: Option<u32>,
    /// `vxlan.port`
    pub port: Option<u16>,
    /// `network.direct`
    pub direct: Option<Direct>,
    /// `network.masquerade`
    pub masquerade: Option<bool>,
    /// `network.no_masquerade`
    pub no_masquerade: Option<Vec<Subnet>>,
    /// `network.reissue_after`, in seconds.
    pub reissue_after: Option<u64>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// As in weftd.toml: `network.cidrs`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

fn problem(key: &'static str, problem: impl Into<String>) -> Problem {
    Problem { key, problem: problem.into() }
}

/// The configuration of a new cluster.
///
/// # Errors
/// All that is wrong with it.
pub fn create(asked: &Asked) -> Result<Network, Vec<Problem>> {
    let network = apply(&Network::default(), asked);
    let problems = problems(&network);
    if problems.is_empty() { Ok(network) } else { Err(problems) }
}

/// The configuration after a change. Networks only grow and sizes of blocks stay: addresses in use depend on them.
///
/// # Errors
/// All that is wrong with the change.
pub fn change(current: &Network, asked: &Asked) -> Result<Network, Vec<Problem>> {
    let network = apply(current, asked);
    let mut problems = problems(&network);
    for old in &current.cidrs {
        let kept = |new: &Subnet| new.contains(old.addr()) && new.prefix_len() <= old.prefix_len();
        if !network.cidrs.iter().any(kept) {
            problems.push(problem(
                "network.cidrs",
                format!("{old} is missing: nodes hold blocks of it; networks can be added, not taken away"),
            ));
        }
    }
    for (key, ipv4) in [("network.block_size_v4", true), ("network.block_size_v6", false)] {
        let (old, new) = (current.sizes().of(ipv4), network.sizes().of(ipv4));
        if old != new && current.families().any(|family| family == ipv4) {
            problems.push(problem(key, format!("{new} is not {old}, and the size of blocks never changes")));
        }
    }
    if network.reissue_after < current.reissue_after {
        let (old, new) = (current.reissue_after, network.reissue_after);
        problems.push(problem(
            "network.reissue_after",
            format!("{new} s is less than {old} s, which nodes that are cut off rely on; it can only grow"),
        ));
    }
    if problems.is_empty() { Ok(network) } else { Err(problems) }
}

fn apply(base: &Network, asked: &Asked) -> Network {
    let mut network = base.clone();
    let (mut vni, mut port) = match base.backend {
        Backend::Vxlan { vni, port } => (vni, port),
        Backend::Routes => (1, VXLAN_PORT),
    };
    vni = asked.vni.unwrap_or(vni);
    port = asked.port.unwrap_or(port);
    let vxlan = asked.vxlan.unwrap_or(matches!(base.backend, Backend::Vxlan { .. }));
    network.backend = if vxlan { Backend::Vxlan { vni, port } } else { Backend::Routes };
    take(&mut network.cidrs, asked.cidrs.as_ref());
    take(&mut network.block_size_v4, asked.block_size_v4.as_ref());
    take(&mut network.block_size_v6, asked.block_size_v6.as_ref());
    take(&mut network.direct, asked.direct.as_ref());
    take(&mut network.masquerade, asked.masquerade.as_ref());
    take(&mut network.no_masquerade, asked.no_masquerade.as_ref());
    take(&mut network.reissue_after, asked.reissue_after.as_ref());
    network
}

fn take<T: Clone>(field: &mut T, asked: Option<&T>) {
    if let Some(asked) = asked {
        field.clone_from(asked);
    }
}

/// All that is wrong with a configuration in itself.
pub fn problems(network: &Network) -> Vec<Problem> {
    let mut found = Vec::new();
    if network.cidrs.is_empty() {
        found.push(problem("network.cidrs", "empty: say which networks pods get addresses from"));
    }
    for (index, cidr) in network.cidrs.iter().enumerate() {
        for other in network.cidrs.iter().skip(index + 1).filter(|other| other.overlaps(cidr)) {
            found.push(problem("network.cidrs", format!("{other} overlaps with {cidr}")));
        }
        let first = cidr.addr();
        if first.is_loopback() || first.is_multicast() || (first.is_unspecified() && cidr.prefix_len() > 0) {
            found.push(problem("network.cidrs", format!("pods cannot have addresses of {cidr}")));
        }
    }
    found.extend(size_problems(network));
    if let Backend::Vxlan { vni, port } = network.backend {
        if vni == 0 || vni >= 1 << 24 {
            found.push(problem("vxlan.vni", format!("{vni} is not between 1 and 16777215")));
        }
        if port == 0 {
            found.push(problem("vxlan.port", "0 is no port"));
        }
    }
    if network.reissue_after < 60 {
        let given = network.reissue_after;
        found.push(problem("network.reissue_after", format!("{given} s is less than a minute")));
    }
    found
}

fn size_problems(network: &Network) -> Vec<Problem> {
    let mut found = Vec::new();
    for (key, ipv4, max) in [("network.block_size_v4", true, 30), ("network.block_size_v6", false, 126)] {
        let size = network.sizes().of(ipv4);
        if size > max {
            found.push(problem(key, format!("/{size} is too small a block; the smallest is /{max}")));
        }
        if size < max.saturating_sub(MAX_BLOCK_BITS) && !ipv4 {
            found.push(problem(key, format!("/{size} is too large a block; the largest is /{}", max - 32)));
        }
        for cidr in network.cidrs.iter().filter(|cidr| cidr.is_ipv4() == ipv4) {
            if size < cidr.prefix_len() {
                found.push(problem(key, format!("a block of /{size} does not fit into {cidr}")));
            }
        }
    }
    found
}

/// Each point in which a node's own file is not what the cluster has.
pub fn differences(asked: &Asked, network: &Network) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut compare = |key: &'static str, asked: Option<String>, has: String| {
        if let Some(asked) = asked.filter(|asked| *asked != has) {
            found.push(problem(key, format!("this node's file says {asked}, the cluster has {has}")));
        }
    };
    let sorted = |list: &[Subnet]| {
        let mut words: Vec<String> = list.iter().map(Subnet::to_string).collect();
        words.sort();
        format!("[{}]", words.join(", "))
    };
    let (vxlan, vni, port) = match network.backend {
        Backend::Vxlan { vni, port } => (true, Some(vni), Some(port)),
        Backend::Routes => (false, None, None),
    };
    let backend = |vxlan: bool| if vxlan { "vxlan" } else { "routes" }.to_owned();
    let direct = |direct: Direct| match direct {
        Direct::Never => "never".to_owned(),
        Direct::SameSubnet => "same-subnet".to_owned(),
    };
    compare("network.cidrs", asked.cidrs.as_deref().map(sorted), sorted(&network.cidrs));
    let text = |value: &u8| value.to_string();
    compare("network.block_size_v4", asked.block_size_v4.as_ref().map(text), text(&network.block_size_v4));
    compare("network.block_size_v6", asked.block_size_v6.as_ref().map(text), text(&network.block_size_v6));
    compare("network.backend", asked.vxlan.map(backend), backend(vxlan));
    if let (Some(vni), Some(port)) = (vni, port) {
        compare("vxlan.vni", asked.vni.map(|vni| vni.to_string()), vni.to_string());
        compare("vxlan.port", asked.port.map(|port| port.to_string()), port.to_string());
    }
    compare("network.direct", asked.direct.map(direct), direct(network.direct));
    compare("network.masquerade", asked.masquerade.map(|on| on.to_string()), network.masquerade.to_string());
    compare(
        "network.no_masquerade",
        asked.no_masquerade.as_deref().map(sorted),
        sorted(&network.no_masquerade),
    );
    let seconds = asked.reissue_after.map(|seconds| seconds.to_string());
    compare("network.reissue_after", seconds, network.reissue_after.to_string());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(cidrs: &[&str]) -> Asked {
        Asked { cidrs: Some(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()), ..Asked::default() }
    }

    fn keys(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.key).collect()
    }

    #[test]
    fn all_problems_are_said_at_once() {
        let mut bad = asked(&["10.0.0.0/16", "10.0.1.0/24", "127.0.0.0/8", "fd00::/124"]);
        bad.block_size_v4 = Some(31);
        bad.vni = Some(1 << 24);
        let problems = create(&bad).unwrap_err();
        assert_eq!(
            keys(&problems),
            ["network.cidrs", "network.cidrs", "network.block_size_v4", "network.block_size_v6", "vxlan.vni"]
        );
        assert_eq!(keys(&create(&Asked::default()).unwrap_err()), ["network.cidrs"]);
    }

    #[test]
    fn networks_only_grow_and_blocks_keep_their_size() {
        let current = create(&asked(&["10.0.0.0/16", "fd00::/64"])).unwrap();
        for good in [&["10.0.0.0/15", "fd00::/64"][..], &["fd00::/64", "10.0.0.0/16", "10.9.0.0/16"]] {
            change(&current, &asked(good)).unwrap();
        }
        let mut bad = asked(&["10.0.0.0/17"]);
        bad.block_size_v4 = Some(25);
        bad.reissue_after = Some(3600);
        let problems = change(&current, &bad).unwrap_err();
        let expected = ["network.cidrs", "network.cidrs", "network.block_size_v4", "network.reissue_after"];
        assert_eq!(keys(&problems), expected);
        assert!(problems[0].problem.contains("10.0.0.0/16 is missing"), "{problems:?}");
    }

    #[test]
    fn a_file_that_says_nothing_obeys_and_one_that_differs_is_told_each_point() {
        let network = create(&asked(&["10.0.0.0/16", "10.2.0.0/16"])).unwrap();
        assert_eq!(differences(&Asked::default(), &network), []);
        assert_eq!(differences(&asked(&["10.2.0.0/16", "10.0.0.0/16"]), &network), [], "order means nothing");
        let mut other = asked(&["10.0.0.0/16"]);
        other.vxlan = Some(false);
        other.masquerade = Some(false);
        other.port = Some(8472);
        let problems = differences(&other, &network);
        assert_eq!(keys(&problems), ["network.cidrs", "network.backend", "vxlan.port", "network.masquerade"]);
        assert_eq!(
            problems[1].to_string(),
            "network.backend: this node's file says routes, the cluster has vxlan"
        );
    }

    #[test]
    fn an_unknown_field_outlives_a_change() {
        let mut current = create(&asked(&["10.0.0.0/16"])).unwrap();
        current.unknown.insert("colour".to_owned(), "red".into());
        let changed = change(&current, &Asked { masquerade: Some(false), ..Asked::default() }).unwrap();
        assert_eq!(changed.unknown["colour"], "red");
    }
}
