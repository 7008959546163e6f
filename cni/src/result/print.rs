//! Results of 0.3.0 and later.

use serde_json::{Map, Value};

use super::{AddResult, Interface, IpConfig};
use crate::version::Version;

pub(super) fn to_value(result: &AddResult, version: Version) -> Value {
    let mut object = result.extra.clone();
    object.insert("cniVersion".into(), version.as_str().into());
    let interfaces = result.interfaces.iter().map(|interface| interface_value(interface, version));
    insert_list(&mut object, "interfaces", interfaces);
    insert_list(&mut object, "ips", result.ips.iter().map(|ip| ip_value(ip, version)));
    insert_list(&mut object, "routes", result.routes.iter().map(|route| route.to_value(version)));
    // Go cannot omit an empty struct; since 1.0.0 its library takes care to do so.
    if version <= Version::V0_4_0 || !result.dns.is_empty() {
        object.insert("dns".into(), result.dns.to_value());
    }
    Value::Object(object)
}

fn insert_list(object: &mut Map<String, Value>, key: &str, values: impl Iterator<Item = Value>) {
    let values: Vec<Value> = values.collect();
    if !values.is_empty() {
        object.insert(key.into(), values.into());
    }
}

fn interface_value(interface: &Interface, version: Version) -> Value {
    let mut object = interface.extra.clone();
    object.insert("name".into(), interface.name.as_str().into());
    insert_text(&mut object, "mac", Some(&interface.mac));
    insert_text(&mut object, "sandbox", Some(&interface.sandbox));
    if version >= Version::V1_1_0 {
        object.extend(interface.mtu.map(|mtu| ("mtu".to_owned(), mtu.into())));
        insert_text(&mut object, "socketPath", interface.socket_path.as_ref());
        insert_text(&mut object, "pciID", interface.pci_id.as_ref());
    }
    Value::Object(object)
}

fn insert_text(object: &mut Map<String, Value>, key: &str, text: Option<&String>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        object.insert(key.into(), text.as_str().into());
    }
}

fn ip_value(ip: &IpConfig, version: Version) -> Value {
    let mut object = Map::new();
    if version <= Version::V0_4_0 {
        object.insert("version".into(), if ip.address.is_ipv4() { "4" } else { "6" }.into());
    }
    object.insert("address".into(), ip.address.to_string().into());
    object.extend(ip.gateway.map(|gateway| ("gateway".to_owned(), gateway.to_string().into())));
    object.extend(ip.interface.map(|index| ("interface".to_owned(), index.into())));
    Value::Object(object)
}
