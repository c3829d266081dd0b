//! A backend's interim answers: how many may come before the answer, and what of them goes on to the client (RFC 8297):
//! the `Link` fields of 103, and nothing else.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::message::Hinted;

/// Of one head as many fields are read.
const MAX_FIELDS: usize = 32;
/// Longer ones are dropped.
const LONGEST: usize = 4 << 10;

/// So many may come before an answer.
const MOST: usize = 32;
/// One more came than may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more interim answers came than may")]
pub(super) struct TooMany;

/// Counts those of one request, and tells the client of them.
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
    pub fn take(&mut self, status: StatusCode, fields: &HeaderMap) -> Result<(), TooMany> {
        self.count += 1;
        if self.count > MOST {
            return Err(TooMany);
        }
        if let Some(hinted) = self.hinted.filter(|_| status == StatusCode::EARLY_HINTS)
            && let Some(links) = links_of(fields)
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
    use std::sync::Arc;

    use http::HeaderName;

    use super::*;
    use crate::message::Hints;

    fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn only_links_go_on() {
        let told = |fields: &[(&'static str, &str)]| {
            links_of(&head(fields)).map(|head| String::from_utf8(head).expect("text"))
        };
        let two =
            [("link", "</a.css>; rel=preload"), ("set-cookie", "a=b"), ("link", "</b.js>"), ("server", "x")];
        let goes_on = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>\r\n\r\n";
        assert_eq!(told(&two).as_deref(), Some(goes_on));
        for fields in [
            vec![],
            vec![("server", "x")],
            vec![("link", "a\u{fc}"), two[0]],
            vec![("link", "x".repeat(LONGEST).leak()), two[0]],
            [vec![("x", "1"); MAX_FIELDS], vec![two[0]]].concat(),
        ] {
            assert_eq!(told(&fields), None, "{fields:?}");
        }
    }

    #[test]
    fn of_103_alone_the_client_is_told_and_so_many_may_come() {
        let hints = Arc::new(Hints::default());
        let waiting = hints.wait();
        let mut heads = Heads::told_to(Some(waiting.hinted()));
        let link = head(&[("link", "</a.css>")]);
        for status in [StatusCode::CONTINUE, StatusCode::PROCESSING] {
            assert_eq!(heads.take(status, &link), Ok(()));
        }
        assert_eq!(hints.take(), None);
        for _ in 2..MOST {
            assert_eq!(heads.take(StatusCode::EARLY_HINTS, &link), Ok(()));
        }
        assert!(hints.take().is_some());
        assert_eq!(heads.take(StatusCode::EARLY_HINTS, &link), Err(TooMany));
    }
}
