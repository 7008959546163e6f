//! A node: a network namespace and a mount namespace of its own, kept without a process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use crate::chain::Chain;
use crate::cni::Cni;
use crate::host::{self, NsId};
use crate::inside::{Inside, Place};
use crate::lab::Shared;
use crate::netns::{Netns, on_own_thread};
use crate::pod::Pod;

/// Folders that every node has for itself. `/run/containerd` is where shims put their sockets.
const PRIVATE: &[&str] = &[
    "/run/weft",
    "/run/weftd",
    "/var/lib/weft",
    "/var/lib/cni",
    "/var/log/weft",
    "/run/containerd",
    "/etc/weft",
    "/etc/cni/net.d",
    "/opt/cni/bin",
];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A machine of a [`Lab`](crate::Lab). Clones are the same machine.
#[derive(Clone, Debug)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    lab: Arc<Shared>,
    place: Place,
    netns: Netns,
    mnt_id: NsId,
    root: OwnedFd,
}

impl Inside for Node {
    fn place(&self) -> &Place {
        &self.inner.place
    }
}

impl Node {
    pub(crate) fn create(lab: &Arc<Shared>, name: &str) -> io::Result<Self> {
        let netns = lab.netns(name)?;
        let (mnt, root) = mount_namespace(&netns, &lab.dir.join(format!("{name}.tmp")))?;
        let mnt_id = NsId::of(format!("/proc/self/fd/{}", mnt.as_raw_fd()))?;
        lab.own(mnt_id);
        let place = Place { name: name.to_owned(), net: netns.path.clone(), mnt: Some(Arc::new(mnt)) };
        let inner = Inner { name: name.to_owned(), lab: lab.clone(), place, netns, mnt_id, root };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The path of its network namespace.
    pub fn netns_path(&self) -> &Path {
        &self.inner.netns.path
    }

    /// A fresh network namespace with `lo` up, ready to be given to a CNI plugin.
    pub fn pod(&self, name: &str) -> Pod {
        Pod::create(&self.inner.lab, self, name).unwrap_or_else(|error| panic!("pod {name}: {error}"))
    }

    /// The plugin `plugin` of folder `dir`, to be run on this node.
    pub fn cni(&self, dir: impl Into<PathBuf>, plugin: &str) -> Cni {
        Cni::new(self, dir.into(), plugin)
    }

    /// A whole configuration list, run as a runtime runs it; plugins are looked up in `dirs` in order.
    pub fn chain<P: Into<PathBuf>>(&self, conflist: &Value, dirs: impl IntoIterator<Item = P>) -> Chain {
        Chain::new(self, conflist, dirs.into_iter().map(Into::into).collect())
    }

    /// Where this process finds the node's `path`: for reading and writing its private folders.
    /// Absolute symbolic links on the way lead back to the host; use [`Inside::enter`] there.
    pub fn path(&self, path: &str) -> PathBuf {
        let root = format!("/proc/{}/fd/{}", std::process::id(), self.inner.root.as_raw_fd());
        Path::new(&root).join(path.trim_start_matches('/'))
    }

    /// Makes the node believe in another boot: `boot_id` reads as `uuid` from here on.
    pub fn set_boot_id(&self, uuid: &str) {
        self.replace_file(BOOT_ID, uuid);
    }

    /// Makes the node another machine: `/etc/machine-id` reads as `id` from here on.
    pub fn set_machine_id(&self, id: &str) {
        self.replace_file("/etc/machine-id", id);
    }

    /// Makes the file at `path`, which exists, read as one line, for this node only.
    fn replace_file(&self, path: &str, line: &str) {
        let lab = &self.inner.lab;
        let file = lab.dir.join(format!("{}.file-{}", self.name(), lab.next()));
        let bind = || {
            fs::write(&file, format!("{line}\n"))?;
            let _ = umount2(path, MntFlags::MNT_DETACH);
            Ok::<_, io::Error>(mount(Some(&file), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        };
        self.enter(bind).unwrap_or_else(|error| panic!("bind a file over {path}: {error}"));
    }

    /// Mounts an empty tmpfs on `path` (made if missing), for this node only.
    pub fn mount_tmpfs(&self, path: &str) {
        self.enter(|| tmpfs(path)).unwrap_or_else(|error| panic!("tmpfs on {path}: {error}"));
    }

    /// The command lines of the processes that live in the node's namespaces, by process id.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let spaces = [self.inner.netns.id, self.inner.mnt_id].into();
        host::inhabitants(&spaces).into_iter().filter_map(|pid| Some((pid, command_line(pid)?))).collect()
    }

    /// The tag of its lab.
    pub(crate) fn tag(&self) -> &str {
        &self.inner.lab.tag
    }

    /// The folder of its lab, on the host.
    pub(crate) fn lab_dir(&self) -> &Path {
        &self.inner.lab.dir
    }

    /// Pins the mount namespace to a path and returns the line that enters the node.
    pub(crate) fn keep(&self) -> String {
        let pin = self.inner.lab.dir.join(format!("{}.mnt", self.name()));
        let from = self.place().mnt.as_ref().map(|mnt| format!("/proc/self/fd/{}", mnt.as_raw_fd()));
        let pinned = File::create(&pin)
            .and_then(|_| Ok(mount(from.as_deref(), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?));
        match pinned {
            Ok(()) => format!("nsenter --net={} --mount={}", self.netns_path().display(), pin.display()),
            Err(error) => format!("# mount namespace of {} is lost: {error}", self.name()),
        }
    }
}

/// A copy of the host's mounts in which the node's own folders are empty and `/sys` shows its links.
/// Returns the namespace and its root folder.
fn mount_namespace(netns: &Netns, scratch: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    fs::create_dir_all(scratch)?;
    let made = on_own_thread(|| {
        setns(File::open(&netns.path)?, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Slave: pods' namespaces made on the host appear here, nothing made here appears there.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
        own_sysfs(scratch)?;
        PRIVATE.iter().try_for_each(|path| tmpfs(path))?;
        Ok((File::open("/proc/thread-self/ns/mnt")?.into(), File::open("/")?.into()))
    });
    let _ = fs::remove_dir(scratch);
    made
}

/// Mounts a `/sys` of the calling thread's network namespace, with the host's cgroups in it.
fn own_sysfs(scratch: &Path) -> io::Result<()> {
    const CGROUP: &str = "/sys/fs/cgroup";
    let none = None::<&str>;
    mount(Some(CGROUP), scratch, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some(scratch), CGROUP, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    Ok(umount2(scratch, MntFlags::MNT_DETACH)?)
}

fn tmpfs(path: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?)
}

fn command_line(pid: i32) -> Option<String> {
    // A zombie has neither; it lives nowhere any more.
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    Some(format!("{} [{}]", program.display(), words.trim_end()))
}
