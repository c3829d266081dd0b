//! No Secret's content in anything that the program says. A canary stands in every kind of Secret that a field of ours
//! can name; then everything is searched for it, in every form in which a program could say it: the log at `trace`, the
//! access log, statuses, metrics, answers, `check`, `explain`, dumps and `Debug` of what was compiled, with good
//! Secrets, with broken ones, with wrong credentials and with servers that are gone.
//!
//! A new kind of Secret is a line of [`CANARIES`]; a field of the schemas without one fails a test. `canaries_under_load`
//! has the same Secrets while much happens at once.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use portcullis::compile::{self, Compiled, HostnameClaims, LoopbackHosts, Memo, Options};
use portcullis::filters::{AnyPlan, Decision, Filter, FilterKind, Keep, Member, Ring, Row, Scope, filter};
use portcullis::message::{Body, Exchange, Response};
use portcullis::snapshot::{self, Change, Object, Origin, Snapshot};
use portcullis::values::Problem;
use serde_json::Value;

use crate::harness::{Backend, Gateway, certificate, run, text, until};
use crate::proxy_rig;

/// A field that names Secrets, the Secret that it names here, and what is in that.
pub struct Canary {
    field: &'static str,
    secret: &'static str,
    holds: Holds,
}

pub enum Holds {
    /// A certificate and its private key, which is the canary.
    Certificate,
    /// These, where `{canary}` stands for the canary.
    Values(&'static [(&'static str, &'static str)]),
    /// An authority, public itself, beside something that is not.
    Authority,
}

pub const CANARIES: &[Canary] = &[
    Canary { field: "GatewayRoute.spec.tls.certificateRefs", secret: "served", holds: Holds::Certificate },
    Canary {
        field: "GatewayRoute.spec.tls.clientValidation.caCertificateRefs",
        secret: "clients-ca",
        holds: Holds::Authority,
    },
    Canary {
        field: "GatewayRoute.spec.tls.clientValidation.crlRefs",
        secret: "revoked",
        holds: Holds::Values(&[("ca.crl", "-----BEGIN X509 CRL-----\n{canary}\n-----END X509 CRL-----\n")]),
    },
    Canary {
        field: "GatewayBackend.spec.tls.clientCertificateRef",
        secret: "shown",
        holds: Holds::Certificate,
    },
    Canary {
        field: "GatewayBackend.spec.tls.caCertificateRefs",
        secret: "backend-ca",
        holds: Holds::Authority,
    },
    Canary {
        field: "GatewayBackend.spec.credentials.secretKeyRef",
        secret: "of-ours",
        holds: Holds::Values(&[("token", "{canary}")]),
    },
    Canary {
        field: "GatewayBackend.spec.credentials.basic.secretRef",
        secret: "login-of-ours",
        holds: Holds::Values(&[("username", "gateway"), ("password", "{canary}")]),
    },
    Canary {
        field: "GatewayBackend.spec.credentials.oauth2ClientCredentials.clientSecretRef",
        secret: "client-of-ours",
        holds: Holds::Values(&[("clientId", "gateway"), ("clientSecret", "{canary}")]),
    },
    Canary {
        field: "policy.sessionAffinity.secretKeyRef",
        secret: "of-sessions",
        holds: Holds::Values(&[("key", "{canary}, and as long as a key has to be")]),
    },
    Canary {
        field: "policy.authentication.anyOf[].apiKey.secretRef",
        secret: "named-keys",
        holds: Holds::Values(&[("key", "{canary}")]),
    },
    Canary {
        field: "policy.authentication.anyOf[].apiKey.secretSelector",
        secret: "labelled-keys",
        holds: Holds::Values(&[("keyHash", "{hash}"), ("forgotten", "{canary}")]),
    },
    Canary {
        field: "policy.authentication.anyOf[].basicAuth.secretRef",
        secret: "people",
        // The second line is no hash, which is told without what it is.
        holds: Holds::Values(&[(
            "users",
            "alice:$6$trialtrial$HRFGKKKRLAYI6uC9iHkXDRo81iYKVAyoIqsIxn/0ySs8fWEXyqpwyb5J/DSqeP9q4FpmGXMa/vsxEKdeXwqxq/\nbob:{canary}\n",
        )]),
    },
    Canary {
        field: "policy.authentication.anyOf[].jwt.jwks.secretRef",
        secret: "key-set",
        holds: Holds::Values(&[(
            "jwks",
            r#"{"keys": [{"kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM", "note": "{canary}"}]}"#,
        )]),
    },
    Canary {
        field: "policy.authentication.anyOf[].introspection.clientSecretRef",
        secret: "introspection",
        holds: Holds::Values(&[("clientId", "gateway"), ("clientSecret", "{canary}")]),
    },
    Canary {
        field: "policy.validation.bodySchema.secretRef",
        secret: "schema",
        holds: Holds::Values(&[("order.json", r#"{"type": "object", "title": "{canary}"}"#)]),
    },
];

/// What the program is told at its start and may tell nobody: flags, with `{canary}` in them and the port of nobody.
const SETTINGS: &[(&str, &str)] = &[("--redis", "redis://gateway:{canary}@127.0.0.1:{nobody}/0")];

/// A Secret of the world, and the texts that may never be said.
pub struct Planted {
    pub name: &'static str,
    pub manifest: String,
    pub broken: String,
    pub canaries: Vec<Vec<u8>>,
}

impl Planted {
    /// Of a flag, in no Secret.
    pub fn told(flag: &'static str) -> Self {
        Self {
            name: flag,
            manifest: String::new(),
            broken: String::new(),
            canaries: vec![canary(flag).into_bytes()],
        }
    }
}

impl Canary {
    /// 32 bytes, as unlikely as a key.
    fn text(&self) -> String {
        canary(self.secret)
    }

    pub fn plant(&self, folder: &Path) -> Planted {
        let canary = self.text();
        let (mut manifest, mut canaries) = (String::new(), vec![canary.clone().into_bytes()]);
        match &self.holds {
            Holds::Certificate => {
                manifest = certificate(folder, self.secret, "shop.example").0;
                canaries = private_key(&manifest);
            }
            Holds::Authority => {
                let (_, ca) = certificate(folder, self.secret, "shop.example");
                let authority = std::fs::read_to_string(ca).expect("written");
                manifest += &secret(self.secret, &[("ca.crt", authority), ("ca.key", canary.clone())]);
            }
            Holds::Values(values) => {
                let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canary.as_bytes());
                let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                let fill = |text: &str| text.replace("{canary}", &canary).replace("{hash}", &hash);
                let values: Vec<_> = values.iter().map(|(key, text)| (*key, fill(text))).collect();
                let hashes =
                    values.iter().flat_map(|(_, text)| text.lines().filter(|line| line.contains("$6$")));
                canaries.extend(hashes.filter_map(|line| Some(line.rsplit_once('$')?.1.as_bytes().to_vec())));
                if values.iter().any(|(_, text)| text.contains(&hash)) {
                    canaries.push(hash.clone().into_bytes());
                }
                manifest += &secret(self.secret, &values);
            }
        }
        // The same keys, none of which holds what it should.
        let keys: Vec<_> =
            object(&manifest)["stringData"].as_object().expect("data").keys().cloned().collect();
        let kind = object(&manifest)["type"].as_str().map(str::to_owned);
        let torn: Vec<_> =
            keys.iter().map(|key| (key.as_str(), format!("-----BEGIN \"{canary}\" \u{1b}[31m\n"))).collect();
        let mut broken = secret(self.secret, &torn);
        if let Some(kind) = kind {
            broken = broken.replace("kind: Secret", &format!("kind: Secret\ntype: {kind}"));
        }
        canaries.push(canary.into_bytes());
        Planted { name: self.secret, manifest, broken, canaries }
    }
}

fn canary(of: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, of.as_bytes());
    digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(name: &str, values: &[(&str, String)]) -> String {
    let data: serde_json::Map<_, _> =
        values.iter().map(|(key, text)| ((*key).to_owned(), Value::from(text.as_str()))).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: {name}, labels: {{keys: {name}}}}}\nstringData: {}\n---\n",
        Value::from(data)
    )
}

