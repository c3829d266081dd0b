//! Certificate authorities of a ConfigMap or Secret: each certificate in it is one that TLS can use. Dates are not
//! judged: there is no clock here.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::route_map::Authorities;
use crate::values::{CaCertificateKind, CaCertificateRef, FieldPath, ObjectName, Problem, Reason};

const KEY: &str = "ca.crt";
/// A ConfigMap holds at most 1 MiB; the bundle of a system has 150 certificates in 220 KiB.
const MAX_PEM: usize = 512 << 10;
const MAX_CERTIFICATES: usize = 512;

/// The authorities that `reference`, which stands `at` a field of an object in the namespace `from`, leads to.
pub(super) fn find(
    reference: &CaCertificateRef,
    at: FieldPath,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
) -> Result<Authorities, Problem> {
    let text = text(reference, KEY, at.clone(), from, asker)?;
    let source = format!("{} {}", reference.kind.as_str(), named(reference, from));
    match prove(&text) {
        Err(message) => Err(Problem::error(at, Reason::InvalidCertificate, format!("{source}: {message}"))),
        Ok(certificates) => Ok(Authorities { source: source.into(), certificates }),
    }
}

/// The object that `reference` means in an object of the namespace `from`.
pub(super) fn named(reference: &CaCertificateRef, from: &Arc<str>) -> ObjectName {
    let namespace = reference.namespace.as_deref().map_or_else(|| Arc::clone(from), Into::into);
    ObjectName::new(namespace, reference.name.as_str())
}

/// What stands under `key` of the object that `reference` leads to.
pub(super) fn text(
    reference: &CaCertificateRef,
    key: &str,
    at: FieldPath,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
) -> Result<Arc<[u8]>, Problem> {
    let (kind, name) = (reference.kind.as_str(), named(reference, from));
    if !asker.may_refer(from, "", kind, &name) {
        return Err(not_permitted(at, kind, &name));
    }
    let bytes = |text: Option<&[u8]>| Arc::<[u8]>::from(text.unwrap_or_default());
    let (found, missing) = match reference.kind {
        CaCertificateKind::ConfigMap => {
            let map = asker.config_map(&name);
            let text = map.map(|map| bytes(map.data.get(key).map(|text| text.as_bytes())));
            (text, Reason::ConfigMapNotFound)
        }
        CaCertificateKind::Secret => {
            let secret = asker.secret(&name);
            let text =
                secret.map(|secret| bytes(secret.data.get(key).map(|value| value.expose().as_slice())));
            (text, Reason::SecretNotFound)
        }
    };
    let refuse = |what: String| {
        Problem::error(at.clone(), Reason::InvalidCertificate, format!("{kind} {name}: {what}"))
    };
    match found {
        None => {
            let message = format!("there is no {kind} {name}; create it or correct the name");
            Err(Problem::error(at.clone(), missing, message))
        }
        Some(text) if text.is_empty() => Err(refuse(format!("{key} is missing in it"))),
        Some(text) if text.len() > MAX_PEM => {
            Err(refuse(format!("{key} has {} bytes, at most {MAX_PEM} are read", text.len())))
        }
        Some(text) => Ok(text),
    }
}

fn prove(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let place = certificates.len() + 1;
        let certificate = certificate.map_err(|_| format!("{KEY} is not PEM at certificate {place}"))?;
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|_| format!("certificate {place} of {KEY} is none of an authority"))?;
        certificates.push(certificate.to_vec());
    }
    match certificates.len() {
        0 => Err(format!("{KEY} holds no certificate in PEM")),
        count if count > MAX_CERTIFICATES => {
            Err(format!("{KEY} holds {count} certificates, at most {MAX_CERTIFICATES} are read"))
        }
        _ => Ok(certificates),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("signed").pem()
    }

    #[test]
    fn every_certificate_of_a_bundle_is_taken_or_none() {
        let bundle = format!("# Two of ours\n{}{}", authority(), authority());
        assert_eq!(prove(bundle.as_bytes()).map(|all| all.len()), Ok(2));
        let cut = &bundle[..bundle.len() - 40];
        let other = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (pem, message) in [
            ("", "ca.crt holds no certificate in PEM"),
            ("no PEM", "ca.crt holds no certificate in PEM"),
            (cut, "ca.crt is not PEM at certificate 2"),
            (other, "certificate 1 of ca.crt is none of an authority"),
        ] {
            assert_eq!(prove(pem.as_bytes()).expect_err(message), message);
        }
    }

    #[test]
    fn a_bundle_has_its_bounds() {
        let one = authority();
        let many = one.repeat(MAX_CERTIFICATES + 1);
        let told = prove(many.as_bytes()).expect_err("too many");
        assert!(told.contains("at most"), "{told}");
    }
}
