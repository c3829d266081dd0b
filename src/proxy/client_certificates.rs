//! Certificates of clients: who vouches for them, what they say, and for how long a verdict about one holds.
//!
//! Invariants: a verdict is of one validation, the one that a host has now, and a minute old at most; an expired
//! certificate is not valid one second longer, whatever the verdict was.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Map, Value};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::message::ClientCertificate;
use crate::route_map::ClientValidationPlan;
use crate::values::{ForwardedCertificate, TlsVersion, ValidationMode};

/// So many seconds a verdict holds: a list of revoked certificates or an intermediate may expire meanwhile.
const HOLDS: i64 = 60;
/// So many names of a kind are looked at.
const MAX_NAMES: usize = 32;
/// What a backend is told at most.
const MAX_TOLD: usize = 12 << 10;

/// A linked validation.
#[derive(Debug)]
pub struct LiveValidation {
    pub plan: Arc<ClientValidationPlan>,
    pub least: TlsVersion,
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Made with the first handshake.
    pub config: OnceLock<Option<Arc<ServerConfig>>>,
}

impl LiveValidation {
    /// `known` is the one of the same print that was linked before.
    pub fn link(
        plan: &Arc<ClientValidationPlan>,
        least: TlsVersion,
        known: Option<&Arc<Self>>,
    ) -> Option<Arc<Self>> {
        if let Some(known) = known.filter(|known| known.plan == *plan && known.least == least) {
            return Some(known.clone());
        }
        match verifier(plan) {
            Ok(verifier) => {
                let config = OnceLock::new();
                Some(Arc::new(Self { plan: plan.clone(), least, verifier, config }))
            }
            Err(error) => {
                tracing::error!(%error, "certificates of clients cannot be verified");
                None
            }
        }
    }

    pub fn is_required(&self) -> bool {
        self.plan.mode == ValidationMode::Require
    }
}

fn verifier(plan: &ClientValidationPlan) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for der in &plan.authorities {
        roots.add(CertificateDer::from(der.as_slice())).map_err(|error| error.to_string())?;
    }
    let lists = plan.revoked.iter().map(|der| CertificateRevocationListDer::from(der.clone()));
    // Lists count for the whole chain, and where there are any, what none of them is for is not known to be good.
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::new(provider::default_provider()))
            .with_crls(lists)
            .enforce_revocation_expiration();
    if plan.mode == ValidationMode::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| error.to_string())
}

/// What a client showed in its handshake.
#[derive(Debug)]
pub struct Shown {
    /// The certificate first.
    chain: Vec<CertificateDer<'static>>,
    pub certificate: Arc<ClientCertificate>,
    verdict: RefCell<Verdict>,
}

#[derive(Debug)]
struct Verdict {
    by: Arc<LiveValidation>,
    /// Seconds since the epoch.
    until: i64,
    is_good: bool,
    /// For `X-Forwarded-Client-Cert`.
    told: Option<HeaderValue>,
}

impl Shown {
    /// Of a chain that `by` has verified just now; none: it is not of a form that we can read.
    pub fn new(chain: Vec<CertificateDer<'static>>, by: &Arc<LiveValidation>) -> Option<Self> {
        let certificate = Arc::new(read(chain.first()?)?);
        let told = told(by.plan.forward, &certificate, chain.first()?);
        let verdict = Verdict { by: by.clone(), until: now() + HOLDS, is_good: true, told };
        Some(Self { chain, certificate, verdict: RefCell::new(verdict) })
    }

    /// Whether the certificate is valid now, by the validation that its host has now; and what a backend is told of it.
    pub fn stands(&self, by: &Arc<LiveValidation>) -> Result<Option<HeaderValue>, NotValid> {
        let now = now();
        if now > self.certificate.not_after {
            return Err(NotValid);
        }
        let mut verdict = self.verdict.borrow_mut();
        // Hosts that differ in something else may have the same one.
        let is_same = Arc::ptr_eq(&verdict.by, by) || verdict.by.plan.print == by.plan.print;
        if !is_same || now > verdict.until {
            let is_good = self.verify(by);
            let told = told(by.plan.forward, &self.certificate, &self.chain[0]);
            *verdict = Verdict { by: by.clone(), until: now + HOLDS, is_good, told };
        }
        if verdict.is_good { Ok(verdict.told.clone()) } else { Err(NotValid) }
    }

