//! The system calls that have no safe wrapper in our dependencies. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "options and requests of Linux alone")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes of a few bytes, and BPF codes, which are 16 bits wide"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Sets an integer socket option (setsockopt(2)).
pub fn set_option(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives across the call.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a 64-bit socket option (getsockopt(2)), such as `SO_NETNS_COOKIE` (Linux 5.14).
pub fn u64_option(fd: BorrowedFd<'_>, option: i32) -> io::Result<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers describe `value` and `length`, which live across the call.
    let outcome = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut length)
    };
    if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The kind of a namespace file, one of `CLONE_NEW…` (ioctl_ns(2), Linux 4.11); `None` if it is none.
pub fn namespace_type(fd: BorrowedFd<'_>) -> Option<i32> {
    /// `NS_GET_NSTYPE` (include/uapi/linux/nsfs.h).
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

/// The network namespace that a socket belongs to (`SIOCGSKNS`, Linux 4.10).
pub fn namespace_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// `SIOCGSKNS` (include/uapi/linux/sockios.h).
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the request takes no argument.
    let own = unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// The index of an interface in the network namespace that a socket belongs to (`SIOCGIFINDEX`). Where there is
/// none the kernel looks for a module of that name, by a program it starts: only for one that is known to exist.
pub fn interface_index(fd: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    // SAFETY: a structure of integers and arrays of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays 0.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request reads the name in `request` and writes the index there.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX as libc::Ioctl, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request fills in that member.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Limits the multicast messages a socket receives to those of `message_type` about interface `ifindex`
/// (a classic BPF program over `struct nlmsghdr` and `struct ifinfomsg`).
///
/// Messages that are no multicast, such as acknowledgements, are filtered too: attach it only to a socket that
/// listens and never asks.
pub fn only_link_events(fd: BorrowedFd<'_>, message_type: u16, ifindex: u32) -> io::Result<()> {
    // BPF loads are big-endian, netlink is host order: compare with the value as it lies in memory.
    let wanted_type = u32::from(u16::from_be_bytes(message_type.to_ne_bytes()));
    let wanted_index = u32::from_be_bytes(ifindex.to_ne_bytes());
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 3, wanted_type),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 20),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, wanted_index),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `filter` points at `program`, and both live across the call; the kernel copies them.
    let outcome = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
