//! Files in, changes out: on real folders, with the kernel's own notices.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::folder::{Folder, Look};
use super::notices::Notices;
use super::watch;
use super::watcher::{TICK, Watcher};
use crate::snapshot::{Change, Snapshot, Update};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

/// A folder with what the other side has been told of it.
struct Told {
    directory: tempfile::TempDir,
    folder: Folder,
    world: Snapshot,
}

impl Told {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(vec![directory.path().to_owned()]);
        Self { directory, folder, world: Snapshot::default() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn refresh(&mut self) -> usize {
        let changes = self.folder.refresh(&Look::Everything);
        let told = changes.len();
        for change in changes {
            self.world.apply(change);
        }
        told
    }

    /// Name and first port of every Service.
    fn services(&self) -> Vec<(String, u16)> {
        services(&self.world)
    }

    fn failures(&self) -> Vec<String> {
        self.world.failures.iter().map(|failure| failure.message.clone()).collect()
    }
}

fn services(world: &Snapshot) -> Vec<(String, u16)> {
    world.services.values().map(|service| (service.name.name.to_string(), service.ports[0].port)).collect()
}

#[test]
fn a_change_tells_only_what_changed() {
    let mut told = Told::new();
    told.write("a.yaml", &format!("{}---\n{}", service("one", 1), service("two", 2)));
    told.write("notes.txt", "not a manifest");
    told.write(".hidden.yaml", "neither");
    assert_eq!(told.refresh(), 2);
    assert_eq!(told.refresh(), 0);
    told.write("a.yaml", &format!("{}---\n{}", service("one", 1), service("two", 20)));
    assert_eq!(told.refresh(), 1);
    assert_eq!(told.services(), [("one".into(), 1), ("two".into(), 20)]);
    std::fs::remove_file(told.directory.path().join("a.yaml")).expect("removed");
    assert_eq!(told.refresh(), 2);
    assert!(told.services().is_empty());
}

#[test]
fn a_file_that_stops_parsing_keeps_its_last_objects_until_it_parses_or_is_gone() {
    let mut told = Told::new();
    told.write("good.yaml", &service("good", 1));
    let bad = told.write("bad.yaml", &format!("{}---\n{}", service("b1", 1), service("b2", 2)));
    told.refresh();
    told.write("bad.yaml", &format!("{}---\nkind: [\n", service("b1", 10)));
    told.refresh();
    // The document that can be read counts; what the other one was about stays.
    assert_eq!(told.services(), [("b1".into(), 10), ("b2".into(), 2), ("good".into(), 1)]);
    assert_eq!(told.world.failures.len(), 1);
    let place = told.world.failures[0].place().expect("a place");
    assert!(place.ends_with("bad.yaml:6:7"), "{place}");
    let stays = "; until it can be read, this stays of what the file said before: Service default/b";
    assert!(told.failures()[0].ends_with(&format!("{stays}2")), "{:?}", told.failures());
    // Again unreadable, in another way: still there.
    told.write("bad.yaml", "kind: [[\n");
    told.refresh();
    assert_eq!(told.services().len(), 3);
    assert!(told.failures()[0].ends_with(&format!("{stays}1 and 1 more")), "{:?}", told.failures());
    told.write("bad.yaml", &service("b1", 11));
    told.refresh();
    assert_eq!(told.services(), [("b1".into(), 11), ("good".into(), 1)]);
    assert!(told.failures().is_empty());
    told.write("bad.yaml", "kind: [\n");
    told.refresh();
    std::fs::remove_file(bad).expect("removed");
    told.refresh();
    assert_eq!((told.services(), told.failures()), (vec![("good".into(), 1)], vec![]));
}

#[test]
fn a_file_that_never_could_be_read_keeps_nothing_and_says_so() {
    let mut told = Told::new();
    told.write("bad.yaml", "a: 1\n--- {kind: [}\n");
    told.refresh();
    assert!(!told.failures()[1].contains("stays"), "{:?}", told.failures());
    // The document begins behind its separator.
    let place = told.world.failures[1].place().expect("a place");
    assert!(place.ends_with("bad.yaml:2:12"), "{place}");
}

#[test]
fn a_file_that_is_no_text_keeps_its_last_objects_too() {
    let mut told = Told::new();
    let path = told.write("a.yaml", &service("a", 1));
    told.refresh();
    std::fs::write(path, [0xff, 0xfe, 0x00]).expect("written");
    told.refresh();
    assert_eq!(told.services(), [("a".into(), 1)]);
    assert!(told.failures()[0].contains("its last objects stay"), "{:?}", told.failures());
}

#[test]
fn a_folder_that_is_gone_keeps_its_last_objects() {
    let mut told = Told::new();
    told.write("a.yaml", &service("a", 1));
    told.refresh();
    let moved = told.directory.path().with_extension("moved");
    std::fs::rename(told.directory.path(), &moved).expect("moved");
    told.refresh();
    assert_eq!(told.services(), [("a".into(), 1)]);
    assert!(told.failures()[0].contains("its last objects stay"), "{:?}", told.failures());
    std::fs::rename(&moved, told.directory.path()).expect("moved back");
    told.refresh();
    assert_eq!((told.services().len(), told.failures().len()), (1, 0));
}

#[test]
fn a_name_that_is_defined_twice_has_one_owner_and_the_other_place_is_told() {
    let mut told = Told::new();
    told.write("b.yaml", &service("twice", 2));
    told.refresh();
    let first = told.write("a.yaml", &service("twice", 1));
    told.refresh();
    assert_eq!(told.services(), [("twice".into(), 1)]);
    assert!(told.failures()[0].contains("a.yaml:1"), "{:?}", told.failures());
    assert!(told.world.failures[0].origin.as_ref().is_some_and(|origin| origin.file.ends_with("b.yaml")));
    std::fs::remove_file(first).expect("removed");
    told.refresh();
    assert_eq!((told.services(), told.failures()), (vec![("twice".into(), 2)], vec![]));
}

#[test]
fn lines_are_right_after_documents_move() {
    let mut told = Told::new();
    told.write("a.yaml", &service("a", 1));
    told.refresh();
    told.write("a.yaml", &format!("# one\n# two\n---\n{}", service("a", 1)));
    told.refresh();
    let line =
        told.world.services.values().next().and_then(|service| service.origin.as_ref()).map(|o| o.line);
    assert_eq!(line, Some(4));
}

#[test]
fn fifty_thousand_documents_load_and_one_of_them_changes_alone() {
    let mut told = Told::new();
    let documents = |port: u16| {
        let mut text = String::new();
        for index in 0..50_000u32 {
            let port = if index == 777 { port } else { 1 };
            text += &format!(
                "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"s{index}\"}},\"spec\":{{\"ports\":[{{\"port\":{port}}}]}}}}\n---\n"
            );
        }
        text
    };
    told.write("all.yaml", &documents(1));
    assert_eq!(told.refresh(), 50_000);
    told.write("all.yaml", &documents(2));
    assert_eq!(told.refresh(), 1);
}

/// A running watch, and the world as it was told.
struct Watched {
    updates: mpsc::Receiver<Update>,
    world: Snapshot,
}

impl Watched {
    fn new(root: &Path) -> Self {
        let (sender, mut updates) = mpsc::channel(64);
        watch(vec![root.to_owned()], sender).expect("started");
        let mut world = Snapshot::default();
        while let Some(Update::Changes(changes)) = updates.blocking_recv() {
            changes.into_iter().for_each(|change| _ = world.apply(change));
        }
        Self { updates, world }
    }

