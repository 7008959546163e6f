//! Gathers what `weftd` is told and what the host says about it: the only part of the configuration that reads
//! files, the environment and the kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use weft_cni::ip::IfAddr;
use weft_netlink::Socket;
use weft_netlink::link::Link;
use weft_netlink::{addr, link, route};

use super::{Conf, HostFacts, HostNetwork, Invalid, Key, Layers, Origin};

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--config`; without it the usual file, if it is there.
    pub file: Option<std::path::PathBuf>,
    /// The flags that were given.
    pub flags: Vec<(&'static Key, String)>,
}

/// Reads the configuration, and checks it against this host if `on_this_host`.
///
/// # Errors
/// Everything that is wrong.
pub fn load(given: &Given, on_this_host: bool) -> Result<Conf, Vec<Invalid>> {
    let mut layers = Layers::new();
    let path = given.file.as_deref().unwrap_or(Path::new(super::DEFAULT_FILE));
    match fs::read_to_string(path) {
        Ok(text) => layers = layers.file(&text),
        Err(error) if given.file.is_none() && error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(vec![Invalid::new("--config", format!("read {}: {error}", path.display()))]);
        }
    }
    let layers =
        layers.variables(&variables()?).flags(given.flags.iter().map(|(key, text)| (*key, text.as_str())));
    let mut conf = Conf::read(&layers, &hostname())?;
    if layers.origin("store.password") == Some(Origin::File) {
        conf.store.password_file = Some(path.to_owned());
    }
    let mut facts = HostFacts { unreadable: unreadable(&conf), ..HostFacts::default() };
    if on_this_host && conf.network.cidrs.is_some() {
        facts.networks = host_networks().map_err(|error| vec![Invalid::new("(host)", error)])?;
    }
    if on_this_host && conf.foreign_forward == super::ForeignForward::Iptables {
        facts.no_iptables_in = crate::forward::Programs::of_host().missing();
    }
    let problems = conf.check(&facts);
    if problems.is_empty() { Ok(conf) } else { Err(problems) }
}

/// The variables that may be ours.
fn variables() -> Result<BTreeMap<String, String>, Vec<Invalid>> {
    let all = std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value));
    let ours = all.filter(|(name, _)| name.starts_with("WEFT_"));
    ours.map(|(name, value)| match value.into_string() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(vec![Invalid::new(name, "is not in UTF-8")]),
    })
    .collect()
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

fn unreadable(conf: &Conf) -> BTreeMap<std::path::PathBuf, String> {
    let files = [&conf.store.ca, &conf.store.cert, &conf.store.key];
    let failing = files
        .into_iter()
        .flatten()
        .filter_map(|path| File::open(path).err().map(|error| (path.clone(), error.to_string())));
    failing.collect()
}

/// The networks of the host's own addresses and routes, without default routes and without what Weft made.
///
/// # Errors
/// A sentence when the kernel does not tell.
pub fn host_networks() -> Result<Vec<HostNetwork>, String> {
    let asked = |error: weft_netlink::Error| format!("read this host's addresses and routes: {error}");
    let mut socket = Socket::route().map_err(asked)?;
    let links: BTreeMap<u32, Link> =
        link::all(&mut socket).map_err(asked)?.into_iter().map(|link| (link.index, link)).collect();
    let foreign = |index: &u32| links.get(index).filter(|link| !is_ours(link));
    let mut networks = Vec::new();
    for address in addr::all(&mut socket).map_err(asked)? {
        let Some(link) = foreign(&address.link) else { continue };
        let Ok(ifaddr) = IfAddr::new(address.addr, address.prefix_len) else { continue };
        if !is_local_only(&ifaddr) {
            let what = format!("the address {ifaddr} on {}", link.name);
            networks.push(HostNetwork { subnet: ifaddr.subnet(), what });
        }
    }
    for ipv4 in [true, false] {
        for route in route::all(&mut socket, ipv4).map_err(asked)? {
            let Some(link) = foreign(&route.link) else { continue };
            let (destination, length) = route.destination;
            let ours = route.protocol == route::PROTOCOL;
            let Ok(ifaddr) = IfAddr::new(destination, length) else { continue };
            if ours || length == 0 || route.table != route::MAIN || is_local_only(&ifaddr) {
                continue;
            }
            let what = format!("the route {ifaddr} on {}", link.name);
            networks.push(HostNetwork { subnet: ifaddr.subnet(), what });
        }
    }
    Ok(networks)
}

/// Links that Weft made, and the bridge that its pods are ports of.
pub fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.name.starts_with("weft-") || alias.starts_with("weft") || link.name == crate::conflist::BRIDGE
}

/// Networks that every host has and that say nothing about where packets go.
pub fn is_local_only(ifaddr: &IfAddr) -> bool {
    match ifaddr.addr() {
        std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_multicast(),
        std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast(),
    }
}
