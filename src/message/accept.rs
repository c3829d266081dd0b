//! What `Accept` says of the forms in which a failure can be told (RFC 9110 section 12.5.1): of all ranges that a form is
//! in the closest decides, and its weight is what the client gives for that form.

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

use super::FailureForm;

/// So many ranges are read; more are no client's.
const RANGES: usize = 64;
/// The first of equals, where none is named.
const FORMS: [FailureForm; 3] = [FailureForm::Problem, FailureForm::Text, FailureForm::Page];

/// All lines of the field as one: what they say, they say together.
pub fn accept_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(ACCEPT).iter();
    let first = lines.next()?;
    let Some(second) = lines.next() else { return Some(first.clone()) };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    HeaderValue::from_bytes(&joined).ok()
}

/// The weight in thousandths (RFC 9110 section 12.4.2); none: it is not one.
pub fn thousandths(text: &str) -> Option<u16> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || part.len() > 3 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = part.bytes().fold(0, |part, digit| part * 10 + u16::from(digit - b'0'))
        * 10_u16.pow(3 - part.len() as u32);
    let found = part + if whole == "1" { 1000 } else { 0 };
    (found <= 1000).then_some(found)
}

/// What a client takes of [`FORMS`].
#[derive(Debug, Default)]
pub(super) struct Accepted([Option<Liking>; FORMS.len()]);

/// The closest range that a form is in, and its weight in thousandths.
#[derive(Clone, Copy, Debug)]
struct Liking {
    near: Near,
    quality: u16,
}

/// How a range names a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Near {
    /// With parameters that it has not: it is not meant, and better than nothing.
    OfAnotherKind,
    Anything,
    Family,
    /// By a type that its clients read, too.
    Kin,
    Itself,
    /// With the parameter that it has.
    Exactly,
}

impl Accepted {
    pub fn of(accept: &[u8]) -> Self {
        let mut accepted = Self::default();
        let text = std::str::from_utf8(accept).unwrap_or_default();
        for range in text.split(outside_quotes(',')).filter_map(Range::read).take(RANGES) {
            for (form, known) in FORMS.into_iter().zip(&mut accepted.0) {
                let Some(near) = range.names(form) else { continue };
                let found = Liking { near, quality: range.quality };
                match known {
                    Some(known) if known.near > near => {}
                    // Said twice: the less counts.
                    Some(known) if known.near == near => known.quality = known.quality.min(found.quality),
                    _ => *known = Some(found),
                }
            }
        }
        accepted
    }

    /// The form that is liked best; among equals one that is named, of those the document before the page.
    pub fn choose(&self) -> Option<FailureForm> {
        let mut best = None;
        for (form, liking) in FORMS.into_iter().zip(&self.0) {
            let Some(liking) = liking.filter(|liking| liking.quality > 0) else { continue };
            let rank = match (liking.near, form) {
                (Near::OfAnotherKind | Near::Anything, _) => 0,
                (Near::Family, _) => 1,
                (_, FailureForm::Problem) => 4,
                (_, FailureForm::Page) => 3,
                _ => 2,
            };
            let worth = (liking.near != Near::OfAnotherKind, liking.quality, rank);
            if best.is_none_or(|(known, _)| worth > known) {
                best = Some((worth, form));
            }
        }
        best.map(|(_, form)| form)
    }
}

/// One member of the field.
struct Range<'a> {
    family: &'a str,
    kind: &'a str,
    parameters: Parameters,
    quality: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parameters {
    None,
    /// The charset that all our texts have.
    Ours,
    Others,
}

impl<'a> Range<'a> {
    /// `None`: it is no range, or its weight is none.
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(outside_quotes(';')).map(str::trim);
        let (family, kind) = parts.next()?.split_once('/')?;
        let (mut parameters, mut quality) = (Parameters::None, 1000);
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (name, value) = (name.trim(), value.trim());
            if name.eq_ignore_ascii_case("q") {
                quality = thousandths(value)?;
                // What follows the weight says nothing of the type.
                break;
            }
            let is_ours =
                name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8");
            parameters = match parameters {
                Parameters::None | Parameters::Ours if is_ours => Parameters::Ours,
                _ => Parameters::Others,
            };
        }
        Some(Self { family: family.trim(), kind: kind.trim(), parameters, quality })
    }

    fn names(&self, form: FailureForm) -> Option<Near> {
        let (family, own, kin) = match form {
            FailureForm::Problem => ("application", "problem+json", "json"),
            FailureForm::Page => ("text", "html", ""),
            FailureForm::Text => ("text", "plain", ""),
            FailureForm::Grpc => return None,
        };
        let is = |found: &str, wanted: &str| found.eq_ignore_ascii_case(wanted);
        let is_page = form == FailureForm::Page;
        let near = match (self.family, self.kind) {
            ("*", "*") => Near::Anything,
            (found, "*") if is(found, family) => Near::Family,
            (found, kind) if is(found, family) && is(kind, own) => Near::Itself,
            (found, kind) if is(found, family) && !kin.is_empty() && is(kind, kin) => Near::Kin,
            (found, kind) if is_page && is(found, "application") && is(kind, "xhtml+xml") => Near::Kin,
            _ => return None,
        };
        Some(match (self.parameters, near) {
            (Parameters::None, near) => near,
            (Parameters::Ours, Near::Itself) => Near::Exactly,
            (Parameters::Ours, near) => near,
            (Parameters::Others, _) => Near::OfAnotherKind,
        })
    }
}

