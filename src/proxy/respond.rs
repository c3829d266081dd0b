//! What each failure answers: the only place that knows status codes. Answers are problem+json (RFC 9457) with the
//! stable reason and the request's id, or a page or plain text for clients that ask for these.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};

use super::grpc;
use crate::message::{
    Body, ErrorKind, FailureCause, FailureDocument, FailureForm, ProxyError, RequestId, Response,
};

/// One row: what a kind of failure answers.
#[derive(Debug)]
pub struct Row {
    pub kind: ErrorKind,
    pub status: u16,
    /// A sentence for people; never says anything of the inside.
    pub title: &'static str,
    /// Trying again soon may help.
    pub retry: bool,
    /// The rest of the request is not read: HTTP/1 connections end with the answer.
    pub closes: bool,
}

const fn row(kind: ErrorKind, status: u16, title: &'static str) -> Row {
    Row { kind, status, title, retry: false, closes: false }
}

const fn retry(kind: ErrorKind, status: u16, title: &'static str) -> Row {
    Row { kind, status, title, retry: true, closes: false }
}

const fn closing(kind: ErrorKind, status: u16, title: &'static str) -> Row {
    Row { kind, status, title, retry: false, closes: true }
}

/// Every kind of failure, once.
pub static TABLE: &[Row] = &[
    closing(ErrorKind::BadRequest, 400, "The request is malformed"),
    row(ErrorKind::MisdirectedRequest, 421, "This host is not served on this connection"),
    closing(ErrorKind::MethodNotSupported, 405, "The method is not supported"),
    closing(ErrorKind::NotImplemented, 501, "The request asks for something that is not implemented"),
    closing(ErrorKind::RequestTimeout, 408, "The request did not arrive in time"),
    closing(ErrorKind::BodyTooLarge, 413, "The request's body is too large"),
    closing(ErrorKind::UriTooLong, 414, "The request's target is too long"),
    closing(ErrorKind::HeadersTooLarge, 431, "The request's header fields are too large"),
    closing(ErrorKind::ClientGone, 499, "The client has gone"),
    row(ErrorKind::LoopDetected, 508, "The request goes in circles"),
    row(ErrorKind::NotCached, 504, "Nothing is kept that may be used"),
    row(ErrorKind::UnsupportedMediaType, 415, "The body is of a type that is not taken here"),
    row(ErrorKind::ExpressionFailed, 400, "The request cannot be changed as it is asked for"),
    row(ErrorKind::ValidationFailed, 400, "The request is not of the form that is asked for"),
    row(ErrorKind::BodyInvalid, 422, "The body is not of the form that is asked for"),
    row(ErrorKind::IpNotAllowed, 403, "This address may not ask"),
    row(ErrorKind::ApiKeyMissing, 401, "An API key is needed"),
    row(ErrorKind::ApiKeyInvalid, 401, "The API key is not valid"),
    row(ErrorKind::TokenMissing, 401, "A token is needed"),
    row(ErrorKind::TokenInvalid, 401, "The token is not valid"),
    row(ErrorKind::CertificateMissing, 401, "A client certificate is needed"),
    row(ErrorKind::CertificateInvalid, 401, "The client certificate is not valid here"),
    row(ErrorKind::CredentialsMissing, 401, "Credentials are needed"),
    row(ErrorKind::CredentialsInvalid, 401, "The credentials are not valid"),
    row(ErrorKind::TooManyFailures, 429, "Too many credentials were not valid"),
    row(ErrorKind::RateLimited, 429, "Too many requests"),
    row(ErrorKind::FaultInjected, 503, "This failure is wanted"),
    row(ErrorKind::Forbidden, 403, "This is not allowed"),
    row(ErrorKind::ExternallyDenied, 403, "This is not allowed here"),
    row(ErrorKind::NoRouteMatch, 404, "No route matches the request"),
    row(ErrorKind::PolicyInvalid, 503, "A policy of this route is invalid"),
    row(ErrorKind::RuleInvalid, 503, "This route is invalid"),
    row(ErrorKind::BackendNotFound, 500, "The route's backend does not exist"),
    closing(ErrorKind::Internal, 500, "The gateway failed"),
    retry(ErrorKind::AuthorizerUnavailable, 503, "Who may pass cannot be decided now"),
    retry(ErrorKind::Overloaded, 503, "Too many requests are under way"),
    retry(ErrorKind::Draining, 503, "The gateway is going away"),
    retry(ErrorKind::Starting, 503, "The gateway has not read its routes yet"),
    retry(ErrorKind::KeysUnavailable, 503, "Tokens cannot be checked now"),
    retry(ErrorKind::CredentialsUnavailable, 503, "The backend cannot be asked in the gateway's name now"),
    retry(ErrorKind::IntrospectionFailed, 503, "The token cannot be checked now"),
    retry(ErrorKind::StoreUnavailable, 503, "Limits cannot be checked now"),
    retry(ErrorKind::NoHealthyEndpoints, 503, "No backend is available"),
    retry(ErrorKind::ConnectFailure, 503, "The backend cannot be reached"),
    row(ErrorKind::ConnectTimeout, 504, "The backend cannot be reached in time"),
    row(ErrorKind::TlsFailure, 502, "The backend cannot be reached securely"),
    row(ErrorKind::AddressNotPermitted, 502, "The backend's address is not permitted"),
    row(ErrorKind::Reset, 502, "The backend ended the connection"),
    row(ErrorKind::BackendTimeout, 504, "The backend did not answer in time"),
    row(ErrorKind::InvalidResponse, 502, "The backend's answer is invalid"),
    row(ErrorKind::NameResolution, 502, "The backend's name cannot be resolved"),
    row(ErrorKind::NoWebSockets, 502, "The backend takes no WebSockets"),
    row(ErrorKind::CallFailed, 502, "A part of the answer cannot be had"),
    row(ErrorKind::TransformFailed, 502, "The answer cannot be made of what the backend sent"),
];

