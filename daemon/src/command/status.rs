//! `weftd status`: what the running daemon says, or what its files say when it is away.

use std::time::{Duration, Instant};

use serde_json::Value;
use weft_ipam::ask::{Op, Weftd};
use weft_ipam::clock::Deadline;
use weft_ipam::{BlockUsage, HostKernel, State};

use super::table::{or_dash, render};
use super::{Failure, Verdict, print};
use crate::cli::Output;
use crate::cluster::COOLDOWN;
use crate::conf::Conf;
use crate::conf::load::{Given, load};
use crate::run::{Document, Notice, Places, memory, snapshot};

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The explanation below `--help`.
pub const HELP: &str = "\
The JSON form has these keys: format, daemon (running or away), version, node, instance, ready (pods can start), phase,
peers (how many other nodes there are), tombstones (how many were removed), in_sync (the kernel is as it should be),
store (with away: why it cannot be reached, and refuses: why it refuses this node), network, addresses,
node_addresses, blocks, cluster_blocks, data_plane, findings (each with code, subject, sentence, way_out).
Without a running weftd only what its files say is shown.

Exit code: 0 all is well, 1 something was found (each with what to do), 2 it could not be told.";

/// Shows it.
pub fn run(given: &Given, output: Output) -> Result<Verdict, Failure> {
    let deadline = Deadline::after(Instant::now(), LIMIT);
    let document = match Weftd::default().ask(Op::Status, deadline) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|error| Failure::could_not_tell(format!("weftd says what is no status: {error}")))?,
        Err(error) => {
            let hangs =
                Places::is_running().then(|| format!("it runs but does not answer: {}", error.details));
            from_disk(&load(given, false)?, hangs)?
        }
    };
    match output {
        Output::Table => print(&table(&document))?,
        Output::Json => print(&format!("{document:#}\n"))?,
    }
    let fine = document["findings"].as_array().is_some_and(Vec::is_empty);
    Ok(if fine { Verdict::Fine } else { Verdict::FoundSomething })
}

fn from_disk(conf: &Conf, hangs: Option<String>) -> Result<Value, Failure> {
    let sentence = match &hangs {
        Some(details) => format!("weftd hangs: {details}"),
        None => "weftd is not running; this is what its files say. Pods that run are not affected".to_owned(),
    };
    let finding = Notice {
        code: if hangs.is_some() { "daemon-hangs" } else { "daemon-away" }.to_owned(),
        subject: String::new(),
        sentence,
        way_out: "systemctl status weftd; journalctl -u weftd".to_owned(),
    };
    let mut kernel = HostKernel::default();
    let usage = State::open_existing(&mut kernel, Deadline::after(Instant::now(), LIMIT))
        .and_then(|state| state.map_or(Ok(Vec::new()), |state| state.block_usage(COOLDOWN.as_secs())));
    let usage: Vec<BlockUsage> = usage.map_err(|error| Failure::could_not_tell(error.to_string()))?;
    let document = Document::of_disk(conf, &remembered(conf), &usage, &[finding]);
    serde_json::from_str(&document.to_json()).map_err(|error| Failure::could_not_tell(error.to_string()))
}

/// What the data folder says; nothing where it cannot be read.
fn remembered(conf: &Conf) -> Value {
    let json = |path: std::path::PathBuf| -> Value {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    };
    let (memory, snapshot) = (json(memory(&conf.data_dir)), json(snapshot(&conf.data_dir)));
    let (peers, tombstones) = count_nodes(&snapshot);
    serde_json::json!({
        "network": snapshot["network"],
        "peers": peers,
        "tombstones": tombstones,
        "addresses": memory["record"]["addresses"],
        "instance": memory["record"]["instance"],
    })
}

/// The other nodes that a snapshot knows, and how many more were removed.
fn count_nodes(snapshot: &Value) -> (Option<usize>, Option<usize>) {
    let Some(nodes) = snapshot["nodes"].as_array() else { return (None, None) };
    let tombstones = nodes.iter().filter(|node| node[1]["state"] == "removed").count();
    (Some(nodes.len() - tombstones), Some(tombstones))
}

fn table(document: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(", "),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_)) => other.to_string(),
    };
    let store = &document["store"];
    let reached = match (&document["daemon"], &store["away"], &store["refuses"]) {
        (daemon, ..) if daemon != "running" => String::new(),
        (_, Value::String(reason), _) => format!("away: {reason}"),
        (_, _, Value::String(reason)) => format!("refuses this node: {reason}"),
        _ => format!("reached, revision {}", store["revision"]),
    };
    let removed = document["tombstones"].as_u64().filter(|count| *count > 0);
    let removed = removed.map(|count| format!(" ({count} more were removed)")).unwrap_or_default();
    let rows: Vec<Vec<String>> = [
        ("node", text(&document["node"])),
        ("weftd", format!("{} {}", text(&document["daemon"]), text(&document["version"]))),
        ("pods can start", text(&document["ready"])),
        ("store", format!("{} {}", text(&store["endpoints"]), reached)),
        ("phase", text(&document["phase"])),
        ("cluster", text(&document["network"]["cidrs"])),
        ("backend", text(&document["network"]["backend"]["kind"])),
        ("addresses", text(&document["addresses"])),
        ("other nodes", text(&document["peers"]) + &removed),
        ("kernel in sync", text(&document["in_sync"])),
        ("pod MTU", text(&document["data_plane"]["pod_mtu"])),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(key, value)| vec![key.to_owned(), value.trim().to_owned()])
    .collect();
    let mut out: String = render(&["", ""], &rows).lines().skip(1).map(|line| format!("{line}\n")).collect();
    let blocks: Vec<Vec<String>> = document["blocks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|block| {
            ["cidr", "granted", "used", "free", "resting"].map(|key| or_dash(&text(&block[key]))).to_vec()
        })
        .collect();
    if !blocks.is_empty() {
        out.push_str(&format!("\n{}", render(&["BLOCK", "GRANTED", "USED", "FREE", "RESTING"], &blocks)));
    }
    for finding in document["findings"].as_array().into_iter().flatten() {
        out.push_str(&format!("\n{}: {}\n", text(&finding["code"]), text(&finding["sentence"])));
        if let Some(way_out) = finding["way_out"].as_str().filter(|way_out| !way_out.is_empty()) {
            out.push_str(&format!("  {way_out}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_says_what_matters_and_each_finding_with_its_way_out() {
        let document = json!({
            "node": "a", "daemon": "running", "version": "0.1.0", "ready": true, "peers": 2, "in_sync": true,
            "store": {"endpoints": ["http://10.0.0.1:2379"], "away": null, "revision": 7},
            "network": {"cidrs": ["10.244.0.0/16"], "backend": {"kind": "vxlan"}},
            "addresses": ["192.0.2.1/24"],
            "blocks": [{"cidr": "10.244.3.0/26", "granted": true, "used": 3, "free": 60, "resting": 0}],
            "findings": [{"code": "store-away", "subject": "", "sentence": "It is away.", "way_out": "Wait."}],
        });
        let text = table(&document);
        for part in [
            "store           http://10.0.0.1:2379 reached, revision 7",
            "10.244.3.0/26  true     3     60    0",
            "store-away: It is away.\n  Wait.",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
