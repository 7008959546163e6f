//! The few system calls that need `unsafe`. Nothing here knows about labs or plugins.

#![expect(unsafe_code, reason = "pre_exec, ioctl and pidfd have no safe form; kept in this one file")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};

/// What happens in a child between fork and exec.
#[derive(Debug, Default)]
pub struct ChildSetup {
    /// Network namespace to enter.
    pub net: Option<OwnedFd>,
    /// Mount namespace to enter; the working directory becomes its root.
    pub mnt: Option<Arc<OwnedFd>>,
    /// Descriptors to close, last of all.
    pub close: Vec<RawFd>,
    /// Working directory, entered after the mount namespace.
    pub cwd: Option<OwnedFd>,
    /// File mode mask.
    pub umask: Option<libc::mode_t>,
    /// Soft and hard limit of open descriptors.
    pub nofile: Option<u64>,
}

/// Makes `command` apply `setup` in the child, which also dies with the thread that spawns it.
pub fn prepare(command: &mut Command, setup: ChildSetup) {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec of a process with threads; it only makes
    // plain system calls and neither allocates nor takes a lock.
    // JUSTIFICATION: entering a namespace for one program has no other way than pre_exec.
    unsafe { command.pre_exec(move || setup.apply(parent)) };
}

impl ChildSetup {
    fn apply(&self, parent: u32) -> io::Result<()> {
        die_with(parent)?;
        if let Some(net) = &self.net {
            setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mnt) = &self.mnt {
            setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
        }
        if let Some(cwd) = &self.cwd {
            nix::unistd::fchdir(cwd.as_fd())?;
        }
        if let Some(mask) = self.umask {
            // SAFETY: umask takes a number and cannot fail.
            unsafe { libc::umask(mask) };
        }
        if let Some(limit) = self.nofile {
            setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
        }
        for &fd in &self.close {
            // SAFETY: closes a descriptor of the child only; nothing in it uses it any more.
            unsafe { libc::close(fd) };
        }
        Ok(())
    }
}

fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: prctl with integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid has no arguments and cannot fail.
    let now = unsafe { libc::getppid() };
    if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(io::Error::other("parent is gone")) }
}

/// Brings `lo` up in the calling thread's network namespace.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = (*from).cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    let answer =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until process `pid`, a child of the caller that was not yet reaped, has ended; false when
/// `limit` passes first.
pub fn wait_exit(pid: u32, limit: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    loop {
        // SAFETY: one pollfd, which lives until the call returns.
        match unsafe { libc::poll(&raw mut poll, 1, millis) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