fn object(manifest: &str) -> Value {
    let first = snapshot::documents(manifest).next().expect("a document");
    serde_saphyr::from_str(first.text).expect("YAML")
}

/// A part of the key's own bytes that tells it from every other: in PEM, so as the file has it, and in DER.
fn private_key(manifest: &str) -> Vec<Vec<u8>> {
    let key = object(manifest)["stringData"]["tls.key"].as_str().expect("a key").to_owned();
    let body: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).expect("PEM");
    // What stands before is the same in all keys of this kind.
    let second = key.lines().nth(2).expect("a line of the key");
    vec![der[36..68].to_vec(), second.as_bytes().to_vec()]
}

/// Every form in which bytes may be said.
fn forms(canary: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    if let Ok(text) = std::str::from_utf8(canary) {
        forms.push(text.to_owned());
        forms.push(text.to_uppercase());
        forms.push(text.chars().rev().collect());
    }
    forms.push(canary.iter().map(|byte| format!("{byte:02x}")).collect());
    forms.push(canary.iter().map(|byte| format!("{byte:02X}")).collect());
    forms.push(canary.iter().map(u8::to_string).collect::<Vec<_>>().join(", "));
    forms.push(canary.iter().map(u8::to_string).collect::<Vec<_>>().join(","));
    // Somewhere in a longer text: at each of three places, without the ends that its neighbours share.
    for before in 0..3 {
        let shifted = [&vec![0; before], canary].concat();
        for encoded in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            forms.push(encoded[4..encoded.len() - 4].to_owned());
        }
    }
    forms
}

