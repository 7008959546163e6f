//! What the labs need on the machine itself: the shared `/run/netns`, a folder for each lab, and
//! the removal of what a killed run left. Nothing here is ever found by a program's name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::netns;
use crate::wait::poll;

/// Where `ip netns` looks, too.
pub const NETNS_DIR: &str = "/run/netns";
/// One folder a lab in here.
pub const LABS: &str = "/run/weft-lab";
/// Large or executable files of labs; `/run` may be small and `noexec`.
pub const WORK: &str = "/var/tmp";
/// Every kernel object and file of a lab starts with this and the process id.
const PREFIX: &str = "wl-";

/// Identity of a namespace: device and inode of its nsfs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NsId(u64, u64);

impl NsId {
    /// The namespace behind a `/proc/<pid>/ns/*` file, a bind mount of it or an open descriptor.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self(meta.dev(), meta.ino()))
    }
}

/// The tag of a lab: unique on this machine as long as the process lives.
pub fn tag(sequence: usize, name: &str) -> String {
    format!("{PREFIX}{}-{sequence}-{name}", std::process::id())
}

/// Makes the shared mounts and folders, and sweeps what dead processes left.
pub fn prepare() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    private_dir(Path::new(LABS))?;
    let lock = File::create(Path::new(LABS).join(".lock"))?;
    lock.lock()?;
    mount_on_itself(NETNS_DIR, MsFlags::MS_SHARED | MsFlags::MS_REC)?;
    // A mount namespace can be kept by a bind mount only on a mount that does not propagate.
    mount_on_itself(LABS, MsFlags::MS_PRIVATE)?;
    sweep();
    Ok(())
}

/// Makes a folder only root can read; an existing one is fine.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a line for the person at the terminal, past the test runner's capture.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Kills every process that lives in one of these network or mount namespaces and waits for its end.
pub fn kill_inhabitants(spaces: &BTreeSet<NsId>) {
    let emptied = poll(Duration::from_secs(5), || {
        let pids = inhabitants(spaces);
        for &pid in &pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        pids.is_empty().then_some(())
    });
    if emptied.is_none() {
        say("lab: processes in its namespaces do not die; they are left");
    }
}

/// The processes, zombies and ourselves excepted, in one of these network or mount namespaces.
pub fn inhabitants(spaces: &BTreeSet<NsId>) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let lives_here = |pid: i32| {
        ["net", "mnt"]
            .iter()
            .any(|kind| NsId::of(format!("/proc/{pid}/ns/{kind}")).is_ok_and(|space| spaces.contains(&space)))
    };
    pids().filter(|&pid| pid != own && lives_here(pid)).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Makes `path` a mount point with this propagation, as `ip netns add` does.
fn mount_on_itself(path: &str, propagation: MsFlags) -> io::Result<()> {
    let propagate = || mount(None::<&str>, path, None::<&str>, propagation, None::<&str>);
    match propagate() {
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(path), path, None::<&str>, bind, None::<&str>)?;
            Ok(propagate()?)
        }
        other => Ok(other?),
    }
}

/// Removes the namespaces and folders of labs whose process is gone and that nobody wants to keep.
fn sweep() {
    let dead: Vec<PathBuf> =
        [NETNS_DIR, LABS, WORK].iter().flat_map(entries).filter(|path| is_stale(path)).collect();
    for group in cgroup::names().iter().filter(|name| is_stale(Path::new(name))) {
        cgroup::destroy(group);
    }
    let spaces = dead.iter().filter_map(|path| NsId::of(path).ok()).collect();
    if !dead.is_empty() {
        kill_inhabitants(&spaces);
    }
    for path in dead {
        if path.is_dir() { remove_lab_dir(&path) } else { netns::remove(&path) }
    }
}

/// Removes a lab's folder with the mount namespaces kept in it.
pub fn remove_lab_dir(path: &Path) {
    for kept in entries(path).filter(|entry| entry.extension().is_some_and(|end| end == "mnt")) {
        let _ = umount2(&kept, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(path);
}

/// The mark that a lab's remains are wanted.
pub fn keep_mark(tag: &str) -> PathBuf {
    Path::new(LABS).join(tag).join("keep")
}

fn is_stale(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let mut parts = name.strip_prefix(PREFIX).into_iter().flat_map(|rest| rest.splitn(3, '-'));
    let (Some(pid), Some(sequence), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let lab = rest.split('.').next().unwrap_or(rest);
    let gone = pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    gone && !keep_mark(&format!("{PREFIX}{pid}-{sequence}-{lab}")).exists()
}

/// The paths in a folder; none when it cannot be read.
pub fn entries(dir: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}
