//! Configurations of the plugin by mode and family.

use serde_json::{Value, json};

/// How a pod may be joined to its node.
pub const MODES: [&str; 2] = ["bridge", "veth"];

/// A working configuration of network `net`: in `mode`, with ranges of `family` (`v4`, `v6` or `dual`).
pub fn conf(version: &str, mode: &str, family: &str) -> Value {
    let v4 = json!([{"subnet": "10.244.0.0/24"}]);
    let v6 = json!([{"subnet": "fd00:244::/64"}]);
    let ranges = match family {
        "v4" => json!([v4]),
        "v6" => json!([v6]),
        "dual" => json!([v4, v6]),
        other => panic!("no family {other}"),
    };
    let mut conf = json!({
        "cniVersion": version, "name": "net", "type": "weft", "mode": mode,
        "isDefaultGateway": true, "ipMasq": true, "ipam": {"ranges": ranges}
    });
    if mode == "bridge" {
        conf["bridge"] = json!("cbr0");
    }
    conf
}

/// The same with `key` set; a path such as `/ipam/routes` goes deeper.
pub fn with(conf: &Value, path: &str, value: Value) -> Value {
    let mut changed = conf.clone();
    let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = &mut changed;
    for step in parent.split('/').filter(|step| !step.is_empty()) {
        at = &mut at[step];
    }
    at[key] = value;
    changed
}