/// Which canaries a text gives away.
pub fn sung<'p>(said: &str, planted: &'p [Planted]) -> BTreeSet<&'p str> {
    planted
        .iter()
        .filter(|one| one.canaries.iter().flat_map(|canary| forms(canary)).any(|form| said.contains(&form)))
        .map(|one| one.name)
        .collect()
}

/// Routes and backends that name all of them.
pub fn world(backend: &Backend, nobody: u16) -> String {
    let route = |host: &str, spec: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{namespace: test, name: {host}}}\nspec: {{hostnames: [{host}.example], {spec}}}\n---\n"
        )
    };
    let to = "backendRefs: [{kind: GatewayBackend, name: one}]";
    let by = |entry: &str| {
        format!(
            "policy: {{authentication: {{failures: {{requests: 0}}, anyOf: [{{name: entry, {entry}}}]}}}}, rules: [{{name: all, {to}}}]"
        )
    };
    let server = |name: &str, port: u16, more: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {port}}}]{more}}}\n---\n"
        )
    };
    let tls = ", tls: {serverName: shop.example, clientCertificateRef: {name: shown}, caCertificateRefs: [{kind: Secret, name: backend-ca}]}";
    [
        server("one", backend.address.port(), ""),
        server("secure", backend.address.port(), tls),
        server("paid", backend.address.port(), ", credentials: {header: X-Pay, prefix: 'Bearer ', secretKeyRef: {key: token, name: of-ours}}"),
        server("lent", nobody, ", credentials: {basic: {secretRef: {name: login-of-ours}}}"),
        server("taken", nobody, &format!(", credentials: {{oauth2ClientCredentials: {{tokenEndpoint: 'http://127.0.0.1:{nobody}/token', authentication: Post, clientSecretRef: {{name: client-of-ours}}}}}}")),
        route("taken", "rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: taken}]}]"),
        route("paid", "rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: paid}]}]"),
        route("lent", "rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: lent}]}]"),
        route("shop", &format!("tls: {{certificateRefs: [{{name: served}}], redirect: false}}, rules: [{{name: all, {to}}}]")),
        route("mtls", &format!("tls: {{certificateRefs: [{{name: served}}], clientValidation: {{caCertificateRefs: [{{kind: Secret, name: clients-ca}}]}}}}, rules: [{{name: all, {to}}}]")),
        route("crl", &format!("tls: {{certificateRefs: [{{name: served}}], clientValidation: {{caCertificateRefs: [{{kind: Secret, name: clients-ca}}], crlRefs: [{{kind: Secret, name: revoked}}]}}}}, rules: [{{name: all, {to}}}]")),
        route("sticky", &format!("policy: {{sessionAffinity: {{secretKeyRef: {{key: key, name: of-sessions}}}}}}, rules: [{{name: all, {to}}}]")),
        route("secure", "rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: secure}]}]"),
        route("named", &by("apiKey: {secretRef: {name: named-keys}, forward: true}")),
        route("labelled", &by("apiKey: {from: [{query: key}, {header: X-Api-Key}], secretSelector: {matchLabels: {keys: labelled-keys}}}")),
        route("jwt", &by("jwt: {issuer: 'https://login.example', audiences: [shop], jwks: {secretRef: {name: key-set}}}")),
        route("schema", &format!("policy: {{validation: {{bodySchema: {{secretRef: {{name: schema, key: order.json}}}}}}}}, rules: [{{name: all, {to}}}]")),
        route("people", &by("basicAuth: {secretRef: {name: people}}")),
        route("limited", &format!("policy: {{rateLimits: [{{name: all, requests: 1000000, per: 1s, scope: Global}}]}}, rules: [{{name: all, {to}}}]")),
        route("token", &by(&format!("introspection: {{endpoint: 'http://127.0.0.1:{nobody}/introspect', clientSecretRef: {{name: introspection}}}}"))),
    ]
    .concat()
}

