//! Sessions of `sessionAffinity`: what a client is given, what is made of it when it comes back, and where that leads.
//!
//! With a key: the token says, masked and signed, which endpoint answered; nobody else can make or read one. Without:
//! the token is a random number, and the endpoint is what that number falls to, as every replica computes alike. In
//! neither does a client learn an address.
//!
//! Invariants: what is not a token of ours, whole and in its time, is no session; a look at a request's tokens costs at
//! most [`MAX_TOKENS`] signatures.

use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::filters::{CookiePlan, Lifetime, SameSite, SessionPlan};
use crate::message::{Labels, Scheme};
use crate::telemetry::Session as Fate;
use crate::upstream::{Aim, Stable};

/// So many of a request's tokens are looked at.
const MAX_TOKENS: usize = 4;
/// A session's last use is told anew after this share of its idle time.
const REFRESH: u32 = 8;
const NONCE: usize = 8;
const BODY: usize = 24;
const SIGNATURE: usize = 16;
const SIGNED: usize = 1 + NONCE + BODY + SIGNATURE;
const UNSIGNED: usize = 1 + 16;

/// A rule's sessions.
pub struct LiveSessions {
    plan: SessionPlan,
    name: HeaderName,
    /// As it is spelled in the cookie.
    cookie: Box<str>,
    keys: Option<Keys>,
}

/// Made of the Secret's, each for one purpose.
struct Keys {
    mask: hmac::Key,
    sign: hmac::Key,
}

/// A client's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Seconds of the epoch.
    begun: u32,
    used: u32,
    pub place: Place,
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What tells the backend and the endpoint from others.
    At { backend: u64, endpoint: u64 },
    /// A random number, and wherever that falls.
    Seat(u64),
}

