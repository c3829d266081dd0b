//! Our HTTP vocabulary: what filters, actions and the upstream side pass to each other.
//!
//! Everything here lives on one worker thread: futures and bodies are `!Send` by design.

mod accept;
mod body;
mod called;
mod client;
mod client_certificate;
mod coding;
mod decoding;
mod duplex;
mod error;
mod exchange;
mod failure;
mod frames;
mod grpc;
mod hints;
mod identity;
mod method_override;
mod outbound;
mod raw_json;
mod strict_json;
mod websocket;

pub use accept::{accept_of, thousandths};
pub use body::{Body, BodyError, TooLarge};
pub use called::Called;
pub use client::{Client, Protocol, Scheme, Vouched};
pub use client_certificate::ClientCertificate;
pub use coding::{Coding, Compressed, Wished};
pub use decoding::Undecodable;
pub use duplex::Duplex;
pub use error::{ErrorKind, ProxyError, Side, Violation};
pub use exchange::{Answered, Asker, Captures, Exchange, Failed, Labels, Place, Quota, Quotas, RequestId};
pub use failure::{FailureCause, FailureDocument, FailureForm, escape_html};
pub use frames::FrameBudget;
pub use grpc::{GrpcStatus, grpc_timeout, is_grpc_call, set_grpc_timeout};
pub use hints::{Hinted, Hints, Waiting, hinted_links};
pub use identity::{Identity, IdentityKind, KnownIdentity};
pub use method_override::{overrides_method, take_method_overrides};
pub use outbound::{AnswerBy, FixedHost, LocalFuture, Outbound};
pub use raw_json::{NotJson, Piece, PieceKind, RawJson, TooMuch};
pub use strict_json::{Document, JsonBounds};
pub use websocket::{websocket_accept, websocket_key};

/// An answer on its way to the client.
pub type Response = http::Response<Body>;
/// A request on its way to an action.
pub type Request = http::Request<Body>;
