//! The status document: what `weftd status -o json` prints, whether the daemon says it or the disk.

use serde::Serialize;
use serde_json::{Value, json};
use weft_overlay::PlaneReport;
use weft_overlay::wanted::Wanted;

use super::notices::Notice;
use super::plane::to_value;
use crate::cluster::{BlockUse, Status};
use crate::conf::{Conf, StoreKind};

/// The number of the JSON form; it changes when a reader would have to.
pub const FORMAT: u32 = 1;

/// The status document.
#[derive(Clone, Debug, Serialize)]
pub struct Document(Value);

/// What a running daemon knows.
pub(super) struct Known<'a> {
    pub conf: &'a Conf,
    pub status: Status,
    pub usage: &'a [BlockUse],
    pub wanted: Option<&'a Wanted>,
    pub report: Option<&'a PlaneReport>,
    pub notices: Vec<Notice>,
    pub ready: bool,
}

impl Document {
    /// Of a running daemon.
    pub(super) fn of_daemon(known: Known<'_>) -> Self {
        let Known { conf, status, usage, wanted, report, notices, ready } = known;
        let blocks: Vec<Value> = status
            .blocks
            .iter()
            .map(|held| {
                let usage = usage.iter().find(|usage| usage.block == held.cidr);
                json!({
                    "cidr": held.cidr,
                    "epoch": held.epoch,
                    "granted": status.granted.contains(&held.cidr),
                    "used": usage.map(|usage| usage.used),
                    "free": usage.map(|usage| usage.free_cool),
                    "resting": usage.map(|usage| usage.resting),
                })
            })
            .collect();
        let cluster_blocks: Vec<Value> = status
            .held
            .iter()
            .map(|held| {
                let family = if held.ipv4 { "ipv4" } else { "ipv6" };
                json!({ "family": family, "held": held.held, "total": held.total })
            })
            .collect();
        Self(json!({
            "format": FORMAT,
            "daemon": "running",
            "version": env!("CARGO_PKG_VERSION"),
            "node": status.node,
            "instance": status.instance,
            "ready": ready,
            "phase": status.phase,
            "peers": status.peers,
            "tombstones": status.tombstones,
            "in_sync": report.is_some_and(|report| report.in_sync),
            "store": {
                "kind": kind(conf),
                "endpoints": conf.store.endpoints,
                "away": status.store_away,
                "refuses": status.store_refuses,
                "revision": status.revision,
                "complete": status.complete,
                "rewritten": status.rewritten,
            },
            "network": status.network,
            "addresses": status.addresses,
            "node_addresses": wanted.map(|wanted| wanted.this.node_addresses.clone()).unwrap_or_default(),
            "blocks": blocks,
            "cluster_blocks": cluster_blocks,
            "data_plane": report.map(to_value),
            "findings": notices,
        }))
    }

    /// What the disk says about a node whose daemon is away.
    pub fn of_disk(conf: &Conf, disk: &Value, usage: &[weft_ipam::BlockUsage], findings: &[Notice]) -> Self {
        let blocks: Vec<Value> = usage
            .iter()
            .map(|usage| {
                json!({
                    "cidr": usage.block, "granted": usage.giving, "used": usage.used, "free": usage.free,
                    "resting": usage.resting,
                })
            })
            .collect();
        let mut document = json!({
            "format": FORMAT,
            "daemon": "away",
            "version": env!("CARGO_PKG_VERSION"),
            "node": conf.node.as_str(),
            "ready": usage.iter().any(|usage| usage.giving && usage.free + usage.resting > 0),
            "in_sync": Value::Null,
            "store": { "kind": kind(conf), "endpoints": conf.store.endpoints },
            "blocks": blocks,
            "findings": findings,
        });
        for key in ["network", "addresses", "instance", "peers", "tombstones"] {
            document[key] = disk[key].clone();
        }
        Self(document)
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        self.0.to_string()
    }
}

fn kind(conf: &Conf) -> &'static str {
    match conf.store.kind {
        StoreKind::Etcd => "etcd",
        StoreKind::File => "file",
    }
}
