//! Every key there is. The file's keys, the flags, the variables, their help and the check of the sample all come
//! from this one table.

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// An array of strings; in a flag or variable, separated by commas.
    List,
    /// An integer.
    Number,
    /// `true` or `false`.
    Bool,
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As in `store.endpoints`: section and name.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// One line for `--help`.
    pub help: &'static str,
}

impl Key {
    /// `store-endpoints`, without the dashes in front.
    pub fn flag(&self) -> String {
        self.path.replace(['.', '_'], "-")
    }

    /// `WEFT_STORE_ENDPOINTS`.
    pub fn variable(&self) -> String {
        format!("WEFT_{}", self.path.replace('.', "_").to_ascii_uppercase())
    }

    /// The key called so.
    pub fn find(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.path == path)
    }
}

const fn key(path: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { path, kind, help }
}

/// Every key, in the order of the sample.
pub const KEYS: &[Key] = &[
    key("node", Kind::Text, "Name of this node [default: its host name]"),
    key("data_dir", Kind::Text, "Identity and cached snapshot [default: /var/lib/weft]"),
    key("interface", Kind::Text, "Publish this interface's addresses [default: the default route's]"),
    key("addresses", Kind::List, "Publish these addresses, with prefix lengths"),
    key(
        "foreign_forward",
        Kind::Text,
        "report|iptables: about a foreign firewall that drops forwarded packets",
    ),
    key("sysctl_root", Kind::Text, "Where kernel settings are writable [default: /proc/sys]"),
    key(
        "offline_boot",
        Kind::Bool,
        "After a boot without the store, trust what was known before [default: true]",
    ),
    key("store.kind", Kind::Text, "etcd|file [default: etcd]"),
    key("store.endpoints", Kind::List, "URLs of the etcd members, or the path of the file"),
    key("store.ca", Kind::Text, "File with the certificates of the authority of the members' certificates"),
    key("store.cert", Kind::Text, "File with this node's certificate"),
    key("store.key", Kind::Text, "File with the key of that certificate"),
    key("store.username", Kind::Text, "Log in as"),
    key("store.password", Kind::Text, "Log in with; better in the file, as others can see flags"),
    key("store.prefix", Kind::Text, "What every key begins with [default: /weft/v1/]"),
    key("network.cidrs", Kind::List, "The pods' networks"),
    key("network.block_size_v4", Kind::Number, "Prefix length of a node's IPv4 block [default: 26]"),
    key("network.block_size_v6", Kind::Number, "Prefix length of a node's IPv6 block [default: 122]"),
    key("network.mode", Kind::Text, "bridge|veth: how pods are joined to this node [default: bridge]"),
    key("network.backend", Kind::Text, "routes|vxlan: how nodes are joined [default: vxlan]"),
    key("network.direct", Kind::Text, "never|same-subnet: plain routes within a subnet [default: never]"),
    key(
        "network.mtu",
        Kind::Number,
        "The pods' MTU on this node [default: the underlay's less the overhead]",
    ),
    key("network.masquerade", Kind::Bool, "Pods reach the outside under the node's address [default: true]"),
    key("network.no_masquerade", Kind::List, "Networks that see the pods' own addresses"),
    key(
        "network.reissue_after",
        Kind::Number,
        "Seconds until a removed node's blocks are given again [default: 604800]",
    ),
    key("vxlan.vni", Kind::Number, "VXLAN network identifier"),
    key("vxlan.port", Kind::Number, "VXLAN UDP port"),
    key("wireguard.implementation", Kind::Text, "Not built in this version"),
    key("wireguard.port", Kind::Number, "Not built in this version"),
    key("cni.conf_dir", Kind::Text, "Where the conflist goes [default: /etc/cni/net.d]"),
    key("cni.bin_dir", Kind::Text, "Where the plugins go [default: /opt/cni/bin]"),
    key("metrics.listen", Kind::Text, "Not built in this version"),
];
