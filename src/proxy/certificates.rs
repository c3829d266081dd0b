//! Certificates as a handshake needs them, linked once for each Secret's content.

use std::sync::Arc;

use rustls::server::ClientHello;
use rustls::sign::CertifiedKey;

use crate::route_map::CertificatePlan;
use crate::upstream::certified_key;

#[derive(Debug)]
pub struct LiveCertificate {
    pub plan: Arc<CertificatePlan>,
    key: Arc<CertifiedKey>,
}

impl LiveCertificate {
    /// Links a plan; `known` is what the same Secret served so far. None: it is of no use, and nothing was served.
    pub fn link(plan: &Arc<CertificatePlan>, known: Option<&Arc<Self>>) -> Option<Arc<Self>> {
        if let Some(known) = known
            && (Arc::ptr_eq(&known.plan, plan) || known.plan == *plan)
        {
            return Some(known.clone());
        }
        match certified_key(plan) {
            Ok(key) => Some(Arc::new(Self { plan: plan.clone(), key: Arc::new(key) })),
            Err(error) => {
                tracing::error!(secret = %plan.secret, %error, "certificate cannot be served");
                known.cloned()
            }
        }
    }

    /// The first of `certificates` whose key can sign as the client asks.
    pub fn choose<'c>(
        mut certificates: impl Iterator<Item = &'c Arc<Self>>,
        hello: &ClientHello<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let fits = certificates.find(|certificate| certificate.key.key.choose_scheme(schemes).is_some());
        fits.map(|certificate| certificate.key.clone())
    }

    /// Whether the certificate names `host` (RFC 9525: a wildcard stands for one label).
    pub fn names(&self, host: &str) -> bool {
        self.plan.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(suffix) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == suffix)
            }
            None => **name == *host,
        })
    }
}
