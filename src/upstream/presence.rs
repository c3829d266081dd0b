//! Clients that backends are told of have connections to them that carry nobody else's requests: they are kept as long
//! as the client is there, and closed when it goes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use super::endpoint::EndpointPool;
use super::proxy_header::ClientConnection;

/// A client's connection, for as long as it is open or something is done for it.
#[derive(Debug, Default)]
pub struct Presence {
    /// Where connections are kept for it.
    kept_at: RefCell<Vec<Weak<EndpointPool>>>,
}

impl Presence {
    pub(super) fn is_kept_at(&self, endpoint: &Rc<EndpointPool>) {
        let mut kept_at = self.kept_at.borrow_mut();
        if kept_at.iter().any(|known| known.as_ptr() == Rc::as_ptr(endpoint)) {
            return;
        }
        kept_at.retain(|known| known.strong_count() > 0);
        kept_at.push(Rc::downgrade(endpoint));
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let endpoints = self.kept_at.take();
        endpoints.iter().filter_map(Weak::upgrade).for_each(|endpoint| endpoint.forget_the_gone());
    }
}

/// Whose a connection to a backend is.
#[derive(Debug)]
pub(super) struct Owner {
    source: SocketAddr,
    destination: SocketAddr,
    presence: Weak<Presence>,
}

impl Owner {
    pub fn new(client: &ClientConnection) -> Self {
        let ClientConnection { source, destination, presence } = client;
        Self { source: *source, destination: *destination, presence: Rc::downgrade(presence) }
    }

    /// Two connections of one address are two clients.
    pub fn is(&self, client: &ClientConnection) -> bool {
        self.presence.as_ptr() == Rc::as_ptr(&client.presence)
            && (self.source, self.destination) == (client.source, client.destination)
    }

    pub fn presence(&self) -> Option<Rc<Presence>> {
        self.presence.upgrade()
    }

    pub fn is_gone(&self) -> bool {
        self.presence.strong_count() == 0
    }
}