    fn verify(&self, by: &LiveValidation) -> bool {
        let Some((certificate, others)) = self.chain.split_first() else { return false };
        by.verifier.verify_client_cert(certificate, others, UnixTime::now()).is_ok()
    }
}

/// Not now, or not by this validation.
#[derive(Debug, PartialEq, Eq)]
pub struct NotValid;

/// A clock before the epoch tells a time at which nothing has expired yet: better none at all.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(i64::MAX - HOLDS, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX - HOLDS))
}

type Names = Vec<Arc<str>>;
/// Whether a sign may stand in a name.
type Signs = fn(u8) -> bool;

fn read(der: &CertificateDer<'_>) -> Option<ClientCertificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let (mut uris, mut dns, mut emails) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(extension) = parsed.subject_alternative_name().ok()? {
        for name in &extension.value.general_names {
            let (names, text, may_hold): (&mut Names, _, Signs) = match name {
                GeneralName::URI(text) => (&mut uris, (*text).to_owned(), in_uri),
                GeneralName::DNSName(text) => (&mut dns, text.to_ascii_lowercase(), in_dns),
                GeneralName::RFC822Name(text) => (&mut emails, (*text).to_owned(), in_email),
                _ => continue,
            };
            // What no such name can hold is there to be taken for something else.
            if names.len() < MAX_NAMES && !text.is_empty() && text.bytes().all(may_hold) {
                names.push(text.into());
            }
        }
    }
    let fingerprint = digest::digest(&digest::SHA256, der);
    let fingerprint: [u8; 32] = fingerprint.as_ref().try_into().ok()?;
    let (subject, issuer) = (distinguished(parsed.subject()), distinguished(parsed.issuer()));
    let not_after = parsed.validity().not_after.timestamp();
    let list = |names: &[Arc<str>]| Value::from(names.iter().map(|name| &**name).collect::<Vec<_>>());
    let claims = Map::from_iter([
        ("subject".to_owned(), subject.as_str().into()),
        ("issuer".to_owned(), issuer.as_str().into()),
        ("uris".to_owned(), list(&uris)),
        ("dns".to_owned(), list(&dns)),
        ("emails".to_owned(), list(&emails)),
        ("fingerprint".to_owned(), hexadecimal(&fingerprint).into()),
        ("serial".to_owned(), hexadecimal(parsed.raw_serial()).into()),
        ("notAfter".to_owned(), not_after.into()),
    ]);
    Some(ClientCertificate {
        fingerprint,
        subject: subject.into(),
        issuer: issuer.into(),
        uris: uris.into(),
        dns: dns.into(),
        emails: emails.into(),
        not_after,
        claims: Arc::new(claims),
    })
}

/// RFC 3986 section 2.
fn in_uri(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

fn in_dns(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._*".contains(&byte)
}

/// RFC 5322 section 3.2.3, without quoted forms.
fn in_email(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.@".contains(&byte)
}

/// RFC 4514, with every special sign as two hexadecimal digits: nothing in it ends a quoted text.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    let parts: Vec<_> = name.iter_rdn().collect();
    for part in parts.iter().rev() {
        for (index, attribute) in part.iter().enumerate() {
            let separator = if text.is_empty() {
                ""
            } else if index > 0 {
                "+"
            } else {
                ","
            };
            let id = attribute.attr_type().to_id_string();
            let _ = write!(text, "{separator}{}=", short(&id).unwrap_or(&id));
            match attribute.as_str() {
                Ok(value) if short(&id).is_some() => escape(value, &mut text),
                _ => {
                    let _ = write!(text, "#{}", hexadecimal(attribute.as_slice()));
                }
            }
        }
    }
    text
}

