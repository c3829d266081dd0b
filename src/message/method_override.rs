//! Fields by which some servers take another method than the request has. Who judges by the method would judge another
//! request than the one that is served.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName};

use crate::values::ReservedHeaders;

static NAMES: LazyLock<ReservedHeaders> =
    LazyLock::new(|| ["x-http-method", "x-http-method-override", "x-method-override"].into_iter().collect());

/// Whether it is one of them, in any spelling.
pub fn overrides_method(name: &str) -> bool {
    name.starts_with('x') && NAMES.hold(name)
}

/// Takes them off, but those that are spared.
pub fn take_method_overrides(headers: &mut HeaderMap, spared: impl Fn(&HeaderName) -> bool) {
    let goes = |name: &&HeaderName| overrides_method(name.as_str()) && !spared(name);
    while let Some(name) = headers.keys().find(goes).cloned() {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_overrides_the_method_goes_in_every_spelling_unless_it_is_spared() {
        let names =
            ["x-http-method", "x-http-method-override", "x-method-override", "x.http.method", "x-method"];
        let left = |spared: &[&str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static("PUT"));
                headers.append(HeaderName::from_static(name), HeaderValue::from_static("DELETE"));
            }
            take_method_overrides(&mut headers, |name| spared.contains(&name.as_str()));
            let mut left: Vec<_> = headers.keys().map(ToString::to_string).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left(&[]), ["x-method"]);
        assert_eq!(left(&["x-http-method"]), ["x-http-method", "x-method"]);
    }
}