/// The row of a kind.
pub fn row_of(kind: ErrorKind) -> &'static Row {
    TABLE.iter().find(|row| row.kind == kind).expect("a test holds that every kind has a row")
}

/// In which form a client is told of a failure. `accept`: the field of this name.
pub fn form_of(accept: Option<&HeaderValue>, call: Call) -> FailureForm {
    match call {
        Call::Grpc => FailureForm::Grpc,
        Call::Http => FailureForm::of(accept),
    }
}

/// What a request is, for whoever answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Http,
    Grpc,
}

/// The table as docs/errors.md shows it.
pub fn table() -> String {
    let mut text =
        String::from("| status | reason | says | Retry-After | gRPC |\n| --- | --- | --- | --- | --- |\n");
    let mut rows: Vec<_> = TABLE.iter().collect();
    rows.sort_by_key(|row| (row.status, row.kind.as_str()));
    for row in rows {
        let retry = if row.retry { "1" } else { "" };
        let code = grpc::status(row.kind, StatusCode::from_u16(row.status).expect("a status"));
        let code = format!("{code} {}", grpc::name(code));
        let (reason, title) = (row.kind.as_str(), row.title);
        text += &format!("| {} | `{reason}` | {title} | {retry} | {code} |\n", row.status);
    }
    text
}

/// What it is that the parser below refuses with this status.
pub fn refused_head(status: StatusCode) -> ErrorKind {
    match status {
        StatusCode::URI_TOO_LONG => ErrorKind::UriTooLong,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ErrorKind::HeadersTooLarge,
        _ => ErrorKind::BadRequest,
    }
}

