//! What the configuration asks for, parsed once into values that cannot be wrong. Keys are those that `bridge`,
//! `ptp` and `host-local` take, with the same meaning; what cannot be honoured is refused by name and value.

use std::net::IpAddr;

use weft_cni::args::CniArgs;
use weft_cni::conf::NetConf;
use weft_cni::dns::Dns;
use weft_cni::error::Error;
use weft_cni::hostlocal::IpamConf;
use weft_cni::object::Object;
use weft_netlink::link::Mac;

use crate::log::LogConf;
use crate::vlan::{self, VlanConf};

/// The bridge of design §3, where `bridge` would take `cni0`.
const DEFAULT_BRIDGE: &str = "cbr0";
/// RFC 8200, section 5. The kernel gives a link with less no IPv6 settings.
const IPV6_MIN_MTU: u32 = 1280;
/// The kernel's bounds for an Ethernet device (`ETH_MIN_MTU`, `ETH_MAX_MTU`).
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// The configuration of one network.
#[derive(Clone, Debug)]
pub struct Conf {
    /// How the pod is joined to the node.
    pub mode: Mode,
    /// Where its addresses come from.
    pub ipam: Ipam,
    /// Masquerade what leaves the pod's subnet.
    pub ip_masq: bool,
    /// MTU of both ends, and of the bridge if it is made; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The pod end's MAC, if somebody wants a certain one.
    pub mac: Option<Mac>,
    /// Wait for IPv6 duplicate address detection.
    pub enable_dad: bool,
    /// Give the pod a default route: `None` leaves it to the mode.
    pub default_gateway: Option<bool>,
    /// Leave the pod end down.
    pub disable_interface: bool,
    /// Replaces the IPAM's DNS wholly when any key is set.
    pub dns: Option<Dns>,
    /// STATUS stays 0 when all addresses are in use.
    pub exhausted_is_ok: bool,
}

/// How a pod is joined to its node.
#[derive(Clone, Debug)]
pub enum Mode {
    /// The host end is a port of a bridge.
    Bridge(BridgeConf),
    /// Point to point: the host end carries the gateway.
    Veth,
}

/// Options of bridge mode.
#[derive(Clone, Debug)]
pub struct BridgeConf {
    /// The bridge's name.
    pub name: String,
    /// The configuration gives that name; it is not just the default.
    pub named: bool,
    /// The bridge carries the gateway address.
    pub is_gateway: bool,
    /// Replace another IPv4 address on the bridge.
    pub force_address: bool,
    /// `hairpinMode`.
    pub hairpin: bool,
    /// `promiscMode`.
    pub promiscuous: bool,
    /// `portIsolation`.
    pub isolated: bool,
    /// `macspoofchk`.
    pub spoof_guard: bool,
    /// `vlan`, `vlanTrunk`, `preserveDefaultVlan`.
    pub vlan: VlanConf,
}

/// Where addresses come from.
#[derive(Clone, Debug)]
pub enum Ipam {
    /// `"ipam": {}` or `{"type": ""}`: a link without addresses.
    None,
    /// Our own allocator: ranges of the configuration, or without any the cluster's blocks.
    BuiltIn(IpamConf),
    /// Another plugin, executed.
    Delegated(String),
}

