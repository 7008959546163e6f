//! `weftd check`: compares what the store, this node's records and its kernel say about each other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_cni::ip::Subnet;
use weft_ipam::ask::{Op, Weftd};
use weft_ipam::clock::Deadline;
use weft_ipam::{HostKernel, State};

use super::{Failure, Verdict, block_on, print, store};
use crate::cli::Output;
use crate::cluster::{BlockRecord, BlockState, NodeRecord, NodeState, block_key, node_key};
use crate::conf::Conf;
use crate::conf::load::{Given, load};
use crate::ipam_show;

/// How long the daemon, or a lock, is waited for.
const LIMIT: Duration = Duration::from_secs(5);

/// Compares.
pub fn run(given: &Given, output: Output) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let mut findings = ipam_show::findings().map_err(Failure::could_not_tell)?;
    findings.extend(against_kernel());
    let store_says = block_on(against_store(&conf));
    let told = match store_says {
        Ok(more) => {
            findings.extend(more);
            None
        }
        Err(failure) => Some(failure),
    };
    match output {
        Output::Table if findings.is_empty() && told.is_none() => print("all is as it should be\n")?,
        Output::Table => print(&findings.iter().map(|finding| format!("{finding}\n")).collect::<String>())?,
        Output::Json => {
            let findings: Vec<Value> = findings.iter().map(|finding| finding.clone().into()).collect();
            print(&format!("{:#}\n", json!({ "format": 1, "findings": findings })))?;
        }
    }
    match told {
        Some(failure) => Err(failure),
        None if findings.is_empty() => Ok(Verdict::Fine),
        None => Ok(Verdict::FoundSomething),
    }
}

/// What the running daemon finds in the kernel. One that is away is nothing to complain of here.
fn against_kernel() -> Vec<String> {
    let deadline = Deadline::after(Instant::now(), LIMIT);
    let Ok(json) = Weftd::default().ask(Op::Status, deadline) else { return Vec::new() };
    let status: Value = serde_json::from_slice(&json).unwrap_or_default();
    let findings = status["findings"].as_array().into_iter().flatten();
    let mut found: Vec<String> =
        findings.filter_map(|finding| finding["sentence"].as_str().map(str::to_owned)).collect();
    if status["in_sync"] == false && found.is_empty() {
        found.push("the kernel is not as the cluster wants it yet; weftd is at it".to_owned());
    }
    found
}

/// What the store says about this node against what is granted here.
async fn against_store(conf: &Conf) -> Result<Vec<String>, Failure> {
    let store = store::open(conf)?;
    let name = conf.node.as_str();
    let read = store::read(store.as_ref(), vec![node_key(name)]).await?;
    let granted = granted()?;
    let Some(found) = read.into_iter().next().and_then(|(_, value)| value) else {
        return Ok(granted
            .iter()
            .map(|block| format!("{block} is granted here, but the store knows no node {name}"))
            .collect());
    };
    let record = match NodeRecord::parse(&found.key, &found.value) {
        Ok(record) => record,
        Err(garbage) => return Ok(vec![garbage.to_string()]),
    };
    let mut findings = Vec::new();
    if record.state == NodeState::Removed {
        findings.push(format!("{name} is removed in the store: `weftd uninstall` ends it here"));
    }
    for block in granted.iter().filter(|block| !record.holds(block)) {
        findings.push(format!("{block} is granted here, but {name}'s record in the store does not list it"));
    }
    let keys: Vec<String> = record.blocks.iter().map(|held| block_key(&held.cidr)).collect();
    for (key, value) in store::read(store.as_ref(), keys).await? {
        let owner = value.map(|value| BlockRecord::parse(&key, &value.value));
        match owner {
            None => {
                findings.push(format!("{name}'s record lists a block whose key {key} is not in the store"))
            }
            Some(Err(garbage)) => findings.push(garbage.to_string()),
            Some(Ok(block)) if *block.owner != *name => {
                findings.push(format!("{key} belongs to {}, but {name}'s record lists it too", block.owner));
            }
            Some(Ok(block)) if block.state == BlockState::Retired => {
                findings.push(format!("{key} is retired, but {name}'s record lists it"));
            }
            Some(Ok(_)) => {}
        }
    }
    Ok(findings)
}

fn granted() -> Result<Vec<Subnet>, Failure> {
    let state = State::open_existing(&mut HostKernel::default(), Deadline::after(Instant::now(), LIMIT));
    let granted = state.and_then(|state| state.map_or(Ok(Vec::new()), |state| state.granted()));
    granted.map_err(|error| Failure::could_not_tell(error.to_string()))
}
