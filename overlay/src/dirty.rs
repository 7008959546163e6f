//! Which objects may not be as they should: what is looked at when the next plan is made. One event of one peer then
//! costs the objects of that peer, however many there are.

use std::collections::BTreeSet;

use crate::objects::Key;

/// More than so many are as good as all: a list of them only costs memory.
const MANY: usize = 1024;

/// Keys to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// All of them.
    All,
    /// These.
    Keys(BTreeSet<Key>),
}

impl Default for Dirty {
    fn default() -> Self {
        Self::Keys(BTreeSet::new())
    }
}

impl Dirty {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Keys(keys) if keys.is_empty())
    }

    /// This one, too.
    pub fn add(&mut self, key: &Key) {
        let Self::Keys(keys) = self else { return };
        if keys.len() < MANY {
            keys.insert(key.clone());
        } else if !keys.contains(key) {
            *self = Self::All;
        }
    }

    /// Those, too.
    pub fn merge(&mut self, other: Self) {
        match other {
            Self::All => *self = Self::All,
            Self::Keys(keys) => keys.iter().for_each(|key| self.add(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::objects::Device;

    #[test]
    fn many_keys_become_all_and_stay_it() {
        let key = |n: u32| Key::Neighbour(Device::Vxlan, IpAddr::from(n.to_be_bytes()));
        let mut dirty = Dirty::default();
        assert!(dirty.is_empty());
        for n in (0..1024).chain(0..1024) {
            dirty.add(&key(n));
        }
        assert!(matches!(&dirty, Dirty::Keys(keys) if keys.len() == MANY));
        let mut other = Dirty::default();
        other.add(&key(5000));
        dirty.merge(other.clone());
        assert_eq!(dirty, Dirty::All);
        dirty.merge(Dirty::default());
        assert_eq!(dirty, Dirty::All);
        other.merge(Dirty::All);
        assert_eq!(other, Dirty::All);
    }
}