    /// Takes updates until the world has these; gives the worlds on the way and how long it took.
    fn until(&mut self, expected: &[(&str, u16)]) -> (Vec<Vec<(String, u16)>>, Duration) {
        let expected: Vec<(String, u16)> =
            expected.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        let began = Instant::now();
        let mut seen = Vec::new();
        while services(&self.world) != expected {
            assert!(began.elapsed() < Duration::from_secs(20), "{seen:?}, expected {expected:?}");
            match self.updates.try_recv() {
                Ok(Update::Changes(changes)) => {
                    changes.into_iter().for_each(|change| _ = self.world.apply(change));
                    seen.push(services(&self.world));
                }
                Ok(Update::Synced) => panic!("synced twice"),
                Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
            }
        }
        (seen, began.elapsed())
    }
}

#[test]
fn new_written_renamed_and_removed_files_are_seen() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("a.yaml"), service("a", 1)).expect("written");
    let mut watched = Watched::new(directory.path());
    watched.until(&[("a", 1)]);
    std::fs::write(path("b.yaml"), service("b", 1)).expect("written");
    watched.until(&[("a", 1), ("b", 1)]);
    std::fs::write(path("a.yaml"), service("a", 2)).expect("written");
    watched.until(&[("a", 2), ("b", 1)]);
    std::fs::write(path("b.new"), service("b", 3)).expect("written");
    std::fs::rename(path("b.new"), path("b.yaml")).expect("renamed");
    watched.until(&[("a", 2), ("b", 3)]);
    std::fs::remove_file(path("a.yaml")).expect("removed");
    watched.until(&[("b", 3)]);
}

