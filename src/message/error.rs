//! What can go wrong with a request. Only `proxy/respond.rs` knows which status and text each becomes.

use http::{HeaderName, HeaderValue, StatusCode};

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Gateway,
    Upstream,
}

/// The closed set of failures of the data plane; `as_str` is the stable reason in answers, access log and metrics.
/// Every answer that the gateway itself makes of a failure carries its kind in the answer's `extensions()`: that is how
/// filters on the way out tell it from a backend's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    // The client's.
    BadRequest,
    MisdirectedRequest,
    MethodNotSupported,
    NotImplemented,
    RequestTimeout,
    BodyTooLarge,
    UriTooLong,
    HeadersTooLarge,
    ClientGone,
    LoopDetected,
    /// It wanted only what is kept, and that is nothing.
    NotCached,
    /// By the client's address.
    IpNotAllowed,
    // Who may pass: nothing says which part of a credential was wrong.
    ApiKeyMissing,
    ApiKeyInvalid,
    TokenMissing,
    TokenInvalid,
    CertificateMissing,
    CertificateInvalid,
    CredentialsMissing,
    CredentialsInvalid,
    TooManyFailures,
    RateLimited,
    FaultInjected,
    Forbidden,
    /// An external authorizer said no.
    ExternallyDenied,
    // The configuration's.
    NoRouteMatch,
    PolicyInvalid,
    RuleInvalid,
    /// A `backendRef` that does not resolve: 500 by Gateway API's rule.
    BackendNotFound,
    /// The gateway itself failed.
    Internal,
    /// Whoever decides about the request elsewhere gave no answer that counts.
    AuthorizerUnavailable,
    Overloaded,
    Draining,
    /// No route map yet.
    Starting,
    /// What tokens are checked with was never fetched yet, or its issuer cannot be asked.
    KeysUnavailable,
    /// What the backend is to be shown of ours cannot be had now.
    CredentialsUnavailable,
    /// A rate limit is counted in the store, which does not answer.
    StoreUnavailable,
    /// Whoever knows whether a token is good could not be asked.
    IntrospectionFailed,
    /// A body of a type that the rule does not take.
    UnsupportedMediaType,
    /// An expression of a transform has no value for the request, or none that may stand where it is to be put.
    ExpressionFailed,
    /// A parameter or field is missing or of the wrong form.
    ValidationFailed,
    /// A body is not of the form that its schema asks for.
    BodyInvalid,
    // The backend's.
    NoHealthyEndpoints,
    ConnectFailure,
    ConnectTimeout,
    TlsFailure,
    /// An address that the egress guard refuses.
    AddressNotPermitted,
    /// Reset or closed before an answer came.
    Reset,
    BackendTimeout,
    /// What came is no HTTP answer that may be passed on.
    InvalidResponse,
    NameResolution,
    /// It speaks HTTP/2, and takes no WebSocket there.
    NoWebSockets,
    /// A call of an aggregation was not answered in a way that can be used.
    CallFailed,
    /// An expression has no value for what was answered, or none that an answer can have.
    TransformFailed,
}

