//! Addresses asked for by name, from the three places where one can.

use std::net::IpAddr;

use super::RangeSet;
use crate::args::CniArgs;
use crate::conf::NetConf;
use crate::error::{Error, code};
use crate::ip::parse_ip;
use crate::object::Object;

/// Reads `CNI_ARGS` `IP` (separated by commas), `args.cni.ips` and `runtimeConfig.ips`, in this order.
///
/// # Errors
/// Code 4 for an address in `CNI_ARGS` that is none, 7 for one in the configuration, 6 for wrong types.
pub(super) fn read(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, Error> {
    let mut requested = Vec::new();
    for text in args.get("IP").unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty()) {
        requested.push(ip(text, "CNI_ARGS IP", code::INVALID_ENVIRONMENT)?);
    }
    for (object, place) in [(conf.args_cni()?, "args.cni.ips"), (conf.runtime_config()?, "runtimeConfig.ips")]
    {
        requested.extend(listed(&object, place)?);
    }
    let mut distinct = Vec::new();
    for ip in requested {
        if !distinct.contains(&ip) {
            distinct.push(ip);
        }
    }
    Ok(distinct)
}

fn listed(object: &Object, place: &str) -> Result<Vec<IpAddr>, Error> {
    let texts = object.strings("ips")?.unwrap_or_default();
    texts.iter().map(|text| ip(text, place, code::INVALID_CONFIG)).collect()
}

/// Reads `ip` or `ip/prefix`; the prefix length says nothing, since the range has one.
fn ip(text: &str, place: &str, code: u32) -> Result<IpAddr, Error> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "0"));
    let invalid = |problem| Error::new(code, format!("{place}: cannot understand ip: {problem}"));
    let ip = parse_ip(address).map_err(|problem| invalid(problem.to_string()))?;
    let length = prefix.parse().ok().filter(|&length: &u8| length <= if ip.is_ipv4() { 32 } else { 128 });
    length.map(|_| ip).ok_or_else(|| invalid(format!("{text:?} has an invalid prefix length")))
}

/// Refuses requests that no allocation can fulfil: each set gives one address, and no gateway. Without sets
/// there is nothing to compare with.
///
/// # Errors
/// Code 7, with the messages of `host-local`.
pub(super) fn check(sets: &[RangeSet], requested: &[IpAddr]) -> Result<(), Error> {
    if sets.is_empty() {
        return Ok(());
    }
    let mut free: Vec<&RangeSet> = sets.iter().collect();
    let mut unused = Vec::new();
    for &ip in requested {
        let Some(at) = free.iter().position(|set| set.contains(ip)) else {
            unused.push(ip.to_string());
            continue;
        };
        if free.swap_remove(at).range_for(ip).is_some_and(|range| range.is_gateway(ip)) {
            return Err(Error::config(format!("requested ip {ip} is subnet's gateway")));
        }
    }
    if unused.is_empty() {
        return Ok(());
    }
    Err(Error::config(format!("failed to allocate all requested IPs: {}", unused.join(" "))))
}
