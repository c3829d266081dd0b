//! Asks servers what filters want to know while requests wait.
//!
//! Invariants: equal questions are one on the wire, however many ask; whoever stops waiting takes nothing from the
//! others; every question ends within its deadline; what waits and what is on its way is bounded; a server that cannot
//! be reached is tried once a second, not once a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::client::{Client, Connection, Unanswered};
use crate::filters::{About, Answer, Answers, AskPlan, Inquiry, NoAnswer, Question, Reply};
use crate::telemetry::{HostSeries, Telemetry};
use crate::values::Redacted;

/// So many questions are on their way at once.
const MOST_AT_ONCE: usize = 256;
/// So many wait for an answer in all.
const MOST_WAITERS: usize = 16_384;
const MAX_BODY: usize = 64 << 10;
/// Connections that wait for the next question, and for how long: servers close them after some time.
const MOST_IDLE: usize = 8;
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// A server that was out of reach so often in a row is tried this seldom.
const OUT_OF_REACH: u32 = 5;
const TRIED_EVERY: Duration = Duration::from_secs(1);

/// Asks what comes until nobody can ask any more.
pub(super) async fn keep_asking(inquiry: Inquiry, client: Client, telemetry: Telemetry) {
    let Inquiry { plan, answers, mut questions, hits } = inquiry;
    let series = telemetry.control().of_host(&plan.place.host());
    telemetry.control().counts_hits(&plan.place.host(), &hits);
    let mut asker = Asker {
        plan: Arc::new(plan),
        answers,
        client,
        telemetry: telemetry.clone(),
        waiting: HashMap::new(),
        waiters: 0,
        about: HashMap::new(),
        idle: Vec::new(),
        reach: Reach { failures: 0, next_try: Instant::now() },
        is_failing: false,
        series,
    };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            question = questions.recv() => match question {
                Some(question) => asker.take(question, &mut tasks),
                None => break,
            },
            Some(done) = tasks.join_next_with_id() => asker.done(done),
        }
    }
    telemetry.control().counted_hits(&hits);
}

struct Asker {
    plan: Arc<AskPlan>,
    answers: Arc<dyn Answers>,
    client: Client,
    telemetry: Telemetry,
    /// Who waits for what.
    waiting: HashMap<About, Vec<Reply>>,
    waiters: usize,
    /// What each task asks about.
    about: HashMap<Id, About>,
    idle: Vec<(Connection, Instant)>,
    reach: Reach,
    /// For the log, which has a line a change.
    is_failing: bool,
    series: HostSeries,
}

/// Whether the server can be reached.
struct Reach {
    /// In a row.
    failures: u32,
    next_try: Instant,
}

/// What a task brings back.
struct Heard {
    connection: Option<Connection>,
    body: Result<Bytes, Fault>,
}

enum Fault {
    OutOfReach(String),
    /// It answered, with nothing that helps.
    Useless(String),
}

impl Asker {
    fn take(&mut self, question: Question, tasks: &mut JoinSet<Heard>) {
        let about = question.about;
        let (form, reply) = question.split();
        if let Some(answer) = self.answers.known(&about) {
            // Who has gone needs no answer.
            let _ = reply.send(Ok(answer));
            return;
        }
        let is_new = !self.waiting.contains_key(&about);
        let may_wait = match self.waiters {
            MOST_WAITERS.. => Err(NoAnswer::TooMany),
            _ if is_new => self.may_ask(),
            _ => Ok(()),
        };
        if let Err(why) = may_wait {
            self.count("not_asked");
            let _ = reply.send(Err(why));
            return;
        }
        self.waiters += 1;
        self.waiting.entry(about).or_default().push(reply);
        if is_new {
            let (plan, client, idle) = (Arc::clone(&self.plan), self.client.clone(), self.reuse());
            let task = tasks.spawn(ask(plan, client, idle, form));
            self.about.insert(task.id(), about);
        }
    }

    fn may_ask(&mut self) -> Result<(), NoAnswer> {
        if self.reach.failures < OUT_OF_REACH {
            let is_room = self.waiting.len() < MOST_AT_ONCE;
            return if is_room { Ok(()) } else { Err(NoAnswer::TooMany) };
        }
        let now = Instant::now();
        let is_time = self.waiting.is_empty() && now >= self.reach.next_try;
        if !is_time {
            return Err(NoAnswer::Failed);
        }
        self.reach.next_try = now + TRIED_EVERY;
        Ok(())
    }

