//! Decides what to change in the kernel. Pure: no netlink, no clock.

use std::collections::BTreeSet;

use crate::objects::{Key, Object, Objects};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes an object, or changes the one that is there.
    Put {
        /// What.
        key: Key,
        /// How it should be.
        object: Object,
        /// How it is, if it is.
        replaces: Option<Object>,
    },
    /// Takes an object away.
    Remove {
        /// What.
        key: Key,
        /// How it is.
        object: Object,
    },
}

impl Op {
    /// What it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Remove { key, .. } => key,
        }
    }
}

/// What turns `observed` into `desired`: first all that is to be made or changed, upwards (a neighbour before the
/// route that needs it), then removals, downwards. Nothing is ever without its successor, and without `may_remove`
/// nothing is removed.
pub fn plan(desired: &Objects, observed: &Objects, may_remove: bool) -> Vec<Op> {
    let puts = desired.iter().filter_map(|(key, object)| put(key, object, observed.get(key)));
    let extra = observed.iter().rev().filter(|(key, _)| may_remove && !desired.contains_key(*key));
    puts.chain(extra.map(|(key, object)| remove(key, object))).collect()
}

/// The part of [`plan`] that is about `keys`: all of it if nothing else differs.
pub fn plan_of(keys: &BTreeSet<Key>, desired: &Objects, observed: &Objects, may_remove: bool) -> Vec<Op> {
    let puts = keys.iter().filter_map(|key| put(key, desired.get(key)?, observed.get(key)));
    let extra = keys.iter().rev().filter(|key| may_remove && !desired.contains_key(*key));
    puts.chain(extra.filter_map(|key| Some(remove(key, observed.get(key)?)))).collect()
}

fn put(key: &Key, object: &Object, is: Option<&Object>) -> Option<Op> {
    (is != Some(object)).then(|| Op::Put { key: key.clone(), object: object.clone(), replaces: is.cloned() })
}

fn remove(key: &Key, object: &Object) -> Op {
    Op::Remove { key: key.clone(), object: object.clone() }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use weft_cni::ip::Subnet;
    use weft_netlink::link::Mac;

    use super::*;
    use crate::objects::{Device, Hop, LinkKind, LinkSpec};

    fn keys_and_objects() -> impl Strategy<Value = (Key, Object)> {
        let block = |n: u8| Subnet::new(IpAddr::from([10, 1, n, 0]), 24).unwrap();
        let device = prop::sample::select(&Device::ALL[..]);
        let ip = (0u8..4).prop_map(|n| IpAddr::from([10, 1, n, 1]));
        let mac = (0u8..4).prop_map(|n| Mac([2, 0, 0, 0, 0, n]));
        let hop = (ip.clone(), prop::option::of(1400u32..1402))
            .prop_map(|(via, mtu)| Object::Hop(Hop { via, link: "weft-vx".into(), source: None, mtu }));
        prop_oneof![
            (0u8..4).prop_map(move |n| (Key::unreachable(block(n)), Object::Plain)),
            (device.clone(), any::<bool>()).prop_map(|(device, up)| (
                Key::Link(device),
                Object::Link(LinkSpec { up, kind: LinkKind::Holder })
            )),
            (device.clone(), ip.clone()).prop_map(|(device, ip)| (Key::Address(device, ip), Object::Plain)),
            (device.clone(), ip.clone(), mac.clone())
                .prop_map(|(device, ip, mac)| (Key::Neighbour(device, ip), Object::Mac(mac))),
            (device, mac, ip).prop_map(|(device, mac, ip)| (Key::Forward(device, mac), Object::Remote(ip))),
            ((0u8..4), hop).prop_map(move |(n, hop)| (Key::route(block(n)), hop)),
        ]
    }

    fn objects() -> impl Strategy<Value = Objects> {
        prop::collection::btree_map(0u8..24, keys_and_objects(), 0..24)
            .prop_map(|list| list.into_values().collect())
    }

    fn apply(mut model: Objects, ops: &[Op]) -> Objects {
        for op in ops {
            match op {
                Op::Put { key, object, replaces } => {
                    assert_eq!(model.insert(key.clone(), object.clone()).as_ref(), replaces.as_ref());
                }
                Op::Remove { key, object } => assert_eq!(model.remove(key).as_ref(), Some(object)),
            }
        }
        model
    }

    proptest! {
        #[test]
        fn a_plan_reaches_the_desired_state_and_then_rests(observed in objects(), desired in objects()) {
            let reached = apply(observed.clone(), &plan(&desired, &observed, true));
            prop_assert_eq!(&reached, &desired);
            prop_assert_eq!(plan(&desired, &reached, true), vec![]);
        }

        #[test]
        fn looking_at_what_differs_is_as_good_as_looking_at_all(
            observed in objects(), desired in objects(), more in objects(), leave: bool,
        ) {
            let all = plan(&desired, &observed, leave);
            let mut keys: BTreeSet<Key> = plan(&desired, &observed, true).iter().map(|op| op.key().clone()).collect();
            prop_assert_eq!(&plan_of(&keys, &desired, &observed, leave), &all);
            keys.extend(more.into_keys());
            prop_assert_eq!(&plan_of(&keys, &desired, &observed, leave), &all);
        }

        #[test]
        fn without_leave_nothing_is_removed(observed in objects(), desired in objects()) {
            let ops = plan(&desired, &observed, false);
            let no_removal = ops.iter().all(|op| matches!(op, Op::Put { .. }));
            prop_assert!(no_removal);
            let reached = apply(observed.clone(), &ops);
            prop_assert!(observed.keys().all(|key| reached.contains_key(key)));
            prop_assert!(desired.iter().all(|(key, object)| reached.get(key) == Some(object)));
        }

        #[test]
        fn what_carries_a_route_is_made_before_it_and_goes_after_it(observed in objects(), desired in objects()) {
            let ops = plan(&desired, &observed, true);
            let puts: Vec<_> = ops.iter().filter(|op| matches!(op, Op::Put { .. })).map(Op::key).collect();
            let removals: Vec<_> = ops.iter().filter(|op| matches!(op, Op::Remove { .. })).map(Op::key).collect();
            prop_assert!(puts.is_sorted());
            prop_assert!(removals.iter().rev().is_sorted());
            let removals_last = ops.iter().skip(puts.len()).all(|op| matches!(op, Op::Remove { .. }));
            prop_assert!(removals_last);
        }
    }
}
