//! `foreign_forward = "iptables"`: the pods' networks are accepted in a foreign FORWARD chain whose policy is DROP. The one
//! thing that Weft does by another program, since the chain is another program's: what `iptables` itself put there, its next
//! restore and its next reader understand.

mod programs;

use std::collections::BTreeSet;

use weft_cni::ip::Subnet;
use weft_netlink::rules::{self, ForwardChain, Tool, WEFT_COMMENT};
use weft_netlink::{Protocol, Socket};

pub use programs::Programs;

use crate::conf::ForeignForward;

/// Which packets a rule accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    From,
    To,
}

/// One rule of ours in a foreign chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    side: Side,
    cidr: Subnet,
}

impl Rule {
    /// As `iptables` takes it, and lists it.
    fn words(self) -> Vec<String> {
        let side = if self.side == Side::From { "-s" } else { "-d" };
        let cidr = self.cidr.to_string();
        [side, &cidr, "-m", "comment", "--comment", WEFT_COMMENT, "-j", "ACCEPT"].map(str::to_owned).to_vec()
    }
}

/// What is to be done to a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Insert(Rule),
    /// The words behind `-A FORWARD` of its listing.
    Delete(Vec<String>),
}

/// Whether something is to be done about these chains.
pub fn is_due(mode: ForeignForward, cidrs: &[Subnet], chains: &[ForwardChain]) -> bool {
    chains.iter().filter(|chain| chain.tool != Tool::Nft).any(|chain| {
        let wanted = wanted(mode, cidrs, chain).map(|rules| rules.len());
        wanted.is_some_and(|wanted| wanted != chain.tagged)
    })
}

/// The rules that a chain should have of ours; `None`: as it is. One that does not drop needs none, and loses none either:
/// firewalls are opened and closed again while they are set up.
fn wanted(mode: ForeignForward, cidrs: &[Subnet], chain: &ForwardChain) -> Option<BTreeSet<Rule>> {
    match mode {
        ForeignForward::Report => Some(BTreeSet::new()),
        ForeignForward::Iptables if !chain.drops => None,
        ForeignForward::Iptables => {
            let of_family = cidrs.iter().filter(|cidr| cidr.is_ipv4() == is_ipv4(chain));
            Some(of_family.flat_map(|&cidr| [Side::From, Side::To].map(|side| Rule { side, cidr })).collect())
        }
    }
}

fn is_ipv4(chain: &ForwardChain) -> bool {
    chain.family == "ip"
}

/// From what `iptables -S FORWARD` lists to what is to be done.
fn plan(wanted: &BTreeSet<Rule>, listing: &str) -> Vec<Job> {
    let mut missing = wanted.clone();
    let mut jobs = Vec::new();
    for line in listing.lines() {
        let words: Vec<String> =
            line.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
        let Some(rule) = words.strip_prefix(&["-A".to_owned(), "FORWARD".to_owned()]) else { continue };
        if !rule.windows(2).any(|pair| pair == ["--comment", WEFT_COMMENT]) {
            continue;
        }
        let ours = missing.iter().find(|missing| missing.words() == rule).copied();
        match ours {
            Some(ours) => drop(missing.remove(&ours)),
            None => jobs.push(Job::Delete(rule.to_vec())),
        }
    }
    jobs.extend(missing.into_iter().map(Job::Insert));
    jobs
}

/// Brings foreign chains to what is wanted; returns how many rules were changed. Takes as long as the programs do: not for
/// the loop itself.
///
/// # Errors
/// What could not be done, a sentence each.
pub fn apply(mode: ForeignForward, cidrs: &[Subnet], chains: &[ForwardChain]) -> Result<usize, String> {
    let programs = Programs::of_host();
    let (mut changed, mut problems) = (0, Vec::new());
    for chain in chains {
        let Some(wanted) = wanted(mode, cidrs, chain).filter(|_| chain.tool != Tool::Nft) else { continue };
        if wanted.is_empty() && chain.tagged == 0 {
            continue;
        }
        match in_chain(&programs, chain, &wanted) {
            Ok(rules) => changed += rules,
            Err(problem) => problems.push(format!("the chain {}: {problem}", chain.describe())),
        }
    }
    if problems.is_empty() { Ok(changed) } else { Err(problems.join("; ")) }
}