    fn reuse(&mut self) -> Option<Connection> {
        let now = Instant::now();
        self.idle.retain(|(connection, since)| {
            !connection.is_closed() && now.duration_since(*since) < LONGEST_IDLE
        });
        self.idle.pop().map(|(connection, _)| connection)
    }

    fn done(&mut self, done: Result<(Id, Heard), JoinError>) {
        let (id, heard) = match done {
            Ok((id, heard)) => (id, Some(heard)),
            Err(error) => (error.id(), None),
        };
        let Some(about) = self.about.remove(&id) else { return };
        let answer = heard.and_then(|heard| self.read(&about, heard)).ok_or(NoAnswer::Failed);
        let waiters = self.waiting.remove(&about).unwrap_or_default();
        self.waiters -= waiters.len();
        for waiter in waiters {
            let _ = waiter.send(answer.clone());
        }
    }

    fn read(&mut self, about: &About, heard: Heard) -> Option<Answer> {
        if let Some(connection) = heard.connection.filter(|_| self.idle.len() < MOST_IDLE) {
            self.idle.push((connection, Instant::now()));
        }
        self.reach.failures = match &heard.body {
            Err(Fault::OutOfReach(_)) => self.reach.failures.saturating_add(1),
            _ => 0,
        };
        let read = match heard.body {
            Ok(body) => self.answers.read(about, &body),
            Err(Fault::OutOfReach(error) | Fault::Useless(error)) => Err(error),
        };
        let place = &self.plan.place;
        match read {
            Ok((answer, word)) => {
                self.count(word);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!(%place, "answers again");
                    self.series.is_well();
                }
                Some(answer)
            }
            Err(error) => {
                self.count("failed");
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(%place, error, "cannot be asked; what it would have to say is not known");
                    self.series.fails(place, &error);
                }
                None
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.telemetry.control().asked(&self.plan.place.host(), result);
    }
}

async fn ask(plan: Arc<AskPlan>, client: Client, idle: Option<Connection>, form: Redacted<String>) -> Heard {
    match tokio::time::timeout(plan.patience, ask_on(&plan, &client, idle, &form)).await {
        Ok(heard) => heard,
        Err(_) => {
            let error = format!("it did not answer within {:?}", plan.patience);
            Heard { connection: None, body: Err(Fault::OutOfReach(error)) }
        }
    }
}

async fn ask_on(plan: &AskPlan, client: &Client, idle: Option<Connection>, form: &Redacted<String>) -> Heard {
    let failed = |fault| Heard { connection: None, body: Err(fault) };
    let mut answer = Err(Unanswered::Silent(String::new()));
    let mut connection = idle;
    if let Some(connection) = &mut connection {
        let question = request(plan, &connection.authority, form);
        answer = connection.send(question, MAX_BODY).await;
    }
    // The server may have closed it just then. To ask twice does no harm.
    if matches!(answer, Err(Unanswered::Silent(_))) {
        let mut anew = match client.connect(&plan.place).await {
            Ok(connection) => connection,
            Err(error) => return failed(Fault::OutOfReach(error)),
        };
        let question = request(plan, &anew.authority, form);
        answer = anew.send(question, MAX_BODY).await;
        connection = Some(anew);
    }
    match answer {
        Ok(answer) => {
            let body = check(answer.status(), answer.headers()).map(|()| answer.into_body());
            Heard { connection, body: body.map_err(Fault::Useless) }
        }
        Err(Unanswered::Silent(error)) => failed(Fault::OutOfReach(error)),
        Err(Unanswered::Broken(error)) => failed(Fault::Useless(error)),
    }
}

fn request(plan: &AskPlan, authority: &HeaderValue, form: &Redacted<String>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(form.expose().clone())));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = plan.place.target().parse().expect("a proven target is one");
    let headers = request.headers_mut();
    let text = HeaderValue::from_static;
    headers.insert(HOST, authority.clone());
    headers.insert(AUTHORIZATION, plan.authorization.expose().clone());
    headers.insert(ACCEPT, text("application/json"));
    headers.insert(CONTENT_TYPE, text("application/x-www-form-urlencoded"));
    headers.insert(USER_AGENT, text("portcullis"));
    request
}

