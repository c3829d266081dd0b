//! The room against a fake API server: what is heard becomes the right updates whatever goes wrong, and status tells
//! what the replicas serve.

mod fake_api;
mod named;
mod purges;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as channel};
use tokio::time::Instant;

use self::fake_api::{FakeApi, until};
use super::lease::{Candidate, Term};
use super::once;
use super::peer_port::{self, TokenFile};
use super::pulse::Pulse;
use super::replicas::Peers;
use super::served::{Served, tests::published};
use super::watch::watches;
use super::writer::Writer;
use super::{Area, addresses};
use crate::compile::{Condition, ConditionStatus, ConditionType, Published, Report};
use crate::lifecycle::{Drain, Phase};
use crate::snapshot::{Change, Kind, Manifest, RawObject, Snapshot, Update};
use crate::telemetry::Telemetry;
use crate::values::ObjectName;

const KINDS: [&str; 7] = [
    "gatewayroutes",
    "gatewaybackends",
    "gatewaypolicies",
    "services",
    "endpointslices",
    "namespaces",
    "referencegrants",
];

fn route(name: &str, generation: i64) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "GatewayRoute",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": generation},
        "spec": {"rules": []}})
}

#[test]
fn a_name_that_leads_nowhere_for_now_takes_no_address_of_the_api_server_back() {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let known = [at("10.0.0.1:443"), at("10.0.0.2:6443")];
    let found = addresses(&known, Vec::new(), [at("10.0.0.3:6443")].into_iter());
    assert_eq!(found, [known[0], known[1], at("10.0.0.3:6443")]);
    let found = addresses(&known, vec![at("10.0.0.9:443")], [at("10.0.0.3:6443")].into_iter());
    assert_eq!(found, [at("10.0.0.3:6443"), at("10.0.0.9:443")], "the control: what it leads to now");
}

/// Watches into a world, as reconcile does.
struct Listener {
    updates: mpsc::Receiver<Update>,
    telemetry: Telemetry,
    world: Snapshot,
    synced: bool,
    listed: usize,
}

impl Listener {
    fn start(fake: &FakeApi, namespaces: &[String]) -> Self {
        Self::of(fake, &Area { namespaces: namespaces.to_vec(), ..Area::default() })
    }

    fn of(fake: &FakeApi, area: &Area) -> Self {
        let (sender, updates) = mpsc::channel(64);
        let telemetry = Telemetry::new(1);
        let pulse = Pulse::new(telemetry.clone());
        for task in watches(&fake.client(), area, None, &telemetry, &pulse, sender) {
            tokio::spawn(task);
        }
        Self { updates, telemetry, world: Snapshot::default(), synced: false, listed: 0 }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            let next = tokio::time::timeout_at(deadline, self.updates.recv()).await;
            match next.unwrap_or_else(|_| panic!("waited in vain until {what}")).expect("the watches ended") {
                Update::Synced => self.synced = true,
                Update::Changes(changes) => {
                    for change in changes {
                        self.listed +=
                            usize::from(matches!(&change, Change::Listed { kind: Kind::GatewayRoute, .. }));
                        self.world.apply(change);
                    }
                }
            }
        }
    }

    fn routes(&self) -> Vec<&str> {
        self.world.routes.keys().map(|name| &*name.name).collect()
    }
}

#[tokio::test]
async fn lists_then_synced_then_what_happens() {
    let fake = FakeApi::start().await;
    fake.put("gatewayroutes", route("a", 1));
    fake.put(
        "services",
        json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}}),
    );
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert_eq!((here.routes(), here.world.services.len()), (vec!["a"], 1));
    for kind in KINDS {
        assert_eq!(fake.count(&format!("LIST {kind}")), 1, "{kind}");
    }
    fake.put("gatewayroutes", route("b", 1));
    here.until("b came", |here| here.routes() == ["a", "b"]).await;
    fake.delete("gatewayroutes", "shop", "a");
    here.until("a went", |here| here.routes() == ["b"]).await;
}

