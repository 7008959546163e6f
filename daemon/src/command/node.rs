//! `weftd node ls|rm`: the cluster's nodes. Removing one is a tombstone, planned by the cluster's own rules.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::table::{or_dash, render};
use super::{Failure, Verdict, block_on, print, store};
use crate::cli::Output;
use crate::cluster::{NodeRecord, NodeState, Removal, node_key, plan_removal, removal_reads};
use crate::conf::load::{Given, load};
use crate::store::{KeyValue, NODES};

/// How often a removal is tried again that the node's own writes came before.
const ATTEMPTS: u32 = 5;
/// Sessions of nodes.
const SESSIONS: &str = "alive/";

/// How far the person goes.
#[derive(Clone, Copy, Debug)]
pub struct Force {
    /// `--force`.
    pub force: bool,
    /// `--destroyed`.
    pub destroyed: bool,
}

/// Lists the nodes.
pub fn ls(given: &Given, output: Output) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let (nodes, sessions) = block_on(async {
        let store = store::open(&conf)?;
        let nodes = store::list(store.as_ref(), NODES).await?;
        Ok((nodes, store::list(store.as_ref(), SESSIONS).await?))
    })?;
    let alive: BTreeSet<&str> =
        sessions.items.iter().filter_map(|session| session.key.strip_prefix(SESSIONS)).collect();
    let rows: Vec<Row> = nodes.items.iter().map(|item| Row::new(item, &alive)).collect();
    match output {
        Output::Table => print(&table(&rows))?,
        Output::Json => {
            let nodes: Vec<Value> = rows.iter().map(Row::to_value).collect();
            print(&format!("{:#}\n", json!({ "format": 1, "nodes": nodes })))?;
        }
    }
    let fine = rows.iter().all(|row| row.record.is_ok());
    Ok(if fine { Verdict::Fine } else { Verdict::FoundSomething })
}

struct Row {
    name: String,
    alive: bool,
    record: Result<NodeRecord, String>,
}

impl Row {
    fn new(item: &KeyValue, alive: &BTreeSet<&str>) -> Self {
        let name = item.key.strip_prefix(NODES).unwrap_or(&item.key).to_owned();
        let record = NodeRecord::parse(&item.key, &item.value).map_err(|garbage| garbage.to_string());
        Self { alive: alive.contains(name.as_str()), name, record }
    }

    fn state(&self) -> &'static str {
        match &self.record {
            Err(_) => "unreadable",
            Ok(record) if record.state == NodeState::Removed => {
                match record.removed.as_ref().is_some_and(|removed| removed.acknowledged) {
                    true => "removed, acknowledged",
                    false => "removed",
                }
            }
            Ok(_) if self.alive => "alive",
            Ok(_) => "silent",
        }
    }

    fn to_value(&self) -> Value {
        let mut value = json!({ "name": self.name, "state": self.state(), "alive": self.alive });
        match &self.record {
            Ok(record) => value["record"] = serde_json::to_value(record).unwrap_or_default(),
            Err(problem) => value["problem"] = problem.clone().into(),
        }
        value
    }
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let record = row.record.as_ref().ok();
            let join = |words: Vec<String>| or_dash(&words.join(", "));
            vec![
                row.name.clone(),
                row.state().to_owned(),
                join(record.iter().flat_map(|r| &r.addresses).map(ToString::to_string).collect()),
                join(record.iter().flat_map(|r| &r.blocks).map(|held| held.cidr.to_string()).collect()),
                or_dash(record.map_or("", |record| &record.version)),
            ]
        })
        .collect();
    let mut text = render(&["NODE", "STATE", "ADDRESSES", "BLOCKS", "VERSION"], &cells);
    for problem in rows.iter().filter_map(|row| row.record.as_ref().err()) {
        text.push_str(&format!("\n{problem}\n"));
    }
    text
}

/// Removes a node.
pub fn rm(given: &Given, name: &str, force: Force) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let removal = Removal { force: force.force, destroyed: force.destroyed };
    block_on(async {
        let store = store::open(&conf)?;
        for _ in 0..ATTEMPTS {
            // Its blocks are known from its record, and all must be of one revision.
            let first = store::read(store.as_ref(), removal_reads(name, None)).await?;
            let record =
                first.iter().find(|(key, _)| *key == node_key(name)).and_then(|(_, value)| value.as_ref());
            let read = store::read(store.as_ref(), removal_reads(name, record)).await?;
            let txn = plan_removal(name, &read, removal, SystemTime::now())
                .map_err(|refusal| Failure::refused(refusal.to_string()))?;
            if store::commit(store.as_ref(), txn).await? {
                print(&format!("{name} is removed{}\n", afterwards(removal)))?;
                return Ok(Verdict::Fine);
            }
        }
        Err(Failure::could_not_tell(format!("{name} writes its record at the same time; try again")))
    })
}

fn afterwards(removal: Removal) -> &'static str {
    if removal.destroyed {
        "; its blocks can be given to others at once"
    } else {
        "; its blocks are given to others once it has acknowledged, or after network.reissue_after"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, value: &str) -> KeyValue {
        let key = node_key(name);
        KeyValue { key, value: value.as_bytes().to_vec(), mod_revision: 1, create_revision: 1, lease: 0 }
    }

    const NODE: &str = r#"{"format":1,"name":"a","instance":"i","epoch":1,"serial":4,"state":"active","version":"0.1.0",
        "addresses":["192.0.2.1/24"],"blocks":[{"cidr":"10.1.0.0/26","epoch":7}],"session":"s"}"#;

    #[test]
    fn nodes_are_listed_with_what_is_odd_about_them() {
        let removed = NODE.replace("active", "removed").replace("\"a\"", "\"c\"");
        let alive = BTreeSet::from(["a"]);
        let rows = [
            Row::new(&item("a", NODE), &alive),
            Row::new(&item("b", "nonsense"), &alive),
            Row::new(&item("c", &removed), &alive),
            Row::new(&item("d", &NODE.replace("\"a\"", "\"d\"")), &alive),
        ];
        let states: Vec<&str> = rows.iter().map(Row::state).collect();
        assert_eq!(states, ["alive", "unreadable", "removed", "silent"]);
        let text = table(&rows);
        assert!(text.contains("a     alive       192.0.2.1/24  10.1.0.0/26  0.1.0"), "{text}");
        assert!(text.contains("n/b"), "{text}");
        assert_eq!(rows[0].to_value()["record"]["blocks"][0]["cidr"], "10.1.0.0/26");
    }
}