impl Conf {
    /// Reads the configuration of ADD, CHECK and STATUS.
    ///
    /// # Errors
    /// Code 6 for a wrong JSON type, 7 for a wrong value, 2 for an option that cannot be honoured.
    pub fn parse(conf: &NetConf, args: &CniArgs) -> Result<Self, Error> {
        let object = &conf.object;
        refuse_what_we_cannot(conf)?;
        let mode = mode(object)?;
        LogConf::parse(object)?;
        let parsed = Self {
            ipam: ipam(conf, args)?,
            ip_masq: object.bool("ipMasq")?.unwrap_or(false),
            mtu: mtu(object)?,
            mac: mac(conf, args)?,
            enable_dad: object.bool("enabledad")?.unwrap_or(false),
            default_gateway: object.bool("isDefaultGateway")?,
            disable_interface: object.bool("disableContainerInterface")?.unwrap_or(false),
            dns: conf.runtime_dns()?.map_or_else(|| conf.dns(), |dns| Ok(Some(dns)))?,
            exhausted_is_ok: exhausted_is_ok(object)?,
            mode,
        };
        if parsed.disable_interface && !matches!(parsed.ipam, Ipam::None) {
            return Err(Error::config("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        Ok(parsed)
    }

    /// Whether the pod's link can have IPv6 at all: the kernel has it, and the MTU is not below IPv6's minimum.
    pub fn link_has_ipv6(&self) -> bool {
        self.mtu.is_none_or(|mtu| mtu >= IPV6_MIN_MTU) && crate::sysctl::has_ipv6()
    }

    /// Where the pod's default route comes from in bridge mode: only if asked for. In veth mode: `None`, the
    /// pod's first network gets one.
    pub fn wants_default_route(&self) -> Option<bool> {
        match self.mode {
            Mode::Bridge(_) => Some(self.default_gateway.unwrap_or(false)),
            Mode::Veth => self.default_gateway,
        }
    }
}

fn mode(object: &Object) -> Result<Mode, Error> {
    match object.string("mode")?.as_deref() {
        None | Some("" | "bridge") => bridge(object).map(Mode::Bridge),
        Some("veth") => {
            refuse_bridge_options(object)?;
            Ok(Mode::Veth)
        }
        Some(other) => {
            Err(Error::unsupported("mode", other)
                .with_details("\"bridge\" and \"veth\" are the modes there are"))
        }
    }
}

fn bridge(object: &Object) -> Result<BridgeConf, Error> {
    let flag = |key: &str| object.bool(key).map(|value| value.unwrap_or(false));
    let name = object.string("bridge")?.filter(|name| !name.is_empty());
    let named = name.is_some();
    let name = name.unwrap_or_else(|| DEFAULT_BRIDGE.to_owned());
    if weft_cni::names::IfName::parse(&name).is_err() {
        return Err(Error::config(format!(
            "bridge {name:?} is no interface name: at most 15 bytes, no / : or space"
        )));
    }
    let conf = BridgeConf {
        name,
        named,
        is_gateway: flag("isGateway")? || flag("isDefaultGateway")?,
        force_address: flag("forceAddress")?,
        hairpin: flag("hairpinMode")?,
        promiscuous: flag("promiscMode")?,
        isolated: flag("portIsolation")?,
        spoof_guard: flag("macspoofchk")?,
        vlan: vlan::parse(object)?,
    };
    if conf.hairpin && conf.promiscuous {
        return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time"));
    }
    Ok(conf)
}

/// A bridge option in veth mode would be silently without effect.
fn refuse_bridge_options(object: &Object) -> Result<(), Error> {
    for key in
        ["hairpinMode", "promiscMode", "macspoofchk", "portIsolation", "forceAddress", "preserveDefaultVlan"]
    {
        if object.bool(key)? == Some(true) {
            return Err(Error::unsupported(key, true).with_details("there is no bridge in mode \"veth\""));
        }
    }
    for key in ["bridge", "vlan", "vlanTrunk"] {
        if let Some(value) = object.get(key).filter(|value| **value != 0 && **value != "" && !is_empty(value))
        {
            return Err(Error::unsupported(key, value).with_details("there is no bridge in mode \"veth\""));
        }
    }
    Ok(())
}

fn refuse_what_we_cannot(conf: &NetConf) -> Result<(), Error> {
    match conf.object.string("ipMasqBackend")?.as_deref() {
        None | Some("" | "nftables") => {}
        Some(other) => {
            return Err(Error::unsupported("ipMasqBackend", other)
                .with_details("Weft masquerades by nftables, whatever else runs on the node"));
        }
    }
    let runtime = conf.runtime_config()?;
    for (key, instead) in [("portMappings", "portmap"), ("bandwidth", "bandwidth")] {
        if let Some(value) = runtime.get(key).filter(|value| !is_empty(value)) {
            return Err(Error::unsupported(&format!("runtimeConfig.{key}"), value).with_details(format!(
                "chain the plugin {instead} behind weft and give the capability to it"
            )));
        }
    }
    Ok(())
}

fn is_empty(value: &serde_json::Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn ipam(conf: &NetConf, args: &CniArgs) -> Result<Ipam, Error> {
    let Some(object) = conf.ipam()? else {
        return IpamConf::parse(conf, args).map(Ipam::BuiltIn);
    };
    let kind = object.string("type")?;
    match kind.as_deref() {
        Some("weft-ipam") => IpamConf::parse(conf, args).map(Ipam::BuiltIn),
        None if object.as_map().values().any(|value| !value.is_null()) => {
            IpamConf::parse(conf, args).map(Ipam::BuiltIn)
        }
        None | Some("") => Ok(Ipam::None),
        Some(other) => Ok(Ipam::Delegated(other.to_owned())),
    }
}

fn mtu(object: &Object) -> Result<Option<u32>, Error> {
    match object.u32("mtu")? {
        None | Some(0) => Ok(None),
        Some(mtu) if MTU_RANGE.contains(&mtu) => Ok(Some(mtu)),
        Some(mtu) => Err(Error::config(format!(
            "mtu {mtu} is out of range ({} to {})",
            MTU_RANGE.start(),
            MTU_RANGE.end()
        ))),
    }
}

/// `CNI_ARGS`, then `args.cni`, then `runtimeConfig`: the later wins.
fn mac(conf: &NetConf, args: &CniArgs) -> Result<Option<Mac>, Error> {
    let wanted = [
        conf.runtime_config()?.string("mac")?,
        conf.args_cni()?.string("mac")?,
        args.get("MAC").map(str::to_owned),
    ];
    match wanted.into_iter().flatten().find(|mac| !mac.is_empty()) {
        Some(text) => text.parse().map(Some).map_err(|error: String| Error::config(format!("mac: {error}"))),
        None => Ok(None),
    }
}

fn exhausted_is_ok(object: &Object) -> Result<bool, Error> {
    match object.string("statusOnExhausted")?.as_deref() {
        None | Some("" | "unavailable") => Ok(false),
        Some("ok") => Ok(true),
        Some(other) => Err(Error::unsupported("statusOnExhausted", other)
            .with_details("\"unavailable\" (the default) or \"ok\"")),
    }
}

/// Whether an address is of this family.
pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
