//! The one system call that neither std nor nix wraps.
#![expect(unsafe_code, reason = "pidfd_open(2) has no safe wrapper in std or nix")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Opens a descriptor that becomes readable when process `pid` exits (Linux 5.3).
///
/// # Errors
/// As pidfd_open(2); also where a sandbox does not know the call.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_ulong::from(pid), 0_u64) };
    let fd = RawFd::try_from(result).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