impl LiveSessions {
    pub fn new(plan: &SessionPlan, labels: &Labels) -> Self {
        let keys = plan.key.as_ref().map(|key| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
            let derived = |purpose: &str| {
                let tag = hmac::sign(&key, purpose.as_bytes());
                hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
            };
            Keys { mask: derived("portcullis session mask 1"), sign: derived("portcullis session sign 1") }
        });
        let cookie: Box<str> = match &plan.name {
            Some(name) => (**name).into(),
            None => {
                let mut hash = Stable::default();
                (&labels.namespace, &labels.route, &labels.rule).hash(&mut hash);
                format!("portcullis-{:08x}", hash.finish() as u32).into()
            }
        };
        // The compiler has proven the field's; a cookie's is not used as one.
        let name = HeaderName::try_from(&*cookie).unwrap_or(SET_COOKIE);
        Self { plan: plan.clone(), name, cookie, keys }
    }

    /// The session that a request shows.
    pub fn shown(&self, headers: &HeaderMap) -> Option<Session> {
        let now = now();
        if self.plan.cookie.is_none() {
            let mut values = headers.get_all(&self.name).iter().take(MAX_TOKENS);
            return values.find_map(|value| self.read(value.as_bytes(), now));
        }
        let pairs =
            headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
        let own = pairs
            .filter_map(|pair| pair.trim_ascii().strip_prefix(self.cookie.as_bytes())?.strip_prefix(b"="));
        own.take(MAX_TOKENS).find_map(|token| self.read(token, now))
    }

    /// A session that begins, where its number alone says where. `None`: balancing does.
    pub fn begin(&self) -> Option<Session> {
        if self.keys.is_some() {
            return None;
        }
        let (now, number) = (now(), u64::from_be_bytes(random()?));
        Some(Session { begun: now, used: now, place: Place::Seat(number) })
    }

    /// What the client is to be told, if anything is new: `shown` is its session, `place` where the answer came from.
    pub fn told(
        &self,
        shown: Option<Session>,
        place: Place,
        scheme: Scheme,
    ) -> (Fate, Option<(HeaderName, HeaderValue)>) {
        let now = now();
        let fate = match shown {
            None => Fate::Began,
            Some(session) if session.place == place => Fate::Kept,
            Some(_) => Fate::Moved,
        };
        let begun = shown.map_or(now, |session| session.begun);
        if fate == Fate::Kept && !shown.is_some_and(|session| self.is_stale(session, now)) {
            return (fate, None);
        }
        let Some(token) = self.write(Session { begun, used: now, place }) else { return (fate, None) };
        let field = match &self.plan.cookie {
            None => HeaderValue::try_from(token).ok().map(|value| (self.name.clone(), value)),
            Some(cookie) => {
                let left = self
                    .plan
                    .absolute
                    .map(|whole| whole.as_secs().saturating_sub(u64::from(now - begun.min(now))));
                let text = self.cookie(cookie, &token, left, scheme);
                HeaderValue::try_from(text).ok().map(|value| (SET_COOKIE, value))
            }
        };
        (fate, field)
    }

    fn is_stale(&self, session: Session, now: u32) -> bool {
        let since = Duration::from_secs(u64::from(now.saturating_sub(session.used)));
        self.plan.idle.is_some_and(|idle| since >= (idle / REFRESH).max(Duration::from_secs(1)))
    }

    fn is_over(&self, session: Session, now: u32) -> bool {
        let since = |then: u32| Duration::from_secs(u64::from(now.saturating_sub(then)));
        self.plan.absolute.is_some_and(|whole| since(session.begun) >= whole)
            || self.plan.idle.is_some_and(|idle| since(session.used) >= idle)
    }

    fn cookie(&self, plan: &CookiePlan, token: &str, left: Option<u64>, scheme: Scheme) -> String {
        let (name, path) = (&self.cookie, &plan.path);
        let mut text = format!("{name}={token}; Path={path}; HttpOnly; SameSite={:?}", plan.same_site);
        if let (Lifetime::Permanent, Some(left)) = (plan.lifetime, left) {
            text.push_str(&format!("; Max-Age={left}"));
        }
        if scheme == Scheme::Https || plan.same_site == SameSite::None {
            text.push_str("; Secure");
        }
        text
    }

    fn read(&self, token: &[u8], now: u32) -> Option<Session> {
        let mut bytes = [0; SIGNED + 8];
        let length = URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()?;
        let token = &bytes[..length];
        let mut body = [0; BODY];
        match &self.keys {
            None if token.len() == UNSIGNED && token[0] == 0 => body[..16].copy_from_slice(&token[1..]),
            Some(keys) if token.len() == SIGNED && token[0] == 1 => {
                let (said, signature) = token.split_at(SIGNED - SIGNATURE);
                let own = hmac::sign(&keys.sign, said);
                verify_slices_are_equal(&own.as_ref()[..SIGNATURE], signature).ok()?;
                body.copy_from_slice(&said[1 + NONCE..]);
                keys.cover(&said[1..=NONCE], &mut body);
            }
            _ => return None,
        }
        let number = |at: &[u8]| at.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let (one, other) = (number(&body[8..16]), number(&body[16..]));
        let place = match &self.keys {
            None => Place::Seat(one),
            Some(_) => Place::At { backend: one, endpoint: other },
        };
        let session = Session { begun: number(&body[..4]) as u32, used: number(&body[4..8]) as u32, place };
        (!self.is_over(session, now)).then_some(session)
    }

    /// `None`: there are no random numbers to be had.
    fn write(&self, session: Session) -> Option<String> {
        let mut body = [0; BODY];
        body[..4].copy_from_slice(&session.begun.to_be_bytes());
        body[4..8].copy_from_slice(&session.used.to_be_bytes());
        let (one, other) = match session.place {
            Place::Seat(number) => (number, 0),
            Place::At { backend, endpoint } => (backend, endpoint),
        };
        body[8..16].copy_from_slice(&one.to_be_bytes());
        body[16..].copy_from_slice(&other.to_be_bytes());
        let Some(keys) = &self.keys else {
            return Some(URL_SAFE_NO_PAD.encode([&[0][..], &body[..16]].concat()));
        };
        let nonce = random()?;
        keys.cover(&nonce, &mut body);
        let said = [&[1][..], &nonce, &body].concat();
        let signature = hmac::sign(&keys.sign, &said);
        Some(URL_SAFE_NO_PAD.encode([&said, &signature.as_ref()[..SIGNATURE]].concat()))
    }
}

