//! Durations of one kind, and what is said about them.

use std::time::Duration;

/// Durations in the order they were measured.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    list: Vec<Duration>,
}

impl Samples {
    pub fn push(&mut self, duration: Duration) {
        self.list.push(duration);
    }

    pub fn extend(&mut self, others: &Self) {
        self.list.extend(&others.list);
    }

    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The middle one; of an even number, the mean of the two in the middle. Milliseconds.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        if sorted.len().is_multiple_of(2) {
            millis(at(middle.saturating_sub(1)) + at(middle)) / 2.0
        } else {
            millis(at(middle))
        }
    }

    /// The smallest that is not exceeded by more than one in a hundred (nearest rank). Milliseconds.
    pub fn p99(&self) -> f64 {
        let rank = (self.list.len() * 99).div_ceil(100);
        millis(self.sorted().get(rank.saturating_sub(1)).copied().unwrap_or_default())
    }

    /// The part from `first` to before `end`, in the order of measurement.
    pub fn part(&self, first: usize, end: usize) -> Self {
        let list = self.list.get(first..end.min(self.list.len())).unwrap_or_default();
        Self { list: list.to_vec() }
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut sorted = self.list.clone();
        sorted.sort();
        sorted
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        Self { list: durations.into_iter().collect() }
    }
}

/// A duration in milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: impl IntoIterator<Item = u64>) -> Samples {
        millis.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert!((of([9, 1, 5]).median() - 5.0).abs() < 1e-9);
        assert!((of([9, 1, 5, 6]).median() - 5.5).abs() < 1e-9);
        assert!((of([]).median()).abs() < 1e-9);
    }

    #[test]
    fn p99_leaves_out_one_of_a_hundred_and_none_of_twenty() {
        assert!((of(1..=100).p99() - 99.0).abs() < 1e-9);
        assert!((of(1..=20).p99() - 20.0).abs() < 1e-9);
    }
}
