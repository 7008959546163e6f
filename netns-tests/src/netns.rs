//! A named network namespace: bind-mounted in `/run/netns`, so that it lives without a process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::host::{self, NsId};
use crate::sys;

/// A network namespace with a path. No descriptor of it is held, so that it ends with its path;
/// see [`remove`].
#[derive(Clone, Debug)]
pub struct Netns {
    pub path: PathBuf,
    pub id: NsId,
}

impl Netns {
    /// Makes `/run/netns/<name>`, with `lo` up.
    pub fn create(name: &str) -> io::Result<Self> {
        let path = Path::new(host::NETNS_DIR).join(name);
        File::create_new(&path)?;
        let made = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            sys::loopback_up()?;
            let own = "/proc/thread-self/ns/net";
            Ok(mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
        });
        made.inspect_err(|_| remove(&path))?;
        Ok(Self { id: NsId::of(&path)?, path })
    }

    /// Runs `work` in this namespace, and in mount namespace `mnt` if given, on a thread of its own.
    /// The thread never comes back, so a panic in `work` cannot leave the caller in the wrong place.
    pub fn enter<T: Send>(
        net: &Path,
        mnt: Option<&OwnedFd>,
        work: impl FnOnce() -> T + Send,
    ) -> io::Result<T> {
        on_own_thread(|| {
            setns(File::open(net)?, CloneFlags::CLONE_NEWNET)?;
            if let Some(mnt) = mnt {
                // The kernel refuses a new mount namespace to a thread that shares its root and cwd.
                unshare(CloneFlags::CLONE_FS)?;
                setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
            }
            Ok(work())
        })
    }
}

/// Unmounts and removes a namespace's path. What is gone already is no error.
pub fn remove(path: &Path) {
    // MNT_DETACH: a process that still looks at it must not keep the path alive.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// Runs `work` on a fresh thread and hands on its panic.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    match std::thread::scope(|scope| scope.spawn(work).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
