//! The access log: one JSON line a request, written by a thread of its own. It never blocks a worker: what the target
//! does not take in time is dropped and counted.
//!
//! Each worker has a buffer with a bound. The writer swaps it for an empty one; a swap is all that the two ever wait
//! for. So a full disk, a pipe that nobody reads or a hung file system costs lines, not requests.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::record::MAX_LINE;
use super::{Record, Telemetry};

/// Lines of one worker that wait to be written, in bytes.
const MAX_WAITING: usize = 1 << 20;
/// The writer gathers for so long before it writes again.
const GATHER: Duration = Duration::from_millis(20);
/// How often the writer looks whether its file was moved away.
const LOOK: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTarget {
    Off,
    Stdout,
    /// Appended to; opened again when it was moved away.
    File(PathBuf),
}

/// Where access log lines go; they are dropped and counted when it does not keep up. Cheap to clone. The writer ends
/// with the last of these and of the workers' writers.
#[derive(Clone, Debug, Default)]
pub struct AccessLog(Option<Arc<Handle>>);

/// One worker's way to the log.
#[derive(Clone, Debug, Default)]
pub struct AccessWriter(Option<(Arc<Handle>, usize)>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    writer: Thread,
}

#[derive(Debug)]
struct Shared {
    /// By worker.
    waiting: Vec<Mutex<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
    /// The writer has taken lines that it has not written yet.
    busy: AtomicBool,
    closed: AtomicBool,
    /// Told at the end of each of the writer's turns.
    over: Condvar,
    turn: Mutex<()>,
}

/// The other end, with the one thread that writes to it.
struct Writer {
    shared: Arc<Shared>,
    sink: Sink,
    /// The last line was written in part only: the next starts on a new one.
    torn: bool,
    looked: Instant,
}

enum Sink {
    Stdout(std::io::Stdout),
    File(PathBuf, File),
    #[cfg(test)]
    Test(Box<dyn Write + Send>),
}

