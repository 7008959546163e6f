//! The cluster daemon's chains and their rules, each with the line of `nft` that it equals.

use crate::nft::Comparison::{Equal, NotEqual};
use crate::nft::Register::First;
use crate::nft::{BaseChain, Expression, Family, Header, Meta, RouteFact};

/// A chain and how its rules are made.
pub struct Chain {
    /// Where it hangs.
    pub base: BaseChain,
    /// Each makes one rule.
    pub rules: &'static [fn() -> Vec<Expression>],
}

/// All of them.
pub static CHAINS: [Chain; 3] = [
    Chain {
        // NF_INET_FORWARD, `mangle`: before anybody filters.
        base: BaseChain { name: "cluster-forward", kind: "filter", hook: 2, priority: -150 },
        rules: &[clamp_from_v4, clamp_to_v4, clamp_from_v6, clamp_to_v6, closed_v4, closed_v6],
    },
    Chain {
        // NF_INET_LOCAL_OUT, `filter`.
        base: BaseChain { name: "cluster-output", kind: "filter", hook: 3, priority: 0 },
        rules: &[no_redirect_v4, no_redirect_v6, closed_v4, closed_v6],
    },
    Chain {
        // NF_INET_POST_ROUTING, `srcnat`.
        base: BaseChain { name: "cluster-postrouting", kind: "nat", hook: 4, priority: 100 },
        rules: &[masquerade_v4, masquerade_v6],
    },
];

/// Source and destination in the header of each family, and its sets.
struct Version {
    family: Family,
    source: (u32, u32),
    destination: (u32, u32),
}

const V4: Version = Version { family: Family::Ipv4, source: (12, 4), destination: (16, 4) };
const V6: Version = Version { family: Family::Ipv6, source: (8, 16), destination: (24, 16) };

impl Version {
    fn is(&self) -> [Expression; 2] {
        [Expression::meta(Meta::Protocol, First), Expression::compare(First, Equal, &[self.family as u8])]
    }

    fn load((offset, length): (u32, u32)) -> Expression {
        Expression::payload(Header::Network, offset, length, First)
    }
}

/// `meta l4proto tcp tcp flags & (syn | rst) == syn … tcp option maxseg size set rt mtu`.
///
/// Both directions pass it, SYN and SYN-ACK, and both hops do.
fn clamp(version: &Version, field: (u32, u32), cluster: &str) -> Vec<Expression> {
    const FLAGS: u32 = 13;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    let [protocol, is_version] = version.is();
    vec![
        Expression::meta(Meta::Transport, First),
        Expression::compare(First, Equal, &[6]),
        Expression::payload(Header::Transport, FLAGS, 1, First),
        Expression::mask(First, [SYN | RST]),
        Expression::compare(First, Equal, &[SYN]),
        protocol,
        is_version,
        Version::load(field),
        Expression::member_of(cluster, First),
        Expression::route(RouteFact::SegmentSize, First),
        Expression::to_network_order(First),
        Expression::set_segment_size(First),
    ]
}

fn clamp_from_v4() -> Vec<Expression> {
    clamp(&V4, V4.source, "cluster4")
}

fn clamp_to_v4() -> Vec<Expression> {
    clamp(&V4, V4.destination, "cluster4")
}

fn clamp_from_v6() -> Vec<Expression> {
    clamp(&V6, V6.source, "cluster6")
}

fn clamp_to_v6() -> Vec<Expression> {
    clamp(&V6, V6.destination, "cluster6")
}

/// `oifname @cluster-outside ip daddr @cluster4 ip daddr != @cluster-unseen4 rt nexthop != @cluster-via4 counter
/// drop`: a block that no route of ours leads to never leaves the node, whatever became of the unreachable route.
fn closed(version: &Version, sets: [&str; 3], next_hop: RouteFact) -> Vec<Expression> {
    let [cluster, unseen, via] = sets;
    let [protocol, is_version] = version.is();
    vec![
        protocol,
        is_version,
        Version::load(version.destination),
        Expression::member_of(cluster, First),
        Expression::not_member_of(unseen, First),
        Expression::meta(Meta::OutputName, First),
        Expression::member_of("cluster-outside", First),
        Expression::route(next_hop, First),
        Expression::not_member_of(via, First),
        Expression::counter(),
        Expression::drop(),
    ]
}

fn closed_v4() -> Vec<Expression> {
    closed(&V4, ["cluster4", "cluster-unseen4", "cluster-via4"], RouteFact::NextHopV4)
}

fn closed_v6() -> Vec<Expression> {
    closed(&V6, ["cluster6", "cluster-unseen6", "cluster-via6"], RouteFact::NextHopV6)
}

/// `ip daddr @cluster4 meta l4proto icmp icmp type redirect drop`: a pod that follows one goes around its gateway,
/// connection tracking and Services.
fn no_redirect(version: &Version, cluster: &str, protocol: u8, redirect: u8) -> Vec<Expression> {
    let [load, is_version] = version.is();
    vec![
        load,
        is_version,
        Expression::meta(Meta::Transport, First),
        Expression::compare(First, Equal, &[protocol]),
        Version::load(version.destination),
        Expression::member_of(cluster, First),
        Expression::payload(Header::Transport, 0, 1, First),
        Expression::compare(First, Equal, &[redirect]),
        Expression::drop(),
    ]
}

fn no_redirect_v4() -> Vec<Expression> {
    no_redirect(&V4, "cluster4", 1, 5)
}

/// ND redirects: IPv6 has no setting against sending them.
fn no_redirect_v6() -> Vec<Expression> {
    no_redirect(&V6, "cluster6", 58, 137)
}

/// `ip saddr @cluster-masq4 ip daddr != @cluster4 ip daddr != @cluster-plain4 ip daddr != 224.0.0.0/4 masquerade
/// fully-random`.
fn masquerade(version: &Version, sets: [&str; 3], no_group: [Expression; 3]) -> Vec<Expression> {
    let [masq, cluster, plain] = sets;
    let [protocol, is_version] = version.is();
    let mut rule = vec![
        protocol,
        is_version,
        Version::load(version.source),
        Expression::member_of(masq, First),
        Version::load(version.destination),
        Expression::not_member_of(cluster, First),
        Expression::not_member_of(plain, First),
    ];
    rule.extend(no_group);
    rule.push(Expression::masquerade_fully_random());
    rule
}

fn masquerade_v4() -> Vec<Expression> {
    let no_group = [
        Expression::payload(Header::Network, 16, 4, First),
        Expression::mask(First, [240, 0, 0, 0]),
        Expression::compare(First, NotEqual, &[224, 0, 0, 0]),
    ];
    masquerade(&V4, ["cluster-masq4", "cluster4", "cluster-plain4"], no_group)
}

fn masquerade_v6() -> Vec<Expression> {
    let no_group = [
        Expression::payload(Header::Network, 24, 1, First),
        Expression::mask(First, [255]),
        Expression::compare(First, NotEqual, &[255]),
    ];
    masquerade(&V6, ["cluster-masq6", "cluster6", "cluster-plain6"], no_group)
}

/// The comments that a chain's rules should have.
pub fn comments(chain: &Chain) -> Vec<String> {
    chain.rules.iter().map(|rule| comment(&rule())).collect()
}

/// FNV-1a of a rule's encoding: it is to be compared, not to resist anybody.
pub fn comment(rule: &[Expression]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in rule.iter().flat_map(|expression| expression.as_bytes().iter()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("weft {hash:016x}")
}
