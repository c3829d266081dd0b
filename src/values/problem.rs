//! What can be wrong with a declaration: one problem names the field, a closed reason, and the remedy.

use std::fmt;

/// The user's YAML path of a field, like `spec.rules[2].policy.timeouts.request`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(String);

impl FieldPath {
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// `spec.rules` → `spec.rules.name`
    pub fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// `spec.rules` → `spec.rules[2]`
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// This path below `base`: how a policy member's relative paths become the route's.
    pub fn under(&self, base: &Self) -> Self {
        match (base.0.is_empty(), self.0.is_empty(), self.0.starts_with('[')) {
            (_, true, _) => base.clone(),
            (true, _, _) => self.clone(),
            (_, _, true) => Self(format!("{}{}", base.0, self.0)),
            _ => Self(format!("{}.{}", base.0, self.0)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The closed set of reasons, as they stand in conditions, findings of `check`, logs and problem documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The object or a part of it does not have the form of its kind.
    Invalid,
    /// The form is right, the value is not supported.
    UnsupportedValue,
    /// A policy member does not compile: its rules answer 503.
    PolicyInvalid,
    /// Another namespace owns the hostname.
    HostnameConflict,
    /// An older route of the hostname set its TLS differently.
    TlsConflict,
    /// A field that no kind of ours has; ignored.
    UnknownField,
    /// An equal match of an older rule wins every request.
    Shadowed,
    /// A policy's target that only the installation's own namespace may name.
    TargetNotPermitted,
    /// An older policy on the same target gives the same member.
    Conflicted,
    /// What a policy targets is not there.
    TargetNotFound,
    /// A GatewayPolicy that `policyRefs` names is not there.
    PolicyNotFound,
    BackendNotFound,
    /// The Service exists, the port does not.
    PortNotFound,
    SecretNotFound,
    ConfigMapNotFound,
    InvalidCertificate,
    /// A reference to another namespace that no ReferenceGrant there allows, whether or not the object exists.
    RefNotPermitted,
    /// The kind or type of what is referred to is not one that may stand there.
    InvalidKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Error,
    /// Served all the same.
    Warning,
}

/// One thing that is wrong, as data: nothing stops at the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    pub path: FieldPath,
    pub reason: Reason,
    pub severity: Severity,
    /// Lower case, no full stop: what was found, what was expected, what to do.
    pub message: String,
}

impl Problem {
    pub fn error(path: FieldPath, reason: Reason, message: impl Into<String>) -> Self {
        Self { path, reason, severity: Severity::Error, message: message.into() }
    }

    pub fn warning(path: FieldPath, reason: Reason, message: impl Into<String>) -> Self {
        Self { path, reason, severity: Severity::Warning, message: message.into() }
    }

    /// The same problem seen from the object that holds it.
    pub fn under(mut self, base: &FieldPath) -> Self {
        self.path = self.path.under(base);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Reason {
    /// The word that stands in conditions and findings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::HostnameConflict => "HostnameConflict",
            Self::TlsConflict => "TlsConflict",
            Self::UnknownField => "UnknownField",
            Self::Shadowed => "Shadowed",
            Self::TargetNotPermitted => "TargetNotPermitted",
            Self::Conflicted => "Conflicted",
            Self::TargetNotFound => "TargetNotFound",
            Self::PolicyNotFound => "PolicyNotFound",
            Self::BackendNotFound => "BackendNotFound",
            Self::PortNotFound => "PortNotFound",
            Self::SecretNotFound => "SecretNotFound",
            Self::ConfigMapNotFound => "ConfigMapNotFound",
            Self::InvalidCertificate => "InvalidCertificate",
            Self::RefNotPermitted => "RefNotPermitted",
            Self::InvalidKind => "InvalidKind",
        }
    }

    /// Whether this speaks about what is referred to (condition `ResolvedRefs`) rather than about the object itself.
    pub const fn is_about_references(self) -> bool {
        matches!(
            self,
            Self::TargetNotFound
                | Self::PolicyNotFound
                | Self::BackendNotFound
                | Self::PortNotFound
                | Self::SecretNotFound
                | Self::ConfigMapNotFound
                | Self::InvalidCertificate
                | Self::RefNotPermitted
                | Self::InvalidKind
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_joins_its_base() {
        let base = FieldPath::new("spec.rules[1].policy");
        assert_eq!(
            FieldPath::new("timeouts.request").under(&base).as_str(),
            "spec.rules[1].policy.timeouts.request"
        );
        assert_eq!(FieldPath::new("[0].per").under(&base).as_str(), "spec.rules[1].policy[0].per");
        assert_eq!(FieldPath::default().under(&base), base);
    }
}
