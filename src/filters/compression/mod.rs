//! `compression`: what a client can unpack and is worth it goes out compressed.

mod accept;
mod encoder;
mod head;
mod stream;
#[cfg(test)]
mod tests;
mod validators;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HeaderName};
use http::{HeaderMap, Method, StatusCode};
use http_body::Body as _;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::accept::Accepted;
use self::encoder::{Encoder, Size};
use self::head::Worth;
use self::stream::Compressing;
use super::contract::{Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use crate::message::{Body, Coding, Compressed, Exchange, Response, Scheme, Wished};
use crate::values::{ByteSize, FieldPath, Problem, Reason};

pub struct Compression;

/// Compresses answers for clients that can unpack them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The first is taken that suits a client best; all by default, in this order.
    #[serde(default = "all")]
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub algorithms: Vec<Algorithm>,
    /// Answers that are known to be smaller stay as they are; 1Ki by default.
    #[serde(default = "default_min_size")]
    pub min_size: ByteSize,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Zstd,
    Brotli,
    Gzip,
}

fn all() -> Vec<Algorithm> {
    vec![Algorithm::Zstd, Algorithm::Brotli, Algorithm::Gzip]
}

fn default_min_size() -> ByteSize {
    ByteSize::new(1 << 10)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order of preference.
    offered: Box<[Coding]>,
    min_size: u64,
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Member for Compression {
    const NAME: &'static str = "compression";
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let offered: Box<[Coding]> = spec.algorithms.iter().map(|algorithm| algorithm.coding()).collect();
        let at = FieldPath::new("algorithms");
        let message = if offered.is_empty() {
            "name at least one of Zstd, Brotli and Gzip, or leave the field out for all"
        } else if (1..offered.len()).any(|index| offered[..index].contains(&offered[index])) {
            "name each algorithm once"
        } else {
            return Ok(Plan { offered, min_size: spec.min_size.bytes() });
        };
        Err(vec![Problem::error(at, Reason::PolicyInvalid, message)])
    }
}

impl FilterKind for Compression {
    const RING: Ring = Ring::Compression;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Algorithm {
    const fn coding(self) -> Coding {
        match self {
            Self::Zstd => Coding::Zstd,
            Self::Brotli => Coding::Brotli,
            Self::Gzip => Coding::Gzip,
        }
    }
}

impl Filter for Plan {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let scheme = exchange.client.scheme;
        let request = &mut exchange.request;
        validators::strengthen(request.headers_mut());
        let headers = request.headers();
        let accepted = Accepted::of(headers);
        let wished = Wished {
            coding: accepted.choose(&self.offered).filter(|_| !head::no_transform(headers)),
            not_plain: accepted.not_plain(),
            head_only: request.method() == Method::HEAD,
            foreign: scheme == Scheme::Https && is_foreign(headers),
        };
        if wished.coding.is_some() {
            validators::drop_dated_range(request.headers_mut());
        }
        exchange.wished = wished;
        Decision::Continue
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        let wished = exchange.wished;
        let status = response.status();
        if matches!(status, StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT) {
            head::vary(response.headers_mut());
            if status == StatusCode::NOT_MODIFIED && wished.coding.is_some() {
                // A cache looks by it for what it keeps, which may be the compressed form.
                validators::weaken(response.headers_mut());
            }
            return Outcome::Ready(response);
        }
        let length = length(&response, wished.head_only);
        match head::worth(status, response.headers(), length, self.min_size) {
            Worth::Never => return Outcome::Ready(response),
            Worth::Little if wished.not_plain => {}
            Worth::Little => return Outcome::Ready(response),
            Worth::Yes => {}
        }
        head::vary(response.headers_mut());
        // A site that another one's script may ask with its cookies would tell that one, by the sizes of what is asked
        // for, what stands in the answers (BREACH). `cors` says which sites may.
        let coding = wished.coding.filter(|_| !wished.foreign || exchange.origin.is_some());
        let Some(coding) = coding else { return Outcome::Ready(response) };
        if wished.head_only {
            head::encoded(response.headers_mut(), coding);
            *response.body_mut() = Body::Empty;
            return Outcome::Ready(response);
        }
        let Some(encoder) = Encoder::new(coding, Size(length)) else { return Outcome::Ready(response) };
        head::encoded(response.headers_mut(), coding);
        let plain = Rc::new(Cell::new(0));
        exchange.compressed = Some(Compressed { coding, plain: plain.clone() });
        Outcome::Ready(response.map(|body| Body::stream(Compressing::new(body, encoder, plain))))
    }
}

/// How long the body is, as far as that is known before it came. That of an answer to HEAD stands in its head.
fn length(response: &Response, head_only: bool) -> Option<u64> {
    let told = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    match response.body().size_hint().exact() {
        Some(0) if head_only => told(),
        Some(exact) => Some(exact),
        None => told(),
    }
}

/// Another site's page made the browser ask, with what it keeps for this one.
fn is_foreign(headers: &HeaderMap) -> bool {
    let from = headers.get(SEC_FETCH_SITE).map(http::HeaderValue::as_bytes);
    from == Some(b"cross-site") && (headers.contains_key(COOKIE) || headers.contains_key(AUTHORIZATION))
}