/// Finds a separator; in quoted strings it is none. For one pass from start to end.
fn outside_quotes(separator: char) -> impl FnMut(char) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    move |sign| {
        if escaped {
            escaped = false;
            return false;
        }
        match sign {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            sign => return !quoted && sign == separator,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::FailureForm::{Page, Problem, Text};
    use super::*;

    fn form(accept: &str) -> FailureForm {
        FailureForm::of(Some(&accept.parse().expect("a value")))
    }

    #[test]
    fn each_client_gets_the_form_that_it_asks_for() {
        assert_eq!(form("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), Page);
        assert_eq!((form("text/plain"), form("text/*")), (Text, Text));
        for accept in
            ["*/*", "application/json, text/plain", "application/problem+json, text/html", "image/png"]
        {
            assert_eq!(form(accept), Problem, "{accept}");
        }
        assert_eq!(FailureForm::of(None), Problem);
        // What is named with a weight of nothing is not taken.
        assert_eq!(form("application/json; q=0, text/html;level=1"), Page);
        assert_eq!(form("text/html;q=0.000, TEXT/PLAIN;Q=0.1"), Text);
        assert_eq!(form("text/html;q=0, text/plain;q=0.0, */*"), Problem);
    }

    #[test]
    fn the_heavier_is_taken_whatever_we_would_like() {
        for (accept, expected) in [
            ("application/json;q=0.5, text/html", Page),
            ("application/json;q=0.5, text/html;q=0.4", Problem),
            ("application/json;q=0.009, text/plain;q=0.01", Text),
            ("text/html;q=0.3, text/plain;q=0.7, */*;q=0.5", Text),
            ("text/html;q=0.3, */*;q=0.5", Problem),
            ("application/problem+json;q=0.2, application/json, text/html;q=0.5", Page),
            ("application/problem+json, application/json;q=0.2, text/html;q=0.5", Problem),
            ("text/html;q=0.9, application/xhtml+xml;q=0.1, application/json;q=0.5", Page),
            ("application/xhtml+xml, application/json;q=0.5", Page),
            ("text/html; q=1.000 , application/json ; q=0.999", Page),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
    }

    #[test]
    fn the_closest_range_decides_about_a_type() {
        for (accept, expected) in [
            // What is named leaves the wider range.
            ("text/*, text/plain;q=0.1, application/json;q=0.5", Page),
            ("text/*;q=0.1, text/plain, application/json;q=0.5", Text),
            ("*/*, application/*;q=0.1, text/html;q=0.1", Text),
            ("*/*;q=0.1, application/*", Problem),
            ("application/json;q=0, */*", Text),
            ("application/*;q=0, */*;q=0.1, text/plain;q=0", Page),
            ("text/html;charset=utf-8;q=0.2, text/html, application/json;q=0.5", Problem),
            ("text/html;charset=\"UTF-8\", text/html;q=0.2, application/json;q=0.5", Page),
            ("application/json;charset=utf-8, text/html;q=0.9", Problem),
            // Of another kind than ours: taken where nothing else is.
            ("text/html;level=1, application/json;q=0.1", Problem),
            ("text/html;level=1, text/plain;q=0", Page),
            ("text/html;level=1, */*;q=0.1", Problem),
            // Said twice: the less counts.
            ("text/html, text/html;q=0.1, application/json;q=0.5", Problem),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
    }

    #[test]
    fn what_is_no_range_or_weight_says_nothing() {
        for (accept, expected) in [
            ("", Problem),
            (" , ;q=1,", Problem),
            ("text/html;q=2, text/plain;q=0.1", Text),
            ("text/html;q=0.1234, text/plain;q=0.1", Text),
            ("text/html;q=, text/plain;q=0.1", Text),
            ("html, text/plain", Text),
            ("*/html, text/plain;q=0.1", Text),
            // Separators within quotes are none.
            ("image/png;a=\"x, text/html;q=1\", text/plain;q=0.1", Text),
            ("image/png;a=\"\\\", text/html\", text/plain;q=0.1", Text),
            ("text/html;a=\"b;q=0\"", Page),
            // What follows the weight does not belong to the type.
            ("text/html;q=0.5;level=1, text/plain;q=0.4", Page),
        ] {
            assert_eq!(form(accept), expected, "{accept}");
        }
        assert_eq!(FailureForm::of(HeaderValue::from_bytes(b"text/html, \xff").ok().as_ref()), Problem);
        let many = "image/png, ".repeat(RANGES) + "text/html";
        assert_eq!(form(&many), Problem, "a bound");
    }

    #[test]
    fn several_lines_are_one_list() {
        let of = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT, HeaderValue::from_static(line));
            }
            accept_of(&headers)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["text/html;q=0.5"]).expect("one"), "text/html;q=0.5");
        let joined =
            of(&["application/json;q=0.5", "text/html;q=0.6, */*;q=0.1", "text/plain"]).expect("one");
        assert_eq!(joined, "application/json;q=0.5, text/html;q=0.6, */*;q=0.1, text/plain");
        assert_eq!(FailureForm::of(Some(&joined)), Text);
    }
}
