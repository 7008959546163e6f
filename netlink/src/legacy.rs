//! The legacy iptables' own FORWARD chain, read as `iptables-legacy` reads it (include/uapi/linux/netfilter_ipv4/ip_tables.h
//! and netfilter_ipv6/ip6_tables.h): by two socket options. Nothing is changed, and no module is loaded: a table that the
//! kernel does not list is not asked for.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::rules::ForwardChain;
use crate::rules::{HOOK_FORWARD, of_legacy};
use crate::sys;

const TABLE: &str = "filter";
/// `XT_TABLE_MAXNAMELEN`.
const NAME_LEN: usize = 32;
/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`: `struct ipt_getinfo`.
const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`: `struct ipt_get_entries`.
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: `name`, `valid_hooks`, `hook_entry[5]`, `underflow[5]`, `num_entries`, `size`.
const INFO_LEN: usize = NAME_LEN + 4 * 13;
/// `struct ipt_get_entries` before its entries: name, size; aligned as the 64-bit counters of the entries are.
const ENTRIES_HEADER_LEN: usize = (NAME_LEN + 4).next_multiple_of(align_of::<u64>());
/// `XT_STANDARD_TARGET`'s verdict follows `struct xt_entry_target`; NF_DROP is said as -1.
const TARGET_HEADER_LEN: usize = 32;
const DROP: i32 = -1;
/// A table that somebody replaces between the two questions is asked again.
const ATTEMPTS: usize = 5;

/// One of the two families.
struct Family {
    ipv4: bool,
    names: &'static str,
    domain: AddressFamily,
    level: i32,
    /// Where `target_offset` is in `struct ipt_entry`, `struct ip6t_entry`.
    target_offset: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        ipv4: true,
        names: "/proc/thread-self/net/ip_tables_names",
        domain: AddressFamily::Inet,
        level: libc::SOL_IP,
        target_offset: 88,
    },
    Family {
        ipv4: false,
        names: "/proc/thread-self/net/ip6_tables_names",
        domain: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        target_offset: 140,
    },
];

/// The FORWARD chains of the legacy tables `filter` that this network namespace has.
///
/// # Errors
/// When the kernel lists a table and refuses to tell what is in it.
pub fn forward_chains() -> io::Result<Vec<ForwardChain>> {
    let mut found = Vec::new();
    for family in &FAMILIES {
        // No such file: a kernel without legacy iptables.
        let names = fs::read_to_string(family.names).unwrap_or_default();
        if names.lines().any(|name| name == TABLE) {
            found.extend(read(family)?);
        }
    }
    Ok(found)
}

fn read(family: &Family) -> io::Result<Option<ForwardChain>> {
    let fd = socket(family.domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for _ in 0..ATTEMPTS {
        let mut info = [0; INFO_LEN];
        name(&mut info);
        sys::read_option(fd.as_fd(), family.level, GET_INFO, &mut info)?;
        let size = word(&info, INFO_LEN - 4);
        let mut answer = vec![0; ENTRIES_HEADER_LEN + size as usize];
        name(&mut answer);
        answer[NAME_LEN..NAME_LEN + 4].copy_from_slice(&size.to_ne_bytes());
        match sys::read_option(fd.as_fd(), family.level, GET_ENTRIES, &mut answer) {
            Ok(()) => return Ok(parse(family, &info, &answer[ENTRIES_HEADER_LEN..])),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

fn name(request: &mut [u8]) {
    request[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
}

/// The policy of a chain is its last entry, at the "underflow" of its hook.
fn parse(family: &Family, info: &[u8], entries: &[u8]) -> Option<ForwardChain> {
    let of_hook = |array: usize| word(info, array + 4 * HOOK_FORWARD as usize) as usize;
    let (first, policy) = (of_hook(NAME_LEN + 4), of_hook(NAME_LEN + 4 + 4 * 5));
    let offset = entries.get(policy + family.target_offset..)?.first_chunk()?;
    let verdict = policy + usize::from(u16::from_ne_bytes(*offset)) + TARGET_HEADER_LEN;
    let verdict = i32::from_ne_bytes(*entries.get(verdict..)?.first_chunk()?);
    Some(of_legacy(family.ipv4, verdict == DROP, entries, entries.get(first..policy)?))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_ne_bytes(*chunk))
}