pub const HOSTS: [&str; 15] = [
    "sticky", "taken", "shop", "paid", "lent", "schema", "mtls", "crl", "secure", "named", "labelled",
    "people", "jwt", "token", "limited",
];

/// Asks every host with right and wrong credentials; what came back, but for what the backend itself says.
fn asked(gateway: &Gateway, planted: &[Planted]) -> String {
    let mut said = String::new();
    let mut keys: Vec<String> = planted
        .iter()
        .flat_map(|one| &one.canaries)
        .filter_map(|canary| String::from_utf8(canary.clone()).ok())
        .collect();
    keys.push("wrong".to_owned());
    for host in HOSTS.map(|host| format!("{host}.example")) {
        for key in &keys {
            let fields = [
                format!("X-Api-Key: {key}"),
                format!("Authorization: Bearer {key}"),
                format!("Authorization: Basic {}", STANDARD.encode(format!("gateway:{key}"))),
            ];
            for field in &fields {
                let answer = gateway.request(
                    "GET",
                    &host,
                    &format!("/{key}?key={key}"),
                    &[field, "Accept: text/plain"],
                    "",
                );
                if answer.status >= 400 && answer.field("x-echo").is_none() {
                    said += &format!("{} {:?} {}\n", answer.status, answer.fields, answer.body);
                }
            }
        }
    }
    said
}