impl AccessLog {
    /// Starts the writer's thread.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn start(target: AccessTarget, telemetry: &Telemetry) -> std::io::Result<Self> {
        let sink = match target {
            AccessTarget::Off => return Ok(Self(None)),
            AccessTarget::Stdout => Sink::Stdout(std::io::stdout()),
            AccessTarget::File(path) => {
                let file = open(&path)?;
                Sink::File(path, file)
            }
        };
        Self::with(sink, telemetry)
    }

    fn with(sink: Sink, telemetry: &Telemetry) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: (0..telemetry.workers()).map(|_| Mutex::default()).collect(),
            dropped: telemetry.log_dropped(),
            busy: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            over: Condvar::new(),
            turn: Mutex::default(),
        });
        let writer = Writer { shared: shared.clone(), sink, torn: false, looked: Instant::now() };
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(|| writer.run())?;
        Ok(Self(Some(Arc::new(Handle { shared, writer: thread.thread().clone() }))))
    }

    /// The log as one worker writes to it.
    ///
    /// # Panics
    /// There is no such worker.
    pub fn worker(&self, index: usize) -> AccessWriter {
        let Some(handle) = &self.0 else { return AccessWriter(None) };
        assert!(index < handle.shared.waiting.len(), "worker {index} of {}", handle.shared.waiting.len());
        AccessWriter(Some((handle.clone(), index)))
    }

    /// Waits until what was logged so far is written, at most so long. Blocks the calling thread.
    pub fn flush(&self, patience: Duration) {
        let Some(handle) = &self.0 else { return };
        let end = Instant::now() + patience;
        let mut turn = handle.shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while handle.shared.is_behind() && Instant::now() < end {
            handle.writer.unpark();
            let waited = handle.shared.over.wait_timeout(turn, GATHER);
            turn = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl AccessWriter {
    /// Whether lines go anywhere: nobody need make a record that nobody reads.
    pub fn enabled(&self) -> bool {
        self.0.is_some()
    }

    pub fn write(&self, record: &Record) {
        let Some((handle, index)) = &self.0 else { return };
        let mut waiting = lock(&handle.shared.waiting[*index]);
        if waiting.len() + MAX_LINE > MAX_WAITING {
            handle.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = waiting.is_empty();
        record.write_to(&mut waiting);
        drop(waiting);
        if first {
            handle.writer.unpark();
        }
    }
}

impl Shared {
    fn is_behind(&self) -> bool {
        // The writer says that it is busy before it takes lines away, so that they are always seen in one place.
        self.waiting.iter().any(|waiting| !lock(waiting).is_empty()) || self.busy.load(Ordering::SeqCst)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.writer.unpark();
    }
}

impl Writer {
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            let closed = self.shared.closed.load(Ordering::SeqCst);
            let mut wrote = false;
            for worker in 0..self.shared.waiting.len() {
                self.shared.busy.store(true, Ordering::SeqCst);
                std::mem::swap(&mut *lock(&self.shared.waiting[worker]), &mut lines);
                if !lines.is_empty() {
                    wrote = true;
                    self.write(&lines);
                    lines.clear();
                }
                self.shared.busy.store(false, Ordering::SeqCst);
            }
            self.shared.over.notify_all();
            match (closed, wrote) {
                (true, false) => return,
                (true, true) => {}
                (false, true) => gather(),
                (false, false) => std::thread::park(),
            }
        }
    }

    fn write(&mut self, lines: &[u8]) {
        self.follow();
        let (mut left, torn) = (lines, self.torn);
        let outcome = if torn { self.sink.write_all(&mut &b"\n"[..]) } else { Ok(()) };
        if outcome.and_then(|()| self.sink.write_all(&mut left)).is_ok() {
            self.torn = false;
            return;
        }
        let lost = left.iter().filter(|byte| **byte == b'\n').count();
        self.torn = torn || left.len() != lines.len();
        self.shared.dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }

    /// A file that was moved away or removed (log rotation) is opened anew under its name.
    fn follow(&mut self) {
        let Sink::File(path, file) = &mut self.sink else { return };
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if !is_at(file, path)
            && let Ok(new) = open(path)
        {
            *file = new;
            self.torn = false;
        }
    }
}

impl Sink {
    /// Takes from `bytes` what could be written.
    fn write_all(&mut self, bytes: &mut &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let outcome = match self {
                Self::Stdout(stdout) => stdout.lock().write(bytes),
                Self::File(_, file) => file.write(bytes),
                #[cfg(test)]
                Self::Test(sink) => sink.write(bytes),
            };
            match outcome {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(count) => *bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            _ => Ok(()),
        }
    }
}

/// Lets lines come together. Those that wake us meanwhile are among them.
fn gather() {
    let end = Instant::now() + GATHER;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

fn open(path: &std::path::Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

/// Whether `path` still leads to `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &std::path::Path) -> bool {
    path.exists()
}

fn lock(lines: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::record::tests::record;
    use super::*;

    /// A target that takes `budget` bytes, then waits for more of it or fails.
    struct Slow {
        taken: Arc<Mutex<Vec<u8>>>,
        /// How many bytes may be taken now; an error when the other end is gone.
        allowed: mpsc::Receiver<usize>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let allowed = self.allowed.recv().map_err(|_| std::io::ErrorKind::StorageFull)?;
            let count = allowed.min(bytes.len());
            self.taken.lock().expect("not poisoned").extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Sink, Arc<Mutex<Vec<u8>>>, mpsc::Sender<usize>) {
        let (allow, allowed) = mpsc::channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        (Sink::Test(Box::new(Slow { taken: taken.clone(), allowed })), taken, allow)
    }

    fn dropped(telemetry: &Telemetry) -> u64 {
        telemetry.log_dropped().load(Ordering::Relaxed)
    }

    #[test]
    fn a_file_gets_the_lines_of_all_workers_and_is_opened_again_after_rotation() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let telemetry = Telemetry::new(2);
        let log = AccessLog::start(AccessTarget::File(path.clone()), &telemetry).expect("starts");
        log.worker(0).write(&record());
        log.worker(1).write(&record());
        log.flush(Duration::from_secs(10));
        assert_eq!(std::fs::read_to_string(&path).expect("written").lines().count(), 2);

        std::fs::rename(&path, folder.path().join("access.log.1")).expect("moved");
        let end = Instant::now() + Duration::from_secs(10);
        while !path.exists() {
            assert!(Instant::now() < end, "not opened again");
            log.worker(0).write(&record());
            log.flush(Duration::from_secs(10));
        }
        assert!(std::fs::read_to_string(&path).expect("written").starts_with('{'));
        assert_eq!(dropped(&telemetry), 0);
    }

    #[test]
    fn a_target_that_nobody_reads_costs_lines_and_never_blocks() {
        let telemetry = Telemetry::new(1);
        let (sink, taken, allow) = slow();
        let log = AccessLog::with(sink, &telemetry).expect("starts");
        let writer = log.worker(0);
        for _ in 0..20_000 {
            writer.write(&record());
        }
        let lost = dropped(&telemetry);
        assert!(lost > 0, "there is a bound");
        assert!(lock(&log.0.as_ref().expect("on").shared.waiting[0]).len() <= MAX_WAITING);

        (0..20_000).for_each(|_| allow.send(usize::MAX).expect("the writer lives"));
        log.flush(Duration::from_secs(10));
        let lines = taken.lock().expect("not poisoned").iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines as u64 + lost, 20_000, "each line is written or counted");
    }

    #[test]
    fn a_full_disk_tears_one_line_at_most() {
        let telemetry = Telemetry::new(1);
        let (sink, taken, allow) = slow();
        let log = AccessLog::with(sink, &telemetry).expect("starts");
        log.worker(0).write(&record());
        allow.send(10).expect("the writer lives");
        drop(allow);
        log.flush(Duration::from_secs(10));
        assert_eq!((dropped(&telemetry), taken.lock().expect("not poisoned").len()), (1, 10));
    }

    #[test]
    fn a_torn_line_ends_before_the_next() {
        let telemetry = Telemetry::new(1);
        let shared = AccessLog::with(Sink::Stdout(std::io::stdout()), &telemetry).expect("starts");
        let shared = shared.0.expect("on").shared.clone();
        let (sink, taken, allow) = slow();
        let mut writer = Writer { shared, sink, torn: true, looked: Instant::now() };
        (0..2).for_each(|_| allow.send(usize::MAX).expect("held"));
        writer.write(b"{}\n");
        assert_eq!(&*taken.lock().expect("not poisoned"), b"\n{}\n");
        assert!(!writer.torn);
    }

    #[test]
    fn off_is_off() {
        let log = AccessLog::start(AccessTarget::Off, &Telemetry::new(1)).expect("starts");
        assert!(!log.worker(7).enabled());
        log.flush(Duration::from_secs(60));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_start() {
        let missing = AccessTarget::File("/nonexistent/folder/access.log".into());
        assert!(AccessLog::start(missing, &Telemetry::new(1)).is_err());
    }
}
