//! Results of 0.1.0 and 0.2.0: at most one address per family, routes beneath their family.

use serde_json::{Map, Value, json};

use super::{AddResult, IpConfig, dns, result_route};
use crate::error::{Error, code};
use crate::object::Object;
use crate::route::gateway;
use crate::version::Version;

pub(super) fn parse(object: &Object) -> Result<AddResult, Error> {
    let mut result = AddResult {
        dns: dns(object)?,
        extra: object.without(&["cniVersion", "ip4", "ip6", "dns", "interfaces", "ips", "routes"]),
        ..AddResult::default()
    };
    for key in ["ip4", "ip6"] {
        if let Some(family) = object.object(key)? {
            parse_family(&family, &mut result)?;
        }
    }
    Ok(result)
}

fn parse_family(family: &Object, result: &mut AddResult) -> Result<(), Error> {
    let missing = || Error::decode(format!("{} is missing", family.path_of("ip")));
    result.ips.push(IpConfig {
        address: family.parsed("ip", code::DECODE_FAILURE)?.ok_or_else(missing)?,
        gateway: gateway(family, "gateway", code::DECODE_FAILURE)?,
        interface: None,
    });
    for route in family.objects("routes")? {
        result.routes.push(result_route(&route)?);
    }
    Ok(())
}

pub(super) fn to_value(result: &AddResult, version: Version) -> Result<Value, Error> {
    let mut object = Map::new();
    for (key, ipv4) in [("ip4", true), ("ip6", false)] {
        if let Some(first) = result.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4) {
            object.insert(key.into(), family_value(result, first, version));
        }
    }
    if object.is_empty() {
        return Err(Error::decode("cannot convert: no valid IP addresses"));
    }
    object.insert("cniVersion".into(), version.as_str().into());
    object.insert("dns".into(), result.dns.to_value());
    Ok(Value::Object(object))
}

fn family_value(result: &AddResult, ip: &IpConfig, version: Version) -> Value {
    let mut family = json!({ "ip": ip.address.to_string() });
    if let Some(gateway) = ip.gateway {
        family["gateway"] = gateway.to_string().into();
    }
    let own = result.routes.iter().filter(|route| route.dst.is_ipv4() == ip.address.is_ipv4());
    let routes: Vec<Value> = own.map(|route| route.to_value(version)).collect();
    if !routes.is_empty() {
        family["routes"] = routes.into();
    }
    family
}
