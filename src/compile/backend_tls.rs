//! `GatewayBackend.spec.tls` → plan. All of it or none: what is missing or broken must not make a backend's TLS weaker.

use std::sync::Arc;

use super::gateway_route::not_permitted;
use super::question::Asker;
use super::{Certificates, authorities, conditions};
use crate::api::{BackendTls, SubjectAltName};
use crate::route_map::{BackendTlsPlan, CertificatePlan, PinnedName};
use crate::snapshot::TLS_SECRET;
use crate::values::{FieldPath, ObjectName, Problem, Reason, SecretRef};

/// `from` is the backend's namespace. `None`: something is wrong, and told.
pub(super) fn plan(
    spec: &BackendTls,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
    certificates: &mut Certificates,
    problems: &mut Vec<Problem>,
) -> Option<BackendTlsPlan> {
    let at = FieldPath::new("spec.tls");
    let before = problems.len();
    let mut found = None;
    if let Some(refs) = &spec.ca_certificate_refs {
        let at = at.field("caCertificateRefs");
        let mut all = Vec::with_capacity(refs.len());
        for (index, reference) in refs.iter().enumerate() {
            match authorities::find(reference, at.index(index), from, asker) {
                Ok(one) => all.push(one),
                Err(problem) => problems.push(problem),
            }
        }
        found = Some(all);
    }
    let shown = spec.client_certificate_ref.as_ref().and_then(|reference| {
        let at = at.field("clientCertificateRef");
        client_certificate(reference, at, from, asker, certificates)
            .map_err(|problem| problems.push(problem))
            .ok()
    });
    if problems.len() > before {
        return None;
    }
    let bytes = found.iter().flatten().flat_map(|one| &one.certificates);
    let bytes = bytes.chain(shown.iter().flat_map(|shown| &shown.chain));
    let print = conditions::print_of_certificates(bytes);
    Some(BackendTlsPlan {
        server_name: spec.server_name.as_deref().map(Into::into),
        names: spec.subject_alt_names.iter().flatten().filter_map(pinned).collect(),
        authorities: found,
        client_certificate: shown,
        print,
    })
}

fn pinned(name: &SubjectAltName) -> Option<PinnedName> {
    let hostname = name.hostname.as_deref().map(|name| PinnedName::Hostname(name.into()));
    hostname.or_else(|| name.uri.as_deref().map(|uri| PinnedName::Uri(uri.into())))
}

fn client_certificate(
    reference: &SecretRef,
    at: FieldPath,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
    certificates: &mut Certificates,
) -> Result<Arc<CertificatePlan>, Problem> {
    let namespace = reference.namespace.as_deref().map_or_else(|| Arc::clone(from), Into::into);
    let name = ObjectName::new(namespace, reference.name.as_str());
    if !asker.may_refer(from, "", "Secret", &name) {
        return Err(not_permitted(at, "Secret", &name));
    }
    let Some(secret) = asker.secret(&name).filter(|secret| &*secret.kind == TLS_SECRET) else {
        let (reason, message) = asker.no_certificate(&name);
        return Err(Problem::error(at, reason, message));
    };
    certificates.prove(&secret).map_err(|message| {
        Problem::error(at, Reason::InvalidCertificate, format!("Secret {name}: {message}"))
    })
}
