//! Any text as a token, as it is or as the parts of one, cut at each NUL: what is read has one spelling, and its issuer is
//! the one that it was chosen by.
#![cfg_attr(not(test), no_main)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::filters::{Token, unverified_issuer};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether it is one, or has the parts of one.
pub fn check(input: &[u8]) -> bool {
    let is_one = std::str::from_utf8(input).is_ok_and(judge);
    let parts: Vec<String> =
        input.split(|byte| *byte == 0).map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
    judge(&parts.join(".")) || is_one
}

fn judge(token: &str) -> bool {
    let issuer = unverified_issuer(token);
    let Ok(read) = Token::read(token) else { return false };
    assert_eq!(token.split('.').count(), 3);
    for part in token.split('.') {
        let bytes = URL_SAFE_NO_PAD.decode(part).expect("it was read");
        assert_eq!(URL_SAFE_NO_PAD.encode(bytes), part, "two spellings");
    }
    assert_eq!(read.claims.get("iss").and_then(|issuer| issuer.as_str()), issuer.as_deref(), "two issuers");
    true
}
