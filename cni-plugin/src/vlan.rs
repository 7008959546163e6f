//! VLANs of a bridge port: what the configuration says, and the netlink requests for it.

use std::ops::RangeInclusive;

use weft_cni::error::Error;
use weft_cni::object::Object;
use weft_netlink::Request;
use weft_netlink::link::{Vlans, add_vlans, remove_vlans};

/// VLAN ids of a trunk.
const TRUNK_IDS: RangeInclusive<u64> = 1..=4094;
/// The VLAN that the kernel puts every new port into.
const DEFAULT_VLAN: u16 = 1;

/// VLAN options of bridge mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VlanConf {
    /// `vlan`: the access VLAN.
    pub access: Option<u16>,
    /// `vlanTrunk`: tagged VLANs, first and last of each run.
    pub trunk: Vec<(u16, u16)>,
    /// `preserveDefaultVlan`: keep the port in VLAN 1 as well.
    pub preserve_default: bool,
}

impl VlanConf {
    /// Whether the bridge must sort frames by VLAN.
    pub fn is_used(&self) -> bool {
        self.access.is_some() || !self.trunk.is_empty()
    }

    /// The requests that put port `index` into its VLANs.
    pub fn requests(&self, index: u32) -> Vec<Request> {
        let mut requests = Vec::new();
        if self.is_used() && !self.preserve_default {
            requests.push(remove_vlans(index, one(DEFAULT_VLAN, false)));
        }
        let trunk =
            self.trunk.iter().map(|&(first, last)| Vlans { first, last, access: false, on_bridge: false });
        requests.extend(trunk.map(|vlans| add_vlans(index, vlans)));
        requests.extend(self.access.map(|id| add_vlans(index, one(id, true))));
        requests
    }
}

fn one(id: u16, access: bool) -> Vlans {
    Vlans { first: id, last: id, access, on_bridge: false }
}

/// Reads `vlan`, `vlanTrunk` and `preserveDefaultVlan`; messages are those of the reference plugin.
///
/// # Errors
/// Code 7 for ids that are out of range or do not belong together.
pub fn parse(object: &Object) -> Result<VlanConf, Error> {
    let access =
        match object.i64("vlan")? {
            None | Some(0) => None,
            Some(id) => Some(u16::try_from(id).ok().filter(|id| *id <= 4094).ok_or_else(|| {
                Error::config(format!("invalid VLAN ID {id} (must be between 0 and 4094)"))
            })?),
        };
    let trunk = object.objects("vlanTrunk")?.iter().map(run).collect::<Result<Vec<_>, _>>()?;
    let preserve_default = object.bool("preserveDefaultVlan")?.unwrap_or(false);
    Ok(VlanConf { access, trunk: trunk.into_iter().flatten().collect(), preserve_default })
}

/// One element of `vlanTrunk`: `{id}`, `{minID, maxID}`, or both.
fn run(object: &Object) -> Result<Vec<(u16, u16)>, Error> {
    let id = |key: &str| {
        let value = object.u64(key)?;
        match value {
            Some(id) if !TRUNK_IDS.contains(&id) => {
                Err(Error::config(format!("incorrect trunk {key} parameter")))
            }
            _ => Ok(value.and_then(|id| u16::try_from(id).ok())),
        }
    };
    let mut runs = Vec::new();
    match (id("minID")?, id("maxID")?) {
        (Some(first), Some(last)) if first > last => {
            return Err(Error::config("minID is greater than maxID in trunk parameter"));
        }
        (Some(first), Some(last)) => runs.push((first, last)),
        (None, None) => {}
        (first, _) => {
            let missing = if first.is_none() { "minID" } else { "maxID" };
            let msg = format!("minID and maxID should be configured simultaneously, {missing} is missing");
            return Err(Error::config(msg));
        }
    }
    runs.extend(id("id")?.map(|id| (id, id)));
    Ok(runs)
}
