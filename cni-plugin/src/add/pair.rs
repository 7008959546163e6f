//! Making the pod's link, and what all pods of the node share.

use weft_cni::error::Error;
use weft_ipam::clock::boot_seconds;
use weft_ipam::refused;
use weft_netlink::link::{self as kernel_link, Link, Mac, NewVeth, PortFlags};

use super::Job;
use crate::addressing::Plan;
use crate::conf::{BridgeConf, Mode};
use crate::link::{self, Pair, Refusal};
use crate::veth::Claimed;
use crate::{bridge, forwarding, veth};

impl Job<'_, '_> {
    /// What all pods of the node share: gateways on the bridge, forwarding.
    pub(super) fn prepare_node(&mut self, plan: &Plan, bridge: Option<&Link>) -> Result<Option<Link>, Error> {
        let mut gateway_link = None;
        if let (Mode::Bridge(conf), Some(bridge)) = (&self.conf.mode, bridge) {
            let socket = self.kernel.socket()?;
            if !plan.gateways.is_empty() {
                if let Some(vlan) = conf.vlan.access {
                    gateway_link = Some(bridge::ensure_vlan_gateway(socket, bridge, vlan, self.conf.mtu)?);
                }
                let carrier = gateway_link.as_ref().unwrap_or(bridge);
                if bridge::ensure_gateways(socket, carrier, &plan.gateways, conf.force_address)? {
                    self.new_gateways_on = Some(carrier.index);
                }
            }
            if plan.routed {
                bridge::forbid_redirects(&bridge.name)?;
            }
        }
        let carries = |v4: bool| plan.gateways.iter().any(|gateway| gateway.addr().is_ipv4() == v4);
        let state = self.attachment.state();
        if carries(true) && !state.was_verified_lately("forwarding-ipv4") {
            forwarding::enable_ipv4()?;
            state.note_verified("forwarding-ipv4", boot_seconds())?;
        }
        if carries(false) && !state.was_verified_lately("forwarding-ipv6") {
            forwarding::enable_ipv6(self.kernel.socket()?)?;
            state.note_verified("forwarding-ipv6", boot_seconds())?;
        }
        Ok(gateway_link)
    }

    pub(super) fn make_pair(
        &mut self,
        plan: &Plan,
        bridge: Option<&Link>,
        pod_mac: Mac,
        alias: &str,
    ) -> Result<Result<(), Claimed>, Error> {
        let id = self.attachment.id().clone();
        let host_name = id.host_name();
        let port = match &self.conf.mode {
            Mode::Bridge(conf) => Some(port_flags(conf)),
            Mode::Veth => None,
        };
        let veth = NewVeth {
            host_name: &host_name,
            host_mac: self.host_mac,
            pod_name: self.call.attachment.ifname.as_str(),
            pod_mac,
            pod_netns: link::fd_of(self.pod.netns()),
            mtu: self.conf.mtu,
            master: bridge.map(|bridge| bridge.index),
        };
        let pair = Pair { veth, alias, port, ipv6: self.conf.link_has_ipv6() };
        let socket = self.kernel.socket()?;
        // On a bridge without carrier nobody has the address yet, and a claim might be forgotten: it comes later.
        let claims = |bridge: &Link| veth::claims_on_bridge(bridge.index, plan, pod_mac);
        let before = bridge.filter(|bridge| bridge.carrier).map(claims).unwrap_or_default();
        let mut outcome = link::make(socket, &pair, before);
        if let Err(Refusal::Exists(_)) = &outcome
            && let Some(left_over) = link::host_end_by_name(socket, &id)?
        {
            // The name is this attachment's own: a killed ADD whose record was wiped left it.
            self.notes.push(format!("removed the left-over link {host_name}"));
            link::delete(&mut self.kernel, left_over.index, Vec::new(), self.deadline)?;
            outcome = link::make(self.kernel.socket()?, &pair, Vec::new());
        }
        match (outcome, bridge) {
            (Ok(()), _) => {}
            (Err(Refusal::Before(error)), Some(bridge)) if error.is(libc::EEXIST) => {
                let settled =
                    veth::settle_on_bridge(self.kernel.socket()?, bridge.index, plan, pod_mac, alias)?;
                if settled.is_err() {
                    return Ok(settled);
                }
            }
            (Err(refusal), _) => return Err(refusal.into_error(&pair)),
        }
        if let (true, Some(bridge)) = (plan.routed, bridge)
            && let Err(claimed) = veth::route_over_bridge(self.kernel.socket()?, bridge.index, plan, alias)?
        {
            return Ok(Err(claimed));
        }
        self.join_vlans(&host_name)?;
        Ok(Ok(()))
    }

    fn join_vlans(&mut self, host_name: &str) -> Result<(), Error> {
        let Mode::Bridge(conf) = &self.conf.mode else { return Ok(()) };
        if !conf.vlan.is_used() {
            return Ok(());
        }
        let socket = self.kernel.socket()?;
        let failed = |error: weft_netlink::Error| refused(format!("put {host_name} into its VLANs"), &error);
        let Some(host) = kernel_link::by_name(socket, host_name).map_err(failed)? else { return Ok(()) };
        socket.execute(&conf.vlan.requests(host.index)).map_err(failed)
    }
}

fn port_flags(conf: &BridgeConf) -> PortFlags {
    PortFlags { hairpin: conf.hairpin, isolated: conf.isolated }
}
