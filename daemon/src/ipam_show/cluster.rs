//! `weftd ipam show --cluster`: what each node last told the store about the addresses of its blocks.

use std::net::IpAddr;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::FORMAT;
use super::print::columns;
use crate::cli::Output;
use crate::cluster::NodeRecord;
use crate::command::{Failure, Verdict, block_on, print, store};
use crate::conf::load::{Given, load};
use crate::mirror::{USES, UseRecord, count, ranges};
use crate::store::{KeyValue, NODES};

/// One block of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    node: String,
    block: String,
    /// `None`: the node has not told.
    ranges: Option<Vec<(IpAddr, IpAddr)>>,
    /// When it told, in seconds since 1970.
    at: Option<u64>,
}

/// Shows it.
///
/// # Errors
/// When the store does not answer.
pub fn run(given: &Given, output: Output) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let (nodes, uses) = block_on(async {
        let store = store::open(&conf)?;
        Ok((store::list(store.as_ref(), NODES).await?, store::list(store.as_ref(), USES).await?))
    })?;
    let rows = rows(&nodes.items, &uses.items);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match output {
        Output::Table => print(&table(&rows, now))?,
        Output::Json => print(&format!("{:#}\n", to_value(&rows)))?,
    }
    Ok(Verdict::Fine)
}

/// Blocks by the records of their nodes; what is told of another block is old, and left out.
fn rows(nodes: &[KeyValue], uses: &[KeyValue]) -> Vec<Row> {
    let told = |name: &str| {
        let of_node = |item: &&KeyValue| item.key.strip_prefix(USES) == Some(name);
        uses.iter().find(of_node).and_then(|item| UseRecord::parse(&item.value))
    };
    let mut rows = Vec::new();
    for record in nodes.iter().filter_map(|item| NodeRecord::parse(&item.key, &item.value).ok()) {
        let told = told(&record.name);
        for held in &record.blocks {
            let places = told.as_ref().and_then(|told| told.blocks.get(&held.cidr));
            rows.push(Row {
                node: record.name.to_string(),
                block: held.cidr.to_string(),
                ranges: places.map(|places| ranges(&held.cidr, places)),
                at: places.and(told.as_ref()).map(|told| told.at),
            });
        }
    }
    rows
}

fn table(rows: &[Row], now: u64) -> String {
    if rows.is_empty() {
        return "No node of the cluster holds a block.\n".to_owned();
    }
    let cells = |row: &Row| {
        let used = row.ranges.as_ref().map(|ranges| count(ranges).to_string());
        let age = row.at.map(|at| format!("{} s ago", now.saturating_sub(at)));
        let ranges = row.ranges.iter().flatten().map(range).collect::<Vec<_>>().join(",");
        [row.node.clone(), row.block.clone(), used.unwrap_or_default(), age.unwrap_or_default(), ranges]
    };
    columns(["NODE", "BLOCK", "USED", "TOLD", "ADDRESSES"], rows.iter().map(cells))
}

fn range((first, last): &(IpAddr, IpAddr)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn to_value(rows: &[Row]) -> Value {
    let row = |row: &Row| {
        json!({
            "node": row.node,
            "block": row.block,
            "used": row.ranges.as_ref().map(|ranges| u64::try_from(count(ranges)).unwrap_or(u64::MAX)),
            "at": row.at,
            "addresses": row.ranges.as_ref().map(|ranges| ranges.iter().map(range).collect::<Vec<_>>()),
        })
    };
    json!({ "format": FORMAT, "blocks": rows.iter().map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, value: &str) -> KeyValue {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        KeyValue { key, value, mod_revision: 1, create_revision: 1, lease: 0 }
    }

    #[test]
    fn each_block_is_shown_with_what_its_node_told_or_did_not() {
        let node = |name: &str, blocks: &str| {
            item(
                &format!("n/{name}"),
                &format!(
                    r#"{{"format":1,"name":"{name}","instance":"i","epoch":1,"serial":4,"state":"active","version":"0.1.0",
                    "addresses":[],"blocks":[{blocks}],"session":"s"}}"#
                ),
            )
        };
        let nodes = [
            node("a", r#"{"cidr":"10.1.0.0/26","epoch":7},{"cidr":"10.1.0.64/26","epoch":8}"#),
            node("b", r#"{"cidr":"10.1.1.0/26","epoch":7}"#),
        ];
        let uses = [
            item("use/a", r#"{"format":1,"at":100,"blocks":{"10.1.0.0/26":"1-3,9","10.9.0.0/26":"1"}}"#),
            item("use/b", "nonsense"),
        ];
        let rows = rows(&nodes, &uses);
        assert_eq!(
            table(&rows, 160),
            "\
NODE  BLOCK         USED  TOLD      ADDRESSES
a     10.1.0.0/26   4     60 s ago  10.1.0.1-10.1.0.3,10.1.0.9
a     10.1.0.64/26  -     -         -
b     10.1.1.0/26   -     -         -
"
        );
        let json = to_value(&rows);
        assert_eq!(json["blocks"][0]["used"], 4);
        assert_eq!(json["blocks"][2]["used"], Value::Null);
    }
}