fn in_chain(programs: &Programs, chain: &ForwardChain, wanted: &BTreeSet<Rule>) -> Result<usize, String> {
    let program = programs.find(chain.tool, is_ipv4(chain))?;
    let mut changed = 0;
    for job in plan(wanted, &program.run(&["-S", "FORWARD"])?) {
        match job {
            Job::Delete(words) => program.change("-D", &words)?,
            // Somebody may have put it there meanwhile, a second weftd that is about to end above all.
            Job::Insert(rule) if program.has(&rule.words())? => continue,
            Job::Insert(rule) => program.change("-I", &rule.words())?,
        }
        changed += 1;
    }
    Ok(changed)
}

/// Takes all rules of ours out of foreign chains; says whether there were any.
///
/// # Errors
/// A sentence.
pub fn remove() -> Result<bool, String> {
    let failed = |error: weft_netlink::Error| format!("read foreign forward chains: {error}");
    let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
    let chains = rules::forward_chains(&mut socket).map_err(failed)?;
    apply(ForeignForward::Report, &[], &chains).map(|changed| changed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
-P FORWARD DROP
-A FORWARD -d 10.244.0.0/16 -m comment --comment weft-pod-network -j ACCEPT
-A FORWARD -s 10.9.0.0/16 -m comment --comment \"weft-pod-network\" -j ACCEPT
-A FORWARD -d 10.244.0.0/16 -m comment --comment weft-pod-network -j ACCEPT
-A FORWARD -s 10.244.0.0/16 -m comment --comment mine -j ACCEPT
-A FORWARD -j DOCKER-USER
";

    fn chain(tool: Tool, drops: bool, tagged: usize) -> ForwardChain {
        let (table, name) = ("filter".to_owned(), "FORWARD".to_owned());
        ForwardChain { family: "ip", table, name, tool, drops, tagged, mentions_weft: tagged > 0 }
    }

    fn cidrs() -> Vec<Subnet> {
        ["10.244.0.0/16", "fd00:244::/104"].map(|cidr| cidr.parse().unwrap()).to_vec()
    }

    #[test]
    fn what_is_missing_comes_and_what_is_stale_or_double_goes_but_nothing_of_others() {
        let wanted = wanted(ForeignForward::Iptables, &cidrs(), &chain(Tool::IptablesNft, true, 3)).unwrap();
        let delete = |rule: &str| Job::Delete(rule.split(' ').map(str::to_owned).collect());
        let jobs = plan(&wanted, LISTING);
        assert_eq!(
            jobs,
            [
                delete("-s 10.9.0.0/16 -m comment --comment weft-pod-network -j ACCEPT"),
                delete("-d 10.244.0.0/16 -m comment --comment weft-pod-network -j ACCEPT"),
                Job::Insert(Rule { side: Side::From, cidr: cidrs()[0] }),
            ]
        );
        assert_eq!(plan(&BTreeSet::new(), LISTING).len(), 3, "with \"report\" all of ours go");
    }

    #[test]
    fn only_a_dropping_chain_of_iptables_without_all_rules_is_due() {
        let due = |mode, chain| is_due(mode, &cidrs(), &[chain]);
        let (report, iptables) = (ForeignForward::Report, ForeignForward::Iptables);
        assert!(due(iptables, chain(Tool::IptablesNft, true, 0)));
        assert!(due(iptables, chain(Tool::IptablesLegacy, true, 1)));
        assert!(!due(iptables, chain(Tool::IptablesLegacy, true, 2)));
        assert!(!due(iptables, chain(Tool::IptablesNft, false, 0)));
        assert!(!due(iptables, chain(Tool::IptablesNft, false, 2)));
        assert!(!due(iptables, chain(Tool::Nft, true, 0)));
        assert!(due(report, chain(Tool::IptablesNft, false, 2)));
        assert!(!due(report, chain(Tool::IptablesNft, true, 0)));
    }
}
