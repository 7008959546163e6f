use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Addresses are drawn from the two ends of the address space, so that overlaps and both borders are frequent.
const EDGE: u32 = 24;

fn v4(number: u32) -> IpAddr {
    let bits = if number < EDGE { number } else { u32::MAX - (2 * EDGE - 1 - number) };
    Ipv4Addr::from_bits(bits).into()
}

fn interval() -> impl Strategy<Value = Interval> {
    (0..EDGE, 0..EDGE, any::<bool>()).prop_map(|(a, b, high)| {
        let base = if high { EDGE } else { 0 };
        Interval::new(v4(base + a.min(b)), v4(base + a.max(b))).unwrap()
    })
}

fn wanted() -> impl Strategy<Value = Vec<Interval>> {
    prop::collection::vec(interval(), 0..6)
}

/// Disjoint intervals, some of them touching, as the kernel holds them.
fn observed() -> impl Strategy<Value = Vec<Interval>> {
    prop::collection::vec(interval(), 0..8).prop_map(|drawn| {
        drawn.into_iter().fold(Vec::new(), |mut kept: Vec<Interval>, next| {
            if !kept.iter().any(|held| held.overlaps(&next)) {
                kept.push(next);
            }
            kept.sort();
            kept
        })
    })
}

/// What the kernel does: it refuses to remove what is absent and to add what overlaps.
fn apply(observed: &[Interval], change: &Change) -> Vec<Interval> {
    let mut set: BTreeSet<_> = observed.iter().copied().collect();
    for interval in &change.remove {
        assert!(set.remove(interval), "removes {interval:?}, which is absent");
    }
    for interval in &change.add {
        assert!(!set.iter().any(|held| held.overlaps(interval)), "{interval:?} overlaps");
        set.insert(*interval);
    }
    set.into_iter().collect()
}

fn addresses(intervals: &[Interval]) -> BTreeSet<IpAddr> {
    (0..2 * EDGE).map(v4).filter(|a| intervals.iter().any(|i| i.first <= *a && *a <= i.last)).collect()
}

proptest! {
    #[test]
    fn a_plan_reaches_the_union_and_then_rests(observed in observed(), wanted in wanted()) {
        let reached = apply(&observed, &plan(&observed, &wanted));
        let union: BTreeSet<_> = &addresses(&observed) | &addresses(&wanted);
        prop_assert_eq!(addresses(&reached), union);
        prop_assert!(wanted.iter().all(|wanted| reached.iter().any(|held| held.contains(wanted))));
        prop_assert_eq!(plan(&reached, &wanted), Change::default());
    }

    #[test]
    fn intervals_that_nothing_overlaps_are_left_alone(observed in observed(), wanted in wanted()) {
        let change = plan(&observed, &wanted);
        for held in observed.iter().filter(|held| !wanted.iter().any(|wanted| wanted.overlaps(held))) {
            prop_assert!(!change.remove.contains(held));
        }
    }

    #[test]
    fn what_is_removed_is_added_again_within_the_batch(observed in observed(), wanted in wanted()) {
        let change = plan(&observed, &wanted);
        for removed in &change.remove {
            prop_assert!(change.add.iter().any(|added| added.contains(removed)));
        }
    }

    #[test]
    fn the_order_of_wishes_does_not_matter(observed in observed(), wanted in wanted()) {
        let turned: Vec<_> = wanted.iter().rev().copied().collect();
        prop_assert_eq!(plan(&observed, &wanted), plan(&observed, &turned));
    }

    #[test]
    fn elements_say_the_intervals(observed in observed()) {
        let mut elements = elements(&observed);
        elements.sort();
        prop_assert_eq!(intervals(&elements), observed);
    }

    #[test]
    fn any_elements_of_the_kernel_are_read_without_panic(keys in prop::collection::vec((any::<[u8; 4]>(), any::<bool>()), 0..9)) {
        let mut elements: Vec<_> =
            keys.into_iter().map(|(key, start)| Element { key: key.into(), start }).collect();
        elements.sort();
        prop_assert!(intervals(&elements).windows(2).all(|pair| pair[0] < pair[1]));
    }
}

#[test]
fn families_do_not_mix_and_order_counts() {
    assert_eq!(Interval::new(v4(0), "::1".parse().unwrap()), None);
    assert_eq!(Interval::new(v4(2), v4(1)), None);
}

#[test]
fn a_range_swallows_the_single_addresses_in_it_but_not_its_neighbours() {
    let single = |n| Interval::new(v4(n), v4(n)).unwrap();
    let range = Interval::new(v4(2), v4(5)).unwrap();
    let change = plan(&[single(1), single(2), single(5), single(6)], &[range]);
    assert_eq!(change, Change { remove: vec![single(2), single(5)], add: vec![range] });
}

#[test]
fn the_marks_that_nft_sets_and_leaves_out_are_understood() {
    let [zero, five, nine] = [0, 5, 9].map(|n| v4(n).into());
    let elements = [Element::end(zero), Element::start(five), Element::start(nine)];
    let expected = [Interval::new(v4(5), v4(8)).unwrap(), Interval::new(v4(9), highest(v4(0))).unwrap()];
    assert_eq!(intervals(&elements), expected);
}
