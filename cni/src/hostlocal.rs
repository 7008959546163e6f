//! The configuration of `host-local`, which Weft's own allocator understands word for word.
//!
//! Only what is configured, not what is free: nothing here knows of an allocation. The one file read is the
//! `resolvConf` that the configuration names. Messages are those of `host-local` where it has one.

mod range;
mod request;

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::args::CniArgs;
use crate::conf::NetConf;
use crate::dns::Dns;
use crate::error::Error;
use crate::object::{Object, mismatch};
use crate::result::check_family_limit;
use crate::route::Route;

pub use range::{Range, RangeSet};

/// Where `host-local` keeps its addresses when nothing else is said.
pub const DATA_DIR: &str = "/var/lib/cni/networks";
/// How long a released address rests, in seconds: longer than any neighbour keeps an old MAC address.
pub const COOLDOWN: u64 = 120;
/// How much of a `resolv.conf` is read.
const MAX_RESOLV_CONF: u64 = 1 << 20;

/// The `ipam` section with all that belongs to it elsewhere in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpamConf {
    /// One address is given from each. Empty means that the configuration names no addresses at all: Weft then
    /// takes them from the blocks granted to the node.
    pub sets: Vec<RangeSet>,
    /// Copied into the result.
    pub routes: Vec<Route>,
    /// What `resolvConf` says, if it is there.
    pub dns: Option<Dns>,
    /// Folder of `host-local`'s own records.
    pub data_dir: PathBuf,
    /// Addresses asked for by name, in order, without repetition.
    pub requested: Vec<IpAddr>,
    /// `cooldown`, a key of ours.
    pub cooldown_seconds: u64,
}

impl IpamConf {
    /// Reads the section. Sets come in this order: `runtimeConfig.ipRanges`, the old single `subnet`, `ranges`.
    ///
    /// # Errors
    /// Code 7 when it makes no sense, 6 for wrong types, 4 for addresses in `CNI_ARGS`, 5 for an unreadable
    /// `resolvConf`.
    pub fn parse(conf: &NetConf, args: &CniArgs) -> Result<Self, Error> {
        let ipam = conf.ipam()?.unwrap_or_default();
        let sets = read_sets(&conf.runtime_config()?, &ipam)?;
        let (v4, v6) = count_families(&sets);
        check_family_limit(conf.version, v4, v6)?;
        let requested = request::read(conf, args)?;
        request::check(&sets, &requested)?;
        let routes = ipam.objects("routes")?;
        Ok(Self {
            sets,
            routes: routes.iter().map(|route| Route::parse(route, true)).collect::<Result<_, _>>()?,
            dns: ipam.text("resolvConf")?.map(|path| read_resolv_conf(&path)).transpose()?,
            data_dir: data_dir(conf)?,
            requested,
            cooldown_seconds: ipam.u64("cooldown")?.unwrap_or(COOLDOWN),
        })
    }

    /// The address asked for from one set, if any.
    pub fn requested_from(&self, set: &RangeSet) -> Option<IpAddr> {
        self.requested.iter().copied().find(|&ip| set.contains(ip))
    }
}

/// Only the folder of `host-local`'s records: a DEL must find it even if the ranges make no sense any more.
///
/// # Errors
/// Code 6 for wrong types.
pub fn data_dir(conf: &NetConf) -> Result<PathBuf, Error> {
    let given = conf.ipam()?.unwrap_or_default().text("dataDir")?;
    Ok(given.map_or_else(|| PathBuf::from(DATA_DIR), PathBuf::from))
}

fn read_sets(runtime: &Object, ipam: &Object) -> Result<Vec<RangeSet>, Error> {
    let mut lists = lists_of_ranges(runtime, "ipRanges")?;
    if ipam.contains("subnet") {
        lists.push(vec![ipam.clone()]);
    }
    lists.extend(lists_of_ranges(ipam, "ranges")?);

    let read = |(index, list): (usize, &Vec<Object>)| {
        let ranges = list.iter().map(Range::parse).collect::<Result<_, _>>();
        ranges.and_then(RangeSet::new).map_err(|error| error.context(format!("invalid range set {index}")))
    };
    let sets: Vec<RangeSet> = lists.iter().enumerate().map(read).collect::<Result<_, _>>()?;
    check_overlaps(&sets)?;
    Ok(sets)
}

/// Reads a list of lists of objects.
fn lists_of_ranges(object: &Object, key: &str) -> Result<Vec<Vec<Object>>, Error> {
    let outer = object.array(key)?.into_iter().flatten().enumerate();
    let read = |(index, inner): (usize, &serde_json::Value)| {
        let path = format!("{}[{index}]", object.path_of(key));
        let items = inner.as_array().ok_or_else(|| mismatch(&path, "an array", inner))?;
        let items = items.iter().enumerate();
        items.map(|(at, item)| Object::from_value(format!("{path}[{at}]"), item)).collect()
    };
    outer.map(read).collect()
}

fn check_overlaps(sets: &[RangeSet]) -> Result<(), Error> {
    for (first, set) in sets.iter().enumerate() {
        for (second, other) in sets.iter().enumerate().skip(first + 1) {
            if set.overlaps(other) {
                return Err(Error::config(format!("range set {first} overlaps with {second}")));
            }
        }
    }
    Ok(())
}

fn count_families(sets: &[RangeSet]) -> (usize, usize) {
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    (v4, sets.len() - v4)
}

fn read_resolv_conf(path: &str) -> Result<Dns, Error> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_RESOLV_CONF).read_to_end(&mut text));
    read.map_err(|source| Error::io(format!("read resolvConf {path}"), &source))?;
    Ok(Dns::from_resolv_conf(&String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests;
