//! Bodies that transforms read and change: JSON, read whole within a bound and taken out of its content coding; and the
//! fields that tell of a body, right afterwards.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::body_patch::{BodyPatch, BodyPatchSpec, Unpatched};
use super::contract::{Keep, Scope};
use super::held::{self, Held, Share, Unread};
use super::media::{IsJson, Packing, is_json, packing};
use super::offload::Offload;
use crate::expression::{BODY, Environment, Expression, Kind, Subject};
use crate::message::{Body, BodyError, ErrorKind, NotJson, ProxyError, RawJson, Request, Undecodable};
use crate::values::{FieldPath, Problem, Reason};

/// Bytes of a body that is read or made.
pub const MOST: usize = 1 << 20;
/// What is larger is worked on elsewhere, so that it holds up no other request.
const LARGE: usize = 64 << 10;
/// So many pointers look at a document for as long as it takes to read it.
const POINTERS: usize = 16;

pub const TWO_BODIES: &str =
    "body makes a body anew and bodyPatch changes the one that came; give one of them";
/// What was true of the body as it was. Nobody vouches for the changed one: digests and validators go, and so do
/// trailers, which are read with it.
const OF_THE_OLD: [&str; 10] = [
    "content-encoding",
    "content-range",
    "accept-ranges",
    "etag",
    "last-modified",
    "trailer",
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
];

/// What becomes of a body.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Patch(Arc<BodyPatch>),
    /// By an expression.
    Made(Expression),
}

/// What a linked transform needs for bodies.
#[derive(Clone, Debug)]
pub struct Bodies {
    held: Arc<Held>,
    offload: Offload,
}

/// A body that was read, counted as held.
#[derive(Debug)]
pub struct Whole {
    came: Bytes,
    trailers: Option<HeaderMap>,
    /// Without its content coding.
    plain: Bytes,
}

/// A body as expressions read it, counted as held.
#[derive(Debug)]
pub struct Document {
    pub json: Arc<RawJson>,
    _share: Option<Share>,
}

/// Why a body cannot be had, read or made. Nothing of it is said.
#[derive(Debug)]
pub enum Trouble {
    Unread(Unread),
    Unpacked(Undecodable),
    /// It came, and is not what it must be; or nothing comes of it.
    Unusable(Box<dyn std::error::Error + Send + Sync>),
    /// The gateway has no time for it.
    Ours(ErrorKind),
    Late,
}

impl Change {
    /// Proves what is written at `bodyPatch` or `body`. What the scope has told costs the member all the same.
    pub fn compile(
        patch: Option<BodyPatchSpec>,
        body: Option<String>,
        environment: &'static Environment,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let at = FieldPath::new("body");
        if patch.is_some() && body.is_some() {
            problems.push(Problem::error(at.clone(), Reason::PolicyInvalid, TWO_BODIES));
        }
        let patch = patch.map(|patch| Self::Patch(Arc::new(BodyPatch::new(&patch, problems))));
        let made = body.and_then(|body| scope.expression(at, &body, environment, Kind::ANY)).map(Self::Made);
        patch.or(made)
    }

    /// Whether an expression of it reads the body that came.
    pub fn looks_inside(&self) -> bool {
        matches!(self, Self::Made(body) if body.reads(BODY))
    }

    /// Whether the body that came is needed for it.
    pub fn needs_the_old(&self) -> bool {
        matches!(self, Self::Patch(_)) || self.looks_inside()
    }
}

impl Bodies {
    pub fn kept(keep: &dyn Keep) -> Self {
        Self { held: Held::kept(keep), offload: keep.offload() }
    }

