//! What only a try tells: checksums that a network card spoils inside VXLAN, and a path that is smaller than the link.

use netns_tests::cluster::{ClusterLab, Layout, Network, PATIENCE, require_cluster};
use netns_tests::{Inside, wait_until};

const SPOILED: &str = "probe-vxlan-checksum";
const SMALL: &str = "probe-small-path";

/// The checksum of a datagram that nobody has finished: the sum over its pseudo header (RFC 768).
fn unfinished(from: [u8; 4], to: [u8; 4], payload: u16) -> u16 {
    let words =
        [from, to].into_iter().flat_map(|ip| [[ip[0], ip[1]], [ip[2], ip[3]]]).map(u16::from_be_bytes);
    let sum: u32 = words.chain([17, 8 + payload]).map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from(folded).expect("one carry at most")
}

fn node_address(lab: &ClusterLab, node: usize) -> [u8; 4] {
    let status = lab.nodes[node].weftd().status();
    let address = status["node_addresses"][0].as_str().expect("a node address").to_owned();
    address.parse::<std::net::Ipv4Addr>().expect("IPv4").octets()
}

/// `None` while there is no such device.
fn offload(lab: &ClusterLab) -> Option<bool> {
    lab.nodes[0].enter(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let fd = std::os::fd::AsFd::as_fd(&socket);
        weft_netlink::sys::tx_checksum(fd, "weft-vx", None).ok()
    })
}

/// A card that does not finish checksums inside VXLAN, in the shape in which the far end sees it: node b loses exactly those
/// datagrams of a's probe whose checksum is unfinished.
#[test]
fn spoiled_checksums_inside_vxlan_are_found_and_made_in_software() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("checksum", &Layout::default().nodes(2));
    lab.start_all(&Network::default().v4());
    // All is well at first.
    assert_eq!(offload(&lab), Some(true));
    let weftd = lab.nodes[0].weftd();
    weftd.stop();
    let sum = unfinished(node_address_of_stopped(&lab), node_address(&lab, 1), 32);
    // Behind VXLAN's own headers: the inner protocol is UDP, the inner checksum is this.
    let rule = format!("udp dport 4789 @th,312,8 17 @th,448,16 {sum} counter drop");
    let other = &lab.nodes[1];
    other.run(["nft", "add table inet spoil"]);
    other.run(["nft", "add chain inet spoil early { type filter hook prerouting priority -300; }"]);
    other.run(["nft", &format!("add rule inet spoil early {rule}")]);
    weftd.start(&[]);
    weftd.wait_ready();
    let finding = weftd.wait_finding(SPOILED, true);
    assert!(finding["way_out"].to_string().contains("ethtool -K weft-vx tx on"), "{finding}");
    assert_eq!(offload(&lab), Some(false));
    // A device that is made anew is switched off again.
    lab.nodes[0].run(["ip", "link", "delete", "weft-vx"]);
    wait_until("weft-vx is back, without offload", PATIENCE, || offload(&lab) == Some(false));
    lab.nodes[1].weftd().wait_finding(SPOILED, false);
}

fn node_address_of_stopped(lab: &ClusterLab) -> [u8; 4] {
    let links = lab.nodes[0].json(["ip", "-j", "-4", "address", "show", "dev", "weft-node"]);
    let address = links[0]["addr_info"][0]["local"].as_str().expect("a node address").to_owned();
    address.parse::<std::net::Ipv4Addr>().expect("IPv4").octets()
}

/// A link on the way that is smaller than the nodes' own, with and without a router that says so.
#[test]
fn a_path_that_is_smaller_than_the_link_is_named_with_its_node() {
    if !require_cluster() {
        return;
    }
    let lab = ClusterLab::new("smallpath", &Layout::default().nodes(2));
    lab.wire.router.run(["ip", "link", "set", "eth2", "mtu", "1400"]);
    lab.start_all(&Network::default().v4());
    let finding = lab.nodes[0].weftd().wait_finding(SMALL, true);
    assert_eq!(finding["subject"], "b");
    assert!(finding["sentence"].to_string().contains("1500 bytes"), "{finding}");
    lab.wire.router.run(["ip", "link", "set", "eth2", "mtu", "1500"]);
    let weftd = lab.nodes[0].weftd();
    weftd.stop();
    // A black hole: large packets vanish, and nobody says why.
    lab.wire.router.run(["nft", "add table inet hole"]);
    lab.wire.router.run(["nft", "add chain inet hole f { type filter hook forward priority 0; }"]);
    lab.wire.router.run(["nft", "add rule inet hole f meta length > 1450 drop"]);
    weftd.start(&[]);
    weftd.wait_ready();
    weftd.wait_finding(SMALL, true);
    weftd.stop();
    lab.wire.router.run(["nft", "delete table inet hole"]);
    weftd.start(&[]);
    weftd.wait_ready();
    // It has been asked, and nothing was found.
    std::thread::sleep(std::time::Duration::from_secs(8));
    weftd.wait_finding(SMALL, false);
}