#[test]
fn no_secret_is_in_anything_that_the_program_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let planted: Vec<_> = CANARIES.iter().map(|canary| canary.plant(folder.path())).collect();
    let told: Vec<_> = SETTINGS.iter().map(|(flag, _)| Planted::told(flag)).collect();
    let backend = Backend::start("one");
    // Nobody is there.
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
    let manifests = world(&backend, nobody);
    let secrets = |broken: &str| -> String {
        let pick = |one: &Planted| {
            if one.name == broken || broken == "all" { one.broken.clone() } else { one.manifest.clone() }
        };
        planted.iter().map(pick).collect()
    };
    let world_folder = tempfile::tempdir().expect("a folder");
    std::fs::write(world_folder.path().join("routes.yaml"), &manifests).expect("written");
    std::fs::write(world_folder.path().join("secrets.yaml"), secrets("")).expect("written");
    let log = folder.path().join("access.log");
    let mut command = crate::harness::program();
    command.env("PORTCULLIS_LOG", "trace");
    let settings: Vec<String> = SETTINGS
        .iter()
        .flat_map(|(flag, text)| {
            let text = text.replace("{canary}", &canary(flag)).replace("{nobody}", &nobody.to_string());
            [(*flag).to_owned(), text]
        })
        .collect();
    let log_to = ["--access-log", log.to_str().expect("UTF-8")];
    let arguments: Vec<&str> = settings.iter().map(String::as_str).chain(log_to).collect();
    let gateway = Gateway::launched(command, world_folder, &arguments);
    let mut said = asked(&gateway, &planted);
    assert!(
        said.contains("ApiKeyInvalid") && said.contains("TokenInvalid"),
        "the control: they were refused: {said}"
    );
    let key = CANARIES.iter().find(|canary| canary.secret == "named-keys").expect("there is one").text();
    let good = gateway.request("GET", "named.example", "/", &[&format!("X-Api-Key: {key}")], "");
    assert_eq!(good.status, 200, "the control: the canary is the key; {good:?}");

    for broken in planted.iter().map(|one| one.name).chain(["all", ""]) {
        let before = gateway.status()["sequence"].clone();
        gateway.write("secrets.yaml", &secrets(broken));
        gateway.until_status("the Secrets to be read", |status| {
            status["sequence"] != before || before.is_null()
        });
        said += &gateway.ask_admin("/status").body;
        if broken == "all" {
            said += &asked(&gateway, &planted);
        }
        said += &of_the_commands(&gateway);
        said += &compiled(&(manifests.clone() + &secrets(broken)));
    }
    drop(backend);
    said += &asked(&gateway, &planted);
    for page in ["/status", "/metrics", "/readyz", "/nosuch"] {
        said += &gateway.ask_admin(page).body;
    }
    said += &gateway.process.log();
    let lines = until("the access log", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.lines().count() > 100)
    });
    // Its path is what clients wrote: nothing of a Secret, but for this test's own requests.
    for line in lines.lines() {
        let mut line: Value = serde_json::from_str(line).expect("JSON");
        line.as_object_mut().expect("an object").remove("path");
        said += &line.to_string();
    }
    assert!(said.len() > 100_000, "the control: there is something to search in ({} bytes)", said.len());
    // A setting that is wrong is told, too.
    for (flag, text) in SETTINGS {
        let wrong = text.replace("{canary}", &canary(flag)).replace("{nobody}", "no port");
        let output = run(&["run", "--manifests", folder.path().to_str().expect("UTF-8"), flag, &wrong]);
        assert!(!output.status.success(), "the control: {flag} is wrong");
        said += &text_of(&output);
    }
    assert!(said.contains("the store"), "the control: it was looked for");
    assert_eq!(sung(&said, &planted), BTreeSet::new(), "{}", around(&said, &planted));
    assert_eq!(sung(&said, &told), BTreeSet::new(), "{}", around(&said, &told));
}

fn text_of(output: &std::process::Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// What `check` and `explain` say of the folder.
fn of_the_commands(gateway: &Gateway) -> String {
    let folder = gateway.path("");
    let folder = folder.to_str().expect("UTF-8");
    let mut said = String::new();
    for arguments in [
        vec!["check", folder],
        vec!["explain", "GET", "https://named.example/x", "--manifests", folder],
        vec!["explain", "GET", "http://token.example/x", "--manifests", folder],
        vec!["explain", "GET", "https://crl.example/x", "--manifests", folder],
    ] {
        let output = run(&arguments);
        said += &text_of(&output);
    }
    assert!(said.contains("named"), "{said}");
    said
}

/// Everything that can be printed of what the compiler makes.
fn compiled(manifests: &str) -> String {
    let mut world = Snapshot::default();
    let mut said = String::new();
    for document in snapshot::documents(manifests) {
        let origin = Origin { file: "world.yaml".into(), line: document.line };
        for found in snapshot::read(document.text, &origin) {
            match found {
                Ok(object) => {
                    said += &format!("{object:?}\n");
                    if let Object::Secret(secret) = &object {
                        said += &format!("{secret:#?}\n");
                    }
                    world.apply(Change::Put(object));
                }
                Err(failure) => said += &format!("{failure:?}\n"),
            }
        }
    }
    let options = Options {
        class_name: "portcullis".into(),
        hostnames: HostnameClaims::FirstCome,
        loopback: LoopbackHosts::Allowed,
        egress: Default::default(),
        has_store: true,
        served: None,
        namespace: "default".into(),
    };
    let (compiled, _) = compile::compile(&world, &options, Memo::default());
    let Compiled { map, reports } = &compiled;
    said + &format!("{world:?}\n{map}\n{map:?}\n{map:#?}\n{reports:?}\n")
}

/// Where it stands, for whoever mends it.
pub fn around(said: &str, planted: &[Planted]) -> String {
    let mut places = String::new();
    for one in planted {
        for form in one.canaries.iter().flat_map(|canary| forms(canary)) {
            if let Some(at) = said.find(&form) {
                let start = said.floor_char_boundary(at.saturating_sub(400));
                let end = said.ceil_char_boundary(at + form.len() + 100);
                places += &format!("{} in …{}…\n", one.name, &said[start..end]);
            }
        }
    }
    places
}

#[test]
fn every_field_that_names_secrets_has_its_canary() {
    let mut found = BTreeSet::new();
    for (_, crd) in portcullis::api::crds() {
        let crd: Value = serde_saphyr::from_str(&crd).expect("YAML");
        let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind").to_owned();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        fields(&format!("{kind}.spec"), schema, &mut found);
    }
    let known: BTreeSet<_> = CANARIES.iter().map(|canary| canary.field.to_owned()).collect();
    assert_eq!(found, known, "give each field a line of CANARIES, and name its Secret in `world`");
    let folder = tempfile::tempdir().expect("a folder");
    let backend = Backend::start("one");
    let manifests = world(&backend, 1);
    for canary in CANARIES {
        assert!(manifests.contains(&format!(": {}}}", canary.secret)), "nothing names {}", canary.secret);
        let planted = canary.plant(folder.path());
        assert!(planted.canaries.iter().all(|canary| canary.len() >= 16));
    }
}

fn fields(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let lower = name.to_ascii_lowercase();
        let names_secrets =
            ["secretref", "secretkeyref", "secretselector", "certificateref", "certificaterefs", "crlrefs"]
                .iter()
                .any(|end| lower.ends_with(end))
                || lower.contains("secret");
        if names_secrets && (field["type"] == "object" || field["type"] == "array") {
            // A policy is the same wherever it stands.
            found.insert(
                path.split_once(".policy.").map_or(path.clone(), |(_, rest)| format!("policy.{rest}")),
            );
            continue;
        }
        fields(&path, field, found);
        fields(&format!("{path}[]"), &field["items"], found);
    }
}

