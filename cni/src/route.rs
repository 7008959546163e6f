//! Routes of configurations and results.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::error::{Error, code};
use crate::ip::{IfAddr, Subnet, parse_ip};
use crate::object::Object;
use crate::version::Version;

/// The largest scope (`RT_SCOPE_NOWHERE`).
const SCOPE_MAX: u32 = 255;

/// A route for the container. Without `gw` it goes by the address' gateway of the same family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub dst: Subnet,
    /// The next hop.
    pub gw: Option<IpAddr>,
    /// Path MTU, from 1.1.0; never 0.
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, from 1.1.0; never 0.
    pub advmss: Option<u32>,
    /// Metric, from 1.1.0; never 0.
    pub priority: Option<u32>,
    /// Routing table, from 1.1.0.
    pub table: Option<u32>,
    /// Scope as the kernel numbers it, from 1.1.0.
    pub scope: Option<u32>,
}

impl Route {
    /// A route to `dst` with nothing else said.
    pub fn new(dst: Subnet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// Reads a route. `strict` is for our own configuration, where host bits in `dst` are an error; in the
    /// results of others they are masked, because the reference plugins let them through.
    ///
    /// # Errors
    /// Code 6 for wrong types. For a missing or wrong address code 7 if strict, else 6.
    pub fn parse(object: &Object, strict: bool) -> Result<Self, Error> {
        let code = if strict { code::INVALID_CONFIG } else { code::DECODE_FAILURE };
        let dst = if strict {
            object.parsed::<Subnet>("dst", code)?
        } else {
            object.parsed::<IfAddr>("dst", code)?.map(|dst| dst.subnet())
        };
        let missing = || Error::new(code, format!("{} is missing", object.path_of("dst")));
        // Go writes its zero value only for these three by leaving the key out, so 0 means "not set".
        let nonzero = |key| Ok::<_, Error>(object.u32(key)?.filter(|&number| number != 0));
        let (dst, gw) = (dst.ok_or_else(missing)?, gateway(object, "gw", code)?);
        if let Some(gw) = gw.filter(|gw| strict && gw.is_ipv4() != dst.is_ipv4()) {
            let msg = format!("{}: {gw} is not of the family of {dst}", object.path_of("gw"));
            return Err(Error::new(code, msg));
        }
        Ok(Self {
            dst,
            gw,
            mtu: nonzero("mtu")?,
            advmss: nonzero("advmss")?,
            priority: nonzero("priority")?,
            table: object.u32("table")?,
            scope: scope(object, code)?,
        })
    }

    /// The JSON object, with the fields that `version` has.
    pub fn to_value(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("dst".into(), self.dst.to_string().into());
        if let Some(gw) = self.gw {
            object.insert("gw".into(), gw.to_string().into());
        }
        if version >= Version::V1_1_0 {
            object.extend(self.attributes());
        }
        Value::Object(object)
    }

    fn attributes(&self) -> impl Iterator<Item = (String, Value)> {
        let all = [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
            ("table", self.table),
            ("scope", self.scope),
        ];
        all.into_iter().filter_map(|(key, number)| Some((key.into(), number?.into())))
    }
}

/// Reads an address under `key`; an empty string is absent, as Go's `net.IP` has it.
///
/// # Errors
/// Code 6 when it is no string, `code` when it is no address.
pub(crate) fn gateway(object: &Object, key: &str, code: u32) -> Result<Option<IpAddr>, Error> {
    let Some(text) = object.text(key)? else { return Ok(None) };
    let ip = parse_ip(&text).map(Some);
    ip.map_err(|problem| Error::new(code, format!("{}: {problem}", object.path_of(key))))
}

fn scope(object: &Object, code: u32) -> Result<Option<u32>, Error> {
    match object.u32("scope")? {
        Some(scope) if scope > SCOPE_MAX => Err(Error::new(
            code,
            format!("{}: {scope} is no scope (0 to {SCOPE_MAX})", object.path_of("scope")),
        )),
        scope => Ok(scope),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value, strict: bool) -> Result<Route, Error> {
        Route::parse(&Object::from_value("routes[0]", value).unwrap(), strict)
    }

    #[test]
    fn all_fields_are_printed_at_1_1_0_and_only_two_before() {
        let full = json!({"dst": "10.0.0.0/8", "gw": "10.0.0.1", "mtu": 1400, "advmss": 1360,
            "priority": 5, "table": 0, "scope": 253});
        let route = parse(&full, true).unwrap();
        assert_eq!(route.to_value(Version::V1_1_0), full);
        let short = json!({"dst": "10.0.0.0/8", "gw": "10.0.0.1"});
        for version in [Version::V0_3_0, Version::V0_4_0, Version::V1_0_0] {
            assert_eq!(route.to_value(version), short);
        }
    }

    #[test]
    fn zero_and_empty_are_absent_where_go_cannot_tell() {
        let sent = json!({"dst": "::/0", "gw": "", "mtu": 0, "advmss": 0, "priority": 0, "table": null});
        assert_eq!(parse(&sent, true), Ok(Route::new("::/0".parse().unwrap())));
    }

    #[test]
    fn host_bits_are_masked_in_results_and_refused_in_configurations() {
        let sent = json!({"dst": "10.1.2.3/8"});
        assert_eq!(parse(&sent, false).unwrap().dst.to_string(), "10.0.0.0/8");
        let error = parse(&sent, true).unwrap_err();
        assert_eq!(error.code, 7);
        assert_eq!(error.msg, "routes[0].dst: 10.1.2.3/8 has host bits set; the network is 10.0.0.0/8");
    }

    #[test]
    fn bad_addresses_and_types_name_their_place() {
        for (sent, strict, code, msg) in [
            (json!({}), true, 7, "routes[0].dst is missing"),
            (json!({"dst": ""}), false, 6, "routes[0].dst is missing"),
            (json!({"dst": "::/0", "gw": "x"}), true, 7, "routes[0].gw: \"x\" is not an IP address"),
            (json!({"dst": 1}), true, 6, "routes[0].dst: expected a string, found the number 1"),
            (
                json!({"dst": "::/0", "mtu": -1}),
                true,
                6,
                "routes[0].mtu: expected a number from 0 to 4294967295, found the number -1",
            ),
        ] {
            let error = parse(&sent, strict).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code, msg));
        }
    }
}
