//! A control group of our own: what is in it is ours to kill, whatever it forked.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host;
use crate::wait::poll;

const MOUNTS: &str = "/sys/fs/cgroup";
/// Hierarchies in which a group needs no setting before a process can enter.
const SIMPLE: [&str; 4] = ["systemd", "pids", "freezer", "unified"];

/// Puts a process, and so all that it starts, into the group `<name>/<leaf>`.
pub fn enter(name: &str, leaf: &str, pid: u32) -> io::Result<()> {
    for hierarchy in hierarchies().filter(|path| is_simple(path)) {
        let group = hierarchy.join(name).join(leaf);
        fs::create_dir_all(&group)?;
        fs::write(group.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

/// Kills everything in the group and below it, waits for its end, and removes the group.
pub fn destroy(name: &str) {
    let groups: Vec<PathBuf> =
        hierarchies().map(|path| path.join(name)).filter(|path| path.is_dir()).collect();
    let gone = poll(Duration::from_secs(10), || {
        for pid in groups.iter().flat_map(|group| members(group)).collect::<BTreeSet<_>>() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        groups.iter().filter(|group| !remove(group)).count().eq(&0).then_some(())
    });
    if gone.is_none() {
        host::say(&format!("lab: the control group {name} does not go away; it is left"));
    }
}

/// The names of the groups at the top that a lab could have made.
pub fn names() -> BTreeSet<String> {
    let entries = hierarchies().flat_map(host::entries);
    entries.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

fn is_simple(hierarchy: &Path) -> bool {
    let name = hierarchy.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    hierarchy == Path::new(MOUNTS) || SIMPLE.contains(&name)
}

/// The roots of all hierarchies: one with cgroup v2, one a controller with v1.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let unified = Path::new(MOUNTS).join("cgroup.procs").exists();
    let v1 = if unified { None } else { fs::read_dir(MOUNTS).ok() };
    let v1 = v1.into_iter().flatten().flatten().map(|entry| entry.path());
    let v1 = v1.filter(|path| path.join("cgroup.procs").exists() && !path.is_symlink());
    unified.then(|| PathBuf::from(MOUNTS)).into_iter().chain(v1)
}

fn members(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let own: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    own.into_iter().chain(children(group).flat_map(|child| members(&child))).collect()
}

fn remove(group: &Path) -> bool {
    for child in children(group) {
        remove(&child);
    }
    let _ = fs::remove_dir(group);
    !group.exists()
}

fn children(group: &Path) -> impl Iterator<Item = PathBuf> {
    host::entries(group).filter(|path| path.is_dir())
}
