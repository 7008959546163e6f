//! The answer of an ADD.

use weft_cni::result::{AddResult, Interface, IpConfig};
use weft_cni::run::Call;
use weft_netlink::link::Link;

use super::Done;
use crate::conf::Conf;

impl Done {
    /// The answer: our part behind what earlier plugins of the chain reported.
    pub(super) fn into_result(self, call: &Call<'_>, conf: &Conf, previous: Option<AddResult>) -> AddResult {
        let mut result = previous.unwrap_or_default();
        let interface = |link: &Link| Interface {
            name: link.name.clone(),
            mac: link.mac.map_or_else(String::new, |mac| mac.to_string()),
            mtu: Some(link.mtu),
            ..Interface::default()
        };
        result.interfaces.extend(self.bridge.iter().map(interface));
        result.interfaces.push(interface(&self.host));
        let pod = result.interfaces.len();
        result.interfaces.push(Interface {
            name: call.attachment.ifname.as_str().to_owned(),
            mac: self.pod_mac.to_string(),
            mtu: Some(self.host.mtu),
            sandbox: call
                .attachment
                .netns
                .as_deref()
                .map_or_else(String::new, |path| path.display().to_string()),
            ..Interface::default()
        });
        result.interfaces.extend(self.gateway_link.iter().map(interface));
        result.ips.extend(self.plan.addresses.iter().map(|address| IpConfig {
            address: address.address,
            gateway: address.gateway,
            interface: Some(pod),
        }));
        result.routes.extend(self.routes.into_iter().map(|route| route.route));
        let dns = conf.dns.clone().unwrap_or(self.granted.dns);
        if !dns.is_empty() {
            result.dns = dns;
        }
        result
    }
}
