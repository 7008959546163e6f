//! The `CNI_…` variables: which verb, for which attachment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::args::CniArgs;
use crate::error::Error;
use crate::names::{ContainerId, IfName};

/// How variables are looked up, so that tests need no real environment.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The variables of the protocol besides `CNI_COMMAND`, in the order in which missing ones are reported.
pub const VARIABLES: [&str; 6] =
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE"];

/// A verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the verbs of the specification")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        all.into_iter().find(|command| command.as_str() == text)
    }

    /// The verb as in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Whether the verb is about one attachment.
    pub fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Variables it cannot do without. `CNI_PATH` is not among them: it is missed only when a delegate must be
    /// found.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc | Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The variables as they were given, for delegates; and the folders in which delegates are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// The folders of `CNI_PATH`, in order.
    pub path: Vec<PathBuf>,
    variables: BTreeMap<&'static str, OsString>,
}

impl Environment {
    /// Reads all of [`VARIABLES`]; an empty one is as good as missing.
    pub fn read(lookup: Lookup<'_>) -> Self {
        let present = |name: &'static str| Some((name, lookup(name).filter(|value| !value.is_empty())?));
        let variables: BTreeMap<_, _> = VARIABLES.into_iter().filter_map(present).collect();
        let path = variables.get("CNI_PATH").map(|path| std::env::split_paths(path));
        let path = path.into_iter().flatten().filter(|folder| !folder.as_os_str().is_empty()).collect();
        Self { path, variables }
    }

    /// The same variables for another attachment of the network, as a delegate's DEL during GC needs them.
    #[must_use]
    pub fn for_attachment(&self, container_id: &str, ifname: &str) -> Self {
        let mut other = self.clone();
        other.variables.insert("CNI_CONTAINERID", container_id.into());
        other.variables.insert("CNI_IFNAME", ifname.into());
        other.variables.remove("CNI_NETNS");
        other.variables.remove("CNI_ARGS");
        other
    }

    /// A variable of [`VARIABLES`]; never empty.
    pub fn var(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str)
    }

    /// A variable of [`VARIABLES`] that has to be text.
    fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        let Some(value) = self.var(name) else { return Ok(None) };
        let text = value.to_str().map(Some);
        text.ok_or_else(|| {
            Error::environment(format!("{name} is not UTF-8")).with_details(format!("{value:?}"))
        })
    }
}

/// The attachment that ADD, DEL and CHECK are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
    /// The path of its network namespace, unchecked; `None` on a DEL after it went.
    pub netns: Option<PathBuf>,
    /// `CNI_NETNS_OVERRIDE`: the namespace may be the plugin's own.
    pub netns_override: bool,
    /// `CNI_ARGS`. On DEL broken ones are as good as none: they must not keep anything from being freed.
    pub args: CniArgs,
}

impl Attachment {
    /// Reads the attachment of `command`. A required variable with a wrong value is reported before missing
    /// ones, and alone; missing ones are reported together; the others are not judged (as in `skel`).
    ///
    /// # Errors
    /// Code 4 naming the variables.
    pub fn read(command: Command, env: &Environment) -> Result<Self, Error> {
        let container_id = env.text("CNI_CONTAINERID")?.map(ContainerId::parse).transpose()?;
        let ifname = env.text("CNI_IFNAME")?.map(IfName::parse).transpose()?;
        let missing = missing(command, env);
        let (Some(container_id), Some(ifname), true) = (container_id, ifname, missing.is_empty()) else {
            let names = missing.join(",");
            return Err(Error::environment(format!("required env variables [{names}] missing")));
        };
        let args = CniArgs::parse(env.var("CNI_ARGS").unwrap_or_default());
        Ok(Self {
            container_id,
            ifname,
            netns: env.var("CNI_NETNS").map(PathBuf::from),
            netns_override: env.var("CNI_NETNS_OVERRIDE").is_some_and(is_true),
            args: if command == Command::Del { args.unwrap_or_default() } else { args? },
        })
    }
}

fn missing(command: Command, env: &Environment) -> Vec<&'static str> {
    let required = command.required();
    VARIABLES.into_iter().filter(|name| required.contains(name) && env.var(name).is_none()).collect()
}

fn is_true(value: &OsStr) -> bool {
    value == "1" || value.as_bytes().eq_ignore_ascii_case(b"true")
}

#[cfg(test)]
mod tests;
