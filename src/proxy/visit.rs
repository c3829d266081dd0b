//! One request under `sessionAffinity`: where its session leads, and what the client is told of it.

use http::{HeaderName, HeaderValue};

use super::forward::Way;
use super::live::Target;
use super::session::{LiveSessions, Place, Session};
use crate::message::Exchange;
use crate::upstream::{Aim, Backend};

pub struct Visit<'a> {
    sessions: &'a LiveSessions,
    /// What the client showed.
    shown: Option<Session>,
    /// What the request goes by: that, or one that begins.
    session: Option<Session>,
}

impl<'a> Visit<'a> {
    pub fn of(sessions: &'a LiveSessions, exchange: &Exchange) -> Self {
        let shown = sessions.shown(exchange.request.headers());
        Self { sessions, shown, session: shown.or_else(|| sessions.begin()) }
    }

    /// The backend of the session, as long as the rule has it. `None`: weights choose.
    pub fn choose<'l>(&mut self, way: &Way<'l>) -> Option<&'l Target> {
        let (rule, live) = (way.rule, way.live);
        let mark = |target: &Target| match target {
            Target::Backend(slot) => live.backend(slot).map(|backend| backend.mark),
            Target::Unresolved(_) => None,
        };
        let marks = rule.targets.iter().map(|(weight, target)| (weight, mark(target)));
        let own = self.session.and_then(|session| session.choose(marks));
        if own.is_none() {
            self.session = None;
        }
        rule.targets.at(own?)
    }

    /// Which of the backend's endpoints. `None`: balancing chooses.
    pub fn aim(&self) -> Option<Aim> {
        self.session.map(|session| session.aim())
    }

    /// What is new to the client, now that an endpoint of `backend` has answered: the one with this mark.
    pub fn told(
        &self,
        way: &Way<'_>,
        backend: &Backend,
        endpoint: u64,
        exchange: &Exchange,
    ) -> Option<Box<(HeaderName, HeaderValue)>> {
        let place = match self.session {
            Some(Session { place: seat @ Place::Seat(_), .. }) => seat,
            _ => Place::At { backend: backend.mark, endpoint },
        };
        let (fate, field) = self.sessions.told(self.shown, place, exchange.client.scheme);
        backend.stats.session(way.connection.worker.index, fate);
        field.map(Box::new)
    }
}
