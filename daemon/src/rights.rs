//! What the process must be allowed to do, proved before anything is begun: which right is missing is said in
//! words, not by the first operation that fails at night.

use std::fs;
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use weft_netlink::{Socket, link};

use crate::conf::Conf;

/// include/uapi/linux/capability.h.
const CAPABILITIES: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "set routes, links and packet rules"),
    (13, "CAP_NET_RAW", "send neighbour advertisements"),
];
/// No link has this index: the kernel looks at our rights first and then says that there is none.
const NO_LINK: u32 = 0x7fff_fff0;

/// Proves the rights of `weftd run`.
///
/// # Errors
/// Everything that is missing, a sentence each.
pub fn prove(conf: &Conf) -> Result<(), Vec<String>> {
    let mut missing = missing_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    if missing.is_empty() {
        missing.extend(network_is_not_ours());
    }
    missing.extend(forwarding_cannot_be_set(&conf.sysctl_root));
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// Reads the effective capabilities of a /proc/…/status.
fn missing_capabilities(status: &str) -> Vec<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing = CAPABILITIES.into_iter().filter(|(bit, ..)| effective & (1 << bit) == 0);
    missing.map(|(_, name, purpose)| format!("{name} is missing: weftd could not {purpose}")).collect()
}

/// A capability counts in the user namespace that owns the network: having it elsewhere is of no use.
fn network_is_not_ours() -> Option<String> {
    let attempt = Socket::route().and_then(|mut socket| socket.execute(&[link::delete(NO_LINK)]));
    match attempt {
        Err(error) if error.is(libc::EPERM) => Some(
            "this network belongs to another user namespace: CAP_NET_ADMIN is there, but not for it"
                .to_owned(),
        ),
        Err(error) if !error.is(libc::ENODEV) => {
            Some(format!("ask the kernel for this node's network: {error}"))
        }
        _ => None,
    }
}

fn forwarding_cannot_be_set(sysctl_root: &Path) -> Option<String> {
    let path = sysctl_root.join("net/ipv4/ip_forward");
    let value = match fs::read_to_string(&path) {
        Ok(value) => value,
        Err(error) => return Some(format!("read {}: {error}; see `sysctl_root`", path.display())),
    };
    if value.trim() == "1" {
        return None;
    }
    access(&path, AccessFlags::W_OK).err().map(|error| {
        format!("forwarding is off and {} cannot be written ({error}); see `sysctl_root`", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        let status = |hex: &str| format!("Name:\tweftd\nCapPrm:\t000001ffffffffff\nCapEff:\t{hex}\n");
        assert_eq!(missing_capabilities(&status("0000000000003000")), Vec::<String>::new());
        let raw = missing_capabilities(&status("0000000000001000"));
        assert_eq!(raw, ["CAP_NET_RAW is missing: weftd could not send neighbour advertisements"]);
        assert_eq!(missing_capabilities(&status("0000000000000000")).len(), 2);
        assert_eq!(missing_capabilities("").len(), 2, "unknown is not allowed");
    }

    #[test]
    fn a_sysctl_root_that_is_none_is_named() {
        let complaint = forwarding_cannot_be_set(Path::new("/nonexistent")).unwrap();
        assert!(complaint.contains("/nonexistent/net/ipv4/ip_forward"), "{complaint}");
        assert!(complaint.contains("sysctl_root"), "{complaint}");
    }
}
