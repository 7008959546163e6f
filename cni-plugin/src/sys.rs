//! System calls without a safe wrapper.
#![expect(unsafe_code, reason = "process set-up before any thread exists, raw descriptors")]

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

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