impl ErrorKind {
    pub const ALL: &[Self] = &[
        Self::BadRequest,
        Self::MisdirectedRequest,
        Self::MethodNotSupported,
        Self::NotImplemented,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::ClientGone,
        Self::LoopDetected,
        Self::NotCached,
        Self::IpNotAllowed,
        Self::ApiKeyMissing,
        Self::ApiKeyInvalid,
        Self::TokenMissing,
        Self::TokenInvalid,
        Self::CertificateMissing,
        Self::CertificateInvalid,
        Self::CredentialsMissing,
        Self::CredentialsInvalid,
        Self::TooManyFailures,
        Self::RateLimited,
        Self::FaultInjected,
        Self::Forbidden,
        Self::ExternallyDenied,
        Self::NoRouteMatch,
        Self::PolicyInvalid,
        Self::RuleInvalid,
        Self::BackendNotFound,
        Self::Internal,
        Self::AuthorizerUnavailable,
        Self::Overloaded,
        Self::Draining,
        Self::Starting,
        Self::KeysUnavailable,
        Self::CredentialsUnavailable,
        Self::StoreUnavailable,
        Self::IntrospectionFailed,
        Self::UnsupportedMediaType,
        Self::ExpressionFailed,
        Self::ValidationFailed,
        Self::BodyInvalid,
        Self::NoHealthyEndpoints,
        Self::ConnectFailure,
        Self::ConnectTimeout,
        Self::TlsFailure,
        Self::AddressNotPermitted,
        Self::Reset,
        Self::BackendTimeout,
        Self::InvalidResponse,
        Self::NameResolution,
        Self::NoWebSockets,
        Self::CallFailed,
        Self::TransformFailed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::MisdirectedRequest => "MisdirectedRequest",
            Self::MethodNotSupported => "MethodNotSupported",
            Self::NotImplemented => "NotImplemented",
            Self::RequestTimeout => "RequestTimeout",
            Self::BodyTooLarge => "BodyTooLarge",
            Self::UriTooLong => "UriTooLong",
            Self::HeadersTooLarge => "HeadersTooLarge",
            Self::ClientGone => "ClientGone",
            Self::LoopDetected => "LoopDetected",
            Self::NotCached => "NotCached",
            Self::IpNotAllowed => "IpNotAllowed",
            Self::ApiKeyMissing => "ApiKeyMissing",
            Self::ApiKeyInvalid => "ApiKeyInvalid",
            Self::TokenMissing => "TokenMissing",
            Self::TokenInvalid => "TokenInvalid",
            Self::CertificateMissing => "CertificateMissing",
            Self::CertificateInvalid => "CertificateInvalid",
            Self::CredentialsMissing => "CredentialsMissing",
            Self::CredentialsInvalid => "CredentialsInvalid",
            Self::TooManyFailures => "TooManyFailures",
            Self::RateLimited => "RateLimited",
            Self::FaultInjected => "FaultInjected",
            Self::Forbidden => "Forbidden",
            Self::ExternallyDenied => "ExternallyDenied",
            Self::NoRouteMatch => "NoRouteMatch",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::RuleInvalid => "RuleInvalid",
            Self::BackendNotFound => "BackendNotFound",
            Self::Internal => "Internal",
            Self::AuthorizerUnavailable => "AuthorizerUnavailable",
            Self::Overloaded => "Overloaded",
            Self::Draining => "Draining",
            Self::Starting => "Starting",
            Self::KeysUnavailable => "KeysUnavailable",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
            Self::StoreUnavailable => "StoreUnavailable",
            Self::IntrospectionFailed => "IntrospectionFailed",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::ExpressionFailed => "ExpressionFailed",
            Self::ValidationFailed => "ValidationFailed",
            Self::BodyInvalid => "BodyInvalid",
            Self::NoHealthyEndpoints => "NoHealthyEndpoints",
            Self::ConnectFailure => "ConnectFailure",
            Self::ConnectTimeout => "ConnectTimeout",
            Self::TlsFailure => "TlsFailure",
            Self::AddressNotPermitted => "AddressNotPermitted",
            Self::Reset => "Reset",
            Self::BackendTimeout => "BackendTimeout",
            Self::InvalidResponse => "InvalidResponse",
            Self::NameResolution => "NameResolution",
            Self::NoWebSockets => "NoWebSockets",
            Self::CallFailed => "CallFailed",
            Self::TransformFailed => "TransformFailed",
        }
    }

    pub const fn side(self) -> Side {
        match self {
            Self::BadRequest
            | Self::MisdirectedRequest
            | Self::MethodNotSupported
            | Self::NotImplemented
            | Self::RequestTimeout
            | Self::BodyTooLarge
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::ClientGone
            | Self::LoopDetected
            | Self::NotCached
            | Self::IpNotAllowed
            | Self::UnsupportedMediaType
            | Self::ExpressionFailed
            | Self::ValidationFailed
            | Self::BodyInvalid
            | Self::ApiKeyMissing
            | Self::ApiKeyInvalid
            | Self::TokenMissing
            | Self::TokenInvalid
            | Self::CertificateMissing
            | Self::CertificateInvalid
            | Self::CredentialsMissing
            | Self::CredentialsInvalid
            | Self::TooManyFailures
            | Self::RateLimited
            | Self::Forbidden
            | Self::ExternallyDenied => Side::Client,
            Self::NoRouteMatch
            | Self::PolicyInvalid
            | Self::RuleInvalid
            | Self::BackendNotFound
            | Self::FaultInjected
            | Self::Internal
            | Self::AuthorizerUnavailable
            | Self::Overloaded
            | Self::Draining
            | Self::Starting
            | Self::KeysUnavailable
            | Self::CredentialsUnavailable
            | Self::IntrospectionFailed => Side::Gateway,
            _ => Side::Upstream,
        }
    }
}

/// One thing that is wrong with a request: where, by JSON Pointer (RFC 6901), and what; never the wrong value itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub pointer: String,
    pub message: String,
}

/// A failed request: its kind, a detail that a client may read, and the cause for the log alone.
#[derive(Debug, thiserror::Error)]
#[error("{}", kind.as_str())]
pub struct ProxyError {
    pub kind: ErrorKind,
    /// The status of the answer, where it is not that of the kind.
    pub status: Option<StatusCode>,
    /// One sentence that may go to the client; never text from a backend, an address or a name of the inside.
    pub detail: Option<&'static str>,
    /// Fields that the answer carries, like `WWW-Authenticate`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What exactly is wrong with the request, for the client.
    pub violations: Vec<Violation>,
    #[source]
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ProxyError {
    pub const fn new(kind: ErrorKind) -> Self {
        Self { kind, status: None, detail: None, headers: Vec::new(), violations: Vec::new(), cause: None }
    }

    pub const fn with_detail(kind: ErrorKind, detail: &'static str) -> Self {
        Self {
            kind,
            status: None,
            detail: Some(detail),
            headers: Vec::new(),
            violations: Vec::new(),
            cause: None,
        }
    }

    pub fn caused(kind: ErrorKind, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            kind,
            status: None,
            detail: None,
            headers: Vec::new(),
            violations: Vec::new(),
            cause: Some(cause.into()),
        }
    }

    pub const fn violated(kind: ErrorKind, violations: Vec<Violation>) -> Self {
        Self { kind, status: None, detail: None, headers: Vec::new(), violations, cause: None }
    }

    /// The same, with a field that its answer carries.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<ErrorKind> for ProxyError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}
