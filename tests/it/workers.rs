//! One worker a core: its thread, its runtime, its listening sockets and its connections to backends, as the kernel tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use crate::harness::{Backend, Gateway, route, until};

/// The states of a socket in /proc/net/tcp.
const ESTABLISHED: &str = "01";
const LISTENS: &str = "0A";

type Descriptors = BTreeSet<String>;

/// The process's sockets in this state, each with its descriptors.
fn sockets(process: &Path, state: &str, is_meant: impl Fn(&str, &str) -> bool) -> Vec<Descriptors> {
    let table = std::fs::read_to_string(process.join("net/tcp")).expect("a table of sockets");
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let meant = rows.filter(|row| row[3] == state && is_meant(row[1], row[2]));
    let open = descriptors(process);
    let sockets = meant.map(|row| {
        let link = format!("socket:[{}]", row[9]);
        open.iter().filter(|(_, opened)| **opened == link).map(|(descriptor, _)| descriptor.clone()).collect()
    });
    sockets.filter(|descriptors: &Descriptors| !descriptors.is_empty()).collect()
}

/// What is open, by descriptor.
fn descriptors(process: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(process.join("fd")).expect("it is ours").flatten();
    let opened = entries.filter_map(|entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned()))
    });
    opened.collect()
}

/// By which runtimes a socket is watched, as the descriptors of their queues of events.
fn watchers(process: &Path, socket: &Descriptors) -> Descriptors {
    let queues = descriptors(process).into_iter().filter(|(_, opened)| opened == "anon_inode:[eventpoll]");
    let watches = |queue: &String| {
        let told = std::fs::read_to_string(process.join("fdinfo").join(queue)).unwrap_or_default();
        told.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("tfd:") && words.next().is_some_and(|watched| socket.contains(watched))
        })
    };
    queues.map(|(queue, _)| queue).filter(watches).collect()
}

/// The runtimes that watch the sockets that listen here, one a socket.
fn listening(process: &Path, address: SocketAddr) -> Vec<Descriptors> {
    let port = format!(":{:04X}", address.port());
    let sockets = sockets(process, LISTENS, |here, _| here.ends_with(&port));
    sockets.iter().map(|socket| watchers(process, socket)).collect()
}

fn threads(process: &Path) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(process.join("task")).expect("it runs").flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("worker")).collect()
}

#[test]
fn each_worker_has_a_thread_a_runtime_listeners_and_connections_of_its_own() {
    let backend = Backend::start("one");
    let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: one}]}";
    let shop = route("shop", &format!("{{hostnames: [shop.example], rules: [{rule}]}}"));
    // One is the control: there all is watched by the same.
    for count in [1, 3] {
        let gateway = Gateway::with(
            &[("backend.yaml", &backend.manifest("one")), ("route.yaml", &shop)],
            &["--workers", &count.to_string()],
        );
        let process = gateway.process.told();
        let workers: BTreeSet<_> = (0..count).map(|number| format!("worker-{number}")).collect();
        assert_eq!(threads(&process), workers);

        let runtimes = until("every worker to listen", || {
            let runtimes = listening(&process, gateway.http);
            runtimes.iter().all(|queues| !queues.is_empty()).then_some(runtimes)
        });
        assert_eq!(runtimes.len(), count, "sockets that listen: {runtimes:?}");
        let all: Descriptors = runtimes.iter().flatten().cloned().collect();
        assert_eq!(all.len(), runtimes.iter().map(BTreeSet::len).sum::<usize>(), "{runtimes:?}");
        until("the same ones to listen for TLS", || {
            let mut others = listening(&process, gateway.https);
            let mut same = runtimes.clone();
            others.sort();
            same.sort();
            (others == same).then_some(())
        });

        let port = format!(":{:04X}", backend.address.port());
        until("every worker to have connections of its own to the backend", || {
            assert_eq!(gateway.get("shop.example", "/").status, 200);
            let connections = sockets(&process, ESTABLISHED, |_, there| there.ends_with(&port));
            let owners: Vec<_> = connections.iter().map(|socket| watchers(&process, socket)).collect();
            assert!(
                owners.iter().all(|owner| owner.is_empty() || runtimes.contains(owner)),
                "{owners:?} of {runtimes:?}"
            );
            runtimes.iter().all(|runtime| owners.contains(runtime)).then_some(())
        });
    }
}
