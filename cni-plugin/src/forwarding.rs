//! Turning the node into a router for its pods, without losing the default route it learnt itself.

use std::collections::BTreeSet;
use std::path::Path;

use weft_cni::error::Error;
use weft_ipam::refused;
use weft_netlink::{Socket, link, route};

use crate::sysctl;

const IPV4: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Turns on IPv4 forwarding.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn enable_ipv4() -> Result<(), Error> {
    sysctl::ensure(Path::new(IPV4), "1").map(drop)
}

/// Turns on IPv6 forwarding. A router ignores router advertisements, so the links that this node learnt routes
/// from are told to go on listening (`accept_ra=2`) first: otherwise its default route would run out.
///
/// # Errors
/// Code 102 if the kernel refuses.
pub fn enable_ipv6(socket: &mut Socket) -> Result<(), Error> {
    let path = Path::new(IPV6);
    if sysctl::read(path).is_ok_and(|value| value.as_deref() == Some("1")) {
        return Ok(());
    }
    for name in links_with_advertised_routes(socket)? {
        let accept_ra = sysctl::device("ipv6", &name, "accept_ra");
        if sysctl::read(&accept_ra).is_ok_and(|value| value.as_deref() == Some("1")) {
            sysctl::write(&accept_ra, "2")?;
        }
    }
    sysctl::write(path, "1")
}

fn links_with_advertised_routes(socket: &mut Socket) -> Result<Vec<String>, Error> {
    let failed =
        |error: weft_netlink::Error| refused("look for routes learnt from router advertisements", &error);
    let routes = route::all(socket, false).map_err(failed)?;
    let learnt = routes.iter().filter(|route| route::from_router_advertisement(route));
    let indexes: BTreeSet<u32> = learnt.map(|route| route.link).collect();
    let mut names = Vec::new();
    for index in indexes {
        names.extend(link::by_index(socket, index).map_err(failed)?.map(|link| link.name));
    }
    Ok(names)
}
