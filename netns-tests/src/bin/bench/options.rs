//! The command line, and how much work each kind of run does.

use std::path::{Path, PathBuf};

use crate::Outcome;

pub const HELP: &str = "\
bench [--quick] [--only SECTION,…] [--json FILE]

Measures ADD and DEL of Weft, of the reference plugins and of the bare kernel, in turn. Needs root.
  --quick        20 pairs instead of 100, fewer rounds, no growth
  --only LIST    of: plain, full, ptp (chains), floor (the bare kernel beside each chain), growth, start
  --json FILE    where the numbers go (target/bench.json)

  WEFT_BIN_DIR         folder of weft (target/x86_64-unknown-linux-musl/release)
  CNI_REFERENCE_DIRS   folders of reference plugins, colon-separated (/usr/lib/cni:/opt/cni/bin)
";

/// Part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Start,
    Floor,
    Plain,
    Full,
    Ptp,
    Growth,
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
    /// ADD and DEL pairs of each subject, one after the other.
    pub pairs: usize,
    /// Addresses that are taken again at once after a DEL.
    pub retakes: usize,
    /// Pods of each round with many at once.
    pub burst_pods: usize,
    /// Such rounds.
    pub burst_rounds: usize,
    /// Starts of each program.
    pub starts: usize,
    /// Pods of a growth run.
    pub growth_pods: usize,
    /// Growth runs of each kind.
    pub growth_runs: usize,
    /// Addresses taken before the second kind of growth run.
    pub growth_taken: usize,
}

const FULL: Effort = Effort {
    pairs: 100,
    retakes: 20,
    burst_pods: 192,
    burst_rounds: 3,
    starts: 200,
    growth_pods: 1000,
    growth_runs: 3,
    growth_taken: 60_000,
};

const QUICK: Effort =
    Effort { pairs: 20, retakes: 5, burst_pods: 48, burst_rounds: 2, growth_runs: 0, ..FULL };

impl Options {
    pub fn parse(arguments: &[String]) -> Outcome<Self> {
        let mut options = Self {
            help: false,
            quick: false,
            json: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench.json"),
            effort: FULL,
            sections: vec![
                Section::Start,
                Section::Floor,
                Section::Plain,
                Section::Full,
                Section::Ptp,
                Section::Growth,
            ],
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; see --help"));
            match word.as_str() {
                "--help" | "-h" => options.help = true,
                "--quick" => (options.quick, options.effort) = (true, QUICK),
                "--json" => options.json = value()?.into(),
                "--only" => options.sections = value()?.split(',').map(section).collect::<Outcome<_>>()?,
                other => return Err(format!("{other:?} is no option; see --help").into()),
            }
        }
        Ok(options)
    }

    pub fn wants(&self, section: Section) -> bool {
        let skipped = section == Section::Growth && self.effort.growth_runs == 0;
        self.sections.contains(&section) && !skipped
    }

    /// The largest number of pods that any chain has at once.
    pub fn pods_needed(&self) -> usize {
        self.effort.burst_pods.max(self.effort.pairs)
    }
}

fn section(name: &str) -> Outcome<Section> {
    Ok(match name {
        "start" => Section::Start,
        "floor" => Section::Floor,
        "plain" => Section::Plain,
        "full" => Section::Full,
        "ptp" => Section::Ptp,
        "growth" => Section::Growth,
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
    fn a_quick_run_leaves_growth_out_even_if_asked_for() {
        let options = parse(&["--only", "plain,growth", "--quick"]).unwrap();
        assert!(options.wants(Section::Plain));
        assert!(!options.wants(Section::Growth) && !options.wants(Section::Full));
        assert_eq!(options.pods_needed(), 48);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        assert!(parse(&["--fast"]).unwrap_err().to_string().contains("--fast"));
        assert!(parse(&["--only", "plain,speed"]).unwrap_err().to_string().contains("speed"));
        assert!(parse(&["--json"]).unwrap_err().to_string().contains("needs a value"));
    }
}