#[tokio::test]
async fn named_namespaces_are_watched_one_by_one_and_namespaces_not_at_all() {
    let fake = FakeApi::start().await;
    fake.put("gatewayroutes", route("a", 1));
    let mut other = route("z", 1);
    other["metadata"]["namespace"] = "elsewhere".into();
    fake.put("gatewayroutes", other);
    let mut here = Listener::start(&fake, &["shop".into(), "pay".into(), "shop".into()]);
    here.until("synced", |here| here.synced).await;
    assert_eq!(here.routes(), ["a"]);
    assert_eq!((fake.count("LIST gatewayroutes"), fake.count("LIST namespaces")), (2, 0));
}

#[tokio::test]
async fn a_closed_watch_goes_on_where_it_was() {
    let fake = FakeApi::start().await;
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    until("it watches", || fake.count("WATCH gatewayroutes") == 1).await;
    fake.close_watches();
    fake.put("gatewayroutes", route("a", 1));
    here.until("a came", |here| here.routes() == ["a"]).await;
    assert_eq!(fake.count("LIST gatewayroutes"), 1, "listed again without need");
}

#[tokio::test]
async fn a_closed_watch_goes_on_from_its_bookmark_though_the_past_is_gone() {
    let fake = FakeApi::start().await;
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    until("it watches", || fake.count("WATCH gatewayroutes") == 1).await;
    fake.bookmark("gatewayroutes").await;
    fake.close_watches();
    fake.put("gatewayroutes", route("a", 1));
    here.until("a came", |here| here.routes() == ["a"]).await;
    assert_eq!(fake.count("LIST gatewayroutes"), 1, "listed again without need");
}

