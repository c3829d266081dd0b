//! When to look at the files again: the kernel's notices (inotify) where there are any, and looking at the stamps.
//!
//! A file that is being written is not looked at until it is closed; without notices, until two looks find the same
//! stamp. What replaces a file by rename is whole and looked at at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::folder::{Folder, Look, Stamp, is_manifest};
use super::notices::{Notice, Notices};

/// How often roots, links and half-seen changes are looked at; without notices, all files.
pub(super) const TICK: Duration = Duration::from_millis(30);
/// How often all files are looked at though there are notices: network file systems send none.
const SWEEP: Duration = Duration::from_secs(2);
/// A writer that does not close its file for so long is not waited for.
const OPEN_AT_MOST: Duration = Duration::from_secs(5);
/// Looking at all files takes at most this part of the time.
const SWEEP_SHARE: u32 = 20;
/// Some editors move a file away and write it anew: one that is gone is waited for.
const GONE_AFTER: Duration = Duration::from_millis(30);
const MOST_LINKS: usize = 256;

#[derive(Debug)]
pub struct Watcher {
    notices: Notices,
    /// The identity of each root when its watch was set up.
    roots: BTreeMap<PathBuf, Option<(u64, u64)>>,
    /// Files that are open for writing, since when.
    open: BTreeMap<PathBuf, Instant>,
    /// Files whose stamp is new, to be seen once more.
    unsettled: BTreeMap<PathBuf, Stamp>,
    /// Files that are not there any more, since when.
    missing: BTreeMap<PathBuf, Instant>,
    /// Files that are links: what they point to may lie where no notice comes from.
    links: Vec<PathBuf>,
    /// Roots that could not be listed.
    lost: Vec<PathBuf>,
    next_sweep: Instant,
}

impl Watcher {
    /// Begins to listen. What changes from now on is seen by `wait`.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self::with(Notices::new(), roots)
    }

    pub(super) fn with(notices: Notices, roots: &[PathBuf]) -> Self {
        let mut watcher = Self {
            notices,
            roots: roots.iter().map(|root| (root.clone(), None)).collect(),
            open: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            missing: BTreeMap::new(),
            links: Vec::new(),
            lost: Vec::new(),
            next_sweep: Instant::now() + TICK,
        };
        watcher.renew_roots();
        watcher
    }

    /// Waits for at most a tick and says what to read, if anything.
    pub fn wait(&mut self, folder: &mut Folder) -> Option<Look> {
        let mut changed = BTreeSet::new();
        let mut everything = false;
        for notice in self.notices.wait(TICK) {
            match notice {
                Notice::Lost => everything = true,
                // `..data` of a mounted ConfigMap: all files that lie behind it are others now.
                Notice::Whole(path) | Notice::Writing(path) if !self.is_ours(&path) => {
                    everything |= path.is_symlink();
                }
                Notice::Writing(path) if !is_made_whole(&path) => {
                    self.open.entry(path).or_insert_with(Instant::now);
                }
                Notice::Whole(path) | Notice::Writing(path) => {
                    self.open.remove(&path);
                    if path.exists() {
                        changed.insert(path);
                    } else {
                        self.missing.entry(path).or_insert_with(Instant::now);
                    }
                }
            }
        }
        if self.renew_roots() || everything {
            self.open.clear();
            self.missing.clear();
            return Some(Look::Everything);
        }
        let over = |since: &mut BTreeMap<PathBuf, Instant>, patience| -> Vec<PathBuf> {
            since.extract_if(.., |_, since| since.elapsed() >= patience).map(|(path, _)| path).collect()
        };
        changed.extend(over(&mut self.open, OPEN_AT_MOST));
        changed.extend(over(&mut self.missing, GONE_AFTER));
        if self.sweep(folder, &mut changed) {
            return Some(Look::Everything);
        }
        (!changed.is_empty()).then_some(Look::At(changed))
    }

    /// Whether more is to be told at once: something changed while we were reading.
    pub fn more(&self) -> bool {
        self.notices.pending()
    }

    fn is_ours(&self, path: &Path) -> bool {
        is_manifest(path) || self.roots.contains_key(path)
    }

    /// Looks at stamps: of what was found changed a tick ago, of links, and when it is time of everything.
    /// True: a root can be listed, or not, unlike before.
    fn sweep(&mut self, folder: &mut Folder, changed: &mut BTreeSet<PathBuf>) -> bool {
        let unsettled = std::mem::take(&mut self.unsettled);
        let began = Instant::now();
        if began < self.next_sweep {
            let again: BTreeSet<PathBuf> = unsettled.keys().chain(&self.links).cloned().collect();
            for path in &again {
                self.look(path, folder, &unsettled, changed);
            }
            return false;
        }
        let (present, lost) = folder.list();
        for path in &present {
            self.look(path, folder, &unsettled, changed);
        }
        for path in folder.known() {
            if !present.contains(path) && !lost.iter().any(|root| path.starts_with(root)) {
                self.missing.entry(path.to_owned()).or_insert(began);
            }
        }
        self.links = present.into_iter().filter(|path| leads_elsewhere(path)).take(MOST_LINKS).collect();
        let pause = if self.notices.active() { SWEEP } else { Duration::ZERO };
        self.next_sweep = Instant::now() + pause.max(began.elapsed() * SWEEP_SHARE);
        std::mem::replace(&mut self.lost, lost) != self.lost
    }

    fn look(
        &mut self,
        path: &Path,
        folder: &Folder,
        unsettled: &BTreeMap<PathBuf, Stamp>,
        changed: &mut BTreeSet<PathBuf>,
    ) {
        if self.open.contains_key(path) {
            return;
        }
        let Ok(metadata) = std::fs::metadata(path) else {
            self.missing.entry(path.to_owned()).or_insert_with(Instant::now);
            return;
        };
        let (now, known) = (Stamp::of(&metadata), folder.stamp(path));
        if known == Some(now) {
            return;
        }
        let replaced = known.is_some_and(|known| known.inode != now.inode);
        if replaced || unsettled.get(path) == Some(&now) {
            changed.insert(path.to_owned());
        } else {
            self.unsettled.insert(path.to_owned(), now);
        }
    }

    /// Listens to roots that are new, came back or were replaced. True: at least one was.
    fn renew_roots(&mut self) -> bool {
        let mut renewed = false;
        for (root, known) in &mut self.roots {
            let now = std::fs::metadata(root).ok().map(|metadata| Stamp::of(&metadata).inode);
            let is_file = std::fs::metadata(root).is_ok_and(|metadata| metadata.is_file());
            // A file is listened to through its folder, which sees it replaced.
            if now == *known || (is_file && known.is_some()) {
                continue;
            }
            *known = now;
            renewed = true;
            if now.is_some() {
                let folder = if is_file { root.parent().unwrap_or(root) } else { root.as_path() };
                let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                self.notices.listen(folder, is_file.then_some(root.as_path()));
            }
        }
        renewed
    }
}

/// Made whole in one step: a symbolic link, or one more name of a file.
fn is_made_whole(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_symlink() || (metadata.is_file() && metadata.nlink() > 1))
}

/// A link out of its folder. Those of a mounted ConfigMap lead through `..data`, which is listened to.
fn leads_elsewhere(path: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| !target.starts_with("..data"))
}
