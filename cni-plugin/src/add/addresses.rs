//! Obtaining addresses: from the built-in allocator, from another plugin, or none; and letting go of one that
//! proves to be a live pod's.

use std::net::IpAddr;

use weft_cni::delegate::Delegate;
use weft_cni::error::{Error, code};
use weft_cni::hostlocal::IpamConf;
use weft_cni::request::Command;
use weft_cni::result::{AddResult, IpConfig, check_family_limit};
use weft_ipam::ask::{NeedBlock, Weftd};
use weft_ipam::foreign::Foreign;
use weft_ipam::{Blocks, Pool, Ranges, Record, Source, TakenAddress, Taking, obtain};

use super::Job;
use crate::addressing::Granted;
use crate::conf::Ipam;
use crate::veth::Claimed;
use crate::{link, veth};

impl Job<'_, '_> {
    pub(super) fn obtain_addresses(&mut self, record: &mut Record) -> Result<(Granted, Vec<Pool>), Error> {
        match &self.conf.ipam {
            Ipam::None => {
                self.attachment.write(record)?;
                Ok((Granted::default(), Vec::new()))
            }
            Ipam::Delegated(kind) => Ok((self.delegate_add(kind, record)?, Vec::new())),
            Ipam::BuiltIn(ipam) => self.take_addresses(ipam, record),
        }
    }

    fn take_addresses(
        &mut self,
        ipam: &IpamConf,
        record: &mut Record,
    ) -> Result<(Granted, Vec<Pool>), Error> {
        let network = self.call.conf.name.as_str();
        let source: Box<dyn Source> = if ipam.sets.is_empty() {
            Box::new(Blocks::new(ipam.requested.clone()))
        } else {
            Box::new(Ranges::new(network, ipam.clone()))
        };
        if source.is_cluster() && self.conf.ip_masq {
            return Err(Error::unsupported("ipMasq", true).with_details(
                "addresses of the cluster are masqueraded by weftd: see [network] masquerade",
            ));
        }
        let check = |pools: &[Pool]| {
            let count = |v4| pools.iter().filter(|pool| pool.is_ipv4() == v4).count();
            check_family_limit(self.call.conf.version, count(true), count(false))
        };
        let foreign = Foreign::of(self.call.conf);
        let mut taking = Taking {
            kernel: &mut self.kernel,
            foreign: &foreign,
            cooldown: ipam.cooldown_seconds,
            avoid: &self.avoid,
            deadline: self.deadline,
        };
        record.routed = source.is_cluster() && record.bridge.is_some();
        let asking = (network, &Weftd::default() as &dyn NeedBlock);
        let pools = obtain(&self.attachment, record, source.as_ref(), &mut taking, asking, check)?;
        let ip = |taken: &TakenAddress| IpConfig {
            address: taken.address,
            gateway: taken.gateway,
            interface: None,
        };
        let granted = Granted {
            ips: record.addresses.iter().map(ip).collect(),
            routes: ipam.routes.clone(),
            dns: ipam.dns.clone().unwrap_or_default(),
            cluster: source.is_cluster(),
            node_addresses: if source.is_cluster() {
                self.attachment.state().node_addresses()?
            } else {
                Vec::new()
            },
        };
        Ok((granted, pools))
    }

    fn delegate_add(&mut self, kind: &str, record: &mut Record) -> Result<Granted, Error> {
        // Looked for first: what cannot be run needs no DEL.
        let delegate = Delegate::find(kind, &self.call.env.path)?;
        record.delegate = Some(kind.to_owned());
        self.attachment.write(record)?;
        let conf = self.call.conf.raw.clone();
        let answer = delegate.run(Command::Add, self.call.env, &conf, self.deadline.instant())?;
        let object =
            answer.ok_or_else(|| Error::new(code::IPAM, format!("IPAM plugin {kind} returned no result")))?;
        let result = AddResult::parse(&object)?;
        if result.ips.is_empty() {
            return Err(Error::new(
                code::IPAM,
                format!("IPAM plugin {kind}: IPAM plugin returned missing IP config"),
            ));
        }
        let held = |ip: &IpConfig| TakenAddress {
            address: ip.address,
            gateway: ip.gateway,
            file: String::new(),
            slot: None,
        };
        record.addresses = result.ips.iter().map(held).collect();
        self.attachment.write(record)?;
        Ok(Granted { ips: result.ips, routes: result.routes, dns: result.dns, ..Granted::default() })
    }

    /// The kernel knows the address as a live pod's: the records are wrong. Let go of it, and of the link.
    pub(super) fn put_aside(&mut self, record: &mut Record, claimed: Claimed) -> Result<(), Error> {
        let Claimed { address, holder } = claimed;
        self.notes
            .push(format!("put {address} aside: {holder} has it in the kernel, though no record says so"));
        if let Some(host) = link::host_end_by_name(self.kernel.socket()?, self.attachment.id())? {
            link::delete(&mut self.kernel, host.index, Vec::new(), self.deadline)?;
        }
        self.unclaim(record, Some(address))?;
        self.attachment.release_all(Some(record))?;
        self.attachment.state().distrust()?;
        self.avoid.push(address);
        match self.conf.ipam {
            Ipam::BuiltIn(_) => Ok(()),
            Ipam::None | Ipam::Delegated(_) => {
                Err(Error::new(code::IPAM, format!("the IPAM plugin gave {address}, which {holder} has"))
                    .with_details("its records are wrong: release the address there"))
            }
        }
    }

    /// Removes the neighbour entries and routes on the bridge that are ours: all but a live pod's.
    fn unclaim(&mut self, record: &Record, except: Option<IpAddr>) -> Result<(), Error> {
        let Some(bridge) = &record.bridge else { return Ok(()) };
        let mut mine = Vec::new();
        for ip in record.addresses.iter().map(|taken| taken.address.addr()).filter(|ip| Some(*ip) != except) {
            if veth::live_holder(self.kernel.socket()?, ip, "")?.is_none() {
                mine.push(ip);
            }
        }
        weft_ipam::remove_neighbours(self.kernel.socket()?, bridge.index, &mine)?;
        if record.routed {
            weft_ipam::remove_routes(self.kernel.socket()?, bridge.index, &mine)?;
        }
        Ok(())
    }
}
