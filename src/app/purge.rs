//! Purges: what `POST /purge` names is not used any more, here and on every other replica.
//!
//! Invariants: nothing is purged without the token, which is compared in constant time; whoever asks is told of every
//! replica that did not answer.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::cache::Purge;
use crate::controller::{Purging, TokenFile};
use crate::proxy::DataPlane;
use crate::route_map::path::normal_form;

/// A thousand URLs of usual length.
pub const MAX_BODY: usize = 128 << 10;
pub const MAX_NAMES: usize = 1_000;

/// What is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Named {
    /// `https://shop.example/a?b`; both schemes are meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// `https://shop.example/images/`: everything that begins so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Of `Surrogate-Key` or `Cache-Tag`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// `namespace/name` of a GatewayRoute.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,
}

/// Who purges.
#[derive(Clone)]
pub struct Purger {
    pub plane: DataPlane,
    pub token: Option<TokenFile>,
    /// The other replicas; none with files.
    pub others: Option<Arc<dyn Purging>>,
}

impl Named {
    /// # Errors
    /// What is wrong with the first that cannot be understood.
    pub fn purges(&self) -> Result<Vec<Purge>, String> {
        let count = self.urls.len() + self.prefixes.len() + self.tags.len() + self.routes.len();
        if count > MAX_NAMES {
            return Err(format!(
                "found {count} names, expected at most {MAX_NAMES}; say everything, or ask twice"
            ));
        }
        let mut purges = Vec::new();
        for url in &self.urls {
            let (host, target) = place(url)?;
            purges.push(Purge::Url { host, target });
        }
        for prefix in &self.prefixes {
            let (host, path) = place(prefix)?;
            purges.push(Purge::Prefix { host, path });
        }
        purges.extend(self.tags.iter().cloned().map(Purge::Tag));
        for route in &self.routes {
            let (namespace, name) =
                route.split_once('/').ok_or_else(|| format!("found {route:?}, expected namespace/name"))?;
            purges.push(Purge::Route { namespace: namespace.to_owned(), name: name.to_owned() });
        }
        if self.everything {
            purges.push(Purge::Everything);
        }
        match purges.is_empty() {
            true => Err("nothing is named; say urls, prefixes, tags, routes or everything".to_owned()),
            false => Ok(purges),
        }
    }
}

/// Host and target as the cache's keys have them.
pub fn place(url: &str) -> Result<(String, String), String> {
    let wrong = || format!("found {url:?}, expected a URL like https://shop.example/a");
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.authority().ok_or_else(wrong)?.as_str().to_ascii_lowercase();
    let path = if uri.path().is_empty() { "/" } else { uri.path() };
    let mut target = normal_form(path).map_err(|_| wrong())?.into_owned();
    if let Some(query) = uri.query() {
        target.push('?');
        target.push_str(query);
    }
    Ok((host, target))
}

/// Purges here what another replica was asked to.
pub fn purge_here(plane: &DataPlane, body: &[u8]) -> Result<(), String> {
    let named: Named = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    named.purges()?.into_iter().for_each(|purge| plane.purge(purge));
    Ok(())
}

impl Purger {
    /// Whether who asks shows the token. An error: what to answer.
    ///
    /// # Errors
    /// There is no token, or another one was shown.
    pub async fn admits(&self, headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
        let Some(file) = &self.token else {
            let how = "purges are off; give the gateway a token with --admin-token-file\n";
            return Err((StatusCode::FORBIDDEN, how.to_owned()));
        };
        let token = file.read().await.map_err(|error| {
            tracing::warn!(error, "nobody can purge");
            (StatusCode::SERVICE_UNAVAILABLE, "the token cannot be read; see the log\n".to_owned())
        })?;
        let shown = headers.get(AUTHORIZATION).and_then(|shown| shown.as_bytes().strip_prefix(b"Bearer "));
        match shown.is_some_and(|shown| shown.ct_eq(token.as_bytes()).into()) {
            true => Ok(()),
            false => Err((StatusCode::UNAUTHORIZED, "show the token: Authorization: Bearer …\n".to_owned())),
        }
    }

    /// Purges here and on every other replica.
    pub async fn purge(&self, body: Bytes) -> (StatusCode, String) {
        if let Err(error) = purge_here(&self.plane, &body) {
            return (StatusCode::BAD_REQUEST, format!("{error}\n"));
        }
        told(match &self.others {
            Some(others) => others.purge(body).await,
            None => Ok(Vec::new()),
        })
    }
}

/// What whoever asked for a purge is answered, once it is done here: the others that did not take it.
fn told(others: Result<Vec<(String, String)>, String>) -> (StatusCode, String) {
    let failed = others.unwrap_or_else(|error| vec![("the other replicas".to_owned(), error)]);
    let status = if failed.is_empty() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    let failed: Vec<_> =
        failed.into_iter().map(|(replica, error)| json!({"replica": replica, "error": error})).collect();
    (status, format!("{}\n", json!({"purged": true, "failed": failed})))
}

/// The file of the token, if there is one.
pub fn token_file(path: Option<PathBuf>) -> Option<TokenFile> {
    path.map(TokenFile::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purges(text: &str) -> Result<Vec<Purge>, String> {
        serde_json::from_str::<Named>(text).map_err(|error| error.to_string())?.purges()
    }

    #[test]
    fn names_become_what_keys_have() {
        let all = purges(
            r#"{"urls": ["https://Shop.example:8443/a/../b?c"], "prefixes": ["http://shop.example"], "tags": ["t"], "routes": ["shop/web"], "everything": true}"#,
        );
        let expected = vec![
            Purge::Url { host: "shop.example:8443".into(), target: "/b?c".into() },
            Purge::Prefix { host: "shop.example".into(), path: "/".into() },
            Purge::Tag("t".into()),
            Purge::Route { namespace: "shop".into(), name: "web".into() },
            Purge::Everything,
        ];
        assert_eq!(all, Ok(expected));
    }

    #[test]
    fn whoever_asks_is_told_of_every_replica_that_did_not_answer() {
        let lost = || ("one".to_owned(), "no answer in 2500 ms".to_owned());
        for (others, status, failed) in [
            (Ok(vec![]), 200, json!([])),
            (Ok(vec![lost()]), 502, json!([{"replica": "one", "error": "no answer in 2500 ms"}])),
            (
                Err("no addresses".to_owned()),
                502,
                json!([{"replica": "the other replicas", "error": "no addresses"}]),
            ),
        ] {
            let (told, body) = told(others);
            let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!((told.as_u16(), body), (status, json!({"purged": true, "failed": failed})));
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in
            ["{}", r#"{"urls": ["/a"]}"#, r#"{"routes": ["web"]}"#, r#"{"url": []}"#, r#"{"urls": ["a b"]}"#]
        {
            assert!(purges(text).is_err(), "{text}");
        }
        let many = format!(r#"{{"tags": [{}]}}"#, vec!["\"t\""; MAX_NAMES + 1].join(","));
        assert!(purges(&many).is_err());
    }
}
