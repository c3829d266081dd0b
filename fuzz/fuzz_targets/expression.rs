//! Any text as an expression, with any JSON as the request's body and any target, cut at each NUL: it is refused when it
//! is parsed, or has a value that is bounded JSON, the same each time, or says that it has none.
#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
#[path = "../../benches/measure/request.rs"]
mod request;
#[cfg(test)]
use super::request;

use std::sync::Arc;

use portcullis::expression::{Expression, Kind, Subject, WHOLE_REQUEST};
use portcullis::message::{RawJson, Request};
use serde_json::value::RawValue;

const MOST: usize = 1 << 16;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether it is an expression.
pub fn check(input: &[u8]) -> bool {
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let Some(Ok(source)) = parts.next().map(str::from_utf8) else { return false };
    let Ok(expression) = Expression::parse(source, &WHOLE_REQUEST, Kind::ANY) else { return false };
    let body = parts.next().and_then(|body| RawJson::new(body.to_vec()).ok());
    let mut request = Request::default();
    if let Some(uri) = parts.next().and_then(|uri| uri.try_into().ok()) {
        *request.uri_mut() = uri;
    }
    let mut exchange = request::exchange(request);
    exchange.request_body = body.map(Arc::new);
    let subject = Subject { exchange: &exchange };
    let value = expression.json(&subject, MOST);
    if let Ok(text) = &value {
        assert!(text.len() <= MOST, "more than it may be");
        assert!(serde_json::from_slice::<&RawValue>(text).is_ok(), "no JSON");
    }
    assert_eq!(value, expression.json(&subject, MOST), "another value");
    let _ = (expression.holds(&subject), expression.int(&subject));
    true
}
