//! A whole configuration list, run as libcni runs it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::cni::{Call, Cni};
use crate::node::Node;
use crate::outcome::Outcome;
use crate::pod::Pod;

/// A network of a node: its plugins in order, and the results that a runtime keeps.
/// Made by [`Node::chain`].
#[derive(Debug)]
pub struct Chain {
    node: Node,
    dirs: Vec<PathBuf>,
    name: String,
    version: String,
    check_off: bool,
    plugins: Vec<Map<String, Value>>,
    capabilities: Map<String, Value>,
    args: String,
    results: Mutex<BTreeMap<(String, String), Value>>,
}

/// A plugin of a chain that failed. The plugins after it were not run.
#[derive(Clone, Debug)]
pub struct ChainFailure {
    /// The `type` of the plugin.
    pub plugin: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl std::fmt::Display for ChainFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "plugin {}: {}", self.plugin, self.outcome)
    }
}

impl std::error::Error for ChainFailure {}

impl Chain {
    pub(crate) fn new(node: &Node, conflist: &Value, dirs: Vec<PathBuf>) -> Self {
        let text = |key: &str| conflist[key].as_str().unwrap_or_default().to_owned();
        let plugins = conflist["plugins"].as_array().expect("a conflist has plugins");
        let plugins = plugins.iter().map(|plugin| plugin.as_object().expect("a plugin is an object").clone());
        Self {
            node: node.clone(),
            dirs,
            name: text("name"),
            version: text("cniVersion"),
            check_off: conflist["disableCheck"] == json!(true),
            plugins: plugins.collect(),
            capabilities: Map::new(),
            args: String::new(),
            results: Mutex::default(),
        }
    }

    /// What the runtime offers: each plugin gets, as `runtimeConfig`, those it declares.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: &Value) -> Self {
        self.capabilities = capabilities.as_object().expect("capabilities are an object").clone();
        self
    }

    /// `CNI_ARGS` of each call.
    #[must_use]
    pub fn with_args(mut self, args: &str) -> Self {
        self.args = args.to_owned();
        self
    }

    /// ADD through all plugins; keeps and returns the final result. As with libcni, a failure leaves
    /// the clean-up to the caller's [`Chain::del`].
    pub fn add(&self, pod: &Pod) -> Result<Value, ChainFailure> {
        let mut result = None;
        for plugin in &self.plugins {
            let outcome = self.run("ADD", plugin, Some(pod), result.as_ref())?;
            result = Some(outcome.result());
        }
        let result = result.unwrap_or_default();
        self.results().insert(key(pod), result.clone());
        Ok(result)
    }

    /// CHECK through all plugins, each with the final result of ADD.
    pub fn check(&self, pod: &Pod) -> Result<(), ChainFailure> {
        if self.check_off {
            return Ok(());
        }
        let result = self.result(pod);
        self.plugins.iter().try_for_each(|plugin| {
            let outcome = self.run("CHECK", plugin, Some(pod), result.as_ref())?;
            outcome.ok_empty();
            Ok(())
        })
    }

    /// DEL in reverse order, each with the final result of ADD where the version has it (0.4.0 on).
    /// Stops at the first failure; forgets the result only when all went well.
    pub fn del(&self, pod: &Pod) -> Result<(), ChainFailure> {
        let result = if self.at_least((0, 4)) { self.result(pod) } else { None };
        for plugin in self.plugins.iter().rev() {
            self.run("DEL", plugin, Some(pod), result.as_ref())?.ok_empty();
        }
        self.results().remove(&key(pod));
        Ok(())
    }

    /// GC: everything of this network but `valid` is to go. Every plugin is asked; the first failure
    /// is returned at the end.
    pub fn gc<'a>(&self, valid: impl IntoIterator<Item = &'a Pod>) -> Result<(), ChainFailure> {
        let entry = |pod: &Pod| json!({"containerID": pod.container_id(), "ifname": pod.ifname()});
        self.gc_with(&valid.into_iter().map(entry).collect())
    }

    /// GC with this very list of valid attachments; `null` is what some runtimes send for none.
    pub fn gc_with(&self, valid: &Value) -> Result<(), ChainFailure> {
        let run = |plugin: &Map<String, Value>| {
            let mut plugin = plugin.clone();
            plugin.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
            plugin.insert("cni.dev/attachments".to_owned(), valid.clone());
            self.run("GC", &plugin, None, None).map(|outcome| outcome.ok_empty())
        };
        let ended: Vec<_> = self.plugins.iter().map(run).collect();
        ended.into_iter().collect()
    }

    /// STATUS of each plugin in order.
    pub fn status(&self) -> Result<(), ChainFailure> {
        self.plugins.iter().try_for_each(|plugin| {
            self.run("STATUS", plugin, None, None)?.ok_empty();
            Ok(())
        })
    }

    /// VERSION of each plugin: their `supportedVersions`.
    pub fn version(&self) -> Vec<Value> {
        let ask = |plugin| self.cni(plugin).version().result()["supportedVersions"].clone();
        self.plugins.iter().map(ask).collect()
    }

    /// The result that ADD ended with.
    pub fn result(&self, pod: &Pod) -> Option<Value> {
        self.results().get(&key(pod)).cloned()
    }

    /// Forgets the result of ADD, as after the loss of libcni's cache.
    pub fn forget(&self, pod: &Pod) {
        self.results().remove(&key(pod));
    }

    /// The configuration that the `index`th plugin gets, without `prevResult`.
    pub fn conf(&self, index: usize) -> Value {
        self.derive(&self.plugins[index], None)
    }

    fn run(
        &self,
        verb: &str,
        plugin: &Map<String, Value>,
        pod: Option<&Pod>,
        previous: Option<&Value>,
    ) -> Result<Outcome, ChainFailure> {
        let call = self.cni(plugin).call(verb).conf(&self.derive(plugin, previous));
        let call = match pod {
            Some(pod) => call.pod(pod).env("CNI_ARGS", &self.args),
            None => nobody(call),
        };
        let outcome = call.run();
        if outcome.status.success() {
            Ok(outcome)
        } else {
            Err(ChainFailure { plugin: kind(plugin).to_owned(), outcome })
        }
    }

    /// The plugin's object with what a runtime adds, and without what it keeps to itself.
    fn derive(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        let declared = conf.remove("capabilities").unwrap_or_default();
        let offered = self.capabilities.iter().filter(|(name, _)| declared[name.as_str()] == json!(true));
        let offered: Map<_, _> = offered.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !offered.is_empty() {
            conf.insert("runtimeConfig".to_owned(), offered.into());
        }
        conf.insert("name".to_owned(), self.name.clone().into());
        conf.insert("cniVersion".to_owned(), self.version.clone().into());
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        conf.into()
    }

    fn cni(&self, plugin: &Map<String, Value>) -> Cni {
        let kind = kind(plugin);
        let dir = self.dirs.iter().find(|dir| dir.join(kind).is_file());
        let dir = dir.unwrap_or_else(|| panic!("no plugin {kind} in {:?}", self.dirs));
        self.node.cni(dir, kind).with_path(&self.dirs)
    }

    fn at_least(&self, wanted: (u32, u32)) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= wanted
    }

    fn results(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Value>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The empty variables that libcni sets where there is no container.
fn nobody(call: Call) -> Call {
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
        .into_iter()
        .fold(call, |call, key| call.env(key, ""))
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).expect("a plugin has a type")
}

fn key(pod: &Pod) -> (String, String) {
    (pod.container_id().to_owned(), pod.ifname().to_owned())
}
