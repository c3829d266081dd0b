//! The series of one worker: connections of clients, TLS handshakes, panics.

use std::sync::Arc;

use super::cells::Count;

/// Why a TLS handshake failed; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    TimedOut,
    /// The client went away.
    Closed,
    /// What came is no TLS.
    NotTls,
    UnknownName,
    /// No common version, cipher suite or protocol.
    NothingInCommon,
    /// The client refused our certificate or sent another alert.
    Alert,
    /// The client showed no certificate, or one that nobody vouches for.
    ClientCertificate,
    Other,
}

/// Why a connection has no PROXY header that counts; a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderRefusal {
    /// Its address is not trusted to tell anything.
    Untrusted,
    Missing,
    Malformed,
    /// The connection ended, or too much time went by.
    Unfinished,
}

pub(super) const REFUSALS: [&str; 4] = ["untrusted", "missing", "malformed", "unfinished"];

pub(super) const FAILURES: [&str; 8] = [
    "timed_out",
    "closed",
    "not_tls",
    "unknown_name",
    "nothing_in_common",
    "alert",
    "client_certificate",
    "other",
];
/// Listener and protocol of a connection, as `WorkerStats::connection` is told them.
pub(super) const LISTENERS: [&str; 2] = ["http", "https"];
pub(super) const PROTOCOLS: [&str; 2] = ["HTTP/1.1", "HTTP/2"];
pub(super) const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Series of one worker: connections, handshakes. Only the worker's own thread counts.
#[derive(Debug, Default)]
pub struct WorkerStats {
    pub(super) open: [[Count; 2]; 2],
    pub(super) opened: [[Count; 2]; 2],
    pub(super) handshakes: [Count; 2],
    pub(super) failures: [Count; 8],
    pub(super) refused_headers: [Count; 4],
    pub(super) turned_away: Count,
    pub(super) delayed: Count,
    pub(super) panics: Count,
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    stats: Arc<WorkerStats>,
    listener: usize,
    protocol: usize,
}

impl WorkerStats {
    /// A client's connection whose protocol is known: scheme of its listener, "HTTP/1.1" or "HTTP/2".
    pub fn connection(self: &Arc<Self>, scheme: &str, protocol: &str) -> OpenConnection {
        let (listener, protocol) = (usize::from(scheme == "https"), usize::from(protocol == "HTTP/2"));
        self.open[listener][protocol].add(1);
        self.opened[listener][protocol].add(1);
        OpenConnection { stats: self.clone(), listener, protocol }
    }

    /// A finished handshake; version "1.2" or "1.3".
    pub fn handshake(&self, version: &str) {
        self.handshakes[usize::from(version == "1.3")].add(1);
    }

    pub fn handshake_failure(&self, cause: HandshakeFailure) {
        self.failures[cause as usize].add(1);
    }

    pub fn header_refused(&self, why: HeaderRefusal) {
        self.refused_headers[why as usize].add(1);
    }

    /// A client had as many connections as it may.
    pub fn turned_away(&self) {
        self.turned_away.add(1);
    }

    /// A connection waited, because too many came at once.
    pub fn accept_delayed(&self) {
        self.delayed.add(1);
    }

    /// Code of ours panicked; one request or connection was lost by it.
    pub fn panic(&self) {
        self.panics.add(1);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.stats.open[self.listener][self.protocol].subtract(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_open_until_it_is_dropped_and_counted_for_ever() {
        let stats = Arc::<WorkerStats>::default();
        let open = stats.connection("https", "HTTP/2");
        assert_eq!(stats.open[1][1].value(), 1);
        drop(open);
        assert_eq!((stats.open[1][1].value(), stats.opened[1][1].value()), (0, 1));
    }

    #[test]
    fn every_failure_has_its_label() {
        let stats = WorkerStats::default();
        stats.handshake_failure(HandshakeFailure::Other);
        assert_eq!(stats.failures[FAILURES.len() - 1].value(), 1);
        assert_eq!(FAILURES[HandshakeFailure::UnknownName as usize], "unknown_name");
    }
}
