//! A backend's interim answers: how many may come before the answer, and what of them goes on to the client (RFC 8297):
//! the `Link` fields of 103, and nothing else. Over HTTP/1.1 they are seen in the bytes that come, over HTTP/2 h2 tells of
//! them.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::message::Hinted;

/// Of one head as many fields are read.
const MAX_FIELDS: usize = 32;
/// Longer ones are dropped.
const LONGEST: usize = 4 << 10;

/// So many may come before an answer.
const MOST: usize = 32;
/// What is read of a head to tell whether it is an interim one: `HTTP/1.1 103`.
const STATUS_LINE: usize = 12;

/// Counts the interim answers that come before an answer, however what comes is cut.
#[derive(Debug, Default)]
pub(super) struct Row {
    count: usize,
    at: At,
    /// As much of a head as is looked at.
    begun: [u8; STATUS_LINE],
    length: usize,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Begin,
    /// In the rest of an interim head.
    Interim { line_begins: bool },
    /// The answer itself, and all behind it.
    Answer,
}

/// One more came than may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more interim answers came than may")]
pub(super) struct TooMany;

/// Counts those of one request over HTTP/2, and tells the client of them.
#[derive(Debug)]
pub(super) struct Heads<'a> {
    count: usize,
    hinted: Option<&'a Hinted>,
}

impl<'a> Heads<'a> {
    pub fn told_to(hinted: Option<&'a Hinted>) -> Self {
        Self { count: 0, hinted }
    }

    /// # Errors
    /// There are too many.
    pub fn take(&mut self, head: &http::Response<()>) -> Result<(), TooMany> {
        self.count += 1;
        if self.count > MOST {
            return Err(TooMany);
        }
        if let Some(hinted) = self.hinted.filter(|_| head.status() == StatusCode::EARLY_HINTS)
            && let Some(links) = links_of(head.headers())
        {
            hinted.say(&links);
        }
        Ok(())
    }
}

fn links_of(fields: &HeaderMap) -> Option<Vec<u8>> {
    let values = fields.get_all(header::LINK).iter().map(HeaderValue::as_bytes);
    if fields.len() > MAX_FIELDS { None } else { links(values) }
}

impl Row {
    /// # Errors
    /// There are too many.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), TooMany> {
        // What nearly every answer begins with.
        if self.length == 0 && matches!(self.at, At::Begin) && is_answer(bytes) {
            self.at = At::Answer;
        }
        for byte in bytes {
            match &mut self.at {
                At::Answer => return Ok(()),
                // Empty lines before a head are passed over, as hyper does it.
                At::Begin if self.length == 0 && matches!(byte, b'\r' | b'\n') => {}
                At::Begin => {
                    self.begun[self.length] = *byte;
                    self.length += 1;
                    if self.length == STATUS_LINE {
                        self.begins()?;
                    }
                }
                At::Interim { line_begins } => match byte {
                    b'\n' if *line_begins => self.at = At::Begin,
                    b'\n' => *line_begins = true,
                    b'\r' => {}
                    _ => *line_begins = false,
                },
            }
        }
        Ok(())
    }

    fn begins(&mut self) -> Result<(), TooMany> {
        self.length = 0;
        // After 101 the connection is another one.
        if is_answer(&self.begun) || !self.begun.starts_with(b"HTTP/1.") || self.begun.ends_with(b"101") {
            self.at = At::Answer;
            return Ok(());
        }
        self.at = At::Interim { line_begins: false };
        self.count += 1;
        if self.count > MOST { Err(TooMany) } else { Ok(()) }
    }
}

/// Whether a status line begins here that is of no interim answer.
fn is_answer(bytes: &[u8]) -> bool {
    bytes.len() >= STATUS_LINE && bytes.starts_with(b"HTTP/1.") && &bytes[8..10] != b" 1"
}

/// An interim answer at the beginning of what came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interim {
    /// So many bytes are of it.
    pub length: usize,
    /// What the client is told.
    pub head: Option<Vec<u8>>,
}

/// The interim answer that `bytes` begin with. `None`: they begin with none, or not with a whole one.
pub(super) fn interim(bytes: &[u8]) -> Option<Interim> {
    // What every answer pays: nearly none is one.
    if !bytes.starts_with(b"HTTP/1.1 1") {
        return None;
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = answer.parse(bytes) else { return None };
    match answer.code? {
        // The connection is another one after that.
        101 => None,
        103 => {
            let values = answer.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("link"));
            Some(Interim { length, head: links(values.map(|field| field.value)) })
        }
        100..=199 => Some(Interim { length, head: None }),
        _ => None,
    }
}

