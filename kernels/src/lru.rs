//! A few things by what they are for; of too many, the one that was not used for longest goes.

/// Keeps what was used last, up to a number that may be 0. Looking one up takes the longer the longer it was not used.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    /// The last used comes last.
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V> Lru<K, V> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// What is kept for `key`; it counts as used now.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        let at = self.entries.iter().rposition(|(known, _)| known == key)?;
        let entry = self.entries.remove(at);
        self.entries.push(entry);
        self.entries.last_mut().map(|(_, value)| value)
    }

    /// Keeps `value`, in place of another one for `key`; returns what had to go so that `capacity` are left.
    pub(crate) fn insert(&mut self, key: K, value: V, capacity: usize) -> Vec<V> {
        let (mut gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.entries).into_iter().partition(|(known, _)| *known == key);
        self.entries = kept;
        self.entries.push((key, value));
        gone.extend(self.entries.drain(..self.entries.len().saturating_sub(capacity)));
        gone.into_iter().map(|(_, value)| value).collect()
    }

    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    #[cfg(any(test, target_os = "linux"))]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_used_for_longest_goes() {
        let mut lru = Lru::new();
        assert!(lru.insert("a", 1, 2).is_empty());
        assert!(lru.insert("b", 2, 2).is_empty());
        assert_eq!(lru.get(&"a"), Some(&mut 1));
        assert_eq!(lru.insert("c", 3, 2), [2]);
        assert_eq!(lru.get(&"b"), None);
        assert_eq!(lru.len(), 2);
        assert_eq!(lru.insert("a", 4, 2), [1], "one for each key");
        assert_eq!(lru.get(&"a"), Some(&mut 4));
        assert_eq!(lru.get(&"c"), Some(&mut 3));
    }

    #[test]
    fn a_capacity_may_shrink_to_nothing() {
        let mut lru = Lru::new();
        (0..5).for_each(|i| assert!(lru.insert(i, i, 5).is_empty()));
        assert_eq!(lru.insert(5, 5, 2), [0, 1, 2, 3]);
        assert_eq!(lru.insert(6, 6, 0), [4, 5, 6]);
        assert_eq!(lru.len(), 0);
        lru.insert(7, 7, 1);
        lru.clear();
        assert_eq!(lru.get(&7), None);
    }
}
