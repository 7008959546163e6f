//! System calls without a safe wrapper. The only unsafe code of this crate.
#![expect(unsafe_code, reason = "fork, process set-up before any thread exists, raw descriptors")]

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Flags and a command of the calls that mount (include/uapi/linux/mount.h).
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// Which of the three standard descriptors were closed when the program was started.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClosedAtStart {
    /// Descriptor 0.
    pub stdin: bool,
    /// Descriptor 1: the answer would be lost.
    pub stdout: bool,
}

/// What a plugin must do before anything else: files for root alone whatever the umask, a broken pipe as an
/// error instead of a death, and no descriptor of ours in the place of a closed 0, 1 or 2.
pub fn prepare_process() -> ClosedAtStart {
    // SAFETY: no other thread exists yet; umask and signal change process attributes only.
    unsafe {
        libc::umask(0o077);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    let closed = [0, 1, 2].map(occupy_if_closed);
    ClosedAtStart { stdin: closed[0], stdout: closed[1] }
}

/// Puts /dev/null in the place of a closed descriptor; true if it was closed.
fn occupy_if_closed(fd: RawFd) -> bool {
    // SAFETY: F_GETFD has no effect; open is given a constant path and returns the lowest free number, which is
    // `fd` because the lower ones were occupied before.
    unsafe {
        if libc::fcntl(fd, libc::F_GETFD) != -1 {
            return false;
        }
        libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
    }
    true
}

/// A procfs of our own, mounted nowhere (fsopen(2), Linux 5.2).
///
/// # Errors
/// EPERM where this process may not mount one, ENOSYS on an older kernel.
pub fn private_procfs() -> io::Result<OwnedFd> {
    // SAFETY: constant C strings, flags, and a descriptor that was opened just before.
    unsafe {
        let context = descriptor(libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC))?;
        let none = std::ptr::null::<libc::c_char>();
        if libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        descriptor(libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0))
    }
}

/// # Safety
/// `answer` is what a system call returned that makes a descriptor.
unsafe fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(answer) {
        // SAFETY: the caller's word.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The arguments of the C `main`.
///
/// # Safety
/// `argv` must hold `argc` pointers to C strings.
pub unsafe fn arguments(argc: i32, argv: *const *const libc::c_char) -> Vec<OsString> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the caller promises `argc` valid C strings.
    let text = |at| unsafe { CStr::from_ptr(*argv.add(at)) };
    (0..count).map(|at| OsString::from_vec(text(at).to_bytes().to_vec())).collect()
}

/// Starts a detached child that sends `request` on `socket` and waits for the kernel's answer there.
///
/// The child has nothing of this process but that socket and `keep`, a netfilter socket whose last close would
/// stall: no lock, no standard descriptor that somebody waits on, no session. It makes no allocation after the fork.
///
/// # Errors
/// When the process cannot be made (EAGAIN at a limit).
pub fn send_from_detached_child(
    socket: BorrowedFd<'_>,
    keep: Option<BorrowedFd<'_>>,
    request: &[u8],
) -> io::Result<Child> {
    let fd = socket.as_raw_fd();
    let keep = keep.map_or(fd, |keep| keep.as_raw_fd());
    // SAFETY: this process has one thread; the child calls only async-signal-safe functions and ends by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above; the buffers live in this frame.
        0 => unsafe { child(fd, keep, request) },
        pid => Ok(Child(Pid::from_raw(pid))),
    }
}

/// A detached child. Dropping this leaves it running.
#[derive(Debug)]
pub struct Child(Pid);

impl Child {
    /// Whether it has ended; asked again after that, the answer is yes.
    pub fn has_ended(&self) -> bool {
        !matches!(waitpid(self.0, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
    }
}

/// # Safety
/// Only right after fork, in the child.
unsafe fn child(fd: RawFd, keep: RawFd, request: &[u8]) -> ! {
    let mut answer = [0u8; 256];
    // SAFETY: system calls only; the pointers describe `request` and `answer`.
    unsafe {
        close_all_but(fd.min(keep), fd.max(keep));
        libc::setsid();
        if libc::send(fd, request.as_ptr().cast(), request.len(), 0) >= 0 {
            libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0);
        }
        libc::_exit(0)
    }
}

/// # Safety
/// Closes descriptors behind the back of their owners: only in a child that never returns.
unsafe fn close_all_but(low: RawFd, high: RawFd) {
    let (first, second) = (low.cast_unsigned(), high.cast_unsigned());
    let ranges = [(0, first.wrapping_sub(1)), (first + 1, second.wrapping_sub(1)), (second + 1, u32::MAX)];
    // Descriptors 0 to 2 are ours to close as well, so `low` is at least 3: no range wraps around but an empty one.
    for (from, to) in ranges.into_iter().filter(|(from, to)| from <= to) {
        // SAFETY: close_range and close take numbers only.
        unsafe {
            if libc::syscall(libc::SYS_close_range, from, to, 0) != 0 {
                // Kernels before 5.9 have no close_range.
                (from..=to.min(1024)).for_each(|fd| {
                    libc::close(fd.cast_signed());
                });
            }
        }
    }
}
