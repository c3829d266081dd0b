//! What a filter wants fetched beside the requests: it says from where and how to read it; `background/` owns schedule,
//! back-off and the task.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::values::{BackendId, Redacted};

/// What somebody asks for out of turn is fetched this seldom: who shows unknown keys must not hammer an issuer.
const ASKED_EVERY: Duration = Duration::from_secs(30);
/// So long a request waits for what it asked for.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_URL: usize = 2048;

/// A place on the network, proven.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    pub transport: Transport,
    /// Lower case, without brackets.
    pub host: Arc<str>,
    pub port: u16,
    /// Path and query.
    pub target: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Plain,
    Tls,
}

/// Whether what is fetched may be on the gateway's own host, and plain there. File mode allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnHost {
    Allowed,
    Refused,
}

impl Url {
    /// # Errors
    /// What was found and what to write.
    pub fn new(text: &str, own_host: OwnHost) -> Result<Self, String> {
        let refuse = |what: &str| Err(format!("found {text:?}, {what}"));
        if text.len() > MAX_URL || !text.bytes().all(|sign| sign.is_ascii_graphic()) {
            return Err("expected a URL of at most 2048 visible ASCII characters".into());
        }
        let (uri, fragment) = text.split_once('#').unwrap_or((text, ""));
        let Ok(uri) = uri.parse::<http::Uri>() else { return refuse("expected an https URL") };
        let (transport, port) = match uri.scheme_str() {
            Some("https") => (Transport::Tls, 443),
            Some("http") => (Transport::Plain, 80),
            _ => return refuse("expected an https URL"),
        };
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        if authority.contains('@') || !fragment.is_empty() {
            return refuse("expected a URL without a user and a fragment");
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if host.is_empty() {
            return refuse("expected a URL with a host");
        }
        let is_own = host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if is_own && own_host == OwnHost::Refused {
            return refuse("which is the gateway's own host; name another");
        }
        if transport == Transport::Plain && !is_own {
            return refuse("which anybody on the way could answer; use https");
        }
        let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { transport, host: host.into(), port: uri.port_u16().unwrap_or(port), target: target.into() })
    }

    /// As `Host` names it.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        match (self.transport, self.port) {
            (Transport::Tls, 443) | (Transport::Plain, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Tls => "https",
            Transport::Plain => "http",
        };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// Where something is fetched or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Url(Url),
    /// A backend of the route map, and path and query there.
    Backend(BackendId, Arc<str>),
}

impl Place {
    /// Whom it names, for metrics.
    pub fn host(&self) -> Arc<str> {
        match self {
            Self::Url(url) => Arc::clone(&url.host),
            Self::Backend(id, _) => id.to_string().into(),
        }
    }

    /// Path and query.
    pub fn target(&self) -> &Arc<str> {
        match self {
            Self::Url(url) => &url.target,
            Self::Backend(_, target) => target,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => url.fmt(f),
            Self::Backend(id, target) => write!(f, "{id}{target}"),
        }
    }
}

/// Reads what is fetched.
pub trait Reader: fmt::Debug + Send + Sync {
    /// Two readers of one name read the same from the same.
    fn name(&self) -> String;

    /// Reads the answer of the `step`th request, counted from 0, which was sent at `asked`.
    ///
    /// # Errors
    /// One sentence for the log.
    fn read(&self, step: usize, body: &[u8], asked: Instant) -> Result<Step, String>;

    /// When to fetch it again. `None`: as often as most.
    fn fresh_for(&self, value: &(dyn Any + Send + Sync)) -> Option<Duration> {
        let _ = value;
        None
    }

    /// When what was read is of no more use, however good it was.
    fn ends(&self, value: &(dyn Any + Send + Sync)) -> Option<Instant> {
        let _ = value;
        None
    }

    /// What an answer of another status than 200 says, in a word that may stand in the log.
    fn why(&self, body: &[u8]) -> Option<&'static str> {
        let _ = body;
        None
    }
}

pub enum Step {
    /// It says where what is wanted is.
    Next(Url),
    Done(Value),
}

type Value = Arc<dyn Any + Send + Sync>;

/// What is to be fetched, and read how.
#[derive(Clone, Debug)]
pub struct FetchPlan {
    pub place: Place,
    pub reader: Arc<dyn Reader>,
    /// `None`: it is a GET. What is posted is part of the reader's name.
    pub posted: Option<Posted>,
    /// What tells the backend that is meant from one that takes its name later. It is part of the reader's name, too.
    pub giver: Option<[u8; 32]>,
}

/// A form to be posted, and by whom.
#[derive(Clone, Debug)]
pub struct Posted {
    pub form: Redacted<String>,
    pub authorization: Option<Redacted<HeaderValue>>,
}

impl FetchPlan {
    pub fn name(&self) -> String {
        format!("{} {}", self.place, self.reader.name())
    }
}

impl PartialEq for FetchPlan {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// What was fetched last, and the way to ask for it anew. Who fetches holds it weakly and ends with it.
pub struct Fetched {
    pub plan: FetchPlan,
    value: ArcSwapOption<Value>,
    began: Instant,
    /// Milliseconds; 0 never.
    asked: AtomicU64,
    /// What `asked` was when it was last tried.
    tried: AtomicU64,
    wanted: Arc<Notify>,
    /// Counts what was tried, well or not.
    tries: watch::Sender<u64>,
}

impl Fetched {
    pub fn new(plan: FetchPlan) -> Self {
        Self {
            plan,
            value: ArcSwapOption::empty(),
            began: Instant::now(),
            asked: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            wanted: Arc::default(),
            tries: watch::channel(0).0,
        }
    }

