//! A child that outlives this process, for the request that the kernel answers late.
#![expect(unsafe_code, reason = "a process that shares our memory")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::{Sysno, raw_syscall};

/// Several times what the child uses.
const STACK: usize = 16 * 1024;
/// Kernels before 5.9 have no close_range: descriptors up to this one are closed one by one.
const MANY_DESCRIPTORS: u32 = 1024;

/// What the child works on. It outlives this process, so it is never given back.
struct Task {
    socket: RawFd,
    keep: RawFd,
    request: Box<[u8]>,
}

/// Starts a detached child that sends `request` on `socket`.
///
/// The child has nothing of this process but that socket and `keep`, a netfilter socket whose last close would
/// stall: no lock, no standard descriptor that somebody waits on, no session. It shares our memory instead of
/// copying it, so that neither it nor our own end has any of it to take down: a tenth of a DEL.
///
/// # Errors
/// When the process cannot be made (EAGAIN at a limit).
pub fn send_from_detached_child(
    socket: BorrowedFd<'_>,
    keep: Option<BorrowedFd<'_>>,
    request: &[u8],
) -> io::Result<Child> {
    let socket = socket.as_raw_fd();
    let keep = keep.map_or(socket, |keep| keep.as_raw_fd());
    let task: &'static Task = Box::leak(Box::new(Task { socket, keep, request: request.into() }));
    let stack = Box::leak(vec![0_u128; STACK / size_of::<u128>()].into_boxed_slice()).as_mut_ptr_range();
    let argument = std::ptr::from_ref(task).cast_mut().cast();
    // SAFETY: `run` makes system calls only, by a way that leaves our thread's `errno` alone, reads `task`, and
    // writes nothing but its own stack, which nobody else has and which is aligned to 16 bytes.
    match unsafe { libc::clone(run, stack.end.cast(), libc::CLONE_VM | libc::SIGCHLD, argument) } {
        -1 => Err(io::Error::last_os_error()),
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

/// The child. Whether the request was sent is for the parent to find out.
extern "C" fn run(argument: *mut c_void) -> i32 {
    // SAFETY: the parent passes a `Task` that nobody takes away; the calls take numbers, and a pointer into it.
    unsafe {
        let Task { socket, keep, request } = &*argument.cast::<Task>();
        close_all_but((*socket).min(*keep), (*socket).max(*keep));
        raw_syscall!(Sysno::setsid);
        raw_syscall!(Sysno::sendto, *socket, request.as_ptr(), request.len(), 0, 0, 0);
    }
    0
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
            if raw_syscall!(Sysno::close_range, from, to, 0) != 0 {
                for fd in from..=to.min(MANY_DESCRIPTORS) {
                    raw_syscall!(Sysno::close, fd);
                }
            }
        }
    }
}
