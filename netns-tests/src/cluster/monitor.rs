//! Every change that the kernel reports while a test looks: `ip monitor all` and `nft monitor` of a node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::PATIENCE;
use super::proc::Process;
use crate::inside::Inside;
use crate::lab::Lab;
use crate::node::Node;
use crate::wait::wait_until;

/// A link and a table that say "everything before this has been reported".
const MARK: &str = "weftmark";

/// Records until it is asked.
#[derive(Debug)]
pub struct Monitor {
    node: Node,
    links: Process,
    rules: Process,
    marks: usize,
}

impl Monitor {
    /// Starts to record what changes on a node.
    pub fn start(lab: &Lab, node: &Node) -> Self {
        // A link-local address that is still being checked would be reported at the end of that.
        wait_until("the kernel has checked its own addresses", PATIENCE, || {
            node.run(["ip", "-o", "address", "show", "tentative"]).stdout.is_empty()
        });
        let file = |kind: &str| -> PathBuf {
            lab.shared.dir.join(format!("{}.monitor-{kind}-{}", node.name(), lab.shared.next()))
        };
        let mut links = node.command("ip");
        links.args(["monitor", "all"]);
        let mut rules = node.command("nft");
        rules.args(["monitor"]);
        let mut monitor = Self {
            node: node.clone(),
            links: Process::spawn(links, &file("ip")),
            rules: Process::spawn(rules, &file("nft")),
            marks: 0,
        };
        monitor.mark();
        monitor
    }

    /// What changed since the start, a line each. Left out is what the kernel does by itself where packets flow:
    /// states of neighbours that are not ours.
    pub fn events(&mut self) -> Vec<String> {
        self.mark();
        let links = self.links.log();
        let rules = self.rules.log();
        let marks = indexes_of_marks(&links);
        // Before `ip` has heard of a link's name, it calls it by its index.
        let of_a_mark =
            |line: &str| line.contains(MARK) || line.split_whitespace().any(|word| marks.contains(word));
        let links =
            links.lines().filter(|line| !of_a_mark(line) && !is_learning(line) && !line.starts_with(' '));
        let rules = rules.lines().filter(|line| !line.contains(MARK) && !by_the_mark(line));
        links.chain(rules).map(str::to_owned).collect()
    }

    /// Makes a change and waits until both programs have written it down.
    fn mark(&mut self) {
        self.marks += 1;
        let link = format!("{MARK}{}", self.marks);
        wait_until("ip monitor has reported everything", PATIENCE, || {
            self.node.run(["ip", "link", "add", &link, "type", "bridge"]);
            self.node.run(["ip", "link", "delete", &link]);
            reported(Duration::from_millis(500), || self.links.log().contains(&format!("{link}:")))
        });
        wait_until("nft monitor has reported everything", PATIENCE, || {
            self.node.run(["nft", "add", "table", "inet", &link]);
            self.node.run(["nft", "delete", "table", "inet", &link]);
            reported(Duration::from_millis(500), || {
                self.rules.log().contains(&format!("delete table inet {link}"))
            })
        });
    }
}

/// `if7` for each `[LINK]7: weftmark1: …`.
fn indexes_of_marks(log: &str) -> BTreeSet<String> {
    let named = log.lines().filter_map(|line| line.split_once(&format!(": {MARK}")));
    named
        .filter_map(|(before, _)| {
            Some(format!("if{}", before.rsplit(']').next()?.trim().trim_start_matches("Deleted ")))
        })
        .collect()
}

fn reported(limit: Duration, seen: impl Fn() -> bool) -> bool {
    crate::wait::poll(limit, || seen().then_some(())).is_some()
}

/// Neighbours that come, go and age with the traffic; those on the overlay's own device are `weftd`'s.
fn is_learning(line: &str) -> bool {
    let neighbour = line.contains("[NEIGH]") || line.contains(" lladdr ") || line.ends_with("FAILED");
    neighbour && !line.contains("weft-vx")
}

/// `# new generation 12 by process 345 (nft)`.
fn by_the_mark(line: &str) -> bool {
    line.starts_with("# new generation") && line.ends_with("(nft)")
}