fn check(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(format!("it answered {status}: does it know this client's id and secret?"));
        }
        _ => return Err(format!("it answered {status}; redirects are not followed")),
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err("what it answered is not of the type application/json".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::super::client::Ways;
    use super::*;
    use crate::filters::{Asked, OwnHost, Place, Url};
    use crate::telemetry::HitCount;
    use crate::upstream::{Guard, Loopback};

    /// Answers with what the test says at the time, once it may, on kept connections.
    struct Server {
        address: SocketAddr,
        says: Arc<Mutex<String>>,
        may: Arc<Semaphore>,
        asked: Arc<AtomicUsize>,
        connected: Arc<AtomicUsize>,
    }

    impl Server {
        async fn start(answer: &str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let server = Self {
                address: listener.local_addr().expect("an address"),
                says: Arc::new(Mutex::new(answer.to_owned())),
                may: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
                asked: Arc::default(),
                connected: Arc::default(),
            };
            let (says, may) = (Arc::clone(&server.says), Arc::clone(&server.may));
            let (asked, connected) = (Arc::clone(&server.asked), Arc::clone(&server.connected));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    connected.fetch_add(1, Ordering::SeqCst);
                    let (says, may, asked) = (Arc::clone(&says), Arc::clone(&may), Arc::clone(&asked));
                    tokio::spawn(async move {
                        let mut question = vec![0; 4096];
                        while stream.read(&mut question).await.is_ok_and(|read| read > 0) {
                            asked.fetch_add(1, Ordering::SeqCst);
                            let Ok(_may) = may.acquire().await else { return };
                            let answer = says.lock().expect("not poisoned").clone();
                            if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            server
        }

        fn say(&self, answer: &str) {
            *self.says.lock().expect("not poisoned") = answer.to_owned();
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn ok(body: &str) -> String {
        let length = body.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: Application/JSON; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    /// Reads numbers, and knows those that it read.
    #[derive(Default)]
    struct Numbers(Mutex<HashMap<About, Answer>>);

    impl Answers for Numbers {
        fn known(&self, about: &About) -> Option<Answer> {
            self.0.lock().expect("not poisoned").get(about).cloned()
        }

        fn read(&self, about: &About, body: &[u8]) -> Result<(Answer, &'static str), String> {
            let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
            let number: u32 = text.parse().map_err(|_| "no number".to_owned())?;
            let answer: Answer = Arc::new(number);
            if number < 100 {
                self.0.lock().expect("not poisoned").insert(*about, Arc::clone(&answer));
            }
            Ok((answer, "active"))
        }
    }

    fn start(address: SocketAddr, patience: Duration, loopback: Loopback) -> (Asked, Telemetry) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = Url::new(&format!("http://{address}/introspect"), OwnHost::Allowed).expect("a URL");
        let authorization = Redacted::new(http::HeaderValue::from_static("Basic eA=="));
        let plan = AskPlan { place: Place::Url(url), authorization, patience };
        let (asked, inquiry) = Asked::new(plan, Arc::new(Numbers::default()), Arc::<HitCount>::default());
        let telemetry = Telemetry::new(1);
        let ways =
            Ways { guard: Guard::new(loopback), backends: Arc::new(|_| None), resolver: Default::default() };
        tokio::spawn(keep_asking(inquiry, Client::new(ways), telemetry.clone()));
        (asked, telemetry)
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    fn question(about: u8) -> (About, Redacted<String>) {
        ([about; 32], Redacted::new(format!("token={about}")))
    }

    async fn heard(asked: &Asked, about: u8) -> Option<u32> {
        let (about, form) = question(about);
        let answer = asked.ask(about, form).expect("asked").await.expect("a reply").ok()?;
        Some(*answer.downcast::<u32>().expect("a number"))
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn equal_questions_are_one_on_the_wire_and_who_leaves_takes_nothing_from_the_others() {
        let server = Server::start(&ok("100")).await;
        let (asked, _) = start(server.address, PATIENCE, Loopback::Allowed);
        server.may.forget_permits(Semaphore::MAX_PERMITS);
        let ask = |about| {
            let (about, form) = question(about);
            asked.ask(about, form).expect("asked")
        };
        let first = ask(1);
        let others: Vec<_> = (0..500).map(|_| ask(1)).collect();
        let another = ask(2);
        until("both were asked", || server.asked() == 2).await;
        drop(first);
        server.may.add_permits(1_000);
        for other in others {
            assert!(other.await.expect("a reply").is_ok());
        }
        assert!(another.await.expect("a reply").is_ok());
        assert_eq!(server.asked(), 2);
        // Not known for longer, so it is asked anew, on a connection that is there.
        assert_eq!(heard(&asked, 1).await, Some(100));
        assert_eq!((server.asked(), server.connected.load(Ordering::SeqCst)), (3, 2));
        server.say(&ok("7"));
        assert_eq!((heard(&asked, 1).await, heard(&asked, 1).await), (Some(7), Some(7)));
        assert_eq!(server.asked(), 4, "known");
    }

    #[tokio::test]
    async fn whatever_is_no_answer_is_none_and_the_next_question_is_asked_all_the_same() {
        let server = Server::start("").await;
        let (asked, telemetry) = start(server.address, PATIENCE, Loopback::Allowed);
        let large = ok(&"1".repeat(MAX_BODY + 1));
        for wrong in [
            "",
            "nonsense\r\n\r\n",
            "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\n1",
            "HTTP/1.1 200 OK\r\nContent-Type: application/jsonp\r\nContent-Length: 1\r\n\r\n1",
            &large,
            &ok("no number"),
        ] {
            server.say(wrong);
            assert_eq!(heard(&asked, 1).await, None, "{wrong:.40}");
            server.say(&ok("100"));
            assert_eq!(heard(&asked, 1).await, Some(100), "after {wrong:.40}");
        }
        let metrics = telemetry.render();
        for line in [
            "portcullis_introspections_total{host=\"127.0.0.1\",result=\"failed\"} 10",
            "portcullis_introspections_total{host=\"127.0.0.1\",result=\"active\"} 10",
        ] {
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_is_given_up_and_then_tried_seldom() {
        let server = Server::start(&ok("100")).await;
        server.may.forget_permits(Semaphore::MAX_PERMITS);
        let (asked, _) = start(server.address, Duration::from_millis(50), Loopback::Allowed);
        for _ in 0..OUT_OF_REACH {
            assert_eq!(heard(&asked, 1).await, None);
        }
        let before = server.asked();
        assert_eq!(before, OUT_OF_REACH as usize);
        for about in 0..100 {
            assert_eq!(heard(&asked, about).await, None);
        }
        assert!(server.asked() <= before + 2, "{}", server.asked());
        let (about, form) = question(1);
        let reply = asked.ask(about, form).expect("asked").await.expect("a reply");
        assert_eq!(reply.err(), Some(NoAnswer::Failed), "it is not for want of room");
        server.may.add_permits(1_000);
        let began = Instant::now();
        while heard(&asked, 1).await.is_none() {
            assert!(began.elapsed() < Duration::from_secs(20), "it is never found well");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!((heard(&asked, 2).await, heard(&asked, 3).await), (Some(100), Some(100)));
    }

    #[tokio::test]
    async fn so_many_are_on_their_way_at_once_and_no_more() {
        let server = Server::start(&ok("100")).await;
        server.may.forget_permits(Semaphore::MAX_PERMITS);
        let (asked, telemetry) = start(server.address, PATIENCE, Loopback::Allowed);
        let ask = |number: u32| {
            let mut about = [0; 32];
            about[..4].copy_from_slice(&number.to_le_bytes());
            asked.ask(about, Redacted::new(format!("token={number}"))).expect("asked")
        };
        let mut replies: Vec<_> = (0..300).map(ask).collect();
        for reply in replies.drain(MOST_AT_ONCE..) {
            assert_eq!(reply.await.expect("a reply").err(), Some(NoAnswer::TooMany), "the server is well");
        }
        server.may.add_permits(1_000);
        for reply in replies {
            assert!(reply.await.expect("a reply").is_ok());
        }
        assert_eq!(server.asked(), MOST_AT_ONCE);
        assert!(telemetry.render().contains("result=\"not_asked\"} 44"));
    }

    #[tokio::test]
    async fn the_guard_is_asked_at_connect() {
        let server = Server::start(&ok("100")).await;
        let (asked, _) = start(server.address, PATIENCE, Loopback::Refused);
        assert_eq!((heard(&asked, 1).await, server.connected.load(Ordering::SeqCst)), (None, 0));
    }
}
