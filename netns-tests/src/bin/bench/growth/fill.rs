//! Takes most of a network's addresses, by the allocator's own hand, for attachments that nobody collects.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns_tests::{Inside, Node};
use serde_json::Value;
use weft_cni::args::CniArgs;
use weft_cni::conf::NetConf;
use weft_cni::hostlocal::IpamConf;
use weft_ipam::clock::{Deadline, boot_nanos};
use weft_ipam::foreign::Foreign;
use weft_ipam::{Begun, HostKernel, Owner, Phase, Pool, Ranges, Record, Source, State, Taking, take};

use crate::Outcome;
use crate::chain::IFNAME;

/// Addresses of one attachment. Each search keeps a file open, and 1,024 is a common limit.
const EACH: usize = 400;
/// Far longer than it takes.
const LIMIT: Duration = Duration::from_secs(120);

/// Takes `count` addresses of the first plugin's range.
pub fn take_addresses(node: &Node, conflist: &Value, count: usize) -> Outcome<()> {
    let mut conf = conflist["plugins"][0].clone();
    conf["name"] = conflist["name"].clone();
    conf["cniVersion"] = conflist["cniVersion"].clone();
    let conf = NetConf::parse(conf.to_string().as_bytes())?;
    node.enter(|| {
        let deadline = Deadline::after(Instant::now(), LIMIT);
        let mut kernel = HostKernel::default();
        let state = State::open(&mut kernel, deadline)?;
        let network = conf.name.as_str();
        let ranges = Ranges::new(network, IpamConf::parse(&conf, &CniArgs::default())?);
        let pool = ranges.pools(&state)?.into_iter().next().ok_or("a network without ranges")?;
        for number in 0..count / EACH {
            let owner = Owner::new(network, &format!("filler-{number}"), IFNAME);
            take_some(&state, &owner, &vec![pool.clone(); EACH], &mut kernel, deadline)?;
        }
        Ok(())
    })
}

fn take_some(
    state: &State,
    owner: &Owner,
    pools: &[Pool],
    kernel: &mut HostKernel,
    deadline: Deadline,
) -> Outcome<()> {
    let Begun::Fresh(attachment) = state.begin(owner, deadline)? else {
        return Err("the addresses were taken before".into());
    };
    // Neither link nor namespace: the collector takes it for the attachment of a delegated plugin that lives.
    let mut record = Record::begun(boot_nanos(), String::new(), PathBuf::new());
    let foreign = Foreign::default();
    let mut taking = Taking { kernel, foreign: &foreign, cooldown: 0, avoid: &[], deadline };
    take(&attachment, &mut record, pools, &mut taking)?;
    record.phase = Phase::Done;
    Ok(attachment.write(&record)?)
}
