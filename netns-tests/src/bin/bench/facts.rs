//! What ran, and on what: programs with their versions, and the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::UsageWho;

use crate::{Outcome, process};

/// Where distributions and runtimes put the reference plugins.
const REFERENCE_DIRS: &str = "/usr/lib/cni:/opt/cni/bin:/usr/libexec/cni";
/// What the chains need.
const REFERENCE_PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "ptp"];
/// More work of others than this and the figures mean little.
const OTHERS_LIMIT: f64 = 0.15;
/// `PT_INTERP` (elf.h): the program header that names a dynamic loader.
const PT_INTERP: u32 = 3;

/// A folder of plugins of one version.
#[derive(Clone, Debug)]
pub struct Program {
    pub label: String,
    pub dir: PathBuf,
}

/// Everything that is measured but the bare kernel.
#[derive(Debug)]
pub struct Programs {
    pub weft: Program,
    pub references: Vec<Program>,
}

/// Facts for the head of the report: name and value.
pub type Facts = Vec<(&'static str, String)>;

impl Programs {
    pub fn find() -> Outcome<Self> {
        let dir = netns_tests::weft_bin_dir();
        let version = said_by(&dir.join("weft"), &["--version"]).unwrap_or_else(|| "weft".to_owned());
        let weft = Program { label: version, dir };
        let dirs = std::env::var("CNI_REFERENCE_DIRS").unwrap_or_else(|_| REFERENCE_DIRS.to_owned());
        let mut references: Vec<Program> = Vec::new();
        for dir in dirs.split(':').map(PathBuf::from) {
            let complete = REFERENCE_PLUGINS.iter().all(|plugin| dir.join(plugin).is_file());
            let dir = dir.canonicalize().unwrap_or(dir);
            if complete && !references.iter().any(|known| known.dir == dir) {
                references.push(Program { label: reference_version(&dir), dir });
            }
        }
        Ok(Self { weft, references })
    }
}

/// A plugin that is started without `CNI_COMMAND` introduces itself; Debian's do not know their version.
fn reference_version(dir: &Path) -> String {
    let bridge = dir.join("bridge");
    let introduction = said_by(&bridge, &[]).unwrap_or_default();
    let version = introduction.lines().next().and_then(|line| line.split_whitespace().last());
    if let Some(version) = version.filter(|word| word.starts_with('v')) {
        return version.to_owned();
    }
    let package = said_by(Path::new("dpkg-query"), &["-S", &bridge.display().to_string()]);
    let package = package.as_deref().and_then(|line| line.split(':').next()).unwrap_or_default().to_owned();
    let version = said_by(Path::new("dpkg-query"), &["-W", "-f", "${Version}", &package]);
    match version.filter(|version| version.starts_with(|c: char| c.is_ascii_digit())) {
        Some(version) => format!("v{} (Debian)", version.split('+').next().unwrap_or(&version)),
        None => format!("? ({})", dir.display()),
    }
}

/// The first thing that a program says, on standard output or else on standard error.
fn said_by(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).env_remove("CNI_COMMAND").output().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Some(text(&output.stdout)).filter(|text| !text.is_empty()).or_else(|| Some(text(&output.stderr)))
}

/// The machine, and what was found on it.
pub fn machine(programs: &Programs) -> Outcome<Facts> {
    let first_line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut facts = vec![
        ("date", said_by(Path::new("date"), &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_default()),
        ("kernel", first_line("/proc/sys/kernel/osrelease")),
        ("cores", format!("{cores}, {}", model.map_or("", |(_, name)| name.trim()))),
        ("weft", describe_weft(&programs.weft)?),
    ];
    for reference in &programs.references {
        facts.push(("reference", format!("{} in {}", reference.label, reference.dir.display())));
    }
    if programs.references.is_empty() {
        facts.push(("reference", "none installed: no ratios".to_owned()));
    }
    facts.push(("iptables", said_by(Path::new("iptables"), &["--version"]).unwrap_or_default()));
    facts.push(("bare kernel", describe_floor()));
    Ok(facts)
}

fn describe_weft(weft: &Program) -> Outcome<String> {
    let path = weft.dir.join("weft");
    let bytes = fs::read(&path)?;
    let linked = if has_loader(&bytes) { "DYNAMICALLY linked" } else { "static" };
    let size = bytes.len() / 1000;
    let fits = if bytes.len() <= 1_500_000 { "at most" } else { "MORE THAN" };
    Ok(format!("{} ({}), {linked}, {size} kB ({fits} 1.5 MB)", weft.label, path.display()))
}

fn describe_floor() -> String {
    let itself = std::env::current_exe().and_then(fs::read).unwrap_or_default();
    if has_loader(&itself) {
        "a process of this program, DYNAMICALLY linked: build it for musl, or the floor is too high"
            .to_owned()
    } else {
        "a process of this program, static".to_owned()
    }
}

/// Whether a 64-bit ELF file names a dynamic loader.
fn has_loader(elf: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).unwrap_or_default();
        bytes.iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (first, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(first + index * size, 4) == PT_INTERP as usize)
}

/// How much of the processors others take while we measure.
#[derive(Debug)]
pub struct Meter {
    begin: Reading,
    left_out: Reading,
}

/// Time that has passed on all cores together, what of it the machine was busy, and what of that with us.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    all: Duration,
    busy: Duration,
    ours: Duration,
}

impl Meter {
    pub fn start() -> Outcome<Self> {
        Ok(Self { begin: Reading::now()?, left_out: Reading::default() })
    }

    /// Does something in which nothing is measured.
    pub fn leave_out(&mut self, work: impl FnOnce()) -> Outcome<()> {
        let begin = Reading::now()?;
        work();
        self.left_out = self.left_out.plus(Reading::now()?.since(begin));
        Ok(())
    }

    /// Their work makes every time longer and every ratio milder.
    pub fn others(&self) -> Outcome<String> {
        let Reading { all, busy, ours } = Reading::now()?.since(self.begin).since(self.left_out);
        let others = busy.saturating_sub(ours).as_secs_f64() / all.as_secs_f64();
        let warning =
            if others > OTHERS_LIMIT { "   THE MACHINE WAS BUSY: do not trust these figures" } else { "" };
        Ok(format!("{:.0} % of the processors, kernel threads included{warning}", others * 100.0))
    }
}

impl Reading {
    fn now() -> Outcome<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let uptime = fs::read_to_string("/proc/uptime")?;
        let seconds: f64 = uptime.split_whitespace().next().unwrap_or_default().parse()?;
        let ours = process::cpu_of(UsageWho::RUSAGE_SELF)? + process::cpu_of(UsageWho::RUSAGE_CHILDREN)?;
        Ok(Self {
            all: Duration::from_secs_f64(seconds) * u32::try_from(cores)?,
            busy: machine_busy()?,
            ours,
        })
    }

    fn since(self, other: Self) -> Self {
        Self {
            all: self.all.saturating_sub(other.all),
            busy: self.busy.saturating_sub(other.busy),
            ours: self.ours.saturating_sub(other.ours),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { all: self.all + other.all, busy: self.busy + other.busy, ours: self.ours + other.ours }
    }
}

/// User, nice, system, interrupts, soft interrupts: the first line of /proc/stat, in hundredths of a second.
fn machine_busy() -> Outcome<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let words = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = words.map(|word| word.parse().unwrap_or(0)).collect();
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
    Ok(Duration::from_millis(busy * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        assert!(has_loader(&fs::read("/bin/true").unwrap()));
        assert!(!has_loader(b""), "what is no program has no loader");
    }
}
