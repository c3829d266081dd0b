//! `clientCertificate`: the certificate that the client showed in the TLS handshake. Who vouches for it stands at the
//! hostname (`spec.tls.clientValidation`); what is found here is verified.

use std::sync::Arc;

use http::HeaderMap;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::claim_headers::{ClaimHeaders, ClaimToHeader};
use super::entry::{Checked, Entry, EntryKind, Gate, Scheme};
use crate::filters::places::Place;
use crate::filters::{Keep, Scope};
use crate::message::{ClientCertificate, Exchange, Identity, IdentityKind, KnownIdentity, Request};
use crate::values::{FieldPath, Problem};

pub struct ClientCertificates;

/// The certificate of the TLS handshake, as spec.tls.clientValidation verifies it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Its first name of the first kind that it has; URI, DNS, Email, Subject.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub id: Vec<NameKind>,
    /// Fields that tell the backend names of the certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    #[serde(rename = "URI")]
    Uri,
    #[serde(rename = "DNS")]
    Dns,
    Email,
    Subject,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    entry: Arc<str>,
    id: Box<[NameKind]>,
    headers: ClaimHeaders,
}

impl EntryKind for ClientCertificates {
    type Spec = Spec;
    type Plan = Plan;

    fn compile(name: &Arc<str>, spec: Spec, _: &FieldPath, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers = ClaimHeaders::new(&spec.claims_to_headers, &mut problems);
        let id = match spec.id.is_empty() {
            true => [NameKind::Uri, NameKind::Dns, NameKind::Email, NameKind::Subject].into(),
            false => spec.id.into_boxed_slice(),
        };
        match problems.is_empty() {
            true => Ok(Plan { entry: Arc::clone(name), id, headers }),
            false => Err(problems),
        }
    }

    fn link(plan: &Plan, _: &dyn Keep) -> Box<dyn Entry> {
        Box::new(Linked { plan: plan.clone(), no_scopes: Arc::new([]) })
    }
}

struct Linked {
    plan: Plan,
    no_scopes: Arc<[Box<str>]>,
}

impl Linked {
    /// `None`: it has no name of the kinds that are asked for.
    fn id<'c>(&self, certificate: &'c ClientCertificate) -> Option<&'c Arc<str>> {
        self.plan.id.iter().find_map(|kind| match kind {
            NameKind::Uri => certificate.uris.first(),
            NameKind::Dns => certificate.dns.first(),
            NameKind::Email => certificate.emails.first(),
            NameKind::Subject => Some(&certificate.subject).filter(|subject| !subject.is_empty()),
        })
    }
}

impl Entry for Linked {
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked {
        let Some(certificate) = &exchange.client.certificate else { return Checked::Absent };
        if !gate.admits(&certificate.fingerprint) {
            return Checked::Stopped;
        }
        let Some(id) = self.id(certificate) else { return Checked::Refused };
        let identity = KnownIdentity {
            kind: IdentityKind::Certificate,
            entry: Arc::clone(&self.plan.entry),
            issuer: Arc::clone(&certificate.issuer),
            id: Arc::clone(id),
            scopes: Arc::clone(&self.no_scopes),
            claims: Arc::clone(&certificate.claims),
        };
        Checked::Known(Identity::new(Arc::new(identity)), certificate.fingerprint)
    }

    fn forwards(&self) -> bool {
        false
    }

    /// It is the connection's, and no field of the request.
    fn place(&self, _: &Request) -> Option<&Place> {
        None
    }

    fn strip(&self, _: &mut Request, _: Option<&Place>) {}

    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        self.plan.headers.tell(identity, headers);
    }

    fn scheme(&self) -> Scheme {
        Scheme::Certificate
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{World, linked_in, request};
    use super::*;
    use crate::filters::Decision;
    use crate::message::ErrorKind;

    fn certificate(uris: &[&str], dns: &[&str], emails: &[&str], subject: &str) -> ClientCertificate {
        let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        let claims = json!({"subject": subject, "dns": dns});
        let Value::Object(claims) = claims else { panic!("claims") };
        ClientCertificate {
            fingerprint: [7; 32],
            subject: subject.into(),
            issuer: "CN=Partners".into(),
            uris: names(uris),
            dns: names(dns),
            emails: names(emails),
            not_after: 1,
            claims: Arc::new(claims),
        }
    }

    /// Who it is, and what the backend is told.
    fn judged(
        entry: Value,
        mode: &str,
        shown: Option<ClientCertificate>,
    ) -> Result<(String, Option<String>), ErrorKind> {
        let spec = json!({"mode": mode, "anyOf": [{"name": "partners", "clientCertificate": entry}]});
        let filter = linked_in(spec, World::default());
        let mut exchange = request("/", &[("x-client", "root")]);
        exchange.request.headers_mut().remove("x-client");
        exchange.client.certificate = shown.map(Arc::new);
        let refused = match filter.request(&mut exchange) {
            Decision::Continue => None,
            Decision::Fail(error) => Some(error.kind),
            _ => panic!("neither"),
        };
        let told = exchange.request.headers().get("x-client");
        let told = told.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        refused.map_or_else(|| Ok((exchange.identity_key(), told)), Err)
    }

    #[test]
    fn the_id_is_the_first_name_of_the_first_kind_that_the_certificate_has() {
        let all = || certificate(&["spiffe://a/b", "spiffe://a/c"], &["a.test"], &["a@b.test"], "CN=a");
        let key = |entry: Value, shown| judged(entry, "Required", Some(shown)).map(|(key, _)| key);
        let of = |id: &str| Ok(format!("Certificate|CN=Partners|{id}"));
        assert_eq!(key(json!({}), all()), of("spiffe://a/b"));
        assert_eq!(key(json!({"id": ["Email", "URI"]}), all()), of("a@b.test"));
        assert_eq!(key(json!({"id": ["DNS"]}), all()), of("a.test"));
        assert_eq!(key(json!({}), certificate(&[], &[], &[], "CN=a")), of("CN=a"));
        assert_eq!(
            key(json!({"id": ["URI"]}), certificate(&[], &["a.test"], &[], "CN=a")),
            Err(ErrorKind::CertificateInvalid)
        );
        assert_eq!(key(json!({}), certificate(&[], &[], &[], "")), Err(ErrorKind::CertificateInvalid));
    }

    #[test]
    fn without_a_certificate_somebody_is_nobody() {
        assert_eq!(judged(json!({}), "Required", None), Err(ErrorKind::CertificateMissing));
        assert_eq!(judged(json!({}), "Optional", None).map(|(_, told)| told), Ok(None));
    }

    #[test]
    fn backends_are_told_what_the_entry_says() {
        let entry = json!({"claimsToHeaders": [{"claim": "dns", "header": "X-Client"}]});
        let told = judged(entry, "Required", Some(certificate(&[], &["a.test", "b.test"], &[], "CN=a")));
        assert_eq!(told.map(|(_, told)| told), Ok(Some("a.test,b.test".to_owned())));
    }
}
