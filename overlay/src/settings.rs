//! Kernel settings below a root that is itself a setting: containers see /proc/sys read-only and get the host's mounted
//! elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::execute::Failure;
use crate::objects::Key;

/// Where the host's settings are unless told otherwise.
pub const SYSCTL_ROOT: &str = "/proc/sys";

/// Makes the node forward what its pods send, in each family that they speak. Writes only what differs.
///
/// A router ignores router advertisements: links in `advertised`, which have a default route from one, are told to go
/// on listening first, or the node would lose that route.
pub fn forward(root: &Path, ipv4: bool, ipv6: bool, advertised: &BTreeSet<&str>) -> Vec<Failure> {
    let mut failures = Vec::new();
    if ipv4 {
        failures.extend(ensure(root, "net/ipv4/ip_forward", "1"));
    }
    let forwarding = "net/ipv6/conf/all/forwarding";
    if ipv6 && !has(root, forwarding, "1") {
        for link in advertised {
            let accept = format!("net/ipv6/conf/{link}/accept_ra");
            if has(root, &accept, "1") {
                failures.extend(ensure(root, &accept, "2"));
            }
        }
        failures.extend(ensure(root, forwarding, "1"));
    }
    failures
}

fn has(root: &Path, name: &str, value: &str) -> bool {
    fs::read_to_string(root.join(name)).is_ok_and(|found| found.trim() == value)
}

fn ensure(root: &Path, name: &str, value: &str) -> Option<Failure> {
    if has(root, name, value) {
        return None;
    }
    let path: PathBuf = root.join(name);
    let error = fs::write(&path, value).err()?;
    let hints = [
        (
            io::ErrorKind::ReadOnlyFilesystem,
            ": mount the host's /proc/sys/net writable elsewhere and name that root",
        ),
        (io::ErrorKind::NotFound, ": the kernel lacks it, or the sysctl root is wrong"),
    ];
    let hint = hints.into_iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, hint)| hint);
    let text = format!("set {} to {value}: {error}{hint}", path.display());
    Some(Failure { key: Key::Setting(name.to_owned()), text, overtaken: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(values: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, value) in values {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        root
    }

    #[test]
    fn a_router_keeps_the_default_route_it_was_told() {
        let root = root(&[
            ("net/ipv4/ip_forward", "0\n"),
            ("net/ipv6/conf/all/forwarding", "0\n"),
            ("net/ipv6/conf/eth0/accept_ra", "1\n"),
            ("net/ipv6/conf/eth1/accept_ra", "1\n"),
        ]);
        let failures = forward(root.path(), true, true, &["eth0"].into());
        assert!(failures.is_empty(), "{failures:?}");
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        assert_eq!(read("net/ipv4/ip_forward"), "1");
        assert_eq!(read("net/ipv6/conf/all/forwarding"), "1");
        assert_eq!(read("net/ipv6/conf/eth0/accept_ra"), "2");
        assert_eq!(read("net/ipv6/conf/eth1/accept_ra"), "1\n");
    }

    #[test]
    fn a_setting_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        let failures = forward(root.path(), true, false, &BTreeSet::new());
        assert_eq!(failures.len(), 1);
        assert!(failures[0].text.contains("net/ipv4/ip_forward") && failures[0].text.contains("sysctl root"));
    }
}