    /// The last good value; none before the first.
    pub fn value<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let value = self.value.load();
        Arc::clone(value.as_ref()?.as_ref()).downcast().ok()
    }

    /// Whether there is one that is of use.
    pub fn is_there(&self) -> bool {
        self.value.load().is_some() && self.ends().is_none_or(|end| Instant::now() < end)
    }

    /// When it is of no more use. `None`: that is not known.
    pub fn ends(&self) -> Option<Instant> {
        let value = self.value.load();
        self.plan.reader.ends(&***value.as_ref()?)
    }

    /// Ends when it was tried for the first time. `None`: it was.
    pub fn first_try(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut tries = self.tries.subscribe();
        if *tries.borrow() > 0 {
            return None;
        }
        Some(async move { drop(tries.wait_for(|tries| *tries > 0).await) })
    }

    /// Asks for it out of turn. `None`: it was asked for a moment ago. The future ends when it was tried, or after 2 s.
    pub fn ask(&self) -> Option<impl Future<Output = ()> + use<>> {
        let mut tried = self.tries.subscribe();
        let now = millis(self.began.elapsed()).saturating_add(1);
        let asked = self.asked.load(Ordering::Acquire);
        let since = now.saturating_sub(asked);
        if asked != self.tried.load(Ordering::Acquire) {
            // Somebody else's question is on its way; an issuer that hangs is not waited for by everybody.
            if since >= millis(PATIENCE) {
                return None;
            }
        } else if asked == 0 || since >= millis(ASKED_EVERY) {
            if self.asked.compare_exchange(asked, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                self.wanted.notify_one();
            }
        } else {
            return None;
        }
        Some(async move {
            let _ = tokio::time::timeout(PATIENCE, tried.changed()).await;
        })
    }

    /// For who fetches: resolves when it is asked for out of turn.
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// For who fetches: it was tried, and `Some` is what came.
    pub fn tried(&self, value: Option<Value>) {
        if let Some(value) = value {
            self.value.store(Some(Arc::new(value)));
        }
        self.tried.store(self.asked.load(Ordering::Acquire), Ordering::Release);
        self.tries.send_modify(|tries| *tries += 1);
    }

    /// For who keeps: what who fetches holds.
    pub fn weak(self: &Arc<Self>) -> Weak<Self> {
        Arc::downgrade(self)
    }
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("plan", &self.plan).finish_non_exhaustive()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Text;

    impl Reader for Text {
        fn name(&self) -> String {
            "text".into()
        }

        fn read(&self, _: usize, body: &[u8], _: Instant) -> Result<Step, String> {
            Ok(Step::Done(Arc::new(String::from_utf8_lossy(body).into_owned())))
        }
    }

    fn fetched() -> Fetched {
        let url = Url::new("https://login.example/keys", OwnHost::Refused).expect("a URL");
        let reader = Arc::new(Text);
        Fetched::new(FetchPlan { place: Place::Url(url), reader, posted: None, giver: None })
    }

    #[test]
    fn urls_are_https_and_lead_away_from_here() {
        for (text, own, shown) in [
            ("https://login.example", OwnHost::Refused, Some("https://login.example/")),
            ("HTTPS://Login.Example:8443/a?b=c", OwnHost::Refused, Some("https://login.example:8443/a?b=c")),
            ("https://[2001:db8::1]/x", OwnHost::Refused, Some("https://[2001:db8::1]/x")),
            ("http://127.0.0.1:80/x", OwnHost::Allowed, Some("http://127.0.0.1/x")),
            ("http://localhost:9/x", OwnHost::Allowed, Some("http://localhost:9/x")),
            ("http://127.0.0.1/x", OwnHost::Refused, None),
            ("https://localhost/x", OwnHost::Refused, None),
            ("https://[::1]/x", OwnHost::Refused, None),
            ("http://login.example/x", OwnHost::Allowed, None),
            ("https://user@login.example/", OwnHost::Refused, None),
            ("https://login.example/#keys", OwnHost::Refused, None),
            ("https://login example/", OwnHost::Refused, None),
            ("https://", OwnHost::Refused, None),
            ("ftp://login.example/", OwnHost::Refused, None),
            ("/keys", OwnHost::Refused, None),
            ("", OwnHost::Refused, None),
        ] {
            let url = Url::new(text, own).ok().map(|url| url.to_string());
            assert_eq!(url.as_deref(), shown, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_try_is_waited_for_however_it_ends_and_no_other() {
        let fetched = fetched();
        let (one, two) = (fetched.first_try().expect("never tried"), fetched.first_try());
        let mut waiting = Box::pin(one);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut waiting).await.is_err(), "it waits");
        fetched.tried(None);
        waiting.await;
        two.expect("never tried").await;
        assert!(fetched.first_try().is_none() && !fetched.is_there());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_for_once_and_everybody_waits_for_that() {
        let fetched = fetched();
        let (one, two) = (fetched.ask().expect("asked"), fetched.ask().expect("on its way"));
        fetched.wanted().notified().await;
        fetched.tried(Some(Arc::new("keys".to_owned())));
        one.await;
        two.await;
        assert_eq!(fetched.value::<String>().as_deref().map(String::as_str), Some("keys"));
        assert!(fetched.ask().is_none(), "a moment ago");
        tokio::time::advance(ASKED_EVERY).await;
        let hanging = fetched.ask().expect("it is time");
        let began = Instant::now();
        hanging.await;
        assert_eq!(began.elapsed(), PATIENCE);
        assert!(fetched.ask().is_none(), "who hangs is not waited for again");
        fetched.tried(None);
        assert_eq!(
            fetched.value::<String>().as_deref().map(String::as_str),
            Some("keys"),
            "the last good one"
        );
    }
}
