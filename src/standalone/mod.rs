//! Files as a source: a folder of manifests becomes updates for the snapshot, again on every change.
//!
//! Not here: what the manifests mean. The folder is a small API server, nothing more.

mod folder;
mod notices;
mod sources;
mod watcher;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use self::folder::{Folder, Look};
pub use self::sources::Sources;
use self::watcher::Watcher;
use crate::snapshot::{Change, Snapshot, Update};

/// While files go on changing, at most so many readings become one update.
const READINGS: usize = 4;

/// The files that are read of a folder, or the file itself.
///
/// # Errors
/// It is not there, or cannot be listed.
pub fn files(root: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    std::fs::metadata(root)?;
    folder::list_root(root, &mut files).map(|()| files).map_err(std::io::Error::other)
}

/// The world as the files have it now.
pub fn read(roots: Vec<PathBuf>) -> Snapshot {
    let mut world = Snapshot::default();
    for change in Folder::new(roots).refresh(&Look::Everything) {
        world.apply(change);
    }
    world
}

/// Tells what the files say, then what changes, from a thread of its own that ends when nobody listens any more.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(roots: Vec<PathBuf>, updates: mpsc::Sender<Update>) -> std::io::Result<()> {
    std::thread::Builder::new().name("manifests".into()).spawn(move || follow(roots, &updates)).map(drop)
}

fn follow(roots: Vec<PathBuf>, updates: &mpsc::Sender<Update>) {
    // Before the first reading: nothing falls between.
    let mut watcher = Watcher::new(&roots);
    let mut folder = Folder::new(roots);
    let first = folder.refresh(&Look::Everything);
    if updates.blocking_send(Update::Changes(first)).is_err()
        || updates.blocking_send(Update::Synced).is_err()
    {
        return;
    }
    while !updates.is_closed() {
        let Some(look) = watcher.wait(&mut folder) else { continue };
        let mut changes = folder.refresh(&look);
        // A ConfigMap is swapped under us as a whole: what was read before and after the swap is told together.
        for _ in 1..READINGS {
            if !watcher.more() {
                break;
            }
            if let Some(look) = watcher.wait(&mut folder) {
                changes.extend(folder.refresh(&look));
            }
        }
        let changes: Vec<Change> = changes;
        if !changes.is_empty() && updates.blocking_send(Update::Changes(changes)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
