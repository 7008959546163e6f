//! `weftd`: Weft's node daemon, and the operator's commands as its subcommands. So far it has one of the commands,
//! and no daemon: nothing here runs in the background, talks to a store or changes a network.

mod ipam_show;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

const NOT_YET: &str = "This version has the commands above and no others. The daemon itself and the commands for a \
                       cluster are not built yet: pods of one node need neither.";

#[derive(Debug, Parser)]
#[command(version, about = "Looks after Weft on this node", after_help = NOT_YET)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Addresses that this node has given to pods
    #[command(subcommand)]
    Ipam(Ipam),
}

#[derive(Debug, Subcommand)]
enum Ipam {
    /// Show every attachment and how full the ranges are
    #[command(after_help = ipam_show::HELP)]
    Show {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The exit code of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine = 0,
    FoundSomething = 1,
    CouldNotTell = 2,
}

fn main() -> ExitCode {
    let Command::Ipam(Ipam::Show { output }) = Cli::parse().command;
    let verdict = ipam_show::run(output).unwrap_or_else(|complaint| {
        // Nobody is left to be told if this fails.
        let _unheard = writeln!(io::stderr(), "weftd: {complaint}");
        Verdict::CouldNotTell
    });
    ExitCode::from(verdict as u8)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_output_is_a_table_unless_asked_otherwise() {
        for (words, expected) in [
            (&["weftd", "ipam", "show"][..], Output::Table),
            (&["weftd", "ipam", "show", "-o", "json"], Output::Json),
            (&["weftd", "ipam", "show", "--output=json"], Output::Json),
        ] {
            let Command::Ipam(Ipam::Show { output }) = Cli::try_parse_from(words).unwrap().command;
            assert_eq!(output, expected, "{words:?}");
        }
    }

    #[test]
    fn commands_that_are_not_built_yet_are_refused() {
        for word in ["run", "status", "check", "repair", "config", "node", "install", "uninstall"] {
            let refused = Cli::try_parse_from(["weftd", word]).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::InvalidSubcommand, "{word}");
            assert_eq!(refused.exit_code(), Verdict::CouldNotTell as i32, "{word}");
        }
    }
}
