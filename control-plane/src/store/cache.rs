//! A bounded map whose entries expire: for keys and assistants, which every call asks for.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Entries live for `ttl`; when `capacity` is reached the expired ones go, and if none is expired, all: a refill
/// costs a query an entry, a search for the oldest would cost each insertion.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, (V, Instant)>,
    ttl: Duration,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self { entries: HashMap::new(), ttl, capacity }
    }

    /// The entry, unless it has expired.
    pub fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (value, until) = self.entries.get(key)?;
        (now < *until).then(|| value.clone())
    }

    /// Keeps an entry from now on for the cache's time to live.
    pub fn put(&mut self, key: K, value: V, now: Instant) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.entries.retain(|_, (_, until)| now < *until);
            if self.entries.len() >= self.capacity {
                self.entries.clear();
            }
        }
        self.entries.insert(key, (value, now + self.ttl));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_expires() {
        let now = Instant::now();
        let mut cache = Cache::new(2, Duration::from_secs(5));
        cache.put("a", 1, now);
        assert_eq!(cache.get(&"a", now + Duration::from_millis(4_999)), Some(1));
        assert_eq!(cache.get(&"a", now + Duration::from_secs(5)), None);
    }

    #[test]
    fn cache_never_exceeds_its_capacity() {
        let now = Instant::now();
        let mut cache = Cache::new(3, Duration::from_secs(5));
        for key in 0..100 {
            cache.put(key, key, now);
            assert!(cache.entries.len() <= 3);
            assert_eq!(cache.get(&key, now), Some(key));
        }
    }
}