/// A head with these links; `None`: there are none, or what they say is not sure.
fn links<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    let mut head = b"HTTP/1.1 103 Early Hints\r\n".to_vec();
    let begins = head.len();
    for link in values {
        if !link.iter().all(is_text) {
            return None;
        }
        head.extend_from_slice(b"link: ");
        head.extend_from_slice(link);
        head.extend_from_slice(b"\r\n");
    }
    let has_any = head.len() > begins;
    head.extend_from_slice(b"\r\n");
    (has_any && head.len() <= LONGEST).then_some(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> Option<(usize, Option<String>)> {
        let interim = interim(bytes)?;
        Some((interim.length, interim.head.map(|head| String::from_utf8(head).expect("text"))))
    }

    #[test]
    fn only_links_go_on() {
        let said = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nSet-Cookie: a=b\r\nlink: </b.js>\r\nServer: x\r\n\r\nHTTP/1.1 200 OK\r\n";
        let head = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>\r\n\r\n";
        assert_eq!(told(said), Some((said.len() - 17, Some(head.to_owned()))));
        let none = b"HTTP/1.1 103 Early Hints\r\nserver: x\r\n\r\n";
        assert_eq!(told(none), Some((none.len(), None)));
        let other = b"HTTP/1.1 100 Continue\r\nlink: </a.css>\r\n\r\n";
        assert_eq!(told(other), Some((other.len(), None)));
    }

    #[test]
    fn over_http2_the_same_goes_on() {
        let told = |fields: &[(&'static str, &str)]| {
            let fields = fields.iter().map(|(name, value)| {
                (
                    header::HeaderName::from_static(name),
                    HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
                )
            });
            links_of(&fields.collect()).map(|head| String::from_utf8(head).expect("text"))
        };
        let head = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
        let link = ("link", "</a.css>; rel=preload");
        assert_eq!(told(&[link, ("set-cookie", "a=b")]).as_deref(), Some(head));
        for fields in [
            vec![("server", "x")],
            vec![("link", "a\u{fc}"), link],
            vec![("link", "x".repeat(LONGEST).leak()), link],
            [vec![("x", "1"); MAX_FIELDS], vec![link]].concat(),
        ] {
            assert_eq!(told(&fields), None, "{fields:?}");
        }
    }

    #[test]
    fn so_many_may_come_however_they_are_cut() {
        let heads = [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nx: a\rb\r\n\r\n",
            "\r\nHTTP/1.0 199\nx:\n\n",
            "HTTP/1.1 102 \r\n\r\n",
        ];
        let row = |count: usize| heads.iter().copied().cycle().take(count).collect::<String>();
        // What stands in an answer's body is none of it.
        let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}", row(MOST));
        let tunnel = format!("HTTP/1.1 101 Switching Protocols\r\n\r\n{}", row(MOST));
        for end in [answer.as_str(), &tunnel, "SSH-2.0-OpenSSH_9.2\r\n", ""] {
            for size in [1, 2, 11, 12, 13, 4_096] {
                let taken = |count: usize| {
                    let mut counted = Row::default();
                    let text = row(count) + end;
                    text.as_bytes().chunks(size).try_for_each(|part| counted.take(part))
                };
                assert_eq!((taken(0), taken(MOST)), (Ok(()), Ok(())), "{size} {end}");
                assert_eq!(taken(MOST + 1), Err(TooMany), "{size} {end}");
            }
        }
    }

    #[test]
    fn what_is_not_sure_goes_nowhere() {
        for said in [
            &b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n"[..],
            b"HTTP/1.1 101 Switching Protocols\r\nlink: </a.css>\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nlink: </a.css>\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nlink </a.css>\r\n\r\n",
            b"HTTP/1.0 103 Early Hints\r\nlink: </a.css>\r\n\r\n",
            b"HTTP/1.1 1",
            b"",
        ] {
            assert_eq!(told(said), None, "{said:?}");
        }
        for value in ["a\u{fc}".to_owned(), "x".repeat(LONGEST)] {
            let said = format!("HTTP/1.1 103 Early Hints\r\nlink: {value}\r\n\r\n");
            assert_eq!(told(said.as_bytes()), Some((said.len(), None)), "{}", value.len());
        }
    }
}
