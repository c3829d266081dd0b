//! Any text as a template, with any target to take its values from, cut at a NUL: whatever they are, a field's value stays
//! on its line, a parameter one parameter, a method one word, and a path a path in normal form.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
#[path = "../../benches/measure/request.rs"]
mod request;
#[cfg(test)]
use super::request;

use portcullis::expression::{MethodTemplate, PathTemplate, Subject, Template, WHOLE_REQUEST};
use portcullis::message::Request;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether it is a template.
pub fn check(input: &[u8]) -> bool {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let Some(Ok(source)) = parts.next().map(str::from_utf8) else { return false };
    let Ok(template) = Template::parse(source, &WHOLE_REQUEST) else { return false };
    let mut request = Request::default();
    if let Some(uri) = parts.next().and_then(|uri| uri.try_into().ok()) {
        *request.uri_mut() = uri;
    }
    let exchange = request::exchange(request);
    let subject = Subject { exchange: &exchange };
    if let Ok(value) = template.header(&subject) {
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "more than a line");
    }
    if let Ok(text) = template.query(&subject) {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte);
        assert!(text.bytes().all(is_plain), "more than a value: {text}");
    }
    if let Ok(Ok(method)) = MethodTemplate::new(template.clone()).map(|method| method.fill(&subject)) {
        let word = method.as_str();
        assert!(word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "more than a word: {word}");
        assert!(!matches!(word, "" | "CONNECT" | "TRACE"), "never sent: {word}");
    }
    let Ok(path) = PathTemplate::new(template) else { return true };
    let Ok(path) = path.fill(&subject) else { return true };
    assert!(path.starts_with('/'), "no path: {path}");
    assert!(
        path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#'),
        "no path: {path}"
    );
    let mut segments: Vec<_> = path[1..].split('/').collect();
    // A slash at the end is one.
    if segments.last() == Some(&"") {
        segments.pop();
    }
    assert!(
        !segments.iter().any(|segment| matches!(*segment, "" | "." | "..")),
        "not in normal form: {path}"
    );
    true
}
