//! The kernel's notices of changes in folders: inotify on Linux, none elsewhere.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// After the first notice others follow; so long they are collected.
const TOGETHER: Duration = Duration::from_millis(2);
/// At most so many are collected at once; then the rest is read anew.
const MOST: usize = 4_096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A file was closed by its writer, replaced, renamed or removed.
    Whole(PathBuf),
    /// A file was made or written, and its writer goes on.
    Writing(PathBuf),
    /// Too much happened, or a folder itself changed.
    Lost,
}

#[derive(Debug)]
pub struct Notices {
    /// None: the kernel has none to give, or no more watches.
    inotify: Option<OwnedFd>,
    folders: HashMap<i32, Listening>,
}

#[derive(Debug)]
struct Listening {
    folder: PathBuf,
    /// Only these files of the folder matter; empty: all.
    only: Vec<PathBuf>,
}

impl Notices {
    pub fn new() -> Self {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .inspect_err(|error| tracing::info!(%error, "no inotify: files are looked at instead"))
            .ok();
        Self { inotify, folders: HashMap::new() }
    }

    /// As where the kernel has none to give.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { inotify: None, folders: HashMap::new() }
    }

    /// Whether every folder that was asked for is listened to.
    pub fn active(&self) -> bool {
        self.inotify.is_some()
    }

    /// Listens to a folder, or to one file in it.
    pub fn listen(&mut self, folder: &Path, only: Option<&Path>) {
        let Some(inotify) = &self.inotify else { return };
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB;
        match inotify::add_watch(inotify, folder, flags) {
            Ok(id) => {
                let known = self
                    .folders
                    .entry(id)
                    .or_insert_with(|| Listening { folder: folder.to_owned(), only: Vec::new() });
                match only {
                    Some(file) => known.only.push(file.to_owned()),
                    None => known.only.clear(),
                }
            }
            Err(error) => {
                tracing::info!(%error, folder = %folder.display(), "no notices: files are looked at instead");
                self.inotify = None;
            }
        }
    }

    /// Whether a notice waits.
    pub fn pending(&self) -> bool {
        self.ready(Duration::ZERO)
    }

    /// What happened within `at_most`, or nothing. Without notices it waits for as long.
    pub fn wait(&mut self, at_most: Duration) -> Vec<Notice> {
        if !self.ready(at_most) {
            return Vec::new();
        }
        let mut notices = Vec::new();
        let until = Instant::now() + 8 * TOGETHER;
        loop {
            self.take(&mut notices);
            if notices.len() > MOST {
                return vec![Notice::Lost];
            }
            if Instant::now() >= until || !self.ready(TOGETHER) {
                return notices;
            }
        }
    }

    fn ready(&self, at_most: Duration) -> bool {
        let Some(inotify) = &self.inotify else {
            std::thread::park_timeout(at_most);
            return false;
        };
        let timeout = Timespec::try_from(at_most).ok();
        let mut waited = [PollFd::new(inotify, PollFlags::IN)];
        matches!(poll(&mut waited, timeout.as_ref()), Ok(1..))
    }

    fn take(&mut self, notices: &mut Vec<Notice>) {
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        let mut ended = Vec::new();
        // Ends with WOULDBLOCK.
        while let Ok(event) = reader.next() {
            let what = event.events();
            if what.contains(ReadFlags::IGNORED) {
                ended.push(event.wd());
            }
            let Some(listening) = self.folders.get(&event.wd()) else {
                notices.push(Notice::Lost);
                continue;
            };
            let Some(name) = event.file_name() else {
                // About the folder itself. A change of its attributes may have made it readable.
                notices.push(Notice::Lost);
                continue;
            };
            let name = std::ffi::OsStr::from_bytes(name.to_bytes());
            let path = path_of(&listening.folder, name);
            if !listening.only.is_empty() && !listening.only.contains(&path) {
                continue;
            }
            let writing = what.intersects(ReadFlags::CREATE | ReadFlags::MODIFY)
                && !what.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
            notices.push(if writing { Notice::Writing(path) } else { Notice::Whole(path) });
            if notices.len() > MOST {
                break;
            }
        }
        for id in ended {
            self.folders.remove(&id);
        }
    }
}

/// As the root's owner named it: `manifests/a.yaml`, not `./manifests/a.yaml`.
fn path_of(folder: &Path, name: &std::ffi::OsStr) -> PathBuf {
    if folder == Path::new(".") { PathBuf::from(name) } else { folder.join(name) }
}