    /// Reads a body that [`takes`] or [`takes_answer`] has judged by these fields, until the deadline, or for 30 s.
    ///
    /// # Errors
    /// It does not come whole in time, is too large, or is not in the coding that it is said to be in.
    pub async fn read(
        &self,
        body: Body,
        headers: &HeaderMap,
        deadline: Option<Instant>,
    ) -> Result<Whole, Trouble> {
        let deadline = deadline.unwrap_or_else(|| Instant::now() + held::PATIENCE);
        let reading = held::read(body, MOST as u64, &self.held);
        let read = tokio::time::timeout_at(deadline, reading).await.map_err(|_| Trouble::Late)?;
        let (came, trailers) = read.map_err(Trouble::Unread)?;
        let Packing::One(coding) = packing(headers) else {
            return Ok(Whole { plain: came.clone(), came, trailers });
        };
        if came.is_empty() {
            return Ok(Whole { plain: came.clone(), came, trailers });
        }
        let packed = came.clone();
        // Little may become much.
        let plain = self.offload.run(move || coding.decode(&packed, MOST)).await.map_err(Trouble::Ours)?;
        let plain = self.held.take(plain.map_err(Trouble::Unpacked)?.into()).map_err(Trouble::Unread)?;
        Ok(Whole { came, trailers, plain })
    }

    /// # Errors
    /// It is no JSON.
    pub async fn document(&self, whole: &Whole) -> Result<Document, Trouble> {
        let plain = whole.plain.clone();
        if plain.is_empty() {
            return Ok(Document::nothing());
        }
        let mut share = self.held.share(plain.len()).map_err(Trouble::Unread)?;
        let read = |plain| {
            let json = RawJson::new(plain)?;
            json.prepare();
            Ok::<_, NotJson>(json)
        };
        let json = if plain.len() <= LARGE {
            read(plain)
        } else {
            self.offload.run(move || read(plain)).await.map_err(Trouble::Ours)?
        };
        let json = json.map_err(|error| Trouble::Unusable(error.into()))?;
        share.grow(json.index_size()).map_err(Trouble::Unread)?;
        Ok(Document { json: Arc::new(json), _share: Some(share) })
    }

    /// # Errors
    /// It is no JSON, or cannot be changed as it is asked for.
    pub async fn patched(&self, patch: &Arc<BodyPatch>, whole: &Whole) -> Result<Bytes, Trouble> {
        let plain = &whole.plain;
        let changed = if plain.len() * (POINTERS + patch.pointers()) <= LARGE * POINTERS {
            patched(patch, plain)
        } else {
            let (patch, plain) = (Arc::clone(patch), plain.clone());
            self.offload.run(move || patched(&patch, &plain)).await.map_err(Trouble::Ours)?
        };
        let changed = changed.map_err(|error| Trouble::Unusable(error.into()))?;
        self.held.take(changed).map_err(Trouble::Unread)
    }

    /// # Errors
    /// The expression has no value, or too large a one.
    pub fn made(&self, body: &Expression, subject: &Subject<'_>) -> Result<Bytes, Trouble> {
        let made = body.json(subject, MOST).map_err(|fault| Trouble::Unusable(fault.into()))?;
        self.held.take(made.into()).map_err(Trouble::Unread)
    }
}

impl Whole {
    pub fn is_empty(&self) -> bool {
        self.came.is_empty()
    }

    /// As it came.
    pub fn again(self) -> Body {
        let Some(trailers) = self.trailers else { return self.came.into() };
        let frames = [Frame::data(self.came), Frame::trailers(trailers)].map(Ok::<_, BodyError>);
        Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
    }
}

impl Document {
    /// In the place of a body that is not there.
    pub fn nothing() -> Self {
        let json = RawJson::new(Bytes::from_static(b"null")).expect("null is JSON");
        Self { json: Arc::new(json), _share: None }
    }
}

impl Trouble {
    /// With the body of a request.
    pub fn of_request(self) -> ProxyError {
        match self {
            Self::Unread(unread) => held::of_request(unread),
            Self::Unpacked(error @ (Undecodable::TooLarge(_) | Undecodable::Bomb)) => {
                ProxyError::caused(ErrorKind::BodyTooLarge, error)
            }
            Self::Unpacked(error) => ProxyError::caused(ErrorKind::ExpressionFailed, error),
            Self::Unusable(error) => ProxyError::caused(ErrorKind::ExpressionFailed, error),
            Self::Ours(kind) => kind.into(),
            Self::Late => ErrorKind::RequestTimeout.into(),
        }
    }

