//! A client's certificate, as policies and backends see it once it is verified.

use std::sync::Arc;

use serde_json::{Map, Value};

/// Texts hold printable ASCII only, and names only what a name of their kind may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCertificate {
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// As RFC 4514 writes it, the most specific part first.
    pub subject: Arc<str>,
    /// Who signed it, in the same form.
    pub issuer: Arc<str>,
    /// Names of its SANs, in the order of the certificate.
    pub uris: Box<[Arc<str>]>,
    pub dns: Box<[Arc<str>]>,
    pub emails: Box<[Arc<str>]>,
    /// The last second that it is valid, since the epoch.
    pub not_after: i64,
    /// All of this and the serial number, as expressions read it.
    pub claims: Arc<Map<String, Value>>,
}