impl Keys {
    /// Masks what is to be read by nobody, or takes the mask off.
    fn cover(&self, nonce: &[u8], body: &mut [u8; BODY]) {
        let mask = hmac::sign(&self.mask, nonce);
        body.iter_mut().zip(mask.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
    }
}

impl Session {
    /// Which of a rule's backends it wants: `marks` tells each by its weight. `None`: none of them.
    pub fn choose(&self, marks: impl Iterator<Item = (u32, Option<u64>)>) -> Option<usize> {
        let marks = marks.enumerate();
        match self.place {
            Place::At { backend, .. } => {
                marks.into_iter().find(|(_, (_, mark))| *mark == Some(backend)).map(|(at, _)| at)
            }
            // Each has a place of its own on a line that is as long as its weight is small: a changed weight moves the
            // sessions that it gives or takes, and no others.
            Place::Seat(number) => {
                let distance = |at: usize, (weight, mark): (u32, Option<u64>)| {
                    let mut hash = Stable::default();
                    (number, mark.unwrap_or(at as u64)).hash(&mut hash);
                    let chance = ((hash.finish() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
                    -chance.ln() / f64::from(weight)
                };
                marks
                    .map(|(at, one)| (at, distance(at, one)))
                    .min_by(|(_, a), (_, b)| a.total_cmp(b))
                    .map(|(at, _)| at)
            }
        }
    }

    /// Which endpoint of its backend.
    pub fn aim(&self) -> Aim {
        match self.place {
            Place::At { endpoint, .. } => Aim::Endpoint(endpoint),
            Place::Seat(number) => Aim::Seat(number),
        }
    }
}

impl fmt::Debug for LiveSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSessions").field("plan", &self.plan).finish_non_exhaustive()
    }
}

fn random() -> Option<[u8; NONCE]> {
    let mut bytes = [0; NONCE];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// Seconds of the epoch.
fn now() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::values::Redacted;

    const HERE: Place = Place::At { backend: 7, endpoint: 0xfeed_f00d_dead_beef };

    fn plan(key: Option<&[u8]>) -> SessionPlan {
        let cookie = CookiePlan { path: "/".into(), same_site: SameSite::Lax, lifetime: Lifetime::Session };
        let key = key.map(|key| Redacted::new(key.to_vec()));
        SessionPlan { cookie: Some(cookie), name: Some("s".into()), absolute: None, idle: None, key }
    }

    fn sessions(plan: &SessionPlan) -> LiveSessions {
        let labels = Labels { namespace: "shop".into(), route: "web".into(), rule: "all".into() };
        LiveSessions::new(plan, &labels)
    }

    fn signed() -> LiveSessions {
        sessions(&plan(Some(&[1; 32])))
    }

    fn cookies(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_str(line).expect("a value"));
        }
        headers
    }

    fn at(begun: u32, used: u32) -> Session {
        Session { begun, used, place: HERE }
    }

    #[test]
    fn what_was_written_is_read_by_whoever_has_the_key_and_by_nobody_else() {
        let token = signed().write(at(5, 6)).expect("random numbers");
        assert_eq!(signed().read(token.as_bytes(), 10), Some(at(5, 6)));
        assert_eq!(sessions(&plan(Some(&[2; 32]))).read(token.as_bytes(), 10), None, "another key");
        assert_eq!(sessions(&plan(None)).read(token.as_bytes(), 10), None);
        let unsigned = sessions(&plan(None)).write(at(5, 6)).expect("a token");
        assert_eq!(signed().read(unsigned.as_bytes(), 10), None, "nor one that nobody signed");
    }

    #[test]
    fn every_changed_byte_and_every_other_length_is_no_session() {
        let sessions = signed();
        let token = sessions.write(at(5, 6)).expect("random numbers");
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64");
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut forged = bytes.clone();
                forged[place] ^= 1 << bit;
                assert_eq!(
                    sessions.read(URL_SAFE_NO_PAD.encode(forged).as_bytes(), 10),
                    None,
                    "{place}.{bit}"
                );
            }
        }
        for length in (0..bytes.len()).chain([bytes.len() + 1, bytes.len() + 300]) {
            let mut forged = bytes.clone();
            forged.resize(length, 0);
            assert_eq!(sessions.read(URL_SAFE_NO_PAD.encode(forged).as_bytes(), 10), None, "{length} bytes");
        }
        for text in [&b""[..], b"=", b"\xff\xfe", &[b'A'; 5000], b"a b"] {
            assert_eq!(sessions.read(text, 10), None);
        }
    }

    #[test]
    fn a_token_shows_neither_the_place_nor_that_it_is_the_same() {
        let sessions = signed();
        let tokens = [(); 50].map(|()| sessions.write(at(5, 6)).expect("random numbers"));
        let bodies: std::collections::BTreeSet<_> = tokens
            .iter()
            .map(|token| URL_SAFE_NO_PAD.decode(token).expect("base64")[1 + NONCE..][..BODY].to_vec())
            .collect();
        assert_eq!(bodies.len(), 50, "each is masked by another number");
        let place = 0xfeed_f00d_dead_beef_u64.to_be_bytes();
        assert!(!bodies.iter().any(|body| body.windows(8).any(|part| part == place)));
    }

    #[test]
    fn a_session_ends_with_its_time() {
        let time = Duration::from_secs;
        let limited = SessionPlan { absolute: Some(time(100)), idle: Some(time(10)), ..plan(Some(&[1; 32])) };
        let sessions = sessions(&limited);
        for (begun, used, is_there) in
            [(901, 995, true), (901, 991, true), (900, 1000, false), (990, 990, false), (901, 990, false)]
        {
            let token = sessions.write(at(begun, used)).expect("random numbers");
            let read = sessions.read(token.as_bytes(), 1000);
            assert_eq!(read.is_some(), is_there, "{begun} {used}");
        }
        // A clock that is behind ours is no reason.
        let token = sessions.write(at(2000, 2000)).expect("random numbers");
        assert!(sessions.read(token.as_bytes(), 1000).is_some());
    }

    #[test]
    fn a_session_is_found_among_other_cookies_and_few_forged_ones() {
        let sessions = signed();
        let now = now();
        let token = sessions.write(at(now, now)).expect("random numbers");
        let own = format!("s={token}");
        let found = |lines: &[&str]| sessions.shown(&cookies(lines)).is_some();
        assert!(found(&[&own]) && found(&[&format!("a=b; {own};c=d")]) && found(&["a=b", &own]));
        assert!(found(&[&format!("s=forged; {own}")]));
        assert!(
            !found(&["a=b"])
                && !found(&[])
                && !found(&[&format!("ss={token}")])
                && !found(&[&format!("S={token}")])
        );
        let many = "s=forged; ".repeat(MAX_TOKENS);
        assert!(!found(&[&format!("{many}{own}")]), "nobody makes us verify many");
    }

    #[test]
    fn a_client_is_told_what_is_new_and_nothing_else() {
        let limited = SessionPlan { idle: Some(Duration::from_secs(80)), ..plan(Some(&[1; 32])) };
        let (sessions, now) = (sessions(&limited), now());
        let told = |shown| {
            let (fate, field) = sessions.told(shown, HERE, Scheme::Http);
            (fate, field.is_some())
        };
        assert_eq!(told(None), (Fate::Began, true));
        assert_eq!(told(Some(at(now, now))), (Fate::Kept, false));
        assert_eq!(told(Some(at(now - 20, now - 20))), (Fate::Kept, true), "that it is still used");
        let elsewhere = Session { place: Place::At { backend: 7, endpoint: 1 }, ..at(now - 5, now) };
        assert_eq!(told(Some(elsewhere)), (Fate::Moved, true));
        let (_, field) = sessions.told(Some(elsewhere), HERE, Scheme::Http);
        let value = field.expect("told").1;
        let pair = value.to_str().expect("text").split(';').next().expect("a pair");
        let moved = sessions.shown(&cookies(&[pair])).expect("a session");
        assert_eq!((moved.begun, moved.place), (now - 5, HERE), "its whole time goes on");
    }

    #[test]
    fn cookies_are_for_nobody_s_script() {
        let cookie = |same_site, lifetime, scheme| {
            let cookie = CookiePlan { path: "/shop".into(), same_site, lifetime };
            let absolute = Some(Duration::from_secs(600));
            let plan = SessionPlan { cookie: Some(cookie), absolute, ..plan(Some(&[1; 32])) };
            let (name, value) = sessions(&plan).told(None, HERE, scheme).1.expect("told");
            assert_eq!(name, SET_COOKIE);
            let text = value.to_str().expect("text").to_owned();
            assert!(text.starts_with("s="));
            text.split_once("; ").expect("attributes").1.to_owned()
        };
        let (lax, none) = (SameSite::Lax, SameSite::None);
        for (text, expected) in [
            (cookie(lax, Lifetime::Session, Scheme::Http), "Path=/shop; HttpOnly; SameSite=Lax"),
            (cookie(lax, Lifetime::Session, Scheme::Https), "Path=/shop; HttpOnly; SameSite=Lax; Secure"),
            (cookie(none, Lifetime::Session, Scheme::Http), "Path=/shop; HttpOnly; SameSite=None; Secure"),
            (
                cookie(SameSite::Strict, Lifetime::Permanent, Scheme::Https),
                "Path=/shop; HttpOnly; SameSite=Strict; Max-Age=600; Secure",
            ),
        ] {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn each_rule_has_a_name_of_its_own_unless_one_is_given() {
        let unnamed = SessionPlan { name: None, cookie: None, ..plan(None) };
        let of = |rule: &str| {
            let labels = Labels { namespace: "shop".into(), route: "web".into(), rule: rule.into() };
            LiveSessions::new(&unnamed, &labels).told(None, Place::Seat(1), Scheme::Http).1.expect("told").0
        };
        assert!(of("a").as_str().starts_with("portcullis-"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a"), of("a"));
    }

    #[test]
    fn a_seat_keeps_its_backend_while_weights_change_but_for_those_that_must_move() {
        let seats = |weights: [u32; 2]| -> BTreeMap<u64, usize> {
            let of = |number: u64| {
                let session = Session {
                    begun: 0,
                    used: 0,
                    place: Place::Seat(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                };
                session.choose(weights.into_iter().zip([Some(1), Some(2)])).expect("one of them")
            };
            (0..10_000).map(|number| (number, of(number))).collect()
        };
        let (before, after) = (seats([95, 5]), seats([80, 20]));
        let second = |seats: &BTreeMap<u64, usize>| seats.values().filter(|at| **at == 1).count();
        assert!((400..600).contains(&second(&before)) && (1850..2150).contains(&second(&after)));
        assert!(before.iter().all(|(number, at)| *at == 0 || after[number] == 1), "nobody goes back");
    }

    #[test]
    fn a_place_is_looked_for_among_what_the_rule_has_now() {
        let session = at(0, 0);
        let of = |marks: &[Option<u64>]| session.choose(marks.iter().map(|mark| (1, *mark)));
        assert_eq!(of(&[Some(1), None, Some(7)]), Some(2));
        assert_eq!((of(&[Some(1), None]), of(&[])), (None, None));
    }
}
