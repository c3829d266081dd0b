//! TLS of one hostname.

use std::sync::Arc;

use crate::values::{ForwardedCertificate, ObjectName, Redacted, TlsVersion, ValidationMode};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTls {
    /// The usable certificates, in the order of `certificateRefs`; empty while the Secret is missing or unusable and
    /// none was served before: handshakes for the name are refused, plain HTTP is redirected all the same.
    pub certificates: Vec<Arc<CertificatePlan>>,
    /// Secrets that are there but cannot be used now. Whoever served an earlier certificate of theirs keeps it.
    pub unusable: Vec<ObjectName>,
    /// Plain HTTP goes to HTTPS (308).
    pub redirect: bool,
    /// What a client must speak at least.
    pub min_version: TlsVersion,
    pub client: ClientValidation,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClientValidation {
    #[default]
    None,
    By(Arc<ClientValidationPlan>),
    /// They should be, but who vouches for them is not there or cannot be used: nobody is served.
    Unusable,
}

/// Who vouches for clients.
#[derive(Debug, PartialEq)]
pub struct ClientValidationPlan {
    pub mode: ValidationMode,
    pub forward: ForwardedCertificate,
    /// Certificates, DER.
    pub authorities: Vec<Vec<u8>>,
    /// Revocation lists, DER (RFC 5280 section 5); none: nothing is known to be revoked.
    pub revoked: Vec<Vec<u8>>,
    /// SHA-256 of all of this: another print is another validation.
    pub print: [u8; 32],
}

/// A certificate chain whose key was proven to belong to it.
#[derive(Debug, PartialEq)]
pub struct CertificatePlan {
    pub secret: ObjectName,
    /// DER, leaf first (RFC 5280).
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, PKCS#1 or SEC1, DER.
    pub key: Redacted<PrivateKey>,
    /// DNS names of the leaf's SANs, lower case.
    pub names: Vec<Arc<str>>,
    /// Seconds since the epoch (RFC 5280 validity).
    pub not_before: i64,
    pub not_after: i64,
}

/// A private key in DER, with the form it came in.
#[derive(Clone, PartialEq, Eq)]
pub enum PrivateKey {
    Pkcs1(Vec<u8>),
    Pkcs8(Vec<u8>),
    Sec1(Vec<u8>),
}
