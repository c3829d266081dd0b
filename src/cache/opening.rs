//! The head of an answer on its way: what those who wait for it are told, and what is kept with its body.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::conditions::is_not_modified;
use super::judge::Terms;
use super::key;
use super::marks::Place;
use super::stored::{Segments, Stored, as_a_part, not_modified};
use crate::message::{Body, Response};

/// The head of an answer that many may have.
#[derive(Debug)]
pub struct Opening {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub terms: Terms,
    pub received: Instant,
    pub wall: SystemTime,
    /// Fields of the request that chose it, and their values as `key::vary` writes them.
    pub vary: Box<[HeaderName]>,
    pub chosen_by: Box<[u8]>,
    pub born: u64,
    pub address: Box<[u8]>,
    pub place: Arc<Place>,
    pub tags: Box<[Box<str>]>,
}

impl Opening {
    /// Whether a request with this head would have been answered the same.
    pub fn suits(&self, request: &HeaderMap) -> bool {
        key::suits(request, &self.vary, &self.chosen_by)
    }

    /// The answer to a request with this head: 304 where the client has it already. `age`: what it is told to be.
    pub fn answer(&self, request: &HeaderMap, body: Body, age: Option<Duration>) -> Response {
        let mut response = match self.is_known(request) {
            true => not_modified(&self.headers),
            false => {
                let mut response = Response::new(body);
                *response.status_mut() = self.status;
                *response.headers_mut() = self.headers.clone();
                as_a_part(request, &mut response);
                response
            }
        };
        if let Some(age) = age {
            response.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
        }
        response
    }

    /// Of the answer to who fetched it: as old as it came.
    pub fn age_as_it_came(&self) -> Option<Duration> {
        Some(self.terms.age).filter(|age| !age.is_zero())
    }

    pub fn age(&self, now: Instant) -> Duration {
        self.terms.age + now.duration_since(self.received)
    }

    pub fn is_known(&self, request: &HeaderMap) -> bool {
        self.status == StatusCode::OK && is_not_modified(request, &self.headers, self.wall)
    }

    /// With all of its body.
    pub fn keep(&self, body: Segments, trailers: Option<HeaderMap>) -> Stored {
        let mut headers = self.headers.clone();
        if trailers.is_none() && self.status != StatusCode::NO_CONTENT {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.length()));
        }
        Stored {
            status: self.status,
            headers,
            body,
            trailers,
            terms: self.terms,
            received: self.received,
            wall: self.wall,
            born: self.born,
            checked: AtomicU64::new(0),
            doubted: AtomicBool::new(false),
            address: self.address.clone(),
            place: Arc::clone(&self.place),
            tags: self.tags.clone(),
            vary: self.vary.clone(),
            chosen_by: self.chosen_by.clone(),
        }
    }
}
