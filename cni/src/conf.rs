//! The network configuration on stdin.

use std::io::Read;

use serde_json::Value;

use crate::dns::Dns;
use crate::error::Error;
use crate::names::NetworkName;
use crate::object::{Object, mismatch};
use crate::request::Command;
use crate::result::AddResult;
use crate::version::{self, Version};

/// How much configuration is read. libcni's are a few kB; what is larger than this is an attack or an accident.
pub const MAX_CONFIG: u64 = 16 << 20;

/// A configuration whose version, name and type are known to be good. Everything else is read where it is used,
/// so that a DEL does not trip over a field that only ADD needs.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// The version to print the result in.
    pub version: Version,
    /// The network's name.
    pub name: NetworkName,
    /// `type`, the name of the plugin; empty if absent.
    pub kind: String,
    /// All of it.
    pub object: Object,
    /// All of it as it came, which is what a delegate must be given.
    pub raw: Vec<u8>,
}

/// An entry of GC's list: an attachment that must stay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ValidAttachment {
    /// The container.
    pub container_id: String,
    /// The interface; `None` keeps every interface of the container.
    pub ifname: Option<String>,
}

impl ValidAttachment {
    /// Whether this entry keeps the attachment.
    pub fn covers(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && self.ifname.as_deref().is_none_or(|own| own == ifname)
    }
}

/// Reads stdin, up to [`MAX_CONFIG`].
///
/// # Errors
/// Code 5 when reading fails, code 6 when there is more.
pub fn read(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut raw = Vec::new();
    let read = stdin.take(MAX_CONFIG + 1).read_to_end(&mut raw);
    let length = read.map_err(|source| Error::io("error reading from stdin", &source))?;
    if length as u64 > MAX_CONFIG {
        return Err(Error::decode(format!("network configuration is larger than {} MiB", MAX_CONFIG >> 20)));
    }
    Ok(raw)
}

/// Parses a configuration as far as being a JSON object. Nesting is limited by serde_json, to 128.
///
/// # Errors
/// Code 6 when it is none: nothing at all, other JSON, a byte order mark, something after the object.
pub fn decode(raw: &[u8]) -> Result<Object, Error> {
    if raw.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::decode("network configuration is empty: expected a JSON object on stdin"));
    }
    if raw.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::decode("network configuration starts with a byte order mark"));
    }
    let value: Result<Value, _> = serde_json::from_slice(raw);
    match value {
        Ok(Value::Object(map)) => Ok(Object::new(map)),
        Ok(other) => Err(mismatch("network configuration", "an object", &other)),
        Err(problem) => {
            Err(Error::decode("network configuration is not JSON").with_details(problem.to_string()))
        }
    }
}

impl NetConf {
    /// Reads a configuration for ADD or DEL.
    ///
    /// # Errors
    /// As [`decode`] and [`NetConf::for_command`].
    pub fn parse(raw: &[u8]) -> Result<Self, Error> {
        Self::for_command(decode(raw)?, raw.to_vec(), Command::Add)
    }

    /// Checks what every verb needs: name, type, and a version that has the verb.
    ///
    /// # Errors
    /// Code 6 for wrong types, 7 for the name, 1 or 6 for the version (see [`version::for_command`]).
    pub fn for_command(object: Object, raw: Vec<u8>, command: Command) -> Result<Self, Error> {
        let name = NetworkName::parse(&object.string("name")?.unwrap_or_default())?;
        let kind = object.string("type")?.unwrap_or_default();
        let version = version::for_command(&object.string("cniVersion")?.unwrap_or_default(), command)?;
        Ok(Self { version, name, kind, object, raw })
    }

    /// `runtimeConfig`, what the runtime passes for our capabilities; empty if absent.
    ///
    /// # Errors
    /// Code 6 when it is no object.
    pub fn runtime_config(&self) -> Result<Object, Error> {
        Ok(self.object.object("runtimeConfig")?.unwrap_or_default())
    }

    /// `runtimeConfig.dns` (capability `dns`): what the runtime wants; `None` if it says nothing, as containerd does
    /// by empty lists.
    ///
    /// # Errors
    /// Code 6 for wrong types.
    pub fn runtime_dns(&self) -> Result<Option<Dns>, Error> {
        let Some(object) = self.runtime_config()?.object("dns")? else { return Ok(None) };
        let list = |key| Ok::<_, Error>(object.strings(key)?.unwrap_or_default());
        let (nameservers, search, options) = (list("servers")?, list("searches")?, list("options")?);
        let dns = Dns { nameservers, search, options, domain: String::new() };
        Ok((!dns.is_empty()).then_some(dns))
    }

    /// `args.cni`, the conventional arguments; empty if absent.
    ///
    /// # Errors
    /// Code 6 when it or `args` is no object.
    pub fn args_cni(&self) -> Result<Object, Error> {
        let Some(args) = self.object.object("args")? else { return Ok(Object::default()) };
        Ok(args.object("cni")?.unwrap_or_default())
    }

    /// `dns`, if any of its keys is set (even to `[]`): it then replaces what IPAM says as a whole.
    ///
    /// # Errors
    /// Code 6 for wrong types.
    pub fn dns(&self) -> Result<Option<Dns>, Error> {
        let Some(object) = self.object.object("dns")? else { return Ok(None) };
        if Dns::is_set(&object)? { Dns::parse(&object).map(Some) } else { Ok(None) }
    }

    /// `prevResult`. Not read before it is asked for, so that a DEL tolerates a broken one.
    ///
    /// # Errors
    /// As [`AddResult::parse`].
    pub fn prev_result(&self) -> Result<Option<AddResult>, Error> {
        let value = self.object.get("prevResult");
        value.map(AddResult::parse).transpose().map_err(|error| error.context("prevResult"))
    }

    /// The `ipam` section.
    ///
    /// # Errors
    /// Code 6 when it is no object.
    pub fn ipam(&self) -> Result<Option<Object>, Error> {
        self.object.object("ipam")
    }

    /// What GC must keep: the union of `cni.dev/valid-attachments` and `cni.dev/attachments`, which libcni
    /// sends with equal contents. A Go list without elements is `null`, so `null` is an empty list; but
    /// without both keys nobody said that nothing is valid, and collecting all would cut live pods.
    ///
    /// # Errors
    /// Code 7 when both keys are absent or an entry has no container ID, code 6 for wrong types.
    pub fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Error> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        if keys.iter().all(|key| self.object.get_with_null(key).is_none()) {
            return Err(Error::config("GC needs the list cni.dev/valid-attachments, nothing was collected"));
        }
        let mut valid = Vec::new();
        for entry in [self.object.objects(keys[0])?, self.object.objects(keys[1])?].concat() {
            valid.push(valid_attachment(&entry)?);
        }
        valid.sort();
        valid.dedup();
        Ok(valid)
    }
}

fn valid_attachment(entry: &Object) -> Result<ValidAttachment, Error> {
    let missing = || Error::config(format!("{} is missing", entry.path_of("containerID")));
    let container_id = entry.text("containerID")?.ok_or_else(missing)?;
    Ok(ValidAttachment { container_id, ifname: entry.text("ifname")? })
}

#[cfg(test)]
mod tests;
