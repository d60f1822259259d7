//! Objects in memory under one rising resource version, with a bounded log of changes that watches read.
//!
//! Knows nothing of HTTP, users or kinds: callers decide inside a [`Transaction`], which holds the only lock.

use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

/// Changes remembered per collection; a watch that asks for older ones is told to list again.
pub const LOG_LIMIT: usize = 1024;

/// An object as stored; shared between the store, its log and all readers.
pub type Object = Arc<Value>;

/// Where an object lives in its collection; the namespace is empty for objects of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// The resource version this change made.
    pub revision: u64,
    /// Whose change.
    pub key: Key,
    /// The object before, `None` if it was created.
    pub before: Option<Object>,
    /// The object after; if `deleted`, its last state under the new resource version.
    pub object: Object,
    /// True if the object is gone.
    pub deleted: bool,
}

/// The resource version asked for is older than the log, which reaches back to `oldest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// The oldest resource version still known.
    pub oldest: u64,
}

struct Collection {
    objects: BTreeMap<Key, Object>,
    log: VecDeque<Arc<Change>>,
    /// Changes up to here are no longer in the log.
    forgotten: u64,
    latest: watch::Sender<u64>,
}

impl Default for Collection {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), log: VecDeque::new(), forgotten: 0, latest: watch::channel(0).0 }
    }
}

#[derive(Default)]
struct Inner {
    revision: u64,
    collections: HashMap<String, Collection>,
}

/// The store; clones share one state.
#[derive(Clone, Default)]
pub struct Store {
    inner: Arc<Mutex<Inner>>,
}

impl Store {
    /// The newest resource version.
    pub fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    /// One object.
    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Object> {
        let key = Key::new(namespace, name);
        self.inner.lock().collections.get(collection)?.objects.get(&key).cloned()
    }

    /// All objects of a collection (of one namespace, if given) and the resource version they were seen at.
    pub fn list(&self, collection: &str, namespace: Option<&str>) -> (u64, Vec<Object>) {
        let inner = self.inner.lock();
        let objects = inner.collections.get(collection).map(|c| within(&c.objects, namespace)).unwrap_or_default();
        (inner.revision, objects)
    }

    /// The collection as it was at `revision`, rebuilt by undoing what the log has since seen.
    pub fn list_at(&self, collection: &str, namespace: Option<&str>, revision: u64) -> Result<Vec<Object>, Expired> {
        let inner = self.inner.lock();
        let Some(collection) = inner.collections.get(collection) else { return Ok(Vec::new()) };
        if revision < collection.forgotten {
            return Err(Expired { oldest: collection.forgotten });
        }
        let mut objects = collection.objects.clone();
        for change in collection.log.iter().rev().take_while(|change| change.revision > revision) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Ok(within(&objects, namespace))
    }

    /// Runs `decide` on one collection with the store locked; it must not block.
    pub fn transact<T>(&self, collection: &str, decide: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        let mut inner = self.inner.lock();
        let Inner { revision, collections } = &mut *inner;
        let collection = collections.entry(collection.to_owned()).or_default();
        decide(&mut Transaction { revision, collection })
    }

    /// Follows a collection from just after `revision`.
    pub fn watch(&self, collection: &str, revision: u64) -> Watch {
        let mut inner = self.inner.lock();
        let wake = inner.collections.entry(collection.to_owned()).or_default().latest.subscribe();
        Watch { store: self.clone(), collection: collection.to_owned(), position: revision, wake }
    }

    /// Forgets a collection: its custom resource is no longer defined.
    pub fn drop_collection(&self, collection: &str) {
        let mut inner = self.inner.lock();
        inner.collections.remove(collection);
    }
}

fn within(objects: &BTreeMap<Key, Object>, namespace: Option<&str>) -> Vec<Object> {
    match namespace {
        None => objects.values().cloned().collect(),
        Some(namespace) => objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect(),
    }
}

/// Exclusive access to one collection; every `put` and `remove` is one resource version.
pub struct Transaction<'a> {
    revision: &'a mut u64,
    collection: &'a mut Collection,
}

impl Transaction<'_> {
    /// The object as it is now.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.collection.objects.get(key)
    }

    /// All objects of the collection.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.collection.objects.values()
    }

    /// Creates or replaces an object, stamping its `metadata.resourceVersion`.
    pub fn put(&mut self, key: Key, mut object: Value) -> Object {
        let revision = self.next(&mut object);
        let object = Arc::new(object);
        let before = self.collection.objects.insert(key.clone(), object.clone());
        self.record(Change { revision, key, before, object: object.clone(), deleted: false });
        object
    }

    /// Removes an object; returns its last state under the resource version of its removal.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        let last = Value::clone(self.collection.objects.get(key)?);
        self.remove_as(key, last)
    }

    /// Removes an object whose last state is `last`.
    pub fn remove_as(&mut self, key: &Key, mut last: Value) -> Option<Object> {
        let before = self.collection.objects.remove(key)?;
        let revision = self.next(&mut last);
        let object = Arc::new(last);
        self.record(Change { revision, key: key.clone(), before: Some(before), object: object.clone(), deleted: true });
        Some(object)
    }

    fn next(&mut self, object: &mut Value) -> u64 {
        *self.revision += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
        *self.revision
    }

    fn record(&mut self, change: Change) {
        let revision = change.revision;
        self.collection.log.push_back(Arc::new(change));
        while self.collection.log.len() > LOG_LIMIT {
            if let Some(forgotten) = self.collection.log.pop_front() {
                self.collection.forgotten = forgotten.revision;
            }
        }
        self.collection.latest.send_replace(revision);
    }
}

