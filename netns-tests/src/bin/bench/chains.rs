//! The chains that are compared: what the reference plugins are given, what Weft is given instead, and what the
//! project promises of the difference.

use netns_tests::{Inside, Lab, Node};
use serde_json::{Value, json};

use crate::Outcome;
use crate::chain::Chain;
use crate::facts::Programs;
use crate::floor::Floor;
use crate::options::{Options, Section};
use crate::subject::{Role, Subject, Work};

/// What is spoken: the newest version that Debian 12's plugins know.
const VERSION: &str = "1.0.0";
/// Large enough that no address is given twice within the cool-down.
const SUBNET: &str = "10.10.0.0/16";
const GATEWAY: &str = "10.10.0.1";
const BRIDGE: &str = "bench0";

/// A pair of chains to compare.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    /// What the reference runs, and what Weft runs.
    pub title: &'static str,
    pub targets: Targets,
    kind: Kind,
    bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Full,
    Ptp,
}

/// Upper and lower bounds of Weft's figure divided by the reference's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Targets {
    pub add: Option<f64>,
    pub del: Option<f64>,
    pub add_rate: Option<f64>,
    pub del_rate: Option<f64>,
}

const SPECS: [Spec; 3] = [
    Spec {
        name: "plain",
        title: "bridge(isDefaultGateway) + host-local  against  weft(mode bridge, isDefaultGateway)",
        targets: Targets { add: Some(0.20), del: Some(0.10), add_rate: Some(5.0), del_rate: Some(4.0) },
        kind: Kind::Plain,
        bare: false,
    },
    Spec {
        name: "full",
        title: "bridge(isDefaultGateway, ipMasq, hairpinMode) + host-local + portmap(no ports asked)  against  \
                weft(mode bridge, isDefaultGateway, ipMasq, hairpinMode)",
        targets: Targets { add: Some(0.08), del: Some(0.03), add_rate: Some(10.0), del_rate: Some(20.0) },
        kind: Kind::Full,
        bare: false,
    },
    Spec {
        name: "ptp",
        title: "ptp + host-local  against  weft(mode veth)",
        targets: Targets { add: None, del: None, add_rate: None, del_rate: None },
        kind: Kind::Ptp,
        bare: false,
    },
];

/// The chains that are asked for. The floor alone is measured for a bridge and for veth.
pub fn wanted(options: &Options) -> Vec<Spec> {
    let wanted: Vec<Spec> = SPECS.into_iter().filter(|spec| options.wants(spec.kind.section())).collect();
    if !wanted.is_empty() || !options.wants(Section::Floor) {
        return wanted;
    }
    let bare =
        |spec: Spec| Spec { title: "the bare kernel alone", targets: Targets::default(), bare: true, ..spec };
    SPECS.into_iter().filter(|spec| spec.kind != Kind::Full).map(bare).collect()
}

impl Kind {
    fn section(self) -> Section {
        match self {
            Self::Plain => Section::Plain,
            Self::Full => Section::Full,
            Self::Ptp => Section::Ptp,
        }
    }
}

/// For the person who waits.
pub fn labels(subjects: &[Subject]) -> String {
    let labels: Vec<&str> = subjects.iter().map(|subject| subject.label.as_str()).collect();
    labels.join(", ")
}

impl Spec {
    /// Everything that runs this chain, each on a node of its own.
    pub fn subjects(&self, lab: &Lab, programs: &Programs, options: &Options) -> Outcome<Vec<Subject>> {
        let node = |number: usize| lab.node(&format!("{}{number}", self.name));
        let mut subjects = Vec::new();
        if !self.bare {
            for (number, reference) in programs.references.iter().enumerate() {
                let work = Work::Chain(Chain::new(&self.reference(), &reference.dir)?);
                subjects.push(Subject::new(&reference.label, Role::Reference, node(number), work));
            }
            let work = Work::Chain(Chain::new(&self.weft(), &programs.weft.dir)?);
            subjects.push(Subject::new(&programs.weft.label, Role::Weft, node(90), work));
        }
        if options.wants(Section::Floor) {
            let node = node(91);
            let work = Work::Floor(floor(&node, self.kind != Kind::Ptp, self.kind == Kind::Full)?);
            subjects.push(Subject::new("bare kernel", Role::Floor, node, work));
        }
        Ok(subjects)
    }

    fn reference(&self) -> Value {
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": SUBNET}]]});
        let plugins = match self.kind {
            Kind::Full => json!([
                {"type": "bridge", "bridge": BRIDGE, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
                 "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ]),
            Kind::Ptp => json!([{"type": "ptp", "ipam": with_default_route(&ipam)}]),
            Kind::Plain => {
                json!([{"type": "bridge", "bridge": BRIDGE, "isDefaultGateway": true, "ipam": ipam}])
            }
        };
        json!({"cniVersion": VERSION, "name": self.name, "plugins": plugins})
    }

    /// The same keys, `type` changed and the built-in IPAM.
    fn weft(&self) -> Value {
        let ipam = json!({"ranges": [[{"subnet": SUBNET}]]});
        let plugin = match self.kind {
            Kind::Full => {
                json!({"type": "weft", "bridge": BRIDGE, "isDefaultGateway": true, "ipMasq": true,
                                    "hairpinMode": true, "ipam": ipam})
            }
            Kind::Ptp => json!({"type": "weft", "mode": "veth", "ipam": with_default_route(&ipam)}),
            Kind::Plain => json!({"type": "weft", "bridge": BRIDGE, "isDefaultGateway": true, "ipam": ipam}),
        };
        json!({"cniVersion": VERSION, "name": self.name, "plugins": [plugin]})
    }
}

/// The bare kernel on this node: with a bridge that stands ready, or point to point.
pub fn floor(node: &Node, on_bridge: bool, hairpin: bool) -> Outcome<Floor> {
    node.set_sysctl("net/ipv4/ip_forward", "1");
    if !on_bridge {
        return Floor::new(GATEWAY, None, false);
    }
    node.run(["ip", "link", "add", BRIDGE, "type", "bridge"]);
    node.run(["ip", "address", "add", &format!("{GATEWAY}/16"), "dev", BRIDGE]);
    node.run(["ip", "link", "set", BRIDGE, "up"]);
    let bridge = node.json(["ip", "-j", "link", "show", "dev", BRIDGE])[0]["ifindex"].as_u64();
    let bridge = bridge.and_then(|index| u32::try_from(index).ok()).ok_or("the bridge has no index")?;
    Floor::new(GATEWAY, Some(bridge), hairpin)
}

fn with_default_route(ipam: &Value) -> Value {
    let mut ipam = ipam.clone();
    ipam["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    ipam
}

/// A network of Weft's that grows: in veth mode or on a bridge.
pub fn growing(veth: bool) -> Value {
    let ipam = json!({"ranges": [[{"subnet": SUBNET}]]});
    let plugin = if veth {
        json!({"type": "weft", "mode": "veth", "ipam": with_default_route(&ipam)})
    } else {
        json!({"type": "weft", "bridge": BRIDGE, "isDefaultGateway": true, "ipam": ipam})
    };
    json!({"cniVersion": VERSION, "name": "growing", "plugins": [plugin]})
}
