//! Whose turn it is. Each order of the subjects comes equally often, so that nobody always works in the wake of the
//! same other.

/// The order of `count` subjects in this turn: the permutations one after the other.
pub fn order(count: usize, turn: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..count).collect();
    let mut code = turn;
    let mut order = Vec::new();
    while !left.is_empty() {
        order.push(left.remove(code % left.len()));
        code /= left.len() + 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_orders_come_before_one_comes_again() {
        for (count, orders) in [(1, 1), (2, 2), (3, 6), (4, 24)] {
            let seen: BTreeSet<Vec<usize>> = (0..orders).map(|turn| order(count, turn)).collect();
            assert_eq!(seen.len(), orders);
            assert_eq!(order(count, orders), order(count, 0));
        }
    }
}
