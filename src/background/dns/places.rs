//! How many look-ups run at once, and whose: those of one namespace leave room for all others, and names that fail leave
//! room for those that are well.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures_util::future::select_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How the last look-up of a name ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer; or there was none yet.
    Well,
    Failed,
}

/// Look-ups at once, by how the last ones ended.
const ALL: [usize; 2] = [128, 32];
/// And of one namespace.
const OF_ONE: [usize; 2] = [16, 4];

/// Room for look-ups.
#[derive(Debug)]
pub struct Room([Arc<Semaphore>; 2]);

/// Who wants a name; each has room of its own.
pub type Owners = Vec<Arc<Room>>;

#[derive(Debug)]
pub struct Places {
    all: Arc<Room>,
    shares: HashMap<Arc<str>, Weak<Room>>,
}

/// Held while a name is looked up.
#[derive(Debug)]
pub struct Place {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Room {
    fn new(sizes: [usize; 2]) -> Arc<Self> {
        Arc::new(Self(sizes.map(|size| Arc::new(Semaphore::new(size)))))
    }

    fn of(&self, ended: Ended) -> Arc<Semaphore> {
        Arc::clone(&self.0[ended as usize])
    }
}

impl Default for Places {
    fn default() -> Self {
        Self { all: Room::new(ALL), shares: HashMap::new() }
    }
}

impl Places {
    pub fn all(&self) -> Arc<Room> {
        Arc::clone(&self.all)
    }

    /// A namespace's own.
    pub fn share(&mut self, namespace: &Arc<str>) -> Arc<Room> {
        if let Some(known) = self.shares.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        self.shares.retain(|_, share| share.strong_count() > 0);
        let share = Room::new(OF_ONE);
        self.shares.insert(Arc::clone(namespace), Arc::downgrade(&share));
        share
    }
}

/// Waits for room in the share of any of the owners, and among all. `None`: nobody wants the name any more.
pub async fn place(owners: &mut watch::Receiver<Owners>, all: &Room, ended: Ended) -> Option<Place> {
    let own = loop {
        let shares: Vec<_> = owners.borrow_and_update().iter().map(|share| share.of(ended)).collect();
        let asked: Vec<_> = shares.into_iter().map(|share| Box::pin(share.acquire_owned())).collect();
        if asked.is_empty() {
            owners.changed().await.ok()?;
            continue;
        }
        tokio::select! {
            (own, ..) = select_all(asked) => break own.ok()?,
            // A new owner may have room.
            changed = owners.changed() => changed.ok()?,
        }
    };
    let of_all = all.of(ended).acquire_owned().await.ok()?;
    Some(Place { _own: own, _of_all: of_all })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn asks(places: &Places, owners: &watch::Receiver<Owners>, ended: Ended) -> Option<Place> {
        place(&mut owners.clone(), &places.all(), ended).now_or_never().flatten()
    }

    #[test]
    fn one_namespace_leaves_room_for_another_and_what_fails_for_what_is_well() {
        let mut places = Places::default();
        let [(_a, one), (_b, other)] =
            ["one", "other"].map(|name| watch::channel(vec![places.share(&name.into())]));
        let all = |owners, ended| std::iter::from_fn(|| asks(&places, owners, ended)).collect::<Vec<_>>();
        let failing = all(&one, Ended::Failed);
        let well = all(&one, Ended::Well);
        assert_eq!((failing.len(), well.len()), (OF_ONE[1], OF_ONE[0]));
        assert!(
            asks(&places, &other, Ended::Failed).is_some() && asks(&places, &other, Ended::Well).is_some()
        );
        drop(well);
        assert!(asks(&places, &one, Ended::Well).is_some() && asks(&places, &one, Ended::Failed).is_none());
    }

    #[tokio::test]
    async fn a_name_of_two_namespaces_has_the_room_of_either() {
        let mut places = Places::default();
        let (full, free) = (places.share(&"full".into()), places.share(&"free".into()));
        let (owners, own) = watch::channel(vec![Arc::clone(&full)]);
        let held: Vec<_> = std::iter::from_fn(|| asks(&places, &own, Ended::Well)).collect();
        let (mut waits, all) = (own.clone(), places.all());
        let mut waiting = Box::pin(place(&mut waits, &all, Ended::Well));
        assert!((&mut waiting).now_or_never().is_none() && !held.is_empty());
        owners.send_replace(vec![full, free]);
        assert!(waiting.await.is_some(), "also one that came while it waited");
        drop(owners);
        let (_, mut nobody) = watch::channel(Owners::new());
        assert!(place(&mut nobody, &all, Ended::Well).await.is_none());
    }
}
