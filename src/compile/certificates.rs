//! TLS Secrets → certificates: the chain parses, the key belongs to it. Dates are noted, not judged: there is no clock
//! here.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::route_map::{CertificatePlan, PrivateKey};
use crate::snapshot::SecretData;
use crate::values::Redacted;

/// More than any chain that clients accept.
const MAX_CHAIN: usize = 10;
const MAX_PEM: usize = 256 << 10;

/// Proves a Secret of type `kubernetes.io/tls`.
///
/// # Errors
/// One sentence that names the key of the Secret and the remedy; never a byte of it.
pub(super) fn prove(secret: &SecretData) -> Result<CertificatePlan, String> {
    let part = |key: &str| {
        let value = secret.data.get(key).map(|value| value.expose().as_slice());
        let value =
            value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{key} is missing in it"))?;
        if value.len() > MAX_PEM {
            return Err(format!("{key} has {} bytes, at most {MAX_PEM} are read", value.len()));
        }
        Ok(value)
    };
    let (pem, key) = (part("tls.crt")?, part("tls.key")?);
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| {
            "tls.crt is not PEM; give the certificate and its intermediates in this order".to_owned()
        })?;
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err(format!(
            "tls.crt has {} certificates; give 1 to {MAX_CHAIN}, the leaf first",
            chain.len()
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        "tls.key is not a private key in PEM (PKCS#8, PKCS#1 or SEC1, unencrypted)".to_owned()
    })?;
    let plan = describe(secret, &chain, &key)?;
    let signing = aws_lc_rs::sign::any_supported_type(&key).map_err(|_| {
        "tls.key is of a kind that TLS here does not use; take ECDSA P-256, RSA 2048 or Ed25519".to_owned()
    })?;
    CertifiedKey::new(chain, signing)
        .keys_match()
        .map_err(|_| "tls.key does not belong to the first certificate of tls.crt".to_owned())?;
    Ok(plan)
}

fn describe(
    secret: &SecretData,
    chain: &[CertificateDer<'_>],
    key: &PrivateKeyDer<'_>,
) -> Result<CertificatePlan, String> {
    let mut leaf = None;
    for (place, der) in chain.iter().enumerate() {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|_| format!("certificate {} of tls.crt is not X.509", place + 1))?;
        if place == 0 {
            leaf = Some(parsed);
        }
    }
    let leaf = leaf.ok_or("tls.crt is empty")?;
    let mut names: Vec<Arc<str>> = Vec::new();
    if let Ok(Some(extension)) = leaf.subject_alternative_name() {
        for name in &extension.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push(name.to_ascii_lowercase().into());
            }
        }
    }
    let key = match key {
        PrivateKeyDer::Pkcs1(key) => PrivateKey::Pkcs1(key.secret_pkcs1_der().to_vec()),
        PrivateKeyDer::Pkcs8(key) => PrivateKey::Pkcs8(key.secret_pkcs8_der().to_vec()),
        PrivateKeyDer::Sec1(key) => PrivateKey::Sec1(key.secret_sec1_der().to_vec()),
        _ => return Err("tls.key is of an unknown form; write it as PKCS#8".into()),
    };
    Ok(CertificatePlan {
        secret: secret.name.clone(),
        chain: chain.iter().map(|der| der.to_vec()).collect(),
        key: Redacted::new(key),
        names,
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
    })
}

/// Whether a certificate's names cover a hostname (RFC 6125: a wildcard stands for one label).
pub(super) fn covers(names: &[Arc<str>], hostname: &crate::values::Hostname) -> bool {
    let text = hostname.to_string();
    names.iter().any(|name| {
        **name == *text
            || name.strip_prefix("*.").is_some_and(|suffix| {
                text.split_once('.').is_some_and(|(label, rest)| label != "*" && rest == suffix)
            })
    })
}
