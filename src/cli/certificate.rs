//! `portcullis certificate`: a certificate authority and a certificate for trials, made on the spot. The authority's key
//! is forgotten at once: nobody can make a second certificate that its clients would trust.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

#[derive(Args, Debug)]
pub struct Certificate {
    /// Names that the certificate is for, like shop.example or *.shop.example
    #[arg(required = true, value_name = "HOSTNAME")]
    hostnames: Vec<String>,
    /// Name of the Secret
    #[arg(long, default_value = "certificate")]
    name: String,
    /// Namespace of the Secret
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Where to write the authority's certificate, for `curl --cacert`
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where to write the Secret; stdout by default
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Days until it expires
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=36_500))]
    days: u16,
}

pub fn run(args: &Certificate) -> anyhow::Result<()> {
    let (authority, chain, key) = make(args)?;
    let secret = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": args.name, "namespace": args.namespace},
        "stringData": {"tls.crt": chain, "tls.key": key},
    });
    let manifest =
        format!("# For trials; made by `portcullis certificate`.\n{}", serde_saphyr::to_string(&secret)?);
    if let Some(path) = &args.ca {
        write(path, &authority)?;
    }
    match &args.output {
        Some(path) => write(path, &manifest),
        None => super::say(&manifest),
    }
}

/// Whole or not at all: a gateway may be watching the folder.
fn write(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The authority's certificate, the certificate and its key, all PEM.
fn make(args: &Certificate) -> anyhow::Result<(String, String, String)> {
    let now = rcgen::date_time_ymd(1970, 1, 1)
        + std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let day = std::time::Duration::from_secs(86_400);
    let named = |name: &str| {
        let mut names = DistinguishedName::new();
        names.push(DnType::CommonName, name);
        names
    };
    let mut authority = CertificateParams::default();
    authority.distinguished_name = named("Portcullis trial authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (authority.not_before, authority.not_after) = (now - day, now + day * u32::from(args.days));
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let mut leaf = CertificateParams::new(args.hostnames.clone()).context("a hostname is not one")?;
    leaf.distinguished_name = named(&args.hostnames[0]);
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (leaf.not_before, leaf.not_after) = (now - day, now + day * u32::from(args.days));
    let key = KeyPair::generate()?;
    let chain = leaf.signed_by(&key, &issuer)?.pem();
    Ok((authority_pem, chain, key.serialize_pem()))
}