fn short(id: &str) -> Option<&'static str> {
    Some(match id {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

fn escape(value: &str, text: &mut String) {
    let last = value.len().saturating_sub(1);
    for (index, byte) in value.bytes().enumerate() {
        let at_edge = index == 0 || index == last;
        let is_special = matches!(byte, b'"' | b'\\' | b',' | b';' | b'=' | b'+' | b'<' | b'>')
            || !(0x20..0x7f).contains(&byte)
            || (byte == b' ' && at_edge)
            || (byte == b'#' && index == 0);
        if is_special {
            let _ = write!(text, "\\{byte:02X}");
        } else {
            text.push(char::from(byte));
        }
    }
}

/// Envoy's form: `Hash=…;Cert="…";Subject="…";URI=…;DNS=…`.
fn told(
    forward: ForwardedCertificate,
    certificate: &ClientCertificate,
    der: &CertificateDer<'_>,
) -> Option<HeaderValue> {
    if forward == ForwardedCertificate::None {
        return None;
    }
    let hash = format!("Hash={}", hexadecimal(&certificate.fingerprint));
    let mut text = hash.clone();
    if forward == ForwardedCertificate::Certificate {
        let _ = write!(text, ";Cert=\"{}\"", escaped_pem(der));
    }
    let _ = write!(text, ";Subject=\"{}\"", certificate.subject);
    for (key, names) in [("URI", &certificate.uris), ("DNS", &certificate.dns)] {
        for name in names {
            let quote = if name.contains([',', ';', '=']) { "\"" } else { "" };
            let _ = write!(text, ";{key}={quote}{name}{quote}");
        }
    }
    // One that is too large would be refused by the backend, and every request with it.
    let text = if text.len() > MAX_TOLD { hash } else { text };
    HeaderValue::from_str(&text).ok()
}

/// PEM with everything but letters, digits, `-`, `.`, `_` and `~` in percent form.
fn escaped_pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for (index, byte) in body.bytes().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push_str("%0A");
        }
        match byte {
            b'+' => text.push_str("%2B"),
            b'/' => text.push_str("%2F"),
            b'=' => text.push_str("%3D"),
            other => text.push(char::from(other)),
        }
    }
    text + "%0A-----END%20CERTIFICATE-----%0A"
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, SanType,
    };

    use super::*;

    fn authority(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn leaf(names: &[SanType]) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, " =alice\\,\"ä\" ");
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    /// The root's certificate, and a chain with an intermediate.
    fn chain(leaf: &CertificateParams) -> (Vec<u8>, Vec<CertificateDer<'static>>) {
        let key = || KeyPair::generate().expect("a key");
        let (root_key, middle_key, leaf_key) = (key(), key(), key());
        let root = authority("Root").self_signed(&root_key).expect("signed");
        let root_issuer = Issuer::new(authority("Root"), root_key);
        let middle = authority("Middle").signed_by(&middle_key, &root_issuer).expect("signed");
        let middle_issuer = Issuer::new(authority("Middle"), middle_key);
        let leaf = leaf.signed_by(&leaf_key, &middle_issuer).expect("signed");
        (root.der().to_vec(), vec![leaf.der().clone(), middle.der().clone()])
    }

    fn validation(root: &[u8], revoked: Vec<Vec<u8>>) -> Arc<LiveValidation> {
        let of = |part: &[u8]| digest::digest(&digest::SHA256, part);
        let print = of(&[root, &revoked.concat()].concat()).as_ref().try_into().expect("SHA-256");
        let plan = ClientValidationPlan {
            mode: ValidationMode::Require,
            forward: ForwardedCertificate::Details,
            authorities: vec![root.to_vec()],
            revoked,
            print,
        };
        LiveValidation::link(&Arc::new(plan), TlsVersion::Tls12, None).expect("an authority")
    }

    fn told_of(names: &[SanType], forward: ForwardedCertificate) -> String {
        let (_, chain) = chain(&leaf(names));
        let certificate = read(&chain[0]).expect("X.509");
        let told = told(forward, &certificate, &chain[0]).expect("a value");
        told.to_str().expect("ASCII").split_once(';').map_or_else(String::new, |(_, rest)| rest.to_owned())
    }

    #[test]
    fn no_name_can_be_taken_for_another_one() {
        let subject = r#"Subject="CN=\20\3Dalice\5C\2C\22\C3\A4\22\20""#;
        for (names, expected) in [
            (vec![uri("spiffe://a/b")], ";URI=spiffe://a/b"),
            (vec![uri("spiffe://a/b;URI=spiffe://root")], ";URI=\"spiffe://a/b;URI=spiffe://root\""),
            (vec![uri("spiffe://a/b\";URI=\"spiffe://root")], ""),
            (vec![uri("spiffe://a b")], ""),
            (vec![uri("spiffe://a\r\nx: 1")], ""),
            (vec![uri("")], ""),
            (
                vec![SanType::DnsName("A.Test".try_into().expect("ASCII")), uri("a:b"), uri("c:d")],
                ";URI=a:b;URI=c:d;DNS=a.test",
            ),
        ] {
            let told = told_of(&names, ForwardedCertificate::Details);
            assert_eq!(told, format!("{subject}{expected}"), "{names:?}");
        }
    }

    #[test]
    fn the_certificate_itself_is_told_as_envoy_writes_it() {
        let (_, chain) = chain(&leaf(&[]));
        let certificate = read(&chain[0]).expect("X.509");
        let told = told(ForwardedCertificate::Certificate, &certificate, &chain[0]).expect("a value");
        let told = told.to_str().expect("ASCII");
        let (_, rest) = told.split_once(";Cert=\"").expect("a certificate");
        let pem = rest.split('"').next().expect("its end");
        let pem = percent_encoding::percent_decode_str(pem).decode_utf8().expect("PEM");
        let der = <CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(pem.as_bytes());
        assert_eq!(der.expect("PEM"), chain[0]);
        assert!(pem.lines().all(|line| line.len() <= 64) && told.contains("\";Subject=\""), "{told}");
        // Too large for a field: its hash is all that is told.
        let many: Vec<_> = (0..32).map(|index| uri(&format!("a:{index}{}", "x".repeat(500)))).collect();
        assert_eq!(told_of(&many, ForwardedCertificate::Details), "");
    }

    #[test]
    fn an_expired_certificate_stands_no_longer_whatever_was_said_of_it() {
        let mut short = leaf(&[]);
        short.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let (root, chain) = chain(&short);
        let by = validation(&root, vec![]);
        let shown = Shown::new(chain, &by).expect("X.509");
        assert!(shown.verdict.borrow().is_good);
        assert_eq!(shown.stands(&by), Err(NotValid));
    }

    #[test]
    fn a_verdict_is_of_one_validation_and_holds_a_minute() {
        let (root, chain) = chain(&leaf(&[]));
        let (stranger, _) = self::chain(&leaf(&[]));
        let (by, other) = (validation(&root, vec![]), validation(&stranger, vec![]));
        let shown = Shown::new(chain, &by).expect("X.509");
        assert!(shown.stands(&by).is_ok_and(|told| told.is_some()));
        assert_eq!(shown.stands(&other), Err(NotValid), "verified anew");
        assert!(shown.stands(&by).is_ok());
        // A verdict that is too old is not believed, be it good or bad.
        for is_good in [true, false] {
            for (validation, expected) in [(&by, true), (&other, false)] {
                *shown.verdict.borrow_mut() =
                    Verdict { by: validation.clone(), until: now() - 1, is_good, told: None };
                assert_eq!(shown.stands(validation).is_ok(), expected);
            }
        }
    }

    #[test]
    fn what_no_list_is_for_is_not_known_to_be_good() {
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2025, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let key = KeyPair::generate().expect("a key");
        let list = list.signed_by(&Issuer::new(authority("Elsewhere"), key)).expect("signed");
        let (root, chain) = chain(&leaf(&[]));
        let (without, with) = (validation(&root, vec![]), validation(&root, vec![list.der().to_vec()]));
        let shown = Shown::new(chain, &without).expect("X.509");
        assert!(shown.stands(&without).is_ok());
        assert_eq!(shown.stands(&with), Err(NotValid));
    }
}
