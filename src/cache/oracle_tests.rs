//! What we decide about keeping, beside what a published library decides (http-cache-semantics): the same answers, the
//! same words.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_cache_semantics::{CacheOptions, CachePolicy};
use proptest::prelude::*;

use super::*;
use crate::filters::CachePlan;

const NOW: u64 = 1_700_000_000;

fn time(offset: i64) -> String {
    let seconds = NOW.checked_add_signed(offset).expect("in range");
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

prop_compose! {
    fn directives()(
        chosen in prop::sample::subsequence(
            vec!["no-store", "no-cache", "private", "public", "must-revalidate", "max-age", "s-maxage", "no-transform", "x=1"],
            0..5,
        ),
        times in prop::array::uniform2(0_u64..4_000),
    ) -> Option<String> {
        let one = |word: &&str| match *word {
            "max-age" => format!("max-age={}", times[0]),
            "s-maxage" => format!("s-maxage={}", times[1]),
            other => other.to_owned(),
        };
        (!chosen.is_empty()).then(|| chosen.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_published_library_decides_the_same(
        cache_control in directives(),
        status in prop::sample::select(vec![200_u16, 203, 204, 300, 301, 404, 405, 410, 414, 501]),
        date in prop::option::of(-3_000_i64..=0),
        expires in prop::option::of(-4_000_i64..4_000),
        age in prop::option::of(0_u64..3_000),
        authorized in any::<bool>(),
        no_store in any::<bool>(),
    ) {
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
        };
        // So that what is of no use fresh is of use to be asked about.
        put("etag", "\"a\"".into());
        // The other one takes an answer without a date for one of a time of its own.
        put("date", time(date.unwrap_or(0)));
        if let Some(text) = &cache_control { put("cache-control", text.clone()) }
        if let Some(offset) = expires { put("expires", time(offset)) }
        // The other one does not look at the clock for the age that nobody says; ours has a test of its own.
        let age = age.into_iter().chain(date.map(i64::unsigned_abs)).max();
        if let Some(age) = age { put("age", age.to_string()) }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);

        let mut request = Request::get("http://a.example/");
        if authorized { request = request.header("authorization", "Basic x") }
        if no_store { request = request.header("cache-control", "no-store") }
        let request = request.body(()).expect("a request");
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        *response.headers_mut() = headers.clone();
        let options = CacheOptions { cache_heuristic: 0.0, ..CacheOptions::default() };
        let theirs = CachePolicy::new_options(&request, &response, now, options);

        let head = Head { status: response.status(), headers: &headers, failure: None };
        let asked = Asked { no_store, authorized, cookies: false };
        let ours = judge(asked, &head, &CachePlan::default(), now, Duration::ZERO);

        prop_assert_eq!(ours.is_ok(), theirs.is_storable(), "{:?} {:?}", ours, headers);
        if let Ok(terms) = ours {
            let left = if terms.no_cache { Duration::ZERO } else { terms.lifetime.saturating_sub(terms.age) };
            prop_assert_eq!(left, theirs.time_to_live(now), "{:?} {:?}", terms, headers);
        }
    }
}
