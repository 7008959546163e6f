//! The command line: what there is, what it takes, and which exit code comes of it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::command::{self, Failure, Verdict};
use crate::conf::load::Given;
use crate::conf::{KEYS, Key, Kind};
use crate::{ipam_show, run};

const EXIT_CODES: &str =
    "Exit code of every command: 0 all is well, 1 it found something (or refused), 2 it could not tell.";

#[derive(Debug, Parser)]
#[command(version, about = "Looks after Weft on this node", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon
    Run {
        /// Create the cluster's configuration from the file's section network if there is none
        #[arg(long)]
        init: bool,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Show how this node and its daemon are
    #[command(after_help = command::status::HELP)]
    Status {
        #[command(flatten)]
        output: OutputArg,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Compare records, kernel and store
    Check {
        #[command(flatten)]
        output: OutputArg,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Decide for the running daemon what it must not decide itself
    Repair {
        /// The store was restored and is right as it is: nodes that it does not know are gone for good
        #[arg(long, required = true)]
        accept: bool,
    },
    /// The cluster's configuration
    #[command(subcommand)]
    Config(ConfigVerb),
    /// The cluster's nodes
    #[command(subcommand)]
    Node(NodeVerb),
    /// Addresses that this node has given to pods
    #[command(subcommand)]
    Ipam(IpamVerb),
    /// Put the plugins where the container runtime looks
    Install {
        /// Take them from this folder [default: where weftd lies]
        #[arg(long)]
        from: Option<PathBuf>,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Remove everything of Weft from this node and tell the store; refused while pods live
    Uninstall {
        /// Also remove the pods' own links: they lose their network
        #[arg(long)]
        pods: bool,
        #[command(flatten)]
        conf: ConfArgs,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Create it in the store from the file's sections network and vxlan; refused if there is one
    Init {
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Show it
    Get {
        #[command(flatten)]
        output: OutputArg,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Change it, as in `cidrs=10.244.0.0/16,10.9.0.0/16 masquerade=false`
    Set {
        /// Keys of the sections network and vxlan with their new values
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
        #[command(flatten)]
        conf: ConfArgs,
    },
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// List the nodes
    Ls {
        #[command(flatten)]
        output: OutputArg,
        #[command(flatten)]
        conf: ConfArgs,
    },
    /// Remove a node for good; refused while it is alive
    Rm {
        /// The node
        name: String,
        /// Remove it although it is alive: it stops giving addresses
        #[arg(long)]
        force: bool,
        /// The machine is gone for certain: its blocks can be given to others at once
        #[arg(long)]
        destroyed: bool,
        #[command(flatten)]
        conf: ConfArgs,
    },
}

#[derive(Debug, Subcommand)]
enum IpamVerb {
    /// Show every attachment and how full the ranges are
    #[command(after_help = ipam_show::HELP)]
    Show {
        /// What all nodes told the store about their blocks, instead of this node's attachments
        #[arg(long)]
        cluster: bool,
        #[command(flatten)]
        output: OutputArg,
        #[command(flatten)]
        conf: ConfArgs,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
struct OutputArg {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// `--config` and a flag for every key.
#[derive(Clone, Debug, Default)]
struct ConfArgs(Given);

impl Args for ConfArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("Configuration [default: {}, if it is there]", crate::conf::DEFAULT_FILE));
        let keys = KEYS.iter().map(|key| {
            let value = match key.kind {
                Kind::Text => "TEXT",
                Kind::List => "A,B,…",
                Kind::Number => "N",
                Kind::Bool => "true|false",
            };
            let arg = Arg::new(key.path).long(key.flag()).value_name(value).hide_short_help(true);
            arg.help(format!("{} [{}]", key.help, key.variable())).help_heading("Keys of the configuration")
        });
        command.arg(file).args(keys)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = KEYS.iter().filter_map(|key| Some((key, matches.get_one::<String>(key.path)?.clone())));
        let flags: Vec<(&'static Key, String)> = given.collect();
        Ok(Self(Given { file: matches.get_one::<PathBuf>("config").cloned(), flags }))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Reads the command line and does what it says.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to be told if this fails.
            let _unheard = error.print();
            let code = if error.use_stderr() { Verdict::CouldNotTell } else { Verdict::Fine };
            return ExitCode::from(code as u8);
        }
    };
    match dispatch(cli.command) {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(failure) => {
            let text: String =
                failure.sentences.iter().map(|sentence| format!("weftd: {sentence}\n")).collect();
            let _unheard = io::stderr().write_all(text.as_bytes());
            ExitCode::from(failure.verdict as u8)
        }
    }
}

fn dispatch(verb: Verb) -> Result<Verdict, Failure> {
    match verb {
        Verb::Run { init, conf } => run::run(&conf.0, init),
        Verb::Status { output, conf } => command::status::run(&conf.0, output.output),
        Verb::Check { output, conf } => command::check::run(&conf.0, output.output),
        Verb::Repair { .. } => command::repair::accept(),
        Verb::Config(ConfigVerb::Init { conf }) => command::config::init(&conf.0),
        Verb::Config(ConfigVerb::Get { output, conf }) => command::config::get(&conf.0, output.output),
        Verb::Config(ConfigVerb::Set { changes, conf }) => command::config::set(&conf.0, &changes),
        Verb::Node(NodeVerb::Ls { output, conf }) => command::node::ls(&conf.0, output.output),
        Verb::Node(NodeVerb::Rm { name, force, destroyed, conf }) => {
            command::node::rm(&conf.0, &name, command::node::Force { force, destroyed })
        }
        Verb::Ipam(IpamVerb::Show { cluster: true, output, conf }) => {
            ipam_show::run_cluster(&conf.0, output.output)
        }
        Verb::Ipam(IpamVerb::Show { output, .. }) => {
            ipam_show::run(output.output).map_err(Failure::could_not_tell)
        }
        Verb::Install { from, conf } => command::install::install(&conf.0, from.as_deref()),
        Verb::Uninstall { pods, conf } => command::install::uninstall(&conf.0, pods),
    }
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
            let Verb::Ipam(IpamVerb::Show { output, .. }) = Cli::try_parse_from(words).unwrap().command
            else {
                panic!("another command")
            };
            assert_eq!(output.output, expected, "{words:?}");
        }
    }

    #[test]
    fn every_key_is_a_flag() {
        for key in KEYS {
            let flag = format!("--{}", key.flag());
            let Verb::Run { conf, .. } = Cli::try_parse_from(["weftd", "run", &flag, "x"]).unwrap().command
            else {
                panic!("another command")
            };
            assert_eq!(conf.0.flags, [(key, "x".to_owned())], "{flag}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused() {
        for word in ["wg", "rotate", "runn"] {
            let refused = Cli::try_parse_from(["weftd", word]).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::InvalidSubcommand, "{word}");
            assert_eq!(refused.exit_code(), Verdict::CouldNotTell as i32, "{word}");
        }
    }
}
