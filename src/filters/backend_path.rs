//! The path at which a backend is asked.

use http::uri::PathAndQuery;

/// Visible ASCII without a fragment.
pub const PATH: &str = r#"^/[!"$-~]*$"#;
pub const PATH_OF_BACKEND: &str = "path goes with backendRef, and each needs the other";

/// # Errors
/// What to write.
pub fn backend_path(path: Option<&str>) -> Result<&str, &'static str> {
    let path = path.ok_or(PATH_OF_BACKEND)?;
    let is_plain =
        path.starts_with('/') && !path.contains('#') && path.bytes().all(|sign| sign.is_ascii_graphic());
    match PathAndQuery::try_from(path) {
        Ok(_) if is_plain => Ok(path),
        _ => Err("path is one from / on, of visible ASCII characters and without a fragment"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_root_and_is_there() {
        for path in ["/", "/introspect", "/realms/shop/protocol/openid-connect/certs?x=1"] {
            assert_eq!(backend_path(Some(path)), Ok(path));
        }
        for path in [None, Some(""), Some("x"), Some("/a b"), Some("/a#b"), Some("/\u{e4}"), Some("//x y")] {
            assert!(backend_path(path).is_err(), "{path:?}");
        }
    }
}
