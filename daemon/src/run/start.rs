//! What is known when the daemon starts: the facts that the machine begins with.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use weft_ipam::clock::boot_nanos;
use weft_ipam::stamp::Stamp;
use weft_netlink::Socket;

use super::local::Local;
use super::places::Places;
use crate::address;
use crate::cluster::{Machine, Now, StartFacts};
use crate::command::{Failure, Verdict};
use crate::conf::Conf;
use crate::files;

const MACHINE_ID: &str = "/etc/machine-id";

/// What has been started.
pub struct Started {
    /// The machine, with its first outputs waiting.
    pub machine: Machine,
    /// The plugin's folders.
    pub local: Local,
    /// The addresses that it was started with; the reason why there are none.
    pub published: Result<Vec<weft_cni::ip::IfAddr>, String>,
}

/// The time.
pub fn now() -> Now {
    Now { boot: Duration::from_nanos(boot_nanos()), wall: SystemTime::now() }
}

/// The machine's id, or nothing.
pub fn machine_id() -> String {
    fs::read_to_string(MACHINE_ID).unwrap_or_default().trim().to_owned()
}

/// Gathers the facts and makes the machine.
///
/// # Errors
/// Why it must not start.
pub fn start(conf: &Conf, places: &Places, init: bool) -> Result<Started, Failure> {
    let mut local = Local::default();
    let published = observe(conf);
    let facts = facts(conf, places, init, &mut local, published.clone().unwrap_or_default())
        .map_err(Failure::could_not_tell)?;
    let machine = Machine::new(facts, now()).map_err(|refusal| Failure::refused(refusal.to_string()))?;
    Ok(Started { machine, local, published })
}

fn observe(conf: &Conf) -> Result<Vec<weft_cni::ip::IfAddr>, String> {
    let mut socket = Socket::route().map_err(|error| format!("open a netlink socket: {error}"))?;
    address::choose(&conf.underlay, &address::observe(&mut socket)?, &[])
}

fn facts(
    conf: &Conf,
    places: &Places,
    init: bool,
    local: &mut Local,
    published: Vec<weft_cni::ip::IfAddr>,
) -> Result<StartFacts, String> {
    let read = |path: &Path| files::read(path).map_err(|error| format!("read {}: {error}", path.display()));
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("get random numbers: {error}"))?;
    Ok(StartFacts {
        node: conf.node.as_str().into(),
        machine_id: machine_id(),
        stamp: Stamp::current().map_err(|error| format!("find out which boot this is: {error}"))?.folder(),
        run_identity: Local::identity()?,
        identity_file: read(&places.identity())?,
        memory: read(&places.memory())?,
        snapshot: read(&places.snapshot())?,
        local: local.usage()?,
        asked: conf.asked(),
        init,
        published,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        mtu: conf.network.mtu,
        offline_boot: conf.offline_boot,
        seed,
    })
}

/// A failure of the running daemon: the network stays as it is, and whoever supervises it starts it again.
pub fn broken(sentence: impl Into<String>) -> Failure {
    Failure { verdict: Verdict::CouldNotTell, sentences: vec![sentence.into()] }
}
