//! What of a backend's interim answers goes on to the client (RFC 8297): the `Link` fields of 103, and nothing else.

/// Of one head as many fields are read.
const MAX_FIELDS: usize = 32;
/// Longer ones are dropped.
const LONGEST: usize = 4 << 10;

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
        103 => Some(Interim { length, head: links(answer.headers) }),
        100..=199 => Some(Interim { length, head: None }),
        _ => None,
    }
}

/// A head with these links; `None`: there are none, or what they say is not sure.
fn links(fields: &[httparse::Header<'_>]) -> Option<Vec<u8>> {
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
    let mut head = b"HTTP/1.1 103 Early Hints\r\n".to_vec();
    let begins = head.len();
    for link in fields.iter().filter(|field| field.name.eq_ignore_ascii_case("link")) {
        if !link.value.iter().all(is_text) {
            return None;
        }
        head.extend_from_slice(b"link: ");
        head.extend_from_slice(link.value);
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
