//! Kernel settings under /proc/sys/net, of the namespace that the calling thread is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use weft_cni::error::{Error, code};

const ROOT: &str = "/proc/sys/net";

/// `/proc/sys/net/<family>/conf/<device>/<name>`. A device name may hold dots, so the path is no sysctl key.
pub fn device(family: &str, device: &str, name: &str) -> PathBuf {
    Path::new(ROOT).join(family).join("conf").join(device).join(name)
}

/// Reads a setting; `None` if the kernel has none of that name.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets a setting; one that the kernel does not have is not set.
///
/// # Errors
/// Code 102 naming the setting.
pub fn write(path: &Path, value: &str) -> Result<(), Error> {
    match fs::write(path, value) {
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
