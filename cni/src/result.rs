//! The result of an ADD, in all the shapes it had from 0.1.0 to 1.1.0.
//!
//! Inside there is one shape; [`AddResult::parse`] and [`AddResult::to_value`] are the only places that know of
//! versions.

mod legacy;
mod print;

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::dns::Dns;
use crate::error::{Error, code};
use crate::ip::IfAddr;
use crate::object::Object;
use crate::route::{Route, gateway};
use crate::version::{Version, incompatible};

/// What an ADD made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddResult {
    /// Every interface made, on both sides.
    pub interfaces: Vec<Interface>,
    /// Every address given.
    pub ips: Vec<IpConfig>,
    /// Every route made.
    pub routes: Vec<Route>,
    /// Name service settings.
    pub dns: Dns,
    /// Keys of a later specification or another plugin, to be passed on.
    pub extra: Map<String, Value>,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; may be empty.
    pub mac: String,
    /// Its MTU, from 1.1.0; never 0.
    pub mtu: Option<u32>,
    /// `CNI_NETNS` verbatim for one in the container, empty for one on the host.
    pub sandbox: String,
    /// Path of a socket that is the interface, from 1.1.0.
    pub socket_path: Option<String>,
    /// PCI identifier of the device, from 1.1.0.
    pub pci_id: Option<String>,
    /// Keys that we do not know, to be passed on.
    pub extra: Map<String, Value>,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with the prefix length of its network.
    pub address: IfAddr,
    /// The default gateway of that network.
    pub gateway: Option<IpAddr>,
    /// Index of the interface in [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

impl AddResult {
    /// Reads a result of any version: a `prevResult`, or what a delegate printed. Keys match without case,
    /// `null` is absent, a missing `cniVersion` does not matter (libcni takes the configuration's).
    ///
    /// # Errors
    /// Code 1 for a `cniVersion` we do not speak, code 6 for anything that does not have the shape.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let object = Object::from_value("", value)?;
        if let Some(text) = object.string("cniVersion")?
            && Version::parse(&text).is_none()
        {
            return Err(incompatible(&text).context("result"));
        }
        if object.contains("ip4") || object.contains("ip6") {
            return legacy::parse(&object);
        }
        Ok(Self {
            interfaces: object
                .objects("interfaces")?
                .iter()
                .map(Interface::parse)
                .collect::<Result<_, _>>()?,
            ips: object.objects("ips")?.iter().map(IpConfig::parse).collect::<Result<_, _>>()?,
            routes: object.objects("routes")?.iter().map(result_route).collect::<Result<_, _>>()?,
            dns: dns(&object)?,
            extra: object.without(&["cniVersion", "interfaces", "ips", "routes", "dns", "ip4", "ip6"]),
        })
    }

    /// The result as `version` has it; fields of later versions are dropped.
    ///
    /// # Errors
    /// Up to 0.2.0 a result needs an address: code 6 `cannot convert: no valid IP addresses` without one.
    pub fn to_value(&self, version: Version) -> Result<Value, Error> {
        if version <= Version::V0_2_0 {
            legacy::to_value(self, version)
        } else {
            Ok(print::to_value(self, version))
        }
    }

    /// The interface that has `ip`, if the result says so.
    ///
    /// # Errors
    /// Code 6 when the index points past the interfaces: results of others do.
    pub fn interface_of(&self, ip: &IpConfig) -> Result<Option<&Interface>, Error> {
        let Some(index) = ip.interface else { return Ok(None) };
        let beyond = || Error::decode(format!("{}: there is no interface {index} in the result", ip.address));
        self.interfaces.get(index).map(Some).ok_or_else(beyond)
    }
}

impl Interface {
    fn parse(object: &Object) -> Result<Self, Error> {
        Ok(Self {
            name: object.string("name")?.unwrap_or_default(),
            mac: object.string("mac")?.unwrap_or_default(),
            mtu: object.u32("mtu")?.filter(|&mtu| mtu != 0),
            sandbox: object.string("sandbox")?.unwrap_or_default(),
            socket_path: object.text("socketPath")?,
            pci_id: object.text("pciID")?,
            extra: object.without(&["name", "mac", "mtu", "sandbox", "socketPath", "pciID"]),
        })
    }
}

impl IpConfig {
    fn parse(object: &Object) -> Result<Self, Error> {
        let missing = || Error::decode(format!("{} is missing", object.path_of("address")));
        let interface = object.u32("interface")?.map(usize::try_from).transpose();
        Ok(Self {
            address: object.parsed("address", code::DECODE_FAILURE)?.ok_or_else(missing)?,
            gateway: gateway(object, "gateway", code::DECODE_FAILURE)?,
            interface: interface.map_err(|_| Error::decode(object.path_of("interface")))?,
        })
    }
}

fn result_route(object: &Object) -> Result<Route, Error> {
    Route::parse(object, false)
}

fn dns(object: &Object) -> Result<Dns, Error> {
    Ok(object.object("dns")?.map(|dns| Dns::parse(&dns)).transpose()?.unwrap_or_default())
}

/// Refuses what a result up to 0.2.0 cannot say: more than one address of a family.
///
/// # Errors
/// Code 7, worded as `host-local` words it.
pub fn check_family_limit(version: Version, v4: usize, v6: usize) -> Result<(), Error> {
    if version > Version::V0_2_0 || (v4 <= 1 && v6 <= 1) {
        return Ok(());
    }
    Err(Error::config(format!("CNI version {version} does not support more than 1 address per family")))
}

#[cfg(test)]
mod tests;