/// The answer to a request that failed. HEAD's lack of a body is the caller's to see to, as with any answer.
pub fn failure(error: &ProxyError, form: FailureForm, id: RequestId) -> Response {
    let row = row_of(error.kind);
    let document = FailureDocument {
        status: status(row, error).as_u16(),
        title: row.title,
        reason: Some(row.kind.as_str()),
        detail: error.detail,
        violations: &error.violations,
        id,
    };
    let mut response = match form {
        FailureForm::Grpc => grpc::status_only(error.kind, status(row, error), &document.told(form)),
        _ => {
            let mut response = Response::new(Body::Full(Bytes::from(document.told(form))));
            *response.status_mut() = status(row, error);
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if row.retry && !error.headers.iter().any(|(name, _)| *name == RETRY_AFTER) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if error.kind == ErrorKind::MethodNotSupported {
        // RFC 9110 section 15.5.6 wants the list; these are what every route may take.
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"));
    }
    for (name, value) in &error.headers {
        headers.append(name, value.clone());
    }
    response.extensions_mut().insert(error.kind);
    if let Some(cause) = &error.cause {
        response.extensions_mut().insert(FailureCause::of(&**cause));
    }
    response
}

fn status(row: &Row, error: &ProxyError) -> StatusCode {
    let usual = || StatusCode::from_u16(row.status).expect("the table holds statuses only");
    error.status.unwrap_or_else(usual)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::Violation;

    fn body(response: Response) -> String {
        match response.into_body() {
            Body::Full(bytes) => String::from_utf8(bytes.to_vec()).expect("text"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_has_exactly_one_row() {
        for kind in ErrorKind::ALL {
            assert_eq!(TABLE.iter().filter(|row| row.kind == *kind).count(), 1, "{kind:?}");
        }
        assert_eq!(TABLE.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn the_docs_show_this_table() {
        let docs = include_str!("../../docs/errors.md");
        assert!(docs.contains(&table()), "put this into docs/errors.md:\n{}", table());
    }

    #[test]
    fn a_failure_is_a_problem_document_with_reason_and_id() {
        let error = ProxyError::with_detail(ErrorKind::BadRequest, "two \"Host\" fields");
        let response = failure(&error, FailureForm::Problem, RequestId([7; 16]));
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.extensions().get(), Some(&ErrorKind::BadRequest));
        let problem: serde_json::Value = serde_json::from_str(&body(response)).expect("JSON");
        assert_eq!(
            problem,
            serde_json::json!({
                "type": "about:blank", "title": "The request is malformed", "status": 400, "reason": "BadRequest",
                "request_id": "07070707070707070707070707070707", "detail": "two \"Host\" fields",
            })
        );
    }

    #[test]
    fn violations_are_told_one_by_one() {
        let violation = Violation { pointer: "/query/page".into(), message: "is not an integer".into() };
        let error = ProxyError::violated(ErrorKind::ValidationFailed, vec![violation]);
        let response = failure(&error, FailureForm::Problem, RequestId([0; 16]));
        assert_eq!(response.status(), 400);
        let problem: serde_json::Value = serde_json::from_str(&body(response)).expect("JSON");
        assert_eq!(
            problem["violations"],
            json!([{"pointer": "/query/page", "message": "is not an integer"}])
        );
        let text = body(failure(&error, FailureForm::Text, RequestId([0; 16])));
        assert!(text.contains("\n/query/page is not an integer\nreason: ValidationFailed\n"), "{text}");
    }

    #[test]
    fn every_failure_without_a_detail_is_valid_json_too() {
        for kind in ErrorKind::ALL {
            let text = body(failure(&ProxyError::new(*kind), FailureForm::Problem, RequestId([0; 16])));
            serde_json::from_str::<serde_json::Value>(&text).expect(&text);
        }
    }

    #[test]
    fn the_cause_is_for_the_log_alone() {
        let inner = std::io::Error::other("10.0.0.7 said no");
        let error = ProxyError::caused(ErrorKind::ConnectFailure, inner);
        let response = failure(&error, FailureForm::Text, RequestId([0; 16]));
        let cause = response.extensions().get::<FailureCause>().expect("kept").as_str().to_owned();
        assert_eq!(cause, "10.0.0.7 said no");
        assert!(!body(response).contains("10.0.0.7"));
    }

    #[test]
    fn a_call_of_grpc_gets_a_status_and_nothing_else() {
        let form = form_of(Some(&HeaderValue::from_static("text/plain")), Call::Grpc);
        let error = ProxyError::with_detail(ErrorKind::BadRequest, "100 %");
        let response = failure(&error, form, RequestId([7; 16]));
        assert!(response.status() == 200 && response.headers()[CONTENT_TYPE] == "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "3");
        assert_eq!(
            response.headers()["grpc-message"],
            "The request is malformed: 100 %25 (BadRequest, request id 07070707070707070707070707070707)"
        );
        assert_eq!(response.extensions().get(), Some(&ErrorKind::BadRequest));
        assert!(matches!(response.body(), Body::Empty));
    }

    #[test]
    fn only_what_may_pass_soon_has_retry_after() {
        let retry: Vec<_> = TABLE.iter().filter(|row| row.retry).map(|row| row.kind.as_str()).collect();
        assert_eq!(
            retry,
            [
                "AuthorizerUnavailable",
                "Overloaded",
                "Draining",
                "Starting",
                "KeysUnavailable",
                "CredentialsUnavailable",
                "IntrospectionFailed",
                "StoreUnavailable",
                "NoHealthyEndpoints",
                "ConnectFailure"
            ]
        );
        let response =
            failure(&ErrorKind::NoHealthyEndpoints.into(), FailureForm::Problem, RequestId([0; 16]));
        assert_eq!(response.headers()[RETRY_AFTER], "1");
    }
}
