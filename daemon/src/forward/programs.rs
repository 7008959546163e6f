//! The `iptables` of this system: which one speaks to which kernel, and how it is run without ever waiting for it for ever.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use weft_netlink::rules::Tool;

/// Where they are, besides `PATH`, which a service manager may have made short.
const FOLDERS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// How long a program may wait for the lock of other iptables, in seconds: its `-w`.
const LOCK_LIMIT: &str = "5";
/// How long it may take in all. A restore of 20,000 rules holds the kernel for a quarter of a second.
const LIMIT: Duration = Duration::from_secs(15);
/// Between two looks whether it has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// The exit status of a `-C` that found no such rule, and of most other faults.
const NOT_THERE: i32 = 1;

/// Where programs are looked for.
#[derive(Clone, Debug)]
pub struct Programs {
    folders: Vec<PathBuf>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
}

impl Programs {
    /// Those of this host.
    pub fn of_host() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> =
            std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
        for folder in FOLDERS.map(PathBuf::from) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        Self { folders }
    }

    /// Where was looked, if there is no `iptables` of any kind and family.
    pub fn missing(&self) -> Option<String> {
        let names =
            ["", "-nft", "-legacy"].map(|kind| [format!("iptables{kind}"), format!("ip6tables{kind}")]);
        let there = names.as_flattened().iter().any(|name| self.path(name).is_some());
        (!there).then(|| {
            let folders: Vec<String> = self.folders.iter().map(|dir| dir.display().to_string()).collect();
            folders.join(", ")
        })
    }

    /// The one that made a chain: by its own name, or plain `iptables` if that is of the kind.
    ///
    /// # Errors
    /// That there is none, or that it does not run.
    pub fn find(&self, tool: Tool, ipv4: bool) -> Result<Program, String> {
        let family = if ipv4 { "iptables" } else { "ip6tables" };
        let nft = tool != Tool::IptablesLegacy;
        let name = format!("{family}-{}", if nft { "nft" } else { "legacy" });
        if let Some(path) = self.path(&name) {
            return Ok(Program { path });
        }
        let none =
            || format!("there is no {name} on this node; install it, or set foreign_forward = \"report\"");
        let program = Program { path: self.path(family).ok_or_else(none)? };
        // As "iptables v1.8.9 (nf_tables)"; before 1.8 there was one kind only, and no word of it.
        let speaks_nft = program.run_plain(&["--version"])?.contains("nf_tables");
        if speaks_nft == nft { Ok(program) } else { Err(none()) }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

impl Program {
    /// Runs it and returns what it printed.
    ///
    /// # Errors
    /// A sentence with its own words.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        self.run_plain(&[&["-w", LOCK_LIMIT], words].concat())
    }

    /// `-I` or `-D`: whether it succeeds is all there is to know.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn change(&self, verb: &str, rule: &[String]) -> Result<(), String> {
        self.run(&with(verb, rule)).map(drop)
    }

    /// `-C`: whether this rule is in FORWARD.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn has(&self, rule: &[String]) -> Result<bool, String> {
        let words = [&["-w", LOCK_LIMIT], &with("-C", rule)[..]].concat();
        let output = self.output(&words)?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(NOT_THERE) => Ok(false),
            _ => Err(self.sentence(&words, &output)),
        }
    }

    fn run_plain(&self, words: &[&str]) -> Result<String, String> {
        let output = self.output(words)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self.sentence(words, &output))
    }

    fn sentence(&self, words: &[&str], output: &Output) -> String {
        let said = String::from_utf8_lossy(&output.stderr);
        let (path, words) = (self.path.display(), words.join(" "));
        format!("{path} {words}: {}: {}", output.status, said.trim().replace('\n', "; "))
    }

    fn output(&self, words: &[&str]) -> Result<Output, String> {
        let mut command = Command::new(&self.path);
        command.args(words).env("LC_ALL", "C").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error: io::Error| format!("{} {}: {error}", self.path.display(), words.join(" "));
        let mut child = command.spawn().map_err(failed)?;
        let streams = [read(child.stdout.take()), read(child.stderr.take())];
        let status = wait(&mut child).map_err(failed)?;
        let [stdout, stderr] = streams.map(|stream| stream.join().unwrap_or_default());
        Ok(Output { status, stdout, stderr })
    }
}

fn with<'a>(verb: &'a str, rule: &'a [String]) -> Vec<&'a str> {
    [verb, "FORWARD"].into_iter().chain(rule.iter().map(String::as_str)).collect()
}

/// On a thread of its own: a full pipe would stop the program.
fn read(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could not be read is missed by whoever parses it.
        let _short = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        bytes
    })
}

fn wait(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            let text = format!("did not end within {} s, and was stopped", LIMIT.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn programs(scripts: &[(&str, &str)]) -> (tempfile::TempDir, Programs) {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let programs = Programs { folders: vec![folder.path().to_owned()] };
        (folder, programs)
    }

    #[test]
    fn the_program_of_the_chains_own_kind_is_taken() {
        let (folder, programs) = programs(&[
            ("iptables", "echo 'iptables v1.8.9 (nf_tables)'"),
            ("iptables-legacy", "true"),
            ("ip6tables", "echo 'ip6tables v1.4.21'"),
        ]);
        let found = |tool, ipv4| {
            let found = programs.find(tool, ipv4);
            found.map(|program| program.path.strip_prefix(folder.path()).unwrap().display().to_string())
        };
        assert_eq!(found(Tool::IptablesNft, true).unwrap(), "iptables");
        assert_eq!(found(Tool::IptablesLegacy, true).unwrap(), "iptables-legacy");
        assert_eq!(found(Tool::IptablesLegacy, false).unwrap(), "ip6tables");
        let refused = found(Tool::IptablesNft, false).unwrap_err();
        assert!(refused.contains("there is no ip6tables-nft on this node"), "{refused}");
        assert_eq!(programs.missing(), None);
    }

    #[test]
    fn without_any_the_folders_are_named() {
        let (folder, programs) = programs(&[("nft", "true")]);
        assert_eq!(programs.missing(), Some(folder.path().display().to_string()));
    }

    #[test]
    fn a_failure_is_told_in_the_programs_own_words_and_a_missing_rule_is_none() {
        let script = "case \"$*\" in *-C*) exit 1;; *) echo 'iptables: no such chain' >&2; exit 4;; esac";
        let (_folder, programs) = programs(&[("iptables-nft", script)]);
        let program = programs.find(Tool::IptablesNft, true).unwrap();
        assert_eq!(program.has(&["-j".to_owned(), "ACCEPT".to_owned()]), Ok(false));
        let refused = program.run(&["-S", "FORWARD"]).unwrap_err();
        assert!(refused.contains("-w 5 -S FORWARD: exit status: 4: iptables: no such chain"), "{refused}");
    }
}
