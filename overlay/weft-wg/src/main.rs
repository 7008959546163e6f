//! `weft-wg IFACE`: a WireGuard device in user space, in the foreground.

use std::io::Write;
use std::process::ExitCode;

const HELP: &str = "weft-wg INTERFACE: a WireGuard device in user space

It makes the interface, serves /var/run/wireguard/INTERFACE.sock for wg(8), logs to standard error, and stays in the
foreground until SIGTERM or SIGINT. Then the interface goes.

  --version, -V   the version
  --help, -h      this text

WEFT_WG_LOG=error|warn|info|debug   how much is logged (info)
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (first, more) = (arguments.next(), arguments.next());
    let print = |text: &str| match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    };
    match (first.as_deref(), more) {
        (Some("--help" | "-h"), None) => print(HELP),
        (Some("--version" | "-V"), None) => print(concat!("weft-wg ", env!("CARGO_PKG_VERSION"), "\n")),
        (Some(interface), None) if !interface.starts_with('-') => run(interface),
        _ => {
            let _unheard = std::io::stderr().write_all(HELP.as_bytes());
            ExitCode::from(2)
        }
    }
}

fn run(interface: &str) -> ExitCode {
    let level = std::env::var("WEFT_WG_LOG").ok().and_then(|level| level.parse().ok());
    weft_wg::log::begin(level.unwrap_or(tracing::Level::INFO));
    match weft_wg::serve::serve(interface) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
