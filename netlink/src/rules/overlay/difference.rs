//! How the elements of one set become others. Pure, and linear: a set has an element for each node of the cluster.

use std::cmp::Ordering;

use crate::nft::Element;
use crate::rules::interval;

/// Elements that go, then elements that come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub remove: Vec<Element>,
    pub add: Vec<Element>,
}

impl Difference {
    /// Of a set of single keys; both lists ascend.
    pub fn of_keys(held: &[Element], wanted: &[Element], may_remove: bool) -> Self {
        let (remove, add) = missing_each(held, wanted);
        Self { remove: if may_remove { remove } else { Vec::new() }, add }
    }

    /// Of a set of ranges: whole ranges, start and end.
    pub fn of_intervals(held: &[Element], wanted: &[Element], may_remove: bool) -> Self {
        if held == wanted {
            return Self::default();
        }
        let (held, mut wanted) = (interval::intervals(held), interval::intervals(wanted));
        if !may_remove {
            wanted.extend(&held);
            wanted = interval::merge(wanted);
        }
        let (remove, add) = missing_each(&held, &wanted);
        Self { remove: interval::elements(&remove), add: interval::elements(&add) }
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Brings it into what a set holds.
    pub fn apply(&self, held: &mut Vec<Element>) {
        for element in &self.remove {
            if let Ok(at) = held.binary_search(element) {
                held.remove(at);
            }
        }
        for element in &self.add {
            if let Err(at) = held.binary_search(element) {
                held.insert(at, *element);
            }
        }
    }
}

/// What each of two ascending lists has and the other has not.
fn missing_each<T: Ord + Copy>(mut left: &[T], mut right: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut of_left, mut of_right) = (Vec::new(), Vec::new());
    while let ([first, left_rest @ ..], [second, right_rest @ ..]) = (left, right) {
        let order = first.cmp(second);
        match order {
            Ordering::Less => of_left.push(*first),
            Ordering::Greater => of_right.push(*second),
            Ordering::Equal => {}
        }
        if order.is_le() {
            left = left_rest;
        }
        if order.is_ge() {
            right = right_rest;
        }
    }
    of_left.extend(left);
    of_right.extend(right);
    (of_left, of_right)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::rules::Interval;

    fn keys() -> impl Strategy<Value = Vec<Element>> {
        let key = (0..24u8).prop_map(|n| Element::start([10, 0, 0, n].into()));
        prop::collection::btree_set(key, 0..16).prop_map(|keys| keys.into_iter().collect())
    }

    fn ranges() -> impl Strategy<Value = Vec<Element>> {
        let address = |n: u8| IpAddr::from([255, 255, 255, n]);
        let range = (216..=255u8, 0..4u8)
            .prop_map(move |(n, more)| Interval::new(address(n), address(n.saturating_add(more))).unwrap());
        prop::collection::vec(range, 0..8).prop_map(|ranges| {
            let mut elements = interval::elements(&interval::merge(ranges));
            elements.sort();
            elements
        })
    }

    fn after(difference: &Difference, held: &[Element]) -> Vec<Element> {
        let mut held = held.to_vec();
        difference.apply(&mut held);
        held
    }

    proptest! {
        #[test]
        fn keys_become_those_that_are_wanted(held in keys(), wanted in keys()) {
            let difference = Difference::of_keys(&held, &wanted, true);
            prop_assert_eq!(&after(&difference, &held), &wanted);
            prop_assert!(difference.remove.iter().all(|key| held.contains(key) && !wanted.contains(key)));
            prop_assert!(difference.add.iter().all(|key| !held.contains(key)));
            let union: BTreeSet<Element> = held.iter().chain(&wanted).copied().collect();
            let kept = after(&Difference::of_keys(&held, &wanted, false), &held);
            prop_assert_eq!(kept, union.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn ranges_become_those_that_are_wanted(held in ranges(), wanted in ranges()) {
            let difference = Difference::of_intervals(&held, &wanted, true);
            prop_assert_eq!(&after(&difference, &held), &wanted);
            // The kernel refuses to remove what is not there.
            prop_assert!(difference.remove.iter().all(|element| held.contains(element)));
            let kept = Difference::of_intervals(&held, &wanted, false);
            let kept = interval::intervals(&after(&kept, &held));
            for one in interval::intervals(&held).iter().chain(&interval::intervals(&wanted)) {
                prop_assert!(kept.iter().any(|larger| larger.contains(one)), "{one:?}");
            }
        }
    }
}
