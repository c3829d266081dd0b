//! Early hints (RFC 8297): what a backend says before its answer, on its way to the client that waits for it.
//!
//! Invariants: a hint is for the request that it was said to, and only until the answer to that begins: whatever comes
//! later is dropped. At most [`MOST`] go on for a request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use http::header::{HeaderMap, HeaderValue, LINK};

/// More would only be traffic.
const MOST: usize = 8;

/// What the client of one connection of HTTP/1 or of one stream of HTTP/2 is to be told. Said by whatever thread reads the backend, taken by the client's.
#[derive(Debug, Default)]
pub struct Hints {
    /// Changes when a request begins to wait, and when its wait is over.
    turn: AtomicU64,
    is_there: AtomicBool,
    said: Mutex<Said>,
    waker: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct Said {
    turn: u64,
    count: usize,
    heads: Vec<u8>,
}

/// The way of hints to one request.
#[derive(Clone, Debug)]
pub struct Hinted {
    hints: Arc<Hints>,
    turn: u64,
}

/// As long as it lives the request waits.
#[derive(Debug)]
pub struct Waiting(Hinted);

impl Hints {
    /// Who takes the hints is woken by this.
    pub fn wakes(&self, waker: &Waker) {
        self.waker.get_or_init(|| waker.clone());
    }

    /// A request waits; one at a time does on a connection.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        let turn = self.turn.fetch_add(1, Ordering::AcqRel) + 1;
        Waiting(Hinted { hints: Arc::clone(self), turn })
    }

    /// What the request that waits now is to be told. Called by who begins the waits and ends them.
    pub fn take(&self) -> Option<Vec<u8>> {
        if !self.is_there.load(Ordering::Acquire) {
            return None;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_there.store(false, Ordering::Release);
        let heads = std::mem::take(&mut said.heads);
        (said.turn == self.turn.load(Ordering::Acquire) && !heads.is_empty()).then_some(heads)
    }
}

/// The fields of these heads, each as it goes to a client of HTTP/2.
pub fn hinted_links(heads: &[u8]) -> impl Iterator<Item = HeaderMap> {
    let lines = heads.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut links = HeaderMap::new();
    lines.filter_map(move |line| {
        if let Some(value) = line.strip_prefix(b"link: ")
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            links.append(LINK, value);
        }
        (line.is_empty() && !links.is_empty()).then(|| std::mem::take(&mut links))
    })
}

impl Hinted {
    /// A head as it goes to the client.
    pub fn say(&self, head: &[u8]) {
        let hints = &*self.hints;
        {
            let mut said = hints.said.lock().unwrap_or_else(PoisonError::into_inner);
            if hints.turn.load(Ordering::Acquire) != self.turn {
                return;
            }
            if said.turn != self.turn {
                *said = Said { turn: self.turn, ..Said::default() };
            }
            if said.count == MOST {
                return;
            }
            said.count += 1;
            said.heads.extend_from_slice(head);
            hints.is_there.store(true, Ordering::Release);
        }
        if let Some(waker) = hints.waker.get() {
            waker.wake_by_ref();
        }
    }
}

impl Waiting {
    pub fn hinted(&self) -> &Hinted {
        &self.0
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.hints.turn.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_for_the_request_that_waits_and_for_no_other() {
        let hints = Arc::new(Hints::default());
        let first = hints.wait();
        let late = first.hinted().clone();
        late.say(b"one ");
        late.say(b"two ");
        assert_eq!(hints.take().as_deref(), Some(&b"one two "[..]));
        assert_eq!(hints.take(), None, "it is told once");
        // Said in time, and not told in time.
        late.say(b"three ");
        drop(first);
        assert_eq!(hints.take(), None, "the answer is there");
        late.say(b"four ");
        let second = hints.wait();
        late.say(b"five ");
        assert_eq!(hints.take(), None, "it was for the first");
        second.hinted().say(b"six ");
        late.say(b"seven ");
        assert_eq!(hints.take().as_deref(), Some(&b"six "[..]), "who is late takes nothing away");
    }

    #[test]
    fn the_links_of_each_head_are_its_own() {
        let heads = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>; rel=preload\r\n\r\n\
            HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </c>\r\n\r\n";
        let links: Vec<Vec<String>> = hinted_links(heads.as_bytes())
            .map(|fields| fields.iter().map(|(name, value)| format!("{name}: {value:?}")).collect())
            .collect();
        assert_eq!(links, [vec!["link: \"</a>\"", "link: \"</b>; rel=preload\""], vec!["link: \"</c>\""]]);
    }

    #[test]
    fn no_more_go_on_than_a_client_can_use() {
        let hints = Arc::new(Hints::default());
        let waiting = hints.wait();
        (0..MOST).for_each(|_| waiting.hinted().say(b"x"));
        assert_eq!(hints.take().map(|heads| heads.len()), Some(MOST));
        waiting.hinted().say(b"x");
        assert_eq!(hints.take(), None);
    }
}