#[tokio::test]
async fn a_lost_past_is_listed_anew_and_a_failing_list_wipes_nothing() {
    let fake = FakeApi::start().await;
    for name in ["a", "b"] {
        fake.put("gatewayroutes", route(name, 1));
    }
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    until("it watches", || fake.count("WATCH gatewayroutes") == 1).await;
    fake.fail_lists("gatewayroutes", 3);
    fake.delete("gatewayroutes", "shop", "a");
    fake.compact();
    fake.close_watches();
    here.until("it was listed again", |here| {
        assert!(here.routes().contains(&"b"), "b was there all the time");
        here.listed == 2
    })
    .await;
    assert_eq!(here.routes(), ["b"]);
    assert_eq!(fake.count("LIST gatewayroutes"), 5);
    assert!(here.telemetry.render().contains(r#"portcullis_watch_errors_total{kind="gatewayroutes"}"#));
}

#[tokio::test]
async fn grants_that_are_not_installed_hold_nobody_up_and_count_once_they_are() {
    let fake = FakeApi::start().await;
    fake.refuse("referencegrants", Some(404));
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert!(!here.telemetry.render().contains(r#"errors_total{kind="referencegrants"}"#));
    fake.put(
        "referencegrants",
        json!({"metadata": {"name": "g", "namespace": "shop"}, "spec": {"from": [], "to": []}}),
    );
    fake.refuse("referencegrants", None);
    here.until("the grant is known", |here| here.world.grants.len() == 1).await;
}

#[tokio::test]
async fn a_refused_kind_is_counted_stops_no_other_and_readiness_waits_for_it() {
    let fake = FakeApi::start().await;
    fake.refuse("services", Some(403));
    fake.put("gatewayroutes", route("a", 1));
    let mut here = Listener::start(&fake, &[]);
    here.until("the routes are known", |here| here.routes() == ["a"]).await;
    until("it was tried again", || fake.count("LIST services") >= 2).await;
    assert!(!here.synced);
    assert!(here.telemetry.render().contains(r#"errors_total{kind="services"}"#));
    fake.refuse("services", None);
    here.until("synced", |here| here.synced).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_the_rest_goes_on() {
    let fake = FakeApi::start().await;
    fake.put(
        "services",
        json!({"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": "many"}}),
    );
    fake.put(
        "services",
        json!({"metadata": {"name": "good", "namespace": "shop"}, "spec": {"ports": [{"port": 1}]}}),
    );
    let mut here = Listener::start(&fake, &[]);
    here.until("synced", |here| here.synced).await;
    assert_eq!(here.world.services.len(), 1);
    assert_eq!(here.world.failures.len(), 1);
    assert_eq!(here.world.failures[0].name, Some(ObjectName::new("shop", "bad")));
    fake.put(
        "services",
        json!({"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": [{"port": 2}]}}),
    );
    here.until("it can be read", |here| here.world.failures.is_empty() && here.world.services.len() == 2)
        .await;
}

#[tokio::test]
async fn read_once_every_page_is_taken_and_what_is_refused_is_said() {
    let fake = FakeApi::start().await;
    for number in 0..1_001 {
        fake.put("gatewayroutes", route(&format!("r{number}"), 1));
    }
    fake.put(
        "services",
        json!({"metadata": {"name": "bad", "namespace": "shop"}, "spec": {"ports": "many"}}),
    );
    fake.refuse("referencegrants", Some(404));
    fake.refuse("endpointslices", Some(403));
    let found = once::read_by(&fake.client(), &[]).await.unwrap();
    assert!(KINDS.iter().all(|kind| fake.count(&format!("LIST {kind}")) > 0), "each kind that is watched");
    assert_eq!((found.world.routes.len(), fake.count("LIST gatewayroutes")), (1_001, 3));
    assert_eq!(found.world.failures[0].name, Some(ObjectName::new("shop", "bad")));
    assert_eq!(found.unread.len(), 1);
    assert!(found.unread[0].starts_with("endpointslices cannot be read: "), "{:?}", found.unread);

    let none = once::read_by(&fake.client(), &["pay".into()]).await.unwrap();
    assert_eq!((none.world.routes.len(), fake.count("LIST namespaces")), (0, 1));
    fake.refuse("gatewayroutes", Some(403));
    assert!(once::read_by(&fake.client(), &[]).await.is_err(), "without routes there is nothing to explain");
}

fn candidate(fake: &FakeApi, name: &str, drain: &crate::lifecycle::DrainSignal) -> channel::Receiver<Term> {
    let (sender, term) = channel::channel(Term::default());
    let telemetry = Telemetry::new(1);
    let candidate = Candidate {
        client: fake.client(),
        namespace: "gateway".into(),
        lease: "portcullis".into(),
        identity: name.into(),
        pulse: Pulse::new(telemetry.clone()),
        telemetry,
        drain: drain.clone(),
    };
    tokio::spawn(candidate.run(sender));
    term
}

#[tokio::test]
async fn one_of_two_candidates_leads_and_gives_the_lease_back_at_its_end() {
    let fake = FakeApi::start().await;
    let (drain, signal) = Drain::new();
    let first = candidate(&fake, "first", &signal);
    until("the first leads", || first.borrow().holds()).await;
    let (_other, signal) = Drain::new();
    let second = candidate(&fake, "second", &signal);
    until("the second has looked", || fake.count("GET leases") >= 2).await;
    assert!(!second.borrow().holds());
    drain.advance(Phase::Leaving);
    until("the second leads", || second.borrow().holds()).await;
    assert!(!first.borrow().holds());
    let lease = fake.get("leases", "gateway", "portcullis").unwrap();
    assert_eq!(
        (&lease["spec"]["holderIdentity"], &lease["spec"]["leaseTransitions"]),
        (&json!("second"), &json!(1))
    );
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
type Publications = channel::Sender<Option<Arc<Published>>>;

/// A leader, and other replicas on ports of their own.
struct Fleet {
    fake: FakeApi,
    token: tempfile::NamedTempFile,
    leader: Publications,
    term: channel::Sender<Term>,
}

impl Fleet {
    async fn start() -> Self {
        let fake = FakeApi::start().await;
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), TOKEN).unwrap();
        let (leader, published) = channel::channel(None);
        let (term, receiver) = channel::channel(Term::until(Instant::now() + Duration::from_secs(60)));
        let peers = Peers {
            client: fake.client(),
            namespace: "gateway".into(),
            service: "peers".into(),
            token: TokenFile::new(token.path().into()),
            own: None,
            lately: Arc::default(),
        };
        let served = Served::new("leader", published.clone());
        let writer = Writer::new(&fake.client(), "edge", "leader", Some(peers), served, receiver, published);
        tokio::spawn(writer.run());
        Self { fake, token, leader, term }
    }

    /// Another replica that answers, with what it has published: first nothing, an empty map.
    async fn replica(&self, name: &str, serving: bool) -> Publications {
        let (sender, served) = self.starting(name, serving).await;
        sender.send_replace(published(0, &[]));
        served.ready().await;
        sender
    }

    /// One that has no map yet.
    async fn starting(&self, name: &str, serving: bool) -> (Publications, Served) {
        let (sender, receiver) = channel::channel(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.slice(name, listener.local_addr().unwrap(), serving);
        let token = TokenFile::new(self.token.path().into());
        let served = Served::new(name, receiver);
        tokio::spawn(peer_port::serve(listener, token, served.clone(), Arc::new(|_| Ok(()))));
        (sender, served)
    }

    fn slice(&self, name: &str, address: SocketAddr, serving: bool) {
        let slice = json!({
            "metadata": {"name": name, "namespace": "gateway", "labels": {"kubernetes.io/service-name": "peers"}},
            "addressType": "IPv4", "ports": [{"name": "peer", "port": address.port()}],
            "endpoints": [{"addresses": [address.ip()], "targetRef": {"name": name},
                "conditions": {"ready": true, "serving": serving}}]});
        self.fake.put("endpointslices", slice);
    }

    /// What the leader has compiled, with the status as a watch tells it.
    fn publish(&self, sequence: u64, generation: i64) {
        let mut object = route("a", generation);
        if let Some(status) =
            self.fake.get("gatewayroutes", "shop", "a").and_then(|there| there.get("status").cloned())
        {
            object["status"] = status;
        }
        self.fake.put("gatewayroutes", object.clone());
        let raw: RawObject = serde_json::from_value(object).unwrap();
        let manifest = Manifest::new(raw, None).unwrap();
        let mut world = Snapshot::default();
        world.routes.insert(manifest.name.clone(), Arc::new(manifest));
        let mut news = Published::clone(&published(sequence, &[("a", generation, 7)]).unwrap());
        news.world = Arc::new(world);
        let accepted = |report: &Arc<Report>| {
            let accepted = Condition {
                kind: ConditionType::Accepted,
                status: ConditionStatus::True,
                reason: "Accepted",
                message: "the spec compiles".into(),
            };
            Arc::new(Report { conditions: vec![accepted], ..Report::clone(report) })
        };
        news.compiled.reports = news.compiled.reports.iter().map(accepted).collect();
        self.leader.send_replace(Some(Arc::new(news)));
    }

    fn programmed(&self) -> String {
        let Some(object) = self.fake.get("gatewayroutes", "shop", "a") else { return String::new() };
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let programmed = conditions.iter().find(|condition| condition["type"] == "Programmed");
        programmed
            .map(|it| format!("{} {}", it["status"].as_str().unwrap(), it["message"].as_str().unwrap()))
            .unwrap_or_default()
    }

    async fn until_programmed(&self, expected: &str) {
        let last = std::cell::RefCell::new(String::new());
        for _ in 0..1_000 {
            *last.borrow_mut() = self.programmed();
            if *last.borrow() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited for {expected:?}, found {:?}", last.borrow());
    }
}

#[tokio::test]
async fn programmed_waits_for_a_replica_that_lags() {
    let fleet = Fleet::start().await;
    let other = fleet.replica("other", true).await;
    other.send_replace(published(1, &[("a", 1, 7)]));
    fleet.publish(1, 2);
    fleet.until_programmed("False 1 of 2; other serves generation 1").await;
    other.send_replace(published(2, &[("a", 2, 8)]));
    fleet.until_programmed("False 1 of 2; other serves generation 2 with other Secrets or backends").await;
    other.send_replace(published(3, &[("a", 2, 7)]));
    fleet.until_programmed("True every ready replica serves generation 2").await;
    until("Events tell it", || fleet.fake.all("events").iter().any(|event| event["reason"] == "Programmed"))
        .await;
}

#[tokio::test]
async fn a_ready_replica_that_hangs_counts_as_missing_until_it_is_scaled_away() {
    let fleet = Fleet::start().await;
    // Accepts connections in its backlog and never answers.
    let hanging = TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 0)).await.unwrap();
    fleet.slice("hanging", hanging.local_addr().unwrap(), true);
    fleet.publish(1, 1);
    fleet.until_programmed("False 1 of 2; hanging does not answer").await;
    fleet.fake.delete("endpointslices", "gateway", "hanging");
    fleet.until_programmed("True every ready replica serves generation 1").await;
}

#[tokio::test]
async fn one_that_is_neither_ready_nor_answers_does_not_count() {
    let fleet = Fleet::start().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    fleet.slice("gone", gone.local_addr().unwrap(), false);
    drop(gone);
    fleet.publish(1, 1);
    fleet.until_programmed("True every ready replica serves generation 1").await;
}

/// It once kept every new generation Pending for as long as it could not read its first lists.
#[tokio::test]
async fn one_that_cannot_start_holds_nothing_up_and_is_not_ready_before_it_serves_what_it_was_asked_for() {
    let fleet = Fleet::start().await;
    let (stuck, served) = fleet.starting("stuck", false).await;
    fleet.publish(1, 1);
    fleet.until_programmed("True every ready replica serves generation 1").await;
    let mut ready = tokio::spawn(async move { served.ready().await });
    stuck.send_replace(published(0, &[]));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut ready).await;
    assert!(early.is_err(), "ready without what is Programmed");
    stuck.send_replace(published(1, &[("a", 1, 7)]));
    ready.await.unwrap();
}

#[tokio::test]
async fn one_that_starts_again_in_a_ready_pod_is_waited_for() {
    let fleet = Fleet::start().await;
    let (again, _served) = fleet.starting("again", true).await;
    fleet.publish(1, 1);
    fleet.until_programmed("False 1 of 2; again does not serve it yet").await;
    again.send_replace(published(1, &[("a", 1, 7)]));
    fleet.until_programmed("True every ready replica serves generation 1").await;
}

#[tokio::test]
async fn one_that_is_about_to_be_ready_is_asked_and_served_stays_true_for_its_generation() {
    let fleet = Fleet::start().await;
    let starting = fleet.replica("starting", false).await;
    fleet.publish(1, 1);
    fleet.until_programmed("False 1 of 2; starting does not serve it yet").await;
    starting.send_replace(published(1, &[("a", 1, 7)]));
    fleet.until_programmed("True every ready replica serves generation 1").await;
    let _later = fleet.replica("later", true).await;
    let patches = fleet.fake.count("PATCH gatewayroutes");
    fleet.publish(2, 1);
    fleet.publish(3, 2);
    fleet.until_programmed("False 1 of 3; later does not serve it yet; starting serves generation 1").await;
    assert_eq!(fleet.fake.count("PATCH gatewayroutes"), patches + 1, "the same generation was written again");
}

#[tokio::test]
async fn nobody_writes_without_a_term_and_a_stale_status_is_not_overwritten() {
    let fleet = Fleet::start().await;
    fleet.term.send_replace(Term::default());
    tokio::task::yield_now().await;
    fleet.publish(1, 1);
    // Somebody else has written what this leader has not heard of.
    let mut object = route("a", 1);
    object["status"] = json!({"conditions": [], "written": "by another"});
    fleet.fake.put("gatewayroutes", object);
    assert_eq!(fleet.fake.count("PATCH gatewayroutes"), 0);
    fleet.term.send_replace(Term::until(Instant::now() + Duration::from_secs(60)));
    until("it was tried and refused", || fleet.fake.count("PATCH gatewayroutes") >= 2).await;
    let there = fleet.fake.get("gatewayroutes", "shop", "a").unwrap();
    assert_eq!(there["status"]["written"], "by another");
    fleet.publish(2, 1);
    fleet.until_programmed("True every ready replica serves generation 1").await;
}
