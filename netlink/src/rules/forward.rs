//! Foreign chains on the way of forwarded packets: those of nf_tables, and those of the legacy iptables.
//!
//! The kernel is asked itself, in both worlds: a static image has no `iptables`, and its listing would say no more.

use serde::Serialize;

use super::TABLE_NAME;
use crate::error::Result;
use crate::legacy;
use crate::nft::{self, Family, FoundChain};
use crate::socket::Socket;

/// The comment of each rule that `weftd` puts into a foreign chain.
pub const WEFT_COMMENT: &str = "weft-pod-network";
/// A rule with this in it, in a comment or in an interface's name, was made with Weft in mind.
const MENTION: &[u8] = b"weft";
/// `NF_INET_FORWARD` (include/uapi/linux/netfilter.h).
pub(crate) const HOOK_FORWARD: u32 = 2;
/// The families in which a forwarded packet can be dropped, as `nft` names them.
const IP_FAMILIES: [(Family, &str); 3] =
    [(Family::Inet, "inet"), (Family::Ipv4, "ip"), (Family::Ipv6, "ip6")];

/// Which program a chain is changed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// `nft`, or what wrote it.
    Nft,
    /// `iptables-nft`: table `filter`, chain `FORWARD` in nf_tables.
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
}

/// A foreign chain that forwarded packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ForwardChain {
    /// `inet`, `ip` or `ip6`.
    pub family: &'static str,
    /// Its table's name.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What it is changed by.
    pub tool: Tool,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
    /// How many of its rules carry [`WEFT_COMMENT`]. Counted for iptables' chains only.
    pub tagged: usize,
    /// Whether a rule of its table was made with Weft in mind. Looked for in chains that drop only.
    pub mentions_weft: bool,
}

impl ForwardChain {
    /// Whether it drops what pods send, as far as can be told without understanding foreign rules: by policy, and no
    /// rule of its table names Weft.
    pub fn is_closed(&self) -> bool {
        self.drops && !self.mentions_weft
    }

    /// As people find it, for example `ip filter FORWARD`.
    pub fn describe(&self) -> String {
        let Self { family, table, name, .. } = self;
        match self.tool {
            Tool::IptablesLegacy => format!("{family} {table} {name} (legacy iptables)"),
            Tool::Nft | Tool::IptablesNft => format!("{family} {table} {name}"),
        }
    }
}

/// The foreign chains on the forward hook. An accept elsewhere cannot help against one that drops.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn forward_chains(socket: &mut Socket) -> Result<Vec<ForwardChain>> {
    let mut found = Vec::new();
    for chain in nft::dump_base_chains(socket)? {
        if chain.hook != HOOK_FORWARD || chain.table == TABLE_NAME {
            continue;
        }
        let family = IP_FAMILIES.iter().find(|(family, _)| *family as u8 == chain.family);
        if let Some((family, name)) = family {
            found.push(of_nf_tables(socket, *family, name, chain)?);
        }
    }
    found.extend(legacy_forward_chains()?);
    Ok(found)
}

/// Only those of the legacy iptables; no request to netlink.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn legacy_forward_chains() -> Result<Vec<ForwardChain>> {
    Ok(legacy::forward_chains()?)
}

fn of_nf_tables(
    socket: &mut Socket,
    family: Family,
    family_name: &'static str,
    chain: FoundChain,
) -> Result<ForwardChain> {
    let of_iptables = family != Family::Inet && chain.table == "filter" && chain.name == "FORWARD";
    let tagged = match of_iptables {
        true => {
            nft::count_rules_with(socket, family, &chain.table, Some(&chain.name), WEFT_COMMENT.as_bytes())?
        }
        false => 0,
    };
    let mentions_weft =
        tagged > 0 || chain.drops && nft::count_rules_with(socket, family, &chain.table, None, MENTION)? > 0;
    Ok(ForwardChain {
        family: family_name,
        table: chain.table,
        name: chain.name,
        tool: if of_iptables { Tool::IptablesNft } else { Tool::Nft },
        drops: chain.drops,
        tagged,
        mentions_weft,
    })
}

/// What a legacy chain is, from its policy and its rules. `table` are all rules, `chain` those of FORWARD.
pub(crate) fn of_legacy(ipv4: bool, drops: bool, table: &[u8], chain: &[u8]) -> ForwardChain {
    ForwardChain {
        family: if ipv4 { "ip" } else { "ip6" },
        table: "filter".to_owned(),
        name: "FORWARD".to_owned(),
        tool: Tool::IptablesLegacy,
        drops,
        tagged: count(chain, WEFT_COMMENT.as_bytes()),
        mentions_weft: count(table, MENTION) > 0,
    }
}

fn count(bytes: &[u8], word: &[u8]) -> usize {
    bytes.windows(word.len()).filter(|window| *window == word).count()
}