/// So often the watcher looks until it names the file, or gives up.
fn looks(watcher: &mut Watcher, folder: &mut Folder, path: &Path) -> usize {
    let seen = |look: &Look| match look {
        Look::Everything => true,
        Look::At(paths) => paths.contains(path),
    };
    (1..)
        .find(|look| watcher.wait(folder).as_ref().is_some_and(seen) || *look > MOST_LOOKS)
        .expect("it gives up")
}

/// A change is seen within 100 ms: a look takes a tick at most.
const MOST_LOOKS: usize = 3;

#[test]
fn a_change_is_seen_within_three_looks_with_and_without_notices() {
    assert!(TICK * MOST_LOOKS as u32 <= Duration::from_millis(100));
    for notices in [Notices::new(), Notices::none()] {
        let has_notices = notices.active();
        let directory = tempfile::tempdir().expect("a folder");
        let roots = [directory.path().to_owned()];
        let path = directory.path().join("a.yaml");
        let mut watcher = Watcher::with(notices, &roots);
        let mut folder = Folder::new(roots.to_vec());
        folder.refresh(&Look::Everything);
        let mut port = 0;
        let write = |path: &Path, port: &mut u16| {
            *port += 1;
            std::fs::write(path, service("a", *port)).expect("written");
        };
        for step in ["made", "written", "replaced", "removed", "made again"] {
            match step {
                "replaced" => {
                    let new = directory.path().join("new");
                    write(&new, &mut port);
                    std::fs::rename(new, &path).expect("renamed");
                }
                "removed" => std::fs::remove_file(&path).expect("removed"),
                _ => write(&path, &mut port),
            }
            let looks = looks(&mut watcher, &mut folder, &path);
            assert!(looks <= MOST_LOOKS, "{step}, notices {has_notices}: {looks} looks");
            assert_ne!(folder.refresh(&Look::At(BTreeSet::from([path.clone()]))), [], "{step}");
            // What one step told late is not the next one's.
            while watcher.more() {
                watcher.wait(&mut folder);
            }
        }
        // The control: what has not changed is not seen.
        let other = directory.path().join("other.yaml");
        assert!(looks(&mut watcher, &mut folder, &other) > MOST_LOOKS, "notices {has_notices}");
    }
}

