//! `weftd install` and `weftd uninstall`: what belongs to Weft comes to this node, or goes from it, by ownership alone.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use weft_ipam::clock::Deadline;
use weft_ipam::stamp::Stamp;
use weft_ipam::{DEFAULT_ROOT, HostKernel, Kernel};
use weft_netlink::{Socket, link};

use super::{Failure, Verdict, block_on, print, store};
use crate::cluster::{Farewell, known_instance, node_key, plan_farewell, removal_reads};
use crate::conf::Conf;
use crate::conf::load::{Given, load};
use crate::conflist;
use crate::files;
use crate::forward;
use crate::install::{self as plugins};
use crate::run::{Places, RUN_DIR, data_files, identity_file, machine_id, remove_data_plane, run_identity};

/// Where it is noted that a boot of this node had pods.
const MARKERS: &str = "/var/lib/weft/attached";
/// How long garbage may take to be collected.
const LIMIT: Duration = Duration::from_secs(20);

/// Installs the plugins.
pub fn install(given: &Given, from: Option<&Path>) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let source = match from {
        Some(folder) => folder.to_owned(),
        None => plugins::source().map_err(Failure::could_not_tell)?,
    };
    let installed = plugins::install(&source, &conf.cni.bin_dir)
        .map_err(|sentences| Failure::all(Verdict::CouldNotTell, sentences))?;
    for plugin in installed {
        let what = if plugin.changed { "installed" } else { "was there already" };
        print(&format!("{} {what}\n", plugin.path.display()))?;
    }
    Ok(Verdict::Fine)
}

/// Removes everything of Weft from this node.
pub fn uninstall(given: &Given, pods: bool) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    if Places::is_running() {
        return Err(Failure::refused(
            "weftd runs on this node and would put everything back: stop it first (systemctl disable --now weftd)",
        ));
    }
    let live = live_pods()?;
    if !live.is_empty() && !pods {
        let names: Vec<&str> = live.iter().take(3).map(|(_, name)| name.as_str()).collect();
        return Err(Failure::refused(format!(
            "pods are attached to Weft on this node ({} interfaces: {}): drain the node first, or give --pods to take \
             their network away",
            live.len(),
            names.join(", "),
        )));
    }
    // The records that are removed below know it, too.
    let instance = this_instance(&conf);
    let mut report = Report::default();
    // First what would start further pods, last what could be needed again.
    report.note("the conflist", remove_conflist(&conf));
    let links = report.note("the pods' links", remove_links(&live));
    report.note("the pods' networks from foreign FORWARD chains", forward::remove());
    report.note("routes, links and packet rules", remove_data_plane());
    let records = report.note("the records of this boot", remove_records());
    let plugins = plugins::remove(&conf.cni.bin_dir);
    report.note("the plugins", plugins.map(|gone| !gone.is_empty()).map_err(|all| all.join("; ")));
    // Others get its addresses on its word.
    if links && records && live_pods()?.is_empty() {
        let told = tell_the_store(&conf, &instance, &mut report.said);
        report.note("this node's blocks and record from the cluster", told);
    } else {
        report.problems.push(format!(
            "the cluster was not told, as pods of {} may still have their addresses: run `weftd uninstall` again",
            conf.node
        ));
    }
    if report.problems.is_empty() {
        // The identity goes last: without it the record in the store could not be told to be ours.
        report.note("identity and memory", remove_data(&conf));
        report.note("the daemon's socket and locks", remove_run_dir());
    }
    print(&report.said)?;
    if report.problems.is_empty() {
        Ok(Verdict::Fine)
    } else {
        Err(Failure::all(Verdict::CouldNotTell, report.problems))
    }
}

/// What was done and what was not: one fault does not end the rest.
#[derive(Default)]
struct Report {
    said: String,
    problems: Vec<String>,
}

impl Report {
    /// Whether there was no problem.
    fn note(&mut self, what: &str, outcome: Result<bool, String>) -> bool {
        match outcome {
            Ok(true) => self.said.push_str(&format!("removed {what}\n")),
            Ok(false) => {}
            Err(problem) => {
                self.problems.push(problem);
                return false;
            }
        }
        true
    }
}

/// The host ends of pods that live: index and name.
fn live_pods() -> Result<Vec<(u32, String)>, Failure> {
    let live = HostKernel::default().live().map_err(|error| Failure::could_not_tell(error.to_string()))?;
    Ok(live.into_iter().map(|live| (live.host.index, live.host.name)).collect())
}

fn remove_conflist(conf: &Conf) -> Result<bool, String> {
    let path = conflist::path(&conf.cni.conf_dir);
    let failed = |error: std::io::Error| format!("remove {}: {error}", path.display());
    match files::read(&path).map_err(failed)? {
        Some(content) if conflist::is_ours(&content) => files::remove(&path).map_err(failed),
        Some(_) => Err(format!("{} is not Weft's, and stays", path.display())),
        None => Ok(false),
    }
}

