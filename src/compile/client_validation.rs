//! `spec.tls.clientValidation` → who vouches for clients: the bundles are there, may be used, and hold what they must.
//!
//! Invariant: what cannot be proven as a whole validates nobody; a part of what was written is never served.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Certificates;
use super::authorities;
use super::question::Asker;
use crate::api::ClientValidationSpec;
use crate::route_map::{ClientValidation, ClientValidationPlan};
use crate::values::{
    CaCertificateKind, CaCertificateRef, FieldPath, ForwardedCertificate, ObjectName, Problem, Reason,
    ValidationMode,
};

/// Clients are told their names in each handshake.
const MAX_AUTHORITIES: usize = 64;
const MAX_LISTS: usize = 64;

/// What is written, for a comparison with what others write.
#[derive(Debug, PartialEq)]
pub(super) struct Written {
    authorities: Vec<(CaCertificateKind, ObjectName)>,
    lists: Vec<(CaCertificateKind, ObjectName)>,
    mode: ValidationMode,
    forward: ForwardedCertificate,
}

impl Written {
    pub fn forwards(&self) -> bool {
        self.forward != ForwardedCertificate::None
    }
}

pub(super) fn lower(
    spec: &ClientValidationSpec,
    namespace: &Arc<str>,
    asker: &mut Asker<'_>,
    certificates: &mut Certificates,
    problems: &mut Vec<Problem>,
) -> (Written, ClientValidation) {
    let at = FieldPath::new("spec.tls.clientValidation");
    let before = problems.len();
    let mut texts = |field: &str, key: &str, refs: &[CaCertificateRef]| {
        let base = at.field(field);
        let (mut names, mut texts) = (Vec::new(), Vec::new());
        for (index, reference) in refs.iter().enumerate() {
            match authorities::text(reference, key, base.index(index), namespace, asker) {
                Ok(text) => texts.push((base.index(index), text)),
                Err(problem) => problems.push(problem),
            }
            let name = authorities::named(reference, namespace);
            names.push((reference.kind, name));
        }
        (names, texts)
    };
    let (authorities, bundles) = texts("caCertificateRefs", "ca.crt", &spec.ca_certificate_refs);
    let (lists, revoked) = texts("crlRefs", "ca.crl", &spec.crl_refs);
    let written = Written { authorities, lists, mode: spec.mode, forward: spec.forward };
    // Nothing is named where the reference itself could not be read, which is told already.
    if problems.len() > before || bundles.is_empty() {
        return (written, ClientValidation::Unusable);
    }
    let print = print(spec, &bundles, &revoked);
    if let Some(known) = certificates.validation(&print) {
        return (written, ClientValidation::By(known));
    }
    match prove(spec, print, &bundles, &revoked) {
        Ok(plan) => (written, ClientValidation::By(certificates.remember(plan))),
        Err((path, message)) => {
            problems.push(Problem::error(path, Reason::InvalidCertificate, message));
            (written, ClientValidation::Unusable)
        }
    }
}

/// The content of a bundle.
type Text = (FieldPath, Arc<[u8]>);

/// SHA-256 of all that counts.
fn print(spec: &ClientValidationSpec, bundles: &[Text], revoked: &[Text]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(format!("{:?} {:?} {}", spec.mode, spec.forward, bundles.len()).as_bytes());
    for (_, text) in bundles.iter().chain(revoked) {
        context.update(&(text.len() as u64).to_le_bytes());
        context.update(text);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn prove(
    spec: &ClientValidationSpec,
    print: [u8; 32],
    bundles: &[Text],
    revoked: &[Text],
) -> Result<ClientValidationPlan, (FieldPath, String)> {
    let (mut authorities, mut lists) = (Vec::new(), Vec::new());
    for (at, text) in bundles {
        let before = authorities.len();
        for (index, der) in CertificateDer::pem_slice_iter(text).enumerate() {
            let der = der.map_err(|_| (at.clone(), "ca.crt is not PEM; give certificates".to_owned()))?;
            is_authority(&der)
                .map_err(|what| (at.clone(), format!("certificate {} of ca.crt {what}", index + 1)))?;
            authorities.push(der);
        }
        if authorities.len() == before {
            return Err((at.clone(), "ca.crt holds no certificate; give those of the authorities".into()));
        }
    }
    for (at, text) in revoked {
        let before = lists.len();
        for der in CertificateRevocationListDer::pem_slice_iter(text) {
            lists.push(der.map_err(|_| (at.clone(), "ca.crl is not PEM; give revocation lists".to_owned()))?);
        }
        if lists.len() == before {
            return Err((
                at.clone(),
                "ca.crl holds no revocation list; give those of the authorities".into(),
            ));
        }
    }
    let base = FieldPath::new("spec.tls.clientValidation");
    if authorities.len() > MAX_AUTHORITIES {
        let message = format!("found {} certificates, expected at most {MAX_AUTHORITIES}", authorities.len());
        return Err((base.field("caCertificateRefs"), message));
    }
    if lists.len() > MAX_LISTS {
        let message = format!("found {} revocation lists, expected at most {MAX_LISTS}", lists.len());
        return Err((base.field("crlRefs"), message));
    }
    let mut roots = RootCertStore::empty();
    for authority in &authorities {
        roots.add(authority.clone()).map_err(|_| {
            let message = "a certificate of ca.crt cannot vouch for others; give those of authorities";
            (base.field("caCertificateRefs"), message.to_owned())
        })?;
    }
    WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(provider::default_provider()))
        .with_crls(lists.iter().cloned())
        .build()
        .map_err(|_| {
            let message = "a revocation list is not of X.509 version 2; have the authority write it anew";
            (base.field("crlRefs"), message.to_owned())
        })?;
    Ok(ClientValidationPlan {
        mode: spec.mode,
        forward: spec.forward,
        authorities: authorities.iter().map(|der| der.to_vec()).collect(),
        revoked: lists.iter().map(|der| der.to_vec()).collect(),
        print,
    })
}

/// RFC 5280 section 4.2.1.9: certificates of version 1 cannot say it.
fn is_authority(der: &CertificateDer<'_>) -> Result<(), &'static str> {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Err("is not X.509") };
    let constraints = parsed.basic_constraints().ok().flatten();
    if parsed.version().0 > 0 && !constraints.is_some_and(|found| found.value.ca) {
        return Err("is not of an authority; name the one that signs the clients' certificates");
    }
    Ok(())
}
