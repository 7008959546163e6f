//! Network namespaces: open one by path, prove that it is one, work in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::sys;

/// The namespace of the calling thread, where a socket does not tell. `/proc/self/ns/net` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

/// Why a path does not lead to a network namespace.
#[derive(Debug)]
pub enum OpenError {
    /// The path could not be opened.
    Open(io::Error),
    /// The path leads to something else, e.g. a plain file left behind by a lost mount.
    NotNamespace,
}

impl Netns {
    /// Opens the namespace at `path`, never blocking on a FIFO, and proves by its file system that it is one.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(OpenError::Open)?;
        let kind = fstatfs(&file).map_err(|errno| OpenError::Open(errno.into()))?;
        if kind.filesystem_type() != NSFS_MAGIC
            || sys::namespace_type(file.as_fd()) != Some(libc::CLONE_NEWNET)
        {
            return Err(OpenError::NotNamespace);
        }
        Ok(Self { file })
    }

    /// The calling thread's own namespace. By a socket of it: the way through /proc makes the kernel set up its
    /// files about this process, and take them down again at its end.
    pub fn own() -> io::Result<Self> {
        let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        match sys::namespace_of(probe.as_fd()) {
            Ok(own) => Ok(Self { file: own.into() }),
            Err(_) => Ok(Self { file: File::open(OWN)? }),
        }
    }

    /// Whether both are the same namespace, by device and inode. Only right while both are held open, because
    /// the kernel hands inode numbers out again.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        let (a, b) = (self.file.metadata()?, other.file.metadata()?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// Runs `work` in this namespace and comes back to `home`.
    ///
    /// The way back is taken after a panic too, and the process ends if it is barred: nothing may go on in the
    /// wrong namespace.
    pub fn run_from<T>(&self, home: &Self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let _way_back = WayBack(home);
        Ok(work())
    }
}

/// Returns to a namespace when dropped.
struct WayBack<'a>(&'a Netns);

impl Drop for WayBack<'_> {
    fn drop(&mut self) {
        if setns(&self.0.file, CloneFlags::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The cookie of the calling thread's network namespace: unique within a boot, never used again.
///
/// `None` on kernels before 5.14, which have no `SO_NETNS_COOKIE`.
pub fn own_cookie() -> io::Result<Option<u64>> {
    let probe: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    cookie_of(probe.as_fd())
}

/// The cookie of the network namespace that `socket` belongs to.
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    match sys::u64_option(socket, libc::SO_NETNS_COOKIE) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error),
    }
}
