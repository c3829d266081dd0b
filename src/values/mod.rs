//! The small words of the configuration language, each parsed once at the border and unable to hold a wrong value.

mod asked_backend;
mod byte_size;
mod client_validation;
mod duration;
mod egress;
mod grpc_code;
mod hostname;
mod names;
mod nearest;
mod path_rewrite;
mod problem;
mod rate;
mod redacted;
mod reserved_headers;
mod secret;
mod selector;
mod tls_version;

pub use asked_backend::{AskedBackendRef, BackendKind, Origin, OriginScheme};
pub use byte_size::{ByteSize, InvalidByteSize};
pub use client_validation::{ForwardedCertificate, ValidationMode};
pub use duration::{Duration, InvalidDuration};
pub use egress::{Egress, PrivateHosts, inner, is_metadata};
pub use grpc_code::GrpcCode;
pub use hostname::{Hostname, InvalidHostname};
pub use names::{
    BackendId, CaCertificateKind, CaCertificateRef, ConfigMapKeyRef, ObjectName, SecretKeyRef, SecretRef,
};
pub use nearest::nearest;
pub use path_rewrite::{InvalidPathRewrite, PathRewrite, PathRewriteSpec};
pub use problem::{FieldPath, Problem, Reason, Severity};
pub use rate::{Full, Rate};
pub use redacted::Redacted;
pub use reserved_headers::{ReservedHeaders, is_same_field, plain_name};
pub use secret::{Attributes, ConfigMapData, SecretData};
pub use selector::{LabelOperator, LabelRequirement, LabelSelector, NamespaceSelector};
pub use tls_version::TlsVersion;
