//! The system calls that have no safe form in our dependencies.
#![expect(unsafe_code, reason = "prctl, waitpid for any child, fork in the single-threaded floor process")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes this process the parent of every descendant that loses its own, so that no plugin's child escapes the
/// clock or the accounts.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: prctl with integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits for the end of any one child, adopted ones included; `false` when there is none left.
///
/// Takes children away from whoever waits for a certain one: only while nobody does.
pub fn reap_one() -> io::Result<bool> {
    loop {
        // SAFETY: a null pointer says that the status is not wanted.
        if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(false),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Sends `request` on `socket` from a detached child, which waits for the answer in the caller's stead.
pub fn send_from_detached_child(socket: BorrowedFd<'_>, request: &[u8]) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: the floor process has one thread; the child makes system calls only and ends by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: the pointer describes `request`, and nothing in the child uses what is closed.
            unsafe {
                libc::syscall(libc::SYS_close_range, 0, fd.cast_unsigned() - 1, 0);
                libc::syscall(libc::SYS_close_range, fd.cast_unsigned() + 1, u32::MAX, 0);
                libc::setsid();
                libc::send(fd, request.as_ptr().cast(), request.len(), 0);
                libc::_exit(0)
            }
        }
        _ => Ok(()),
    }
}