/// A reader of a collection's log.
pub struct Watch {
    store: Store,
    collection: String,
    position: u64,
    wake: watch::Receiver<u64>,
}

impl Watch {
    /// Changes since the last call, waiting for at least one.
    ///
    /// Never returns on a collection that nothing happens to; callers bound their wait. Safe to cancel.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        loop {
            self.wake.borrow_and_update();
            let changes = self.pending()?;
            if let Some(last) = changes.last() {
                self.position = last.revision;
                return Ok(changes);
            }
            if self.wake.changed().await.is_err() {
                // The collection was dropped with its definition; a new one of that name shares no history with it.
                return Err(Expired { oldest: self.store.revision() });
            }
        }
    }

    /// The resource version up to which everything has been read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// A resource version up to which everything has been read, as new as possible: what a bookmark says.
    pub fn bookmark(&mut self) -> u64 {
        let inner = self.store.inner.lock();
        let newest = inner.collections.get(&self.collection).and_then(|c| c.log.back()).map_or(0, |c| c.revision);
        if newest <= self.position {
            self.position = self.position.max(inner.revision);
        }
        self.position
    }

    fn pending(&self) -> Result<Vec<Arc<Change>>, Expired> {
        let inner = self.store.inner.lock();
        let Some(collection) = inner.collections.get(&self.collection) else { return Ok(Vec::new()) };
        if self.position < collection.forgotten {
            return Err(Expired { oldest: collection.forgotten });
        }
        let start = collection.log.partition_point(|change| change.revision <= self.position);
        Ok(collection.log.range(start..).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(store: &Store, name: &str, value: u64) -> Object {
        store.transact("things", |tx| {
            tx.put(Key::new("default", name), json!({"metadata": {"name": name}, "value": value}))
        })
    }

    fn names(objects: &[Object]) -> Vec<&str> {
        objects.iter().filter_map(|o| o["metadata"]["name"].as_str()).collect()
    }

    #[tokio::test]
    async fn watches_see_every_change_in_order() {
        let store = Store::default();
        put(&store, "a", 1);
        let mut watch = store.watch("things", 0);
        assert_eq!(watch.next().await.unwrap()[0].revision, 1);
        put(&store, "b", 1);
        put(&store, "a", 2);
        store.transact("things", |tx| tx.remove(&Key::new("default", "b")));
        let changes = watch.next().await.unwrap();
        let seen: Vec<_> = changes.iter().map(|c| (c.key.name.as_str(), c.before.is_some(), c.deleted)).collect();
        assert_eq!(seen, [("b", false, false), ("a", true, false), ("b", true, true)]);
        assert_eq!(changes[2].object["metadata"]["resourceVersion"], "4");
    }

    #[test]
    fn lists_the_past() {
        let store = Store::default();
        put(&store, "a", 1);
        put(&store, "b", 1);
        put(&store, "a", 2);
        store.transact("things", |tx| tx.remove(&Key::new("default", "b")));
        assert_eq!(names(&store.list("things", None).1), ["a"]);
        let past = store.list_at("things", Some("default"), 2).unwrap();
        assert_eq!(names(&past), ["a", "b"]);
        assert_eq!(past[0]["value"], 1);
        assert!(store.list_at("things", Some("other"), 2).unwrap().is_empty());
    }

    #[tokio::test]
    async fn forgets_old_changes_and_says_so() {
        let store = Store::default();
        for i in 0..=LOG_LIMIT as u64 {
            put(&store, "a", i);
        }
        assert_eq!(store.watch("things", 0).next().await.unwrap_err(), Expired { oldest: 1 });
        assert_eq!(store.watch("things", 1).next().await.unwrap().len(), LOG_LIMIT);
        assert!(store.list_at("things", None, 0).is_err());
    }

    #[test]
    fn bookmarks_move_with_other_collections() {
        let store = Store::default();
        let mut watch = store.watch("things", 0);
        store.transact("others", |tx| tx.put(Key::new("", "x"), json!({"metadata": {}})));
        assert_eq!(watch.bookmark(), 1);
        put(&store, "a", 1);
        assert_eq!(watch.bookmark(), 1);
    }
}
