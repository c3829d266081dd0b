//! Names and what becomes of them, with the test in the servers' place.

use std::net::SocketAddr;

use super::resolver::{MAX_ADDRESSES, Parts};
use super::*;
use crate::values::ObjectName;

/// How long answers hold here.
const HOLDS: Duration = Duration::from_secs(20);
/// How long those keep silent whose names say so.
const SILENT: Duration = Duration::from_secs(10);

/// A resolver whose answers the test sets, and what was published.
struct World {
    answers: Arc<Mutex<HashMap<&'static str, Parts>>>,
    asked: Arc<Mutex<Vec<String>>>,
    published: mpsc::UnboundedReceiver<(String, Vec<SocketAddr>)>,
    names: Names,
}

impl World {
    fn start() -> Self {
        let answers = Arc::<Mutex<HashMap<&'static str, Parts>>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (tell, published) = mpsc::unbounded_channel();
        let (book, list) = (answers.clone(), asked.clone());
        let look_up: LookUp = Arc::new(move |name: Arc<str>, _| {
            list.lock().expect("not poisoned").push(name.to_string());
            let answer = book.lock().expect("not poisoned").get(&*name).cloned();
            let failed = || [(); 2].map(|()| Part::Failed("nobody answers".into()));
            Box::pin(async move {
                if name.starts_with("silent") {
                    tokio::time::sleep(SILENT).await;
                }
                Found { parts: answer.unwrap_or_else(failed), meant: None }
            })
        });
        let names = Names::with(look_up, Telemetry::new(1), move |backend, set| {
            let addresses = set.endpoints.iter().map(|endpoint| endpoint.address).collect();
            tell.send((backend.to_string(), addresses)).expect("the test listens");
        });
        Self { answers, asked, published, names }
    }

    fn answer(&self, name: &'static str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
        let (v4, v6): (Vec<_>, Vec<_>) = addresses.partition(IpAddr::is_ipv4);
        self.says(
            name,
            [v4, v6].map(|family| match family.is_empty() {
                true => Part::Nothing(Duration::from_secs(5)),
                false => Part::Addresses(family, HOLDS),
            }),
        );
    }

    fn says(&self, name: &'static str, parts: Parts) {
        self.answers.lock().expect("not poisoned").insert(name, parts);
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }

    fn forget(&self, name: &str) {
        self.answers.lock().expect("not poisoned").remove(name);
    }

    async fn next(&mut self) -> (String, Vec<String>) {
        self.next_within(Duration::from_secs(60)).await
    }

    async fn next_within(&mut self, time: Duration) -> (String, Vec<String>) {
        let next = tokio::time::timeout(time, self.published.recv()).await;
        let (backend, addresses) = next.expect("published in time").expect("the task lives");
        (backend, addresses.iter().map(SocketAddr::to_string).collect())
    }

