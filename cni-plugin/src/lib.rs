//! The plugin behind the `weft` program: one short-lived, single-threaded process for each call of a container
//! runtime. A library only so that it can be tested; `main.rs` is the program.

mod add;
mod addressing;
mod announce;
pub mod arena;
mod bridge;
mod check;
mod child;
mod conf;
mod del;
mod forward;
mod forwarding;
mod gc;
mod link;
mod log;
mod masquerade;
mod plugin;
mod pod;
mod status;
mod sys;
mod sysctl;
mod veth;
mod vlan;

use std::ffi::OsString;
use std::io::{self, Read, Write};

use plugin::Weft;

/// Serves one call of a runtime (or of a person) and returns the exit code.
///
/// # Safety
/// `argv` must hold `argc` pointers to C strings, as the C runtime passes them, and no thread may run yet.
#[expect(unsafe_code, reason = "the arguments come from C")]
pub unsafe fn serve(argc: i32, argv: *const *const libc::c_char) -> i32 {
    // SAFETY: the caller promises the process' arguments.
    let arguments = unsafe { sys::arguments(argc, argv) };
    let closed = sys::prepare_process();
    std::panic::set_hook(Box::new(report_panic));
    i32::from(run(&arguments, closed))
}

fn run(arguments: &[OsString], closed: sys::ClosedAtStart) -> u8 {
    if let Some(answer) = arguments.get(1).and_then(|argument| answer_person(&argument.to_string_lossy())) {
        return u8::from(io::stdout().write_all(answer.as_bytes()).is_err());
    }
    let environment = |name: &str| std::env::var_os(name);
    let mut stdin: Box<dyn Read> = if closed.stdin { Box::new(io::empty()) } else { Box::new(io::stdin()) };
    let mut stdout: Box<dyn Write> = match weft_cni::run::unbuffered_stdout() {
        Ok(stdout) if !closed.stdout => Box::new(stdout),
        _ => Box::new(ClosedOutput),
    };
    weft_cni::run::run(&mut Weft::default(), &environment, &mut stdin, &mut stdout, &mut io::stderr())
}

/// People call the program with an argument; runtimes never do.
fn answer_person(argument: &str) -> Option<String> {
    match argument {
        "--version" | "-V" => Some(format!("weft {}\n", env!("CARGO_PKG_VERSION"))),
        "--help" | "-h" => Some(format!("{}\n", plugin::ABOUT)),
        _ => None,
    }
}

/// The runtime reads standard output; without this a fault of ours would look like no answer at all.
fn report_panic(info: &std::panic::PanicHookInfo<'_>) {
    let text = weft_cni::run::panic_json(&info.to_string());
    let _nobody_listens = io::stdout().write_all(text.as_bytes());
}

/// Standard output was closed when we were started.
struct ClosedOutput;

impl Write for ClosedOutput {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
