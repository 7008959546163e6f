//! `use/<name>`: which addresses of its blocks a node's pods have, written into the store for people. No machine reads it, and
//! nothing is wrong when it is absent or old: it is written seldom, in one compact value, and never waited for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_cni::ip::Subnet;

use crate::store::{Compare, Expect, Txn, Write};

/// Begins the key of each.
pub const USES: &str = "use/";
/// At most one write in so long a time.
pub const PERIOD: Duration = Duration::from_secs(60);
/// So long after a change, so that a burst of pods is in one write.
pub const SETTLE: Duration = Duration::from_secs(5);
/// The number of the value's form.
const FORMAT: u32 = 1;

/// Blocks, and the addresses of each that are in use: places within the block, as `1-7,9`.
pub type Blocks = BTreeMap<Subnet, String>;

/// The value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UseRecord {
    format: u32,
    /// When it was written, in seconds since 1970.
    pub at: u64,
    /// What was in use then.
    pub blocks: Blocks,
}

/// The key of a node.
pub fn use_key(name: &str) -> String {
    format!("{USES}{name}")
}

impl UseRecord {
    /// What is in use at `at`.
    pub fn new(at: u64, blocks: Blocks) -> Self {
        Self { format: FORMAT, at, blocks }
    }

    /// Reads a value; `None` if it is none of this form.
    pub fn parse(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok().filter(|record: &Self| record.format == FORMAT)
    }

    /// Writes it, as long as the node has a record: a removed node leaves nothing.
    pub fn write(&self, name: &str) -> Txn {
        let value = serde_json::to_vec(self).unwrap_or_default();
        Txn {
            compares: vec![Compare { key: crate::cluster::node_key(name), expect: Expect::Exists }],
            writes: vec![Write::Put { key: use_key(name), value, lease: None }],
            on_conflict_read: Vec::new(),
        }
    }
}

/// Places of addresses within their block, ascending, as `1-7,9`.
pub fn places(block: &Subnet, addresses: &[IpAddr]) -> String {
    let mut ranges: Vec<(u128, u128)> = Vec::new();
    for place in addresses.iter().map(|ip| bits(*ip).wrapping_sub(bits(block.first()))) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == place => *last = place,
            _ => ranges.push((place, place)),
        }
    }
    let texts = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    texts.collect::<Vec<_>>().join(",")
}

/// The ranges of addresses that [`places`] made a text of; what is no such text is left out.
pub fn ranges(block: &Subnet, places: &str) -> Vec<(IpAddr, IpAddr)> {
    let address = |place: &str| {
        let bits = bits(block.first()).checked_add(place.parse::<u128>().ok()?)?;
        let ip = match block.is_ipv4() {
            true => IpAddr::V4(u32::try_from(bits).ok()?.into()),
            false => IpAddr::V6(bits.into()),
        };
        block.contains(ip).then_some(ip)
    };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((address(first)?, address(last)?))
    };
    places.split(',').filter_map(range).collect()
}

/// How many addresses ranges hold.
pub fn count(ranges: &[(IpAddr, IpAddr)]) -> u128 {
    ranges.iter().map(|(first, last)| (bits(*last) + 1).saturating_sub(bits(*first))).sum()
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// When to write. Pure: time is an argument.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    changed: Option<Duration>,
    not_before: Duration,
    busy: bool,
}

impl Pace {
    /// Something changed.
    pub fn note(&mut self, now: Duration) {
        self.changed.get_or_insert(now);
    }

    /// Whether to write now; if so, [`Pace::done`] must follow.
    pub fn begin(&mut self, now: Duration) -> bool {
        let settled = self.changed.is_some_and(|at| now >= at + SETTLE);
        if self.busy || !settled || now < self.not_before {
            return false;
        }
        self.busy = true;
        self.changed = None;
        true
    }

    /// It was written, or was as it should be; or (`false`) could not be, and is tried again.
    pub fn done(&mut self, now: Duration, success: bool) {
        self.busy = false;
        self.not_before = now + PERIOD;
        if !success {
            self.note(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_the_same_after_their_short_form() {
        for (subnet, addresses, short, number) in [
            ("10.244.3.64/26", &[][..], "", 0),
            ("10.244.3.64/26", &["10.244.3.65"], "1", 1),
            ("10.244.3.64/26", &["10.244.3.65", "10.244.3.66", "10.244.3.67", "10.244.3.127"], "1-3,63", 4),
            ("fd00:244::40/122", &["fd00:244::40", "fd00:244::42"], "0,2", 2),
        ] {
            let subnet = block(subnet);
            let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(places(&subnet, &addresses), short);
            let ranges = ranges(&subnet, short);
            assert_eq!(count(&ranges), number, "{short}");
            assert!(ranges.iter().all(|(first, last)| addresses.contains(first) && addresses.contains(last)));
        }
        assert_eq!(ranges(&block("10.244.3.64/26"), "64,x,-,3-"), []);
    }

    #[test]
    fn a_burst_is_one_write_a_minute() {
        let (mut pace, mut writes) = (Pace::default(), Vec::new());
        for second in 0..200 {
            let now = Duration::from_secs(second);
            // Pods come and go each second for a minute and a half.
            if second < 90 {
                pace.note(now);
            }
            if pace.begin(now) {
                writes.push(second);
                assert!(!pace.begin(now), "one at a time");
                pace.done(now, true);
            }
        }
        assert_eq!(writes, [5, 65, 125]);
    }

    #[test]
    fn what_failed_is_tried_again_after_a_minute() {
        let mut pace = Pace::default();
        let at = Duration::from_secs;
        assert!(!pace.begin(at(100)), "nothing changed");
        pace.note(at(100));
        assert!(!pace.begin(at(104)) && pace.begin(at(105)));
        pace.done(at(106), false);
        assert!(!pace.begin(at(165)) && pace.begin(at(166)));
        pace.done(at(167), true);
        assert!(!pace.begin(at(1_000)));
    }

    #[test]
    fn the_value_is_compact_and_read_back() {
        let blocks = Blocks::from([(block("10.244.3.0/26"), "1-7,9".to_owned())]);
        let record = UseRecord::new(1_796_000_000, blocks);
        let txn = record.write("a");
        let Some(Write::Put { key, value, .. }) = txn.writes.first() else { panic!("no write") };
        assert_eq!(key, "use/a");
        let text = r#"{"format":1,"at":1796000000,"blocks":{"10.244.3.0/26":"1-7,9"}}"#;
        assert_eq!(String::from_utf8_lossy(value), text);
        assert_eq!(UseRecord::parse(value), Some(record));
        assert_eq!(UseRecord::parse(br#"{"format":2,"at":1,"blocks":{}}"#), None);
    }
}