/// A member that tells what it should not: in `Debug`, and to clients.
#[derive(Clone, Debug, PartialEq)]
struct Leaky(Vec<u8>);

static LEAKY: &[Row] = &[filter::<Leaky>()];

impl Member for Leaky {
    const NAME: &'static str = "leaky";
    type Spec = Value;
    type Plan = Self;

    fn compile(_: Value, _: &mut dyn Scope) -> Result<Self, Vec<Problem>> {
        panic!("the test makes its plan by hand")
    }
}

impl FilterKind for Leaky {
    const RING: Ring = Ring::Authentication;

    fn link(plan: &Self, _: &dyn Keep) -> std::sync::Arc<dyn Filter> {
        std::sync::Arc::new(plan.clone())
    }
}

impl Filter for Leaky {
    fn request<'a>(&'a self, _: &'a mut Exchange) -> Decision<'a> {
        Decision::Answer(Box::new(Response::new(Body::from(
            STANDARD.encode([b"key=", &self.0[..]].concat()),
        ))))
    }
}

#[tokio::test]
async fn the_control_a_member_that_sings_is_heard() {
    let folder = tempfile::tempdir().expect("a folder");
    let planted: Vec<_> = CANARIES.iter().map(|canary| canary.plant(folder.path())).collect();
    for one in &planted {
        for canary in &one.canaries {
            let plan = Leaky(canary.clone());
            assert_eq!(
                sung(&format!("{:?}", AnyPlan::new(plan.clone())), &planted),
                BTreeSet::from([one.name])
            );
            let gateway = proxy_rig::Gateway::with_members(LEAKY, |_| {});
            let filters = vec![(0, AnyPlan::new(plan))];
            let host = proxy_rig::host_filtered("", None, vec![("/", filters, proxy_rig::respond("ok"))]);
            let (map, endpoints) = proxy_rig::route_map(vec![host], &[]);
            gateway.plane.install(map, endpoints);
            let answer =
                proxy_rig::exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                    .await;
            assert_eq!(sung(&answer, &planted), BTreeSet::from([one.name]), "{answer}");
        }
        for form in one.canaries.iter().flat_map(|canary| forms(canary)) {
            assert_eq!(sung(&format!("… {form} …"), &planted), BTreeSet::from([one.name]));
        }
    }
    assert_eq!(sung("nothing at all", &planted), BTreeSet::new());
}
