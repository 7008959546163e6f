//! The command line, and how much work each kind of run does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Outcome;

pub const HELP: &str = "\
scale [--quick] [--long] [--only SECTION,…] [--json FILE]

Measures a real weftd against a real etcd in clusters of up to 5,000 nodes, which are records. Needs root.
  --quick        fewer nodes, events and daemons
  --long         idle for 10 minutes instead of one
  --only LIST    of: growth (start, restart and one event at each size), fanout (many daemons and watches at once),
                 idle (three nodes), pods (requests to etcd for pods)
  --json FILE    where the numbers go (target/scale.json)

  WEFT_BIN_DIR   folder of weft, weft-ipam and weftd (target/x86_64-unknown-linux-musl/release)
";

/// Part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Growth,
    Fanout,
    Idle,
    Pods,
}

/// What the command line asks for.
#[derive(Debug)]
pub struct Options {
    pub help: bool,
    pub quick: bool,
    pub json: PathBuf,
    pub effort: Effort,
    sections: Vec<Section>,
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Numbers of simulated nodes.
    pub sizes: &'static [usize],
    /// Changes of one record at each size.
    pub events: usize,
    /// Simulated nodes while many follow.
    pub fanout_nodes: usize,
    /// Real daemons at once.
    pub daemons: usize,
    /// Real watches besides.
    pub watches: usize,
    /// Changes of one record that all of them hear.
    pub fanout_events: usize,
    /// How long three nodes have nothing to do.
    pub idle: Duration,
    /// Pods that are started and stopped.
    pub pods: usize,
}

const FULL: Effort = Effort {
    sizes: &[10, 100, 1_000, 5_000],
    events: 200,
    fanout_nodes: 1_000,
    daemons: 50,
    watches: 500,
    fanout_events: 50,
    idle: Duration::from_secs(60),
    pods: 30,
};

const QUICK: Effort = Effort {
    sizes: &[10, 1_000],
    events: 40,
    fanout_nodes: 200,
    daemons: 5,
    watches: 100,
    fanout_events: 10,
    idle: Duration::from_secs(5),
    pods: 5,
};

const ALL: [Section; 4] = [Section::Growth, Section::Fanout, Section::Idle, Section::Pods];

impl Options {
    pub fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut options = Self {
            help: false,
            quick: false,
            json: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/scale.json"),
            effort: FULL,
            sections: ALL.to_vec(),
        };
        let mut long = false;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; see --help"));
            match word.as_str() {
                "--help" | "-h" => options.help = true,
                "--quick" => (options.quick, options.effort) = (true, QUICK),
                "--long" => long = true,
                "--json" => options.json = value()?.into(),
                "--only" => options.sections = value()?.split(',').map(section).collect::<Outcome<_>>()?,
                other => return Err(format!("{other:?} is no option; see --help").into()),
            }
        }
        if long {
            options.effort.idle = Duration::from_secs(600);
        }
        Ok(options)
    }

    pub fn wants(&self, section: Section) -> bool {
        self.sections.contains(&section)
    }
}

fn section(name: &str) -> Outcome<Section> {
    Ok(match name {
        "growth" => Section::Growth,
        "fanout" => Section::Fanout,
        "idle" => Section::Idle,
        "pods" => Section::Pods,
        other => return Err(format!("{other:?} is no section; see --help").into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Outcome<Options> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_long_run_is_long_also_if_it_is_quick_otherwise() {
        for words in [["--long", "--quick"], ["--quick", "--long"]] {
            let effort = parse(&words).unwrap().effort;
            assert_eq!((effort.idle.as_secs(), effort.daemons), (600, QUICK.daemons));
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert!(parse(&["--fast"]).unwrap_err().to_string().contains("--fast"));
        assert!(parse(&["--only", "idle,speed"]).unwrap_err().to_string().contains("speed"));
        assert!(parse(&["--json"]).unwrap_err().to_string().contains("needs a value"));
        let options = parse(&["--only", "idle,pods"]).unwrap();
        assert!(options.wants(Section::Pods) && !options.wants(Section::Growth));
    }
}
