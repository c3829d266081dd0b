//! Whom the gateway trusts where nobody says else: the certificate authorities of the system, read once. `SSL_CERT_FILE`
//! and `SSL_CERT_DIR` name others. An image without any has those of Mozilla, which are compiled in.

use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().find(|name| std::env::var_os(name).is_some());
    for error in &found.errors {
        tracing::warn!(%error, "certificate authorities of the system cannot be read");
    }
    let roots = choose(found.certs, named);
    if roots.is_empty() {
        tracing::error!(
            by = named,
            "no certificate authority is trusted; TLS to backends needs caCertificateRefs"
        );
    }
    Arc::new(roots)
});

/// The authorities of the system.
pub fn system_authorities() -> Arc<RootCertStore> {
    SYSTEM.clone()
}

/// Who names others trusts nobody else: those compiled in are for systems that have none.
fn choose(found: Vec<CertificateDer<'static>>, named: Option<&str>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found);
    if roots.is_empty() && named.is_none() {
        roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_authorities_has_those_that_are_compiled_in() {
        assert!(choose(Vec::new(), None).len() > 100);
    }

    #[test]
    fn who_names_others_trusts_nobody_else() {
        assert!(choose(Vec::new(), Some("SSL_CERT_FILE")).is_empty());
        let one = webpki_root_certs::TLS_SERVER_ROOT_CERTS[0].clone();
        assert_eq!(choose(vec![one.clone()], None).len(), 1);
        assert_eq!(choose(vec![one], Some("SSL_CERT_FILE")).len(), 1);
    }
}
