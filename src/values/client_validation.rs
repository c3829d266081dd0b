//! Words of `clientValidation`: what is made of certificates that clients show.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether clients must show a certificate.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ValidationMode {
    #[default]
    Require,
    /// None is fine, a wrong one is not.
    Optional,
}

/// What backends are told of a client's certificate.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardedCertificate {
    #[default]
    None,
    /// Its hash, subject and names.
    Details,
    /// These and the certificate itself.
    Certificate,
}