fn remove_links(live: &[(u32, String)]) -> Result<bool, String> {
    let failed = |error: weft_netlink::Error| format!("remove the pods' links: {error}");
    let mut socket = Socket::route().map_err(failed)?;
    for (index, _) in live {
        match socket.execute(&[link::delete(*index)]) {
            Err(error) if !error.is(libc::ENODEV) => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(!live.is_empty() | remove_bridge(&mut socket).map_err(failed)?)
}

/// The bridge, if the daemon's conflist made it and no port is left on it.
fn remove_bridge(socket: &mut Socket) -> Result<bool, weft_netlink::Error> {
    let Some(bridge) = link::by_name(socket, conflist::BRIDGE)? else { return Ok(false) };
    let is_ours = bridge.alias.as_deref().is_some_and(|alias| alias.starts_with("weft"));
    if !is_ours || link::count_ports(socket, bridge.index)? > 0 {
        return Ok(false);
    }
    socket.execute(&[link::delete(bridge.index)])?;
    Ok(true)
}

/// The records of this node, of this boot and of those before: no attachment is left.
fn remove_records() -> Result<bool, String> {
    let deadline = Deadline::after(Instant::now(), LIMIT);
    let mut kernel = HostKernel::default();
    let sentence = |error: weft_cni::error::Error| error.to_string();
    if let Some(state) = weft_ipam::State::open_existing(&mut kernel, deadline).map_err(sentence)? {
        weft_ipam::collect(&state, &mut kernel, None, usize::MAX).map_err(sentence)?;
    }
    let stamp = Stamp::current().map_err(|error| format!("find out which boot this is: {error}"))?;
    let is_ours = |name: &str| name == stamp.folder() || stamp.is_of_another_boot(name);
    let mut removed = false;
    for root in [DEFAULT_ROOT, MARKERS] {
        let Ok(entries) = std::fs::read_dir(root) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
            let path = entry.path();
            let gone =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            gone.map_err(|error| format!("remove {}: {error}", path.display()))?;
            removed = true;
        }
    }
    Ok(removed)
}

/// Who this machine is in the cluster; why it does not know.
fn this_instance(conf: &Conf) -> Result<String, String> {
    let path = identity_file(&conf.data_dir);
    let file = files::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let instance = known_instance(conf.node.as_str(), &machine_id(), file.as_deref(), run_identity()?);
    instance.ok_or_else(|| format!("neither {} nor the records of this boot say who it is", path.display()))
}

/// A tombstone, acknowledged: this node has no pods left, so that its blocks are free at once. Not for a record that
/// another machine has written under this name, whose pods live.
fn tell_the_store(conf: &Conf, instance: &Result<String, String>, said: &mut String) -> Result<bool, String> {
    let told = block_on(async {
        let store = store::open(conf)?;
        let name = conf.node.as_str();
        for _ in 0..5 {
            let first = store::read(store.as_ref(), removal_reads(name, None)).await?;
            let record =
                first.iter().find(|(key, _)| *key == node_key(name)).and_then(|(_, value)| value.as_ref());
            if record.is_none() {
                return Ok(false);
            }
            let read = store::read(store.as_ref(), removal_reads(name, record)).await?;
            let known = instance.as_ref().ok().map(String::as_str);
            let farewell = plan_farewell(name, known, &read, SystemTime::now());
            match farewell.map_err(|refusal| Failure::refused(refusal.to_string()))? {
                Farewell::Nothing => return Ok(false),
                Farewell::Unproven => {
                    let why = instance.as_ref().err().map(String::as_str).unwrap_or_default();
                    return Err(Failure::refused(format!(
                        "whether the record of {name} is this machine's cannot be told: {why}"
                    )));
                }
                Farewell::Another { addresses } => {
                    let at = addresses.first().map(|address| format!(" (at {})", address.addr()));
                    let at = at.unwrap_or_default();
                    said.push_str(&format!("the record of {name} is another machine's{at}, and stays\n"));
                    return Ok(false);
                }
                Farewell::Write(txn) => {
                    if store::commit(store.as_ref(), txn).await? {
                        return Ok(true);
                    }
                }
            }
        }
        Err(Failure::could_not_tell("this node's record in the store changes all the time"))
    });
    told.map_err(|failure| {
        format!(
            "{}. From another node: weftd node rm {} --destroyed",
            failure.sentences.join("; "),
            conf.node
        )
    })
}

fn remove_data(conf: &Conf) -> Result<bool, String> {
    let mut removed = false;
    for path in data_files(&conf.data_dir) {
        removed |= files::remove(&path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(removed)
}

fn remove_run_dir() -> Result<bool, String> {
    match std::fs::remove_dir_all(RUN_DIR) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        // A container's mount stays; what is in it is gone.
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(true),
        Err(error) => Err(format!("remove {RUN_DIR}: {error}")),
    }
}