    /// With the body of an answer.
    pub fn of_answer(self) -> ProxyError {
        match self {
            // The backend has done its work: nobody is told to come again for it.
            Self::Unread(Unread::Overloaded) => {
                ProxyError::caused(ErrorKind::TransformFailed, "too many bodies are held already")
            }
            Self::Unread(Unread::TooLarge) => too_large(),
            Self::Unread(Unread::Broken(error)) => {
                let kind = match error {
                    BodyError::Stalled(_) => ErrorKind::BackendTimeout,
                    BodyError::TooLarge { .. } => ErrorKind::TransformFailed,
                    _ => ErrorKind::Reset,
                };
                ProxyError::caused(kind, error)
            }
            Self::Unpacked(error) => ProxyError::caused(ErrorKind::TransformFailed, error),
            Self::Unusable(error) => ProxyError::caused(ErrorKind::TransformFailed, error),
            Self::Ours(kind) => ProxyError::caused(ErrorKind::TransformFailed, ProxyError::from(kind)),
            Self::Late => {
                ProxyError::caused(ErrorKind::BackendTimeout, "the answer's body did not come whole in time")
            }
        }
    }
}

/// Whether the request's body can be read: nothing of it is where it cannot.
///
/// # Errors
/// It is no JSON, in a coding that is not known here, or announced to be too large.
pub fn takes(request: &Request) -> Result<(), ProxyError> {
    let headers = request.headers();
    if kind(headers) != IsJson::Yes {
        return Err(ErrorKind::UnsupportedMediaType.into());
    }
    if packing(headers) == Packing::Unknown {
        let error = ProxyError::new(ErrorKind::UnsupportedMediaType);
        return Err(error.with_header(ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, zstd")));
    }
    if request.body().size_hint().lower() > MOST as u64 {
        return Err(ErrorKind::BodyTooLarge.into());
    }
    Ok(())
}

/// The same of an answer.
///
/// # Errors
/// It is no JSON, in a coding that is not known here, a part of something, or announced to be too large.
pub fn takes_answer(status: StatusCode, headers: &HeaderMap, body: &Body) -> Result<(), ProxyError> {
    let why = match () {
        () if status == StatusCode::PARTIAL_CONTENT => "the answer is a part of something",
        () if kind(headers) != IsJson::Yes => "the answer is no JSON by its Content-Type",
        () if packing(headers) == Packing::Unknown => "the answer is in a content coding that is not known",
        () if body.size_hint().lower() > MOST as u64 => return Err(too_large()),
        () => return Ok(()),
    };
    Err(ProxyError::caused(ErrorKind::TransformFailed, why))
}

fn too_large() -> ProxyError {
    let why = format!("the answer is larger than {MOST} bytes");
    ProxyError::caused(ErrorKind::TransformFailed, why)
}

fn patched(patch: &BodyPatch, bytes: &[u8]) -> Result<Bytes, Unpatched> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unpatched::NotJson)?;
    patch.apply(text).map(Bytes::from)
}

/// Makes the fields tell of the new body.
pub fn replaced(headers: &mut HeaderMap, length: usize) {
    for name in OF_THE_OLD {
        headers.remove(name);
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

/// The same where it was made anew: it is JSON, whatever was there before.
pub fn made_anew(headers: &mut HeaderMap, length: usize) {
    replaced(headers, length);
    if kind(headers) != IsJson::Yes {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
}

/// What the body is said to be of, once.
pub fn kind(headers: &HeaderMap) -> IsJson {
    let mut said = headers.get_all(CONTENT_TYPE).iter();
    match (said.next().and_then(|value| value.to_str().ok()), said.next()) {
        (Some(one), None) => is_json(one),
        _ => IsJson::No,
    }
}
