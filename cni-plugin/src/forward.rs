//! Foreign chains that drop what pods send. The fault that costs people most time, and that no rule of ours can mend: an
//! accept never overrides another chain's drop.

use weft_cni::error::Error;
use weft_ipam::refused;
use weft_netlink::rules::{self, ForwardChain};
use weft_netlink::{Protocol, Socket};

use crate::conf::{Conf, Mode};

/// A sentence for each chain that drops forwarded packets by policy and has no rule made with Weft in mind.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn closed(socket: &mut Socket) -> weft_netlink::Result<Vec<String>> {
    let chains = rules::forward_chains(socket)?;
    Ok(chains.iter().filter(|chain| chain.is_closed()).map(sentence).collect())
}

fn sentence(chain: &ForwardChain) -> String {
    format!("the chain {} drops forwarded packets by policy", chain.describe())
}

/// For CHECK: what keeps this pod from others, in the families that it speaks.
///
/// # Errors
/// Code 102 if the kernel refuses to tell.
pub fn check(conf: &Conf, speaks: impl Fn(bool) -> bool) -> Result<Vec<String>, Error> {
    // What a bridge without gateway carries is not forwarded by this node.
    if matches!(&conf.mode, Mode::Bridge(bridge) if !bridge.is_gateway) {
        return Ok(Vec::new());
    }
    let failed = |error: weft_netlink::Error| refused("read foreign forward chains", &error);
    let mut socket = Socket::open(Protocol::Netfilter).map_err(failed)?;
    let chains = rules::forward_chains(&mut socket).map_err(failed)?;
    let concerns = |chain: &&ForwardChain| match chain.family {
        "ip" => speaks(true),
        "ip6" => speaks(false),
        _ => true,
    };
    let closed = chains.iter().filter(|chain| chain.is_closed()).filter(concerns);
    Ok(closed
        .map(|chain| {
            format!("{}: accept the pods' packets there, in a rule whose comment names weft", sentence(chain))
        })
        .collect())
}
