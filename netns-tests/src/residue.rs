//! What is left on a node: a snapshot of everything an attachment could leave behind, and the
//! difference between two of them.

mod facts;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::node::Node;
use crate::wait::poll;
use facts::{Fact, Kind};

/// Longer than a detached deletion takes, shorter than a person's patience.
const SETTLE: Duration = Duration::from_secs(3);

/// A snapshot of a node.
///
/// Links with alias and master, addresses, routes of all tables, rules, seeded neighbours and FDB
/// entries, qdiscs, the nft ruleset without handles and
/// counters, iptables, sysctls of `all`, `default` and each link, state files, processes. Left out is
/// what the kernel does by itself at a time of its own: learning, link-local and multicast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue {
    facts: BTreeSet<Fact>,
}

/// What may differ between two snapshots. Empty by default.
#[derive(Clone, Debug, Default)]
pub struct Allow {
    links: Vec<String>,
    tables: Vec<String>,
    paths: Vec<String>,
    texts: Vec<String>,
    forwarding: bool,
    processes: bool,
}

impl Residue {
    /// Takes a snapshot. Of the files below `/run/weft` only those count that hold an attachment:
    /// in `owner/`, `record/`, `pool/`, `block/`, and temporary ones anywhere.
    pub fn take(node: &Node) -> Self {
        Self { facts: facts::collect(node) }
    }

    /// Panics with a readable difference unless `after` is the same as this, but for `allow`.
    #[track_caller]
    pub fn assert_same(&self, after: &Self, allow: &Allow) {
        let difference = self.difference(after, allow);
        assert!(difference.is_empty(), "the node is not as it was:\n{}", difference.join("\n"));
    }

    /// [`Residue::assert_same`] for work that goes on in the background: takes snapshots of `node`
    /// until one is the same, at most for three seconds.
    #[track_caller]
    pub fn assert_settles(&self, node: &Node, allow: &Allow) {
        let left = self.settle(node, allow);
        assert!(left.is_empty(), "the node is not as it was:\n{}", left.join("\n"));
    }

    /// What still differs after three seconds; nothing, as soon as nothing does.
    pub fn settle(&self, node: &Node, allow: &Allow) -> Vec<String> {
        let same = || self.difference(&Self::take(node), allow).is_empty().then_some(());
        match poll(SETTLE, same) {
            Some(()) => Vec::new(),
            None => self.difference(&Self::take(node), allow),
        }
    }

    /// The lines that differ: `+` is new in `after`, `-` is gone (for processes only `+`).
    pub fn difference(&self, after: &Self, allow: &Allow) -> Vec<String> {
        let wanted = |fact: &&Fact| !allow.covers(fact);
        // A process that ended is nothing left behind: often the detached child of an earlier DEL.
        let gone = self.facts.difference(&after.facts).filter(|fact| fact.kind != Kind::Process);
        let gone = gone.filter(wanted).map(|fact| format!("- {fact}"));
        let new = after.facts.difference(&self.facts).filter(wanted).map(|fact| format!("+ {fact}"));
        gone.chain(new).collect()
    }

    /// Every line of the snapshot.
    pub fn lines(&self) -> Vec<String> {
        self.facts.iter().map(ToString::to_string).collect()
    }
}

impl Allow {
    /// Nothing may differ.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// A link may come or go with its addresses, sysctls, and what the kernel itself adds to it:
    /// for a bridge. Other routes, neighbours and FDB entries on it still count.
    #[must_use]
    pub fn link(mut self, name: &str) -> Self {
        self.links.push(name.to_owned());
        self
    }

    /// An nft table (`"inet weft"`) may come or go with its chains, rules and empty sets; an element
    /// in it still counts.
    #[must_use]
    pub fn table(mut self, name: &str) -> Self {
        self.tables.push(name.to_owned());
        self
    }

    /// Files below this path may come or go.
    #[must_use]
    pub fn path(mut self, prefix: &str) -> Self {
        self.paths.push(prefix.to_owned());
        self
    }

    /// Forwarding may be switched on, with the sysctls that follow it.
    #[must_use]
    pub fn forwarding(mut self) -> Self {
        self.forwarding = true;
        self
    }

    /// New processes may be there.
    #[must_use]
    pub fn processes(mut self) -> Self {
        self.processes = true;
        self
    }

    /// Whatever has this text in its line may differ.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.texts.push(text.to_owned());
        self
    }

    fn covers(&self, fact: &Fact) -> bool {
        let subject = |names: &[String]| names.contains(&fact.subject);
        let by_kind = match fact.kind {
            Kind::Link | Kind::Address | Kind::Qdisc => subject(&self.links),
            Kind::Route | Kind::Fdb => fact.by_kernel && subject(&self.links),
            Kind::Sysctl => subject(&self.links) || self.forwarding && is_forwarding(&fact.text),
            Kind::Nft => subject(&self.tables),
            Kind::File => self.paths.iter().any(|prefix| fact.text.starts_with(prefix.as_str())),
            Kind::Process => self.processes,
            Kind::Rule | Kind::Neighbour | Kind::Element | Kind::Iptables => false,
        };
        by_kind || self.texts.iter().any(|text| fact.to_string().contains(text))
    }
}

/// `accept_redirects` follows the kernel's own switch; `accept_ra` has to be 2 on a router.
fn is_forwarding(sysctl: &str) -> bool {
    ["forward", "accept_redirects", "accept_ra "].iter().any(|word| sysctl.contains(word))
}
