//! Redis Sentinel and Redis Cluster, each over TLS and with passwords: what was counted survives the loss of a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};

use crate::harness::{Gateway, Process, program, route, text, until};
use crate::redis::imposed;

const PASSWORD: &str = "canary";
const SENTINEL_PASSWORD: &str = "watch";

/// A folder with an authority, and a certificate for this machine.
struct Grounds(tempfile::TempDir);

/// A server, or a Sentinel.
struct Server {
    port: u16,
    bus: u16,
    password: &'static str,
    authority: PathBuf,
    process: Process,
}

impl Grounds {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // Redis takes a certificate for self-signed that is named like its issuer.
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key, &issuer).expect("signed").pem();
        for (name, text) in [("ca.pem", &authority), ("leaf.pem", &leaf), ("key.pem", &key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// With these lines in its configuration.
    fn start(&self, password: &'static str, lines: &[String], arguments: &[&str]) -> Server {
        let ([port, bus], path) = (free_ports(), |name: &str| self.path(name).display().to_string());
        let folder = path(&format!("server-{port}"));
        std::fs::create_dir(&folder).expect("a folder");
        let configuration = format!(
            "port 0\ntls-port {port}\nbind 127.0.0.1\ndir {folder}\ntls-cert-file {}\ntls-key-file {}\n\
             tls-ca-cert-file {}\ntls-auth-clients no\ntls-replication yes\nrequirepass {password}\n{}\n",
            path("leaf.pem"),
            path("key.pem"),
            path("ca.pem"),
            lines.join("\n").replace("BUS", &bus.to_string()),
        );
        let file = Path::new(&folder).join("redis.conf");
        std::fs::write(&file, configuration).expect("written");
        let mut command = Command::new("redis-server");
        command.arg(&file).args(arguments).stdout(Stdio::null());
        let process = Process::start(command);
        let server = Server { port, bus, password, authority: self.path("ca.pem"), process };
        until("a server", || (server.says(&["PING"]) == "PONG").then_some(()));
        server
    }

    fn server(&self, lines: &[&str]) -> Server {
        let plain = ["save \"\"", "repl-diskless-sync-delay 0"].map(String::from);
        let auth = format!("masterauth {PASSWORD}");
        let lines = lines.iter().map(|line| (*line).to_owned());
        let lines: Vec<_> = plain.into_iter().chain([auth]).chain(lines).collect();
        self.start(PASSWORD, &lines, &[])
    }

    fn gateway(&self, url: &str, files: &[(&str, &str)]) -> Gateway {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let mut command = program();
        command.env("SSL_CERT_FILE", self.path("ca.pem"));
        Gateway::launched(command, folder, &["--redis", url, "--redis-timeout", "5s"])
    }
}

impl Server {
    /// What it answers; nothing while it is not there.
    fn says(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string(), "--tls", "--cacert"]).arg(&self.authority);
        let output = command.env("REDISCLI_AUTH", self.password).args(words).output();
        text(&output.expect("redis-cli starts").stdout).trim().to_owned()
    }

    /// A line of what `INFO` tells.
    fn info(&self, section: &str, name: &str) -> String {
        let told = self.says(&["INFO", section]);
        let line = told.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().to_owned()
    }

    /// How many questions it was asked.
    fn asked(&self) -> u64 {
        let calls = self.info("commandstats", "cmdstat_evalsha");
        let calls = calls.strip_prefix("calls=").and_then(|calls| calls.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    }

    fn kill(&mut self) {
        self.process.signal(rustix::process::Signal::KILL);
        self.process.ended();
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn keys(&self) -> Vec<(String, String)> {
        let mut keys: Vec<_> = self.says(&["KEYS", "*"]).lines().map(String::from).collect();
        keys.sort();
        keys.into_iter().filter(|key| !key.is_empty()).map(|key| (self.says(&["GET", &key]), key)).collect()
    }
}

/// Nobody has them at this moment.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

fn up(gateway: &Gateway) -> bool {
    gateway.ask_admin("/metrics").body.contains("\nportcullis_store_up 1\n")
}

/// A host of its own with limits of its own, which says so when it cannot count.
fn shop(name: &str) -> String {
    let limit = |name: &str, requests| {
        format!("{{name: {name}, requests: {requests}, per: 744h, scope: Global, onStoreFailure: Deny}}")
    };
    let limits = format!("[{}, {}]", limit("tight", 10), limit("wide", 1_000));
    route(
        name,
        &format!(
            "{{hostnames: [{name}.example], policy: {{rateLimits: {limits}}}, rules: [{{name: all, respond: {{status: 204}}}}]}}"
        ),
    )
}

fn statuses(gateway: &Gateway, host: &str, requests: usize) -> Vec<u16> {
    (0..requests).map(|_| gateway.get(host, "/").status).collect()
}

/// How many requests were granted until one is refused. Whoever was let go by the store rests for a second.
fn until_used_up(gateway: &Gateway, host: &str) -> usize {
    let mut granted = 0;
    until("the limit to be used up", || {
        let status = gateway.get(host, "/").status;
        granted += usize::from(status == 204);
        (status == 429).then_some(granted)
    })
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn when_sentinels_promote_a_replica_it_goes_on_counting() {
    let grounds = Grounds::new();
    let mut servers = [grounds.server(&[]), grounds.server(&[])];
    let port = servers[0].port.to_string();
    servers[1].says(&["REPLICAOF", "127.0.0.1", &port]);
    until("the replica", || (servers[1].info("replication", "master_link_status") == "up").then_some(()));
    let lines = [
        format!("sentinel monitor shop 127.0.0.1 {port} 2"),
        format!("sentinel auth-pass shop {PASSWORD}"),
        format!("sentinel sentinel-pass {SENTINEL_PASSWORD}"),
        "sentinel down-after-milliseconds shop 1000".to_owned(),
        "sentinel failover-timeout shop 5000".to_owned(),
    ];
    let mut sentinels = [(); 3].map(|()| grounds.start(SENTINEL_PASSWORD, &lines, &["--sentinel"]));
    for sentinel in &sentinels {
        until("the sentinels to know each other", || {
            let told = sentinel.info("sentinel", "master0");
            (told.contains("status=ok") && told.contains("slaves=1") && told.contains("sentinels=3"))
                .then_some(())
        });
    }
    let url = |password: &str| {
        let hosts = [0, 1, 2].map(|at| sentinels[at].address()).join(",");
        format!("rediss+sentinel://:{password}@{hosts}/shop?sentinelPassword={SENTINEL_PASSWORD}")
    };
    let shop = shop("shop");
    let gateway = grounds.gateway(&url(PASSWORD), &[("route.yaml", &shop)]);
    until("the store", || up(&gateway).then_some(()));
    assert_eq!(statuses(&gateway, "shop.example", 6), [204; 6]);
    assert_eq!(servers[0].asked(), 6, "all limits of a request in one round trip");
    let counted = servers[0].keys();
    until("the replica to know it", || (servers[1].keys() == counted).then_some(()));

    // The control: who does not prove who he is counts nothing.
    let stranger = grounds.gateway(&url("wrong"), &[("route.yaml", &shop)]);
    until("the refusal", || stranger.process.log().contains("the store is away").then_some(()));
    assert_eq!((up(&stranger), statuses(&stranger, "shop.example", 1)), (false, vec![503]));
    assert!(!gateway.process.log().contains(PASSWORD) && !stranger.process.log().contains("wrong"));

    sentinels[0].kill();
    servers[0].kill();
    until("the loss to be seen", || (!up(&gateway)).then_some(()));
    until("the promotion", || up(&gateway).then_some(()));
    assert_eq!(servers[1].info("replication", "role"), "master");
    assert_eq!(until_used_up(&gateway, "shop.example"), 4, "ten in all, forgiving nothing");
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn a_cluster_counts_while_slots_move_and_nodes_die() {
    let grounds = Grounds::new();
    let lines = [
        "cluster-enabled yes",
        "cluster-port BUS",
        "tls-cluster yes",
        "cluster-node-timeout 1000",
        "cluster-require-full-coverage no",
    ];
    let mut nodes = [(); 4].map(|()| grounds.server(&lines));
    for (node, range) in nodes.iter().zip([[0, 5_460], [5_461, 10_922], [10_923, 16_383]]) {
        let [first, last] = range.map(|slot| slot.to_string());
        assert_eq!(node.says(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]), "OK");
    }
    for (epoch, node) in nodes.iter().enumerate() {
        node.says(&["CLUSTER", "SET-CONFIG-EPOCH", &(epoch + 1).to_string()]);
        let (port, bus) = (node.port.to_string(), node.bus.to_string());
        assert_eq!(nodes[3].says(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]), "OK");
    }
    for node in &nodes {
        until("the cluster", || {
            let told = node.says(&["CLUSTER", "INFO"]);
            (told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:4")).then_some(())
        });
    }
    let names = ["one", "two", "three", "four", "five", "six"];
    let shops = names.map(|name| (format!("{name}.yaml"), shop(name)));
    let shops: Vec<_> = shops.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let url = format!("rediss+cluster://:{PASSWORD}@{},{}", nodes[0].address(), nodes[1].address());
    let gateway = grounds.gateway(&url, &shops);
    until("the store", || up(&gateway).then_some(()));

    // Each object's limits are together, the objects are spread.
    let homes = names.map(|name| {
        let before = nodes.each_ref().map(Server::asked);
        assert_eq!(statuses(&gateway, &format!("{name}.example"), 3), [204; 3]);
        let asked: Vec<_> = nodes.iter().zip(before).map(|(node, before)| node.asked() - before).collect();
        assert_eq!(asked.iter().sum::<u64>(), 3, "one round trip a request: {asked:?}");
        asked.iter().position(|asked| *asked == 3).expect("of one node")
    });
    let home = homes[0];
    let other = homes.iter().position(|at| *at != home).expect("they are spread");
    let target = (0..3).find(|at| ![home, homes[other]].contains(at)).expect("three nodes");
    let (moved, other) = ("one.example", format!("{}.example", names[other]));

    // A slot moves: asked for where it is not yet, then no longer.
    let before = nodes[home].keys();
    assert_eq!(statuses(&gateway, moved, 1), [204], "the fourth");
    let after = nodes[home].keys();
    let changed: Vec<_> =
        after.iter().filter(|pair| !before.contains(pair)).map(|(_, key)| key.as_str()).collect();
    assert_eq!(changed.len(), 2, "of two limits");
    let slot = &*nodes[home].says(&["CLUSTER", "KEYSLOT", changed[0]]);
    let ids = nodes.each_ref().map(|node| node.says(&["CLUSTER", "MYID"]));
    assert_eq!(nodes[target].says(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &ids[home]]), "OK");
    assert_eq!(nodes[home].says(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &ids[target]]), "OK");
    assert_eq!(statuses(&gateway, moved, 1), [204], "the fifth");
    let port = nodes[target].port.to_string();
    let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "AUTH", PASSWORD, "KEYS"];
    assert_eq!(nodes[home].says(&[&migrate[..], &changed[..]].concat()), "OK");
    let before = nodes[target].asked();
    assert_eq!(statuses(&gateway, moved, 1), [204], "the sixth, by a node that does not have the slot yet");
    assert!(nodes[target].asked() > before);
    for at in [target, home, 3 - target - home, 3] {
        assert_eq!(nodes[at].says(&["CLUSTER", "SETSLOT", slot, "NODE", &ids[target]]), "OK");
    }
    assert_eq!(statuses(&gateway, moved, 1), [204], "the seventh");
    let before = nodes[home].asked();
    assert_eq!(statuses(&gateway, moved, 1), [204], "the eighth, asked for where it is");
    assert_eq!(nodes[home].asked(), before);

    // One is full: what is counted elsewhere is counted all the same.
    let full = &nodes[homes[names.iter().position(|name| other.starts_with(name)).expect("one of them")]];
    assert_eq!(full.says(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    until("the full one to be seen", || {
        assert_eq!(statuses(&gateway, &other, 1), [503]);
        (!up(&gateway)).then_some(())
    });
    assert_eq!(statuses(&gateway, moved, 1), [204], "the ninth");
    let log = gateway.process.log();
    assert!(log.contains("the store takes no writes") && log.contains(&full.address()), "{log}");
    assert_eq!(full.says(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    until("it to be used again, though nobody asks", || up(&gateway).then_some(()));

    // The node dies, and its replica takes its place.
    assert_eq!(nodes[3].says(&["CLUSTER", "REPLICATE", &ids[target]]), "OK");
    until("the replica", || (nodes[3].info("replication", "master_link_status") == "up").then_some(()));
    let counted = nodes[target].keys();
    until("the replica to know it", || {
        (nodes[3].says(&["DBSIZE"]) == counted.len().to_string()).then_some(())
    });
    nodes[target].kill();
    // Within a second, long before the replica is promoted.
    until("the loss to be seen", || (!up(&gateway)).then_some(()));
    assert_eq!(statuses(&gateway, &other, 1), [204], "others are counted all the same");
    until("the promotion", || up(&gateway).then_some(()));
    assert_eq!(nodes[3].info("replication", "role"), "master");
    assert_eq!(until_used_up(&gateway, moved), 1, "ten in all, forgiving nothing");
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn limits_of_two_objects_are_charged_both_or_none_where_a_cluster_keeps_them_apart() {
    let grounds = Grounds::new();
    let lines =
        ["cluster-enabled yes", "cluster-port BUS", "tls-cluster yes", "cluster-announce-ip 127.0.0.1"];
    let node = grounds.server(&lines);
    assert_eq!(node.says(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    until("the cluster", || node.says(&["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(()));
    let limit = |name, requests| {
        format!("{{name: {name}, requests: {requests}, per: 744h, scope: Global, onStoreFailure: Deny}}")
    };
    let rules = "[{name: all, respond: {status: 204}}]";
    let shop = |name: &str, requests| {
        let own = limit("own", requests);
        let spec =
            format!("{{hostnames: [{name}.example], policy: {{rateLimits: [{own}]}}, rules: {rules}}}");
        route(name, &spec)
    };
    let (tight, wide, imposed) = (shop("tight", 3), shop("wide", 1_000), imposed(&limit("imposed", 5)));
    let files = [("tight.yaml", &*tight), ("wide.yaml", &wide), ("imposed.yaml", &imposed)];
    // One knows of the slots, the other hears of them when it asks.
    for kind in ["rediss+cluster", "rediss"] {
        assert_eq!(node.says(&["FLUSHALL"]), "OK");
        let url = format!("{kind}://:{PASSWORD}@{}", node.address());
        let gateway = grounds.gateway(&url, &files);
        until("the store", || up(&gateway).then_some(()));
        assert_eq!(statuses(&gateway, "tight.example", 1), [204], "{kind}");
        let before = node.asked();
        assert_eq!(statuses(&gateway, "tight.example", 2), [204; 2]);
        assert_eq!(node.asked() - before, 4, "two questions a request, each to one slot");
        let slots: std::collections::BTreeSet<_> =
            node.keys().iter().map(|(_, key)| node.says(&["CLUSTER", "KEYSLOT", key])).collect();
        assert_eq!(slots.len(), 2, "the control: they are apart");
        // Full: what the imposed one gave is given back.
        assert_eq!(statuses(&gateway, "tight.example", 3), [429; 3]);
        assert_eq!(statuses(&gateway, "wide.example", 3), [204, 204, 429], "five in all");
        assert!(up(&gateway));
    }
}
