//! Kernel settings under /proc/sys/net, of the namespace that the calling thread is in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::fcntl::{OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

use weft_cni::error::{Error, code};

use crate::sys;

const ROOT: &str = "/proc/sys/net";

/// `/proc/sys/net/<family>/conf/<device>/<name>`. A device name may hold dots, so the path is no sysctl key.
pub fn device(family: &str, device: &str, name: &str) -> PathBuf {
    Path::new(ROOT).join(family).join("conf").join(device).join(name)
}

/// From now on visits the settings by a procfs of our own, where the kernel lets us have one. In the one that all
/// processes share each look-up walks past the entries of every network namespace that anybody visited settings of.
/// Two visits, of the node's and of a pod's, cost 70 µs with few and 550 with a thousand; by our own 170, wherever
/// it is not busy: half of that waits for a grace period when the mount goes.
pub fn use_private_procfs() {
    PRIVATE.get_or_init(|| {
        let proc = sys::private_procfs().ok()?;
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // One that does not show these settings would make every setting look absent.
        openat(&proc, "sys/net", directory, Mode::empty()).ok()
    });
}

/// `/proc/sys/net`, if it is not the one that everybody sees.
static PRIVATE: OnceLock<Option<OwnedFd>> = OnceLock::new();

fn open(path: &Path, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC;
    let private = PRIVATE.get().and_then(Option::as_ref).zip(path.strip_prefix(ROOT).ok());
    let opened = match private {
        Some((root, relative)) => openat(root, relative, flags, Mode::empty()),
        None => nix::fcntl::open(path, flags, Mode::empty()),
    };
    Ok(opened?.into())
}

/// Reads a setting; `None` if the kernel has none of that name.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match open(path, OFlag::O_RDONLY).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a setting; one that the kernel does not have is not set.
///
/// # Errors
/// Code 102 naming the setting.
pub fn write(path: &Path, value: &str) -> Result<(), Error> {
    match open(path, OFlag::O_WRONLY).and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new(code::KERNEL, format!("set {} to {value}: {error}", path.display()))
            .with_details("is /proc/sys mounted read-only here?")),
        Ok(()) => Ok(()),
    }
}

/// Sets a setting unless it has that value: reading is cheaper, and changes nothing that others watch.
///
/// # Errors
/// Code 102 naming the setting.
pub fn ensure(path: &Path, value: &str) -> Result<bool, Error> {
    match read(path) {
        Ok(Some(now)) if now == value => Ok(false),
        Ok(None) => Ok(false),
        _ => write(path, value).map(|()| true),
    }
}

/// Whether the kernel speaks IPv6 (`ipv6.disable=1` takes it away wholly). By a socket: each look into
/// /proc/sys/net costs more the more network namespaces there are, 60 µs with few, 300 with a thousand.
pub fn has_ipv6() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).is_ok()
    })
}

/// Whether the IPv6 settings can be seen, too; asked only where IPv6 is wanted.
pub fn has_ipv6_settings() -> bool {
    has_ipv6() && Path::new(ROOT).join("ipv6/conf").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_procfs_of_our_own_shows_the_same_settings() {
        let path = device("ipv4", "lo", "forwarding");
        let shared = std::fs::read_to_string(&path).unwrap();
        use_private_procfs();
        assert_eq!(read(&path).unwrap().as_deref(), Some(shared.trim()));
        assert_eq!(read(&device("ipv4", "none", "forwarding")).unwrap(), None);
    }
}