    /// Nothing is published while the clock passes several look-ups.
    async fn is_quiet(&mut self) {
        let next = tokio::time::timeout(4 * HOLDS, self.published.recv()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

fn backend(name: &str) -> BackendId {
    BackendId::GatewayBackend(ObjectName::new("shop", name))
}

fn named(name: &str) -> (Address, u16) {
    (Address::Name(name.into()), 80)
}

fn told(addresses: &[&str]) -> (String, Vec<String>) {
    ("GatewayBackend/shop/pay".into(), addresses.iter().map(ToString::to_string).collect())
}

#[tokio::test(start_paused = true)]
async fn a_name_gives_all_its_addresses_and_follows_them() {
    let mut world = World::start();
    world.answer("pay.test", &["10.0.0.1", "10.0.0.2"]);
    world
        .names
        .wanted(vec![(backend("pay"), vec![named("pay.test"), (Address::Ip([10, 9, 9, 9].into()), 81)])]);
    assert_eq!(world.next().await, told(&["10.9.9.9:81"]), "an address needs no look-up");
    assert_eq!(world.next().await, told(&["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:81"]));
    world.is_quiet().await;
    world.answer("pay.test", &["10.0.0.3"]);
    assert_eq!(world.next().await, told(&["10.0.0.3:80", "10.9.9.9:81"]));
}

#[test]
fn an_endpoint_knows_the_name_that_it_was_resolved_from() {
    let known = Known::from([("pay.test".into(), vec![[10, 0, 0, 1].into()])]);
    let hosts = [(Address::Name("pay.test".into()), 80), (Address::Ip([10, 0, 0, 1].into()), 81)];
    let set = endpoints(&hosts, &known);
    let names: Vec<_> = set.endpoints.iter().map(|endpoint| endpoint.name.as_deref()).collect();
    assert_eq!(names, [Some("pay.test"), None]);
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_outlives_a_failure_for_ever_and_a_no_for_a_while() {
    let mut world = World::start();
    world.answer("pay.test", &["10.0.0.1"]);
    world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
    assert_eq!(world.next().await, told(&[]));
    assert_eq!(world.next().await, told(&["10.0.0.1:80"]));
    world.forget("pay.test");
    for _ in 0..10 {
        world.is_quiet().await;
    }
    world.answer("pay.test", &[]);
    let began = Instant::now();
    assert_eq!(world.next_within(2 * FORGOTTEN).await, told(&[]), "it is gone");
    assert!((FORGOTTEN..FORGOTTEN + 2 * LONGEST_DELAY).contains(&began.elapsed()), "{:?}", began.elapsed());
    world.answer("pay.test", &["10.0.0.2"]);
    assert_eq!(world.next().await, told(&["10.0.0.2:80"]));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_for_as_often_as_its_answer_says() {
    for (parts, seconds, times) in [
        (
            [
                Part::Addresses(vec![[10, 0, 0, 1].into()], Duration::from_secs(100)),
                Part::Nothing(Duration::from_secs(5)),
            ],
            1000,
            9..=14,
        ),
        (
            [
                Part::Addresses(vec![[10, 0, 0, 1].into()], Duration::from_secs(1)),
                Part::Nothing(Duration::from_secs(5)),
            ],
            100,
            95..=130,
        ),
        // One that is not there is looked for again soon, but not all the time.
        ([Part::Nothing(Duration::from_secs(5)), Part::Nothing(Duration::from_secs(5))], 100, 19..=27),
        // Nor servers that do not answer.
        ([Part::Failed("late".into()), Part::Failed("late".into())], 1000, 60..=85),
    ] {
        let mut world = World::start();
        world.says("pay.test", parts);
        world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
        world.next().await;
        world.next().await;
        let before = world.asked();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let asked = world.asked() - before;
        assert!(times.contains(&asked), "{asked} in {seconds} s, expected {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_family_that_cannot_be_asked_for_is_not_lost() {
    let here = |last: u8| IpAddr::from([127, 0, 0, last]);
    let there: IpAddr = "::1".parse().expect("an address");
    let v4 = |last| Part::Addresses(vec![here(last)], HOLDS);
    let found = |parts| Found { parts, meant: None };
    let mut last = Last::default();
    last.take("pay.test", found([v4(1), Part::Addresses(vec![there], HOLDS)]));
    let delay = last.take("pay.test", found([v4(2), Part::Failed("late".into())]));
    assert_eq!((last.families.clone(), delay), ([vec![here(2)], vec![there]], FIRST_DELAY));
    last.take("pay.test", found([v4(2), Part::Nothing(Duration::from_secs(5))]));
    assert_eq!(last.families, [vec![here(2)], vec![]], "that it has none is an answer");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_one_meaning_is_not_served_beside_another_s() {
    let v4 = |last| Part::Addresses(vec![IpAddr::from([127, 0, 0, last])], HOLDS);
    let failed = || Part::Failed("late".into());
    let mut last = Last::default();
    assert_eq!(last.held(), Held::default());
    for _ in 0..2 {
        last.take("db", Found { parts: [failed(), failed()], meant: None });
    }
    assert_eq!(last.held(), Held { meant: None, passes: true }, "after a while another is taken");
    let outside = Part::Addresses(vec!["2001:db8::1".parse().expect("an address")], HOLDS);
    last.take("db", Found { parts: [v4(1), outside], meant: Name::new("db") });
    assert_eq!(last.held(), Held { meant: Name::new("db"), passes: false });
    last.take("db", Found { parts: [v4(2), failed()], meant: Name::new("db.svc.test") });
    assert_eq!(last.families, [vec![IpAddr::from([127, 0, 0, 2])], vec![]]);
    assert_eq!(last.held().meant, Name::new("db.svc.test"));
}

#[tokio::test(start_paused = true)]
async fn silent_names_of_one_namespace_do_not_hold_up_another_s() {
    let mut world = World::start();
    let of = |namespace: &str, name: &str| BackendId::GatewayBackend(ObjectName::new(namespace, name));
    let silent: Vec<_> = (0..1000).map(|number| named(&format!("silent-{number}.test"))).collect();
    world.names.wanted(vec![(of("other", "silent"), silent.clone())]);
    // All that may be under way are.
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.answer("pay.test", &["10.0.0.1"]);
    world.names.wanted(vec![(of("other", "silent"), silent), (of("shop", "pay"), vec![named("pay.test")])]);
    let began = Instant::now();
    let is_it = |told: &(String, Vec<String>)| told.0.ends_with("shop/pay") && !told.1.is_empty();
    while !is_it(&world.next().await) {}
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "the first answer comes at once: {:?}",
        began.elapsed()
    );
    let of_pay = || {
        let asked = world.asked.lock().expect("not poisoned");
        asked.iter().filter(|name| *name == "pay.test").count()
    };
    let before = of_pay();
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!((48..=65).contains(&(of_pay() - before)), "as often as its records say: {}", of_pay() - before);
    let all = world.asked();
    assert!(all > 500, "and the others are asked, too: {all}");
}

#[test]
fn the_dot_of_an_absolute_name_is_no_part_of_the_server_s() {
    let known = Known::from([("pay.test.".into(), vec![[10, 0, 0, 1].into()])]);
    let set = endpoints(&[(Address::Name("pay.test.".into()), 80)], &known);
    assert_eq!(set.endpoints[0].name.as_deref(), Some("pay.test"));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_first_answer_learns_that_there_is_none() {
    let mut world = World::start();
    world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
    assert!(!world.names.endpoints(&[named("pay.test")]).known, "nobody was asked yet");
    assert_eq!(world.next().await, told(&[]));
    assert_eq!(world.next().await, told(&[]), "and now nobody answered");
    assert!(world.names.endpoints(&[named("pay.test")]).known);
}

#[tokio::test(start_paused = true)]
async fn a_new_map_is_told_what_is_known_and_names_that_left_are_not_asked_for() {
    let mut world = World::start();
    world.answer("pay.test", &["10.0.0.1"]);
    world.names.wanted(vec![(backend("pay"), vec![named("pay.test"), named("old.test")])]);
    assert_eq!(world.next().await, told(&[]));
    assert_eq!(world.next().await, told(&["10.0.0.1:80"]));
    assert_eq!(
        world.names.endpoints(&[named("pay.test")]).endpoints.len(),
        1,
        "known before it is installed"
    );
    world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
    assert_eq!(world.next().await, told(&["10.0.0.1:80"]), "at once, for the backend may be new");
    world.asked.lock().expect("not poisoned").clear();
    world.is_quiet().await;
    let asked = world.asked.lock().expect("not poisoned").clone();
    assert!(asked.len() >= 3 && asked.iter().all(|name| name == "pay.test"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_handle() {
    let mut world = World::start();
    world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
    assert_eq!(world.next().await, told(&[]));
    let World { mut published, names, .. } = world;
    drop(names);
    let ends = async { while published.recv().await.is_some() {} };
    let ended = tokio::time::timeout(Duration::from_secs(60), ends).await;
    assert!(ended.is_ok(), "the task and its callback are gone");
}

#[tokio::test]
async fn localhost_is_this_machine_whoever_is_asked() {
    let settings =
        ResolverSettings { servers: vec!["127.0.0.1:9".parse().expect("an address")], ..Default::default() };
    let found = Resolver::new(settings).addresses("localhost", 80).await.expect("resolves");
    assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    assert!(found.len() <= 2 * MAX_ADDRESSES);
}
