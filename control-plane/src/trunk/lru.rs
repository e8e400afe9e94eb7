//! A map of fixed capacity that forgets what was used longest ago: each operation takes the same short time, whoever
//! fills it.

use std::collections::HashMap;
use std::hash::Hash;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub struct Lru<K, V> {
    index: HashMap<K, u32>,
    nodes: Vec<Node<K, V>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    capacity: usize,
}

#[derive(Debug)]
struct Node<K, V> {
    key: K,
    value: V,
    newer: u32,
    older: u32,
}

impl<K: Eq + Hash + Copy, V: Default> Lru<K, V> {
    /// An empty one; it takes memory as it fills. `capacity` is at least 1.
    pub fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity: capacity.clamp(1, NONE as usize - 1),
        }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// No entry.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The entry, which is now the newest.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = *self.index.get(key)?;
        self.unlink(at);
        self.link(at);
        self.nodes.get_mut(at as usize).map(|node| &mut node.value)
    }

    /// The entry, made when missing; the oldest goes when there is no room. It is now the newest.
    pub fn entry(&mut self, key: K) -> &mut V {
        let at = match self.index.get(&key).copied() {
            Some(at) => {
                self.unlink(at);
                at
            }
            None => self.make(key),
        };
        self.link(at);
        &mut self.nodes[at as usize].value
    }

    /// Takes an entry away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        self.unlink(at);
        self.free.push(at);
        self.nodes.get_mut(at as usize).map(|node| std::mem::take(&mut node.value))
    }

    /// A node that is not linked yet.
    fn make(&mut self, key: K) -> u32 {
        if self.index.len() >= self.capacity
            && let Some(oldest) = self.nodes.get(self.oldest as usize).map(|node| node.key)
        {
            self.remove(&oldest);
        }
        let at = match self.free.pop() {
            Some(at) => {
                let node = &mut self.nodes[at as usize];
                node.key = key;
                node.value = V::default();
                at
            }
            None => {
                self.nodes.push(Node { key, value: V::default(), newer: NONE, older: NONE });
                // The capacity is below u32::MAX.
                (self.nodes.len() - 1) as u32
            }
        };
        self.index.insert(key, at);
        at
    }

    fn unlink(&mut self, at: u32) {
        let (newer, older) = (self.nodes[at as usize].newer, self.nodes[at as usize].older);
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link(&mut self, at: u32) {
        let newest = self.newest;
        match self.nodes.get_mut(newest as usize) {
            Some(node) => node.newer = at,
            None => self.oldest = at,
        }
        self.nodes[at as usize].newer = NONE;
        self.nodes[at as usize].older = newest;
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn longest_unused_goes_first_and_memory_stays() {
        let mut lru: Lru<u32, u32> = Lru::new(3);
        for key in 0..3 {
            *lru.entry(key) = key;
        }
        assert_eq!(lru.get_mut(&0).copied(), Some(0));
        *lru.entry(3) = 3;
        assert!(lru.get_mut(&1).is_none(), "1 was used longest ago");
        assert_eq!(lru.get_mut(&0).copied(), Some(0));
        for key in 100..10_000 {
            lru.entry(key);
        }
        assert_eq!((lru.len(), lru.nodes.len()), (3, 3));
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_of_keys_in_order_of_use(steps in proptest::collection::vec((0u8..3, 0u8..12), 0..200)) {
            let mut lru: Lru<u8, u8> = Lru::new(5);
            let mut model: Vec<u8> = Vec::new();
            for (what, key) in steps {
                let known = model.iter().position(|k| *k == key);
                match what {
                    0 => {
                        prop_assert_eq!(lru.get_mut(&key).is_some(), known.is_some());
                        if let Some(at) = known {
                            model.remove(at);
                            model.push(key);
                        }
                    }
                    1 => {
                        *lru.entry(key) = key;
                        match known {
                            Some(at) => drop(model.remove(at)),
                            None if model.len() == 5 => drop(model.remove(0)),
                            None => {}
                        }
                        model.push(key);
                    }
                    _ => {
                        prop_assert_eq!(lru.remove(&key).is_some(), known.is_some());
                        model.retain(|k| *k != key);
                    }
                }
                prop_assert_eq!(lru.len(), model.len());
            }
            for key in model {
                prop_assert_eq!(lru.get_mut(&key).copied(), Some(key));
            }
        }
    }
}
