//! Calls of gRPC: what is tried again, what a backend hears of the client's time, and what its statuses say of it.

use std::cell::Cell;
use std::time::Duration;

use http::{HeaderValue, Method};
use tokio::time::Instant;

use super::http2::{Multiplexing, Step, backend_of};
use super::scripted::{local, pools, request};
use crate::message::{Body, Request};
use crate::route_map::{EjectionPlan, RetryPlan, TrafficPlan};
use crate::upstream::{Call, SendLimits, Tries};
use crate::values::GrpcCode;

fn call() -> Request {
    let mut call = request(Method::POST, Body::from("a message"));
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    call
}

fn limits(time: Option<Duration>) -> SendLimits<'static> {
    let until = time.map(|time| Instant::now() + time);
    SendLimits { call: Some(Call { until }), ..SendLimits::default() }
}

fn plan(grpc_codes: &[GrpcCode]) -> RetryPlan {
    RetryPlan {
        attempts: 2,
        codes: Box::default(),
        grpc_codes: grpc_codes.into(),
        backoff: Duration::ZERO,
        budget_percent: 20,
        non_idempotent: false,
    }
}

/// What came in the end, and after how many requests.
async fn outcome(steps: Vec<Step>, plan: &RetryPlan, limits: SendLimits<'_>) -> (Option<String>, usize) {
    let server = Multiplexing::start(100, steps).await;
    let (pools, backend, count) = (pools(), server.backend(), Cell::default());
    let tries = Tries::counted_in(&count);
    let sent = pools.send_retrying(&backend, call(), None, limits, plan, &tries).await;
    let status = sent.ok().map(|answer| {
        let status = answer.response.headers().get("grpc-status");
        status.map_or("", |status| status.to_str().expect("text")).to_owned()
    });
    (status, server.requests())
}

#[test]
fn a_status_in_the_head_is_tried_again_where_the_plan_names_it() {
    local(async {
        let busy = || vec![Step::Call("14"), Step::Call("14"), Step::Call("0")];
        let named = plan(&[GrpcCode::Aborted, GrpcCode::Unavailable]);
        assert_eq!(outcome(busy(), &named, limits(None)).await, (Some("0".into()), 3));
        assert_eq!(outcome(busy(), &plan(&[GrpcCode::Aborted]), limits(None)).await, (Some("14".into()), 1));
        assert_eq!(outcome(busy(), &plan(&[]), limits(None)).await, (Some("14".into()), 1));
        // The control: no call.
        assert_eq!(outcome(busy(), &named, SendLimits::default()).await, (Some("14".into()), 1));
        // What has begun is not taken back.
        let begun = vec![Step::CallAfterBody("14"), Step::Call("0")];
        assert_eq!(outcome(begun, &named, limits(None)).await, (Some(String::new()), 1));
        let given_up = vec![Step::Reset(h2::Reason::INTERNAL_ERROR), Step::Call("0")];
        assert_eq!(outcome(given_up.clone(), &named, limits(None)).await, (Some("0".into()), 2));
        assert_eq!(outcome(given_up, &plan(&[GrpcCode::Aborted]), limits(None)).await, (None, 1));
    });
}

#[test]
fn each_try_hears_what_is_left_of_the_client_s_time() {
    local(async {
        let server = Multiplexing::start(100, vec![Step::Call("14"), Step::Call("0")]).await;
        let (pools, backend, count) = (pools(), server.backend(), Cell::default());
        let tries = Tries::counted_in(&count);
        let backoff = Duration::from_millis(40);
        let plan = RetryPlan { backoff, ..plan(&[GrpcCode::Unavailable]) };
        let mut call = call();
        call.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20S"));
        let limits = limits(Some(Duration::from_secs(20)));
        let sent = pools.send_retrying(&backend, call, None, limits, &plan, &tries).await;
        sent.expect("an answer");
        let told: Vec<u64> = server
            .seen
            .borrow()
            .iter()
            .map(|seen| seen.headers()["grpc-timeout"].to_str().expect("text").to_owned())
            .map(|text| text.strip_suffix('u').expect("microseconds").parse().expect("digits"))
            .collect();
        let [first, second] = told[..] else { panic!("{told:?}") };
        assert!(second < first && first < 20_000_000, "{told:?}");
    });
}

#[test]
fn an_endpoint_whose_calls_fail_is_ejected_wherever_the_status_stands() {
    local(async {
        for (bad, is_ejected) in [
            (Step::Call("14"), true),
            (Step::CallAfterBody("13"), true),
            // What clients can bring about.
            (Step::Call("5"), false),
            (Step::CallAfterBody("4"), false),
        ] {
            let (worse, better) = (
                Multiplexing::start(100, vec![bad]).await,
                Multiplexing::start(100, vec![Step::Call("0")]).await,
            );
            let ejection = EjectionPlan {
                consecutive_errors: 3,
                least_success: None,
                eject_for: Duration::from_secs(60),
                max_percent: 50,
            };
            let traffic = TrafficPlan { ejection: Some(ejection), ..TrafficPlan::default() };
            let (pools, backend) = (pools(), backend_of(&[worse.address, better.address], traffic));
            for _ in 0..20 {
                let answer = pools.send(&backend, call(), None, limits(None)).await.expect("an answer");
                let _ = answer.response.into_body().read(1 << 10).await;
            }
            assert_eq!(worse.requests(), if is_ejected { 3 } else { 10 });
        }
    });
}
