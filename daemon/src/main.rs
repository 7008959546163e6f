//! `weftd`: Weft's node daemon, and the operator's commands as its subcommands.

fn main() -> std::process::ExitCode {
    weftd::cli::main(std::env::args_os())
}