#[test]
fn a_half_written_file_is_not_read_before_its_writer_closes_it() {
    use std::io::Write as _;
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().join("a.yaml");
    std::fs::write(&path, format!("{}---\n{}", service("a", 1), service("b", 1))).expect("written");
    let mut watched = Watched::new(directory.path());
    let mut file = std::fs::File::create(&path).expect("truncated");
    file.write_all(service("a", 2).as_bytes()).expect("half");
    // Another file is seen meanwhile: the watch has looked at the folder with the half-written one in it.
    std::fs::write(directory.path().join("c.yaml"), service("c", 1)).expect("written");
    watched.until(&[("a", 1), ("b", 1), ("c", 1)]);
    file.write_all(format!("---\n{}", service("b", 2)).as_bytes()).expect("whole");
    drop(file);
    let (seen, _) = watched.until(&[("a", 2), ("b", 2), ("c", 1)]);
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[test]
fn a_config_map_mount_is_swapped_as_a_whole() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = |name: &str| directory.path().join(name);
    let version = |name: &str, port: u16| {
        std::fs::create_dir(path(name)).expect("a folder");
        for service_name in ["a", "b"] {
            std::fs::write(path(name).join(format!("{service_name}.yaml")), service(service_name, port))
                .expect("written");
        }
    };
    // As the kubelet does it: a.yaml → ..data/a.yaml, ..data → ..1
    version("..1", 1);
    symlink("..1", path("..data")).expect("linked");
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), path(name)).expect("linked");
    }
    let mut watched = Watched::new(directory.path());
    watched.until(&[("a", 1), ("b", 1)]);
    for (before, now, port) in [("..1", "..2", 2), ("..2", "..3", 3)] {
        version(now, port);
        symlink(now, path("..data_tmp")).expect("linked");
        std::fs::rename(path("..data_tmp"), path("..data")).expect("swapped");
        std::fs::remove_dir_all(path(before)).expect("removed");
        let (seen, _) = watched.until(&[("a", port), ("b", port)]);
        assert_eq!(seen.len(), 1, "a mixture was told: {seen:?}");
    }
}

#[test]
fn links_to_files_elsewhere_and_single_files_are_followed() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let target = elsewhere.path().join("target.yaml");
    std::fs::write(&target, service("linked", 1)).expect("written");
    let directory = tempfile::tempdir().expect("a folder");
    symlink(&target, directory.path().join("a.yaml")).expect("linked");
    let mut watched = Watched::new(directory.path());
    watched.until(&[("linked", 1)]);
    std::fs::write(&target, service("linked", 22)).expect("written");
    watched.until(&[("linked", 22)]);

    let mut watched = Watched::new(&target);
    watched.until(&[("linked", 22)]);
    std::fs::write(elsewhere.path().join("other.yaml"), service("other", 1)).expect("written");
    std::fs::write(elsewhere.path().join("new"), service("linked", 333)).expect("written");
    std::fs::rename(elsewhere.path().join("new"), &target).expect("renamed");
    watched.until(&[("linked", 333)]);
}

#[test]
fn a_folder_that_comes_back_is_watched_again() {
    let directory = tempfile::tempdir().expect("a folder");
    let root = directory.path().join("manifests");
    let mut watched = Watched::new(&root);
    watched.until(&[]);
    for port in [1, 2] {
        std::fs::create_dir(&root).expect("made");
        std::fs::write(root.join("a.yaml"), service("a", port)).expect("written");
        watched.until(&[("a", port)]);
        std::fs::write(root.join("a.yaml"), service("a", port + 10)).expect("written");
        watched.until(&[("a", port + 10)]);
        std::fs::remove_dir_all(&root).expect("removed");
    }
}

#[test]
fn only_what_is_looked_at_is_read() {
    let mut told = Told::new();
    let (a, b) = (told.write("a.yaml", &service("a", 1)), told.write("b.yaml", &service("b", 1)));
    told.refresh();
    std::fs::write(&a, service("a", 2)).expect("written");
    std::fs::write(b, service("b", 2)).expect("written");
    let changes = told.folder.refresh(&Look::At(BTreeSet::from([a])));
    assert!(matches!(&changes[..], [Change::Put(_)]), "{changes:?}");
}
