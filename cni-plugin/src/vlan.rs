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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(conf: Value) -> Result<VlanConf, Error> {
        parse(&Object::from_value("", &conf).unwrap())
    }

    #[test]
    fn good_trunks_are_read_as_runs() {
        for (trunk, runs) in [
            (json!([{"id": 101}]), vec![(101, 101)]),
            (json!([{"minID": 200, "maxID": 210}]), vec![(200, 210)]),
            (json!([{"id": 101}, {"minID": 200, "maxID": 210}]), vec![(101, 101), (200, 210)]),
            (json!([{"id": 1, "minID": 5, "maxID": 5}]), vec![(5, 5), (1, 1)]),
            (json!([]), vec![]),
        ] {
            assert_eq!(parsed(json!({"vlanTrunk": trunk})).unwrap().trunk, runs, "{trunk}");
        }
    }

    #[test]
    fn bad_trunks_are_refused_in_the_reference_plugins_words() {
        for (element, sentence) in [
            (json!({"minID": 10}), "minID and maxID should be configured simultaneously, maxID is missing"),
            (json!({"maxID": 10}), "minID and maxID should be configured simultaneously, minID is missing"),
            (json!({"minID": 20, "maxID": 10}), "minID is greater than maxID in trunk parameter"),
            (json!({"minID": 0, "maxID": 10}), "incorrect trunk minID parameter"),
            (json!({"minID": 4095, "maxID": 4095}), "incorrect trunk minID parameter"),
            (json!({"minID": 1, "maxID": 4095}), "incorrect trunk maxID parameter"),
            (json!({"minID": 1, "maxID": 0}), "incorrect trunk maxID parameter"),
            (json!({"id": 0}), "incorrect trunk id parameter"),
            (json!({"id": 4095}), "incorrect trunk id parameter"),
        ] {
            let error = parsed(json!({"vlanTrunk": [element]})).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (7, sentence), "{element}");
        }
    }

    #[test]
    fn vlan_ids_end_at_4094_and_zero_means_none() {
        assert_eq!(parsed(json!({"vlan": 0})).unwrap(), VlanConf::default());
        assert_eq!(parsed(json!({"vlan": 4094})).unwrap().access, Some(4094));
        for id in [-1, 4095, 70_000] {
            let error = parsed(json!({"vlan": id})).unwrap_err();
            assert_eq!(error.msg, format!("invalid VLAN ID {id} (must be between 0 and 4094)"));
        }
    }

    /// No kernel here has VLAN filtering, so the messages are compared with what `bridge vlan` sends:
    /// `struct ifinfomsg` of family AF_BRIDGE, then IFLA_AF_SPEC with one `struct bridge_vlan_info` per bound.
    #[test]
    fn the_requests_are_those_of_bridge_vlan() {
        let conf = VlanConf { access: Some(100), trunk: vec![(200, 210)], preserve_default: false };
        let entry = |flags: u16, vid: u16| {
            [8u16, 2, flags, vid].into_iter().flat_map(u16::to_ne_bytes).collect::<Vec<u8>>()
        };
        let message = |entries: Vec<Vec<u8>>| {
            let entries = entries.concat();
            let mut bytes = vec![7u8, 0, 0, 0];
            bytes.extend(42u32.to_ne_bytes());
            bytes.extend([0; 8]);
            bytes.extend((4 + u16::try_from(entries.len()).unwrap()).to_ne_bytes());
            bytes.extend(26u16.to_ne_bytes());
            bytes.extend(entries);
            bytes
        };
        let requests = conf.requests(42);
        let found: Vec<_> =
            requests.iter().map(|request| (request.kind, unnested(&request.payload))).collect();
        assert_eq!(
            found,
            vec![
                (17, message(vec![entry(0, 1)])),                        // vid 1, RTM_DELLINK
                (19, message(vec![entry(0x08, 200), entry(0x10, 210)])), // RANGE_BEGIN, RANGE_END
                (19, message(vec![entry(0x06, 100)])),                   // PVID | UNTAGGED
            ]
        );
        assert!(
            VlanConf { preserve_default: true, ..conf }.requests(42).iter().all(|request| request.kind == 19)
        );
        assert!(VlanConf::default().requests(42).is_empty());
    }

    /// Without NLA_F_NESTED on IFLA_AF_SPEC, which the kernel takes with and without.
    fn unnested(payload: &[u8]) -> Vec<u8> {
        let mut bytes = payload.to_vec();
        bytes[19] &= 0x7f;
        bytes
    }
}
