//! `weftd ipam show`: who has which address on this node, how full the ranges are, and what is odd about it.
//! Changes nothing, but for what every operation does first: records that were lost are rebuilt from the kernel.

mod cluster;
mod observe;
mod print;
mod ranges;

use std::io::{self, Write};
use std::path::PathBuf;

use nix::unistd::geteuid;
use serde::Serialize;

use crate::cli::Output;
use crate::command::Verdict;

pub use cluster::run as run_cluster;

pub const HELP: &str = "\
STATE is what is written down:
  done        the pod was attached
  intent      an ADD began and did not end
  rebuilt     done; written anew from the kernel after the records were lost (names are then hashes, as #1a2b…)
  busy        an operation works on it at this moment
  unreadable  an attachment without a record that can be understood
  unrecorded  an interface in the kernel that no record speaks of
  reserved    no pod's: the node keeps the address for itself
ALIVE says whether its interface is still in the kernel.
SIZE counts every address of the range, a gateway in it too.

With --cluster: the blocks of all nodes, with the pods' addresses as each node last told the store, some seconds to a
minute after a change. It is for people: a node that has not told yet, or long ago, is no fault.

Exit code: 0 all is well, 1 something is odd (each is explained below the tables), 2 it could not be told.";

/// The number of the JSON form; it changes when a reader would have to.
const FORMAT: u32 = 1;

/// What there is to show.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    format: u32,
    /// The state folder; `None` if nothing was ever attached in this life of the node.
    state_folder: Option<PathBuf>,
    attachments: Vec<Row>,
    ranges: Vec<RangeRow>,
    /// What is odd, a sentence each.
    findings: Vec<String>,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    network: String,
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
    addresses: Vec<String>,
    host_link: Option<String>,
    state: RowState,
    /// `None` when it cannot be said at this moment.
    alive: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum RowState {
    Done,
    Intent,
    Rebuilt,
    Busy,
    Unreadable,
    Unrecorded,
    Reserved,
}

/// One range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct RangeRow {
    network: String,
    /// `None`: addresses that lie in no range that is known.
    range: Option<String>,
    used: usize,
    size: Option<u128>,
}

/// What is odd about this node's records and interfaces, a sentence each.
///
/// # Errors
/// A sentence when it could not be told.
pub fn findings() -> Result<Vec<String>, String> {
    observe::observe().map(|observed| observed.findings).map_err(|error| error.to_string())
}

/// Runs the command.
///
/// # Errors
/// A sentence when it could not be told.
pub fn run(output: Output) -> Result<Verdict, String> {
    let observed = observe::observe().map_err(|error| {
        let hint = if geteuid().is_root() { "" } else { " (only root may look: try sudo)" };
        format!("{error}{hint}")
    })?;
    let text = match output {
        Output::Table => print::table(&observed),
        Output::Json => print::json(&observed),
    };
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(format!("write the output: {error}"));
        }
        _ => {}
    }
    Ok(if observed.findings.is_empty() { Verdict::Fine } else { Verdict::FoundSomething })
}
