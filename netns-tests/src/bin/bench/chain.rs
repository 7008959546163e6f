//! A chain of plugins, run as libcni runs it: forward for ADD, backward for DEL, with `prevResult`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Outcome, process};

/// The interface's name in every pod.
pub const IFNAME: &str = "eth0";

/// A pod's attachment to one subject.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub container_id: String,
    pub netns: PathBuf,
    /// Different for all attachments of a subject.
    pub number: usize,
    /// `CNI_ARGS`.
    pub args: String,
}

/// Plugins with their configurations, in the order of ADD.
#[derive(Debug)]
pub struct Chain {
    pub network: String,
    plugins: Vec<Plugin>,
    path: String,
}

#[derive(Debug)]
struct Plugin {
    kind: String,
    program: PathBuf,
    /// What it reads on standard input, but for `prevResult`.
    conf: String,
}

/// An operation that has returned: what the last plugin said, and how long each took, in the order of ADD.
#[derive(Debug, Default)]
pub struct Done {
    pub stdout: Vec<u8>,
    pub steps: Vec<Duration>,
}

impl Chain {
    /// A chain of a configuration list, its plugins in `dir`.
    pub fn new(conflist: &Value, dir: &Path) -> Outcome<Self> {
        let network = conflist["name"].as_str().unwrap_or_default().to_owned();
        let plugins = conflist["plugins"].as_array().into_iter().flatten();
        let plugins = plugins.map(|conf| Plugin::new(conf, conflist, dir)).collect::<Outcome<_>>()?;
        Ok(Self { network, plugins, path: dir.display().to_string() })
    }

    /// The plugins' types.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.kind.as_str())
    }

    pub fn add(&self, at: &Attachment) -> Outcome<Done> {
        let mut done = Done::default();
        for (index, plugin) in self.plugins.iter().enumerate() {
            let previous = (index > 0).then_some(done.stdout.as_slice());
            let start = Instant::now();
            done.stdout = plugin.run("ADD", at, &self.path, previous)?;
            done.steps.push(start.elapsed());
        }
        Ok(done)
    }

    /// `result` is what ADD ended with.
    pub fn del(&self, at: &Attachment, result: &[u8]) -> Outcome<Done> {
        let mut done = Done::default();
        for plugin in self.plugins.iter().rev() {
            let start = Instant::now();
            done.stdout = plugin.run("DEL", at, &self.path, Some(result))?;
            done.steps.push(start.elapsed());
        }
        done.steps.reverse();
        Ok(done)
    }
}

impl Plugin {
    fn new(conf: &Value, conflist: &Value, dir: &Path) -> Outcome<Self> {
        let mut conf = conf.clone();
        let kind = conf["type"].as_str().unwrap_or_default().to_owned();
        if let Some(object) = conf.as_object_mut() {
            // No runtime of the benchmark offers anything, so none is handed on.
            object.remove("capabilities");
        }
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = conflist["cniVersion"].clone();
        let program = dir.join(&kind);
        if !program.is_file() {
            return Err(format!("no plugin {}", program.display()).into());
        }
        Ok(Self { kind, program, conf: conf.to_string() })
    }

    fn run(&self, verb: &str, at: &Attachment, path: &str, previous: Option<&[u8]>) -> Outcome<Vec<u8>> {
        let environment = [
            ("CNI_COMMAND", OsStr::new(verb)),
            ("CNI_CONTAINERID", at.container_id.as_ref()),
            ("CNI_NETNS", at.netns.as_ref()),
            ("CNI_IFNAME", IFNAME.as_ref()),
            ("CNI_ARGS", at.args.as_ref()),
            ("CNI_PATH", path.as_ref()),
        ];
        let stdin = with_previous(&self.conf, previous);
        let finished = process::run(&self.program, &[], &environment, &stdin)?;
        finished.expect(|| format!("{verb} of {} for {}", self.program.display(), at.container_id))
    }
}

/// Puts `prevResult` into an object that is text already, without parsing either.
fn with_previous(conf: &str, previous: Option<&[u8]>) -> Vec<u8> {
    let Some(previous) = previous else { return conf.as_bytes().to_vec() };
    let rest = conf.get(1..).unwrap_or_default();
    [b"{\"prevResult\":", previous.trim_ascii(), b",", rest.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_previous_result_becomes_part_of_the_configuration() {
        let conf = json!({"name": "n", "type": "t"});
        let text = with_previous(&conf.to_string(), Some(b" {\"ips\":[]}\n"));
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value, json!({"name": "n", "type": "t", "prevResult": {"ips": []}}));
        assert_eq!(with_previous("{}", None), b"{}");
    }
}
