//! Names and passwords in the whole program: hashes of other programs, changes while it runs, guesses under load.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{Backend, Gateway, route, until};

/// By `openssl passwd -6` and libxcrypt's bcrypt of cost 10.
const ALICE: &str =
    "$6$trialtrial$HRFGKKKRLAYI6uC9iHkXDRo81iYKVAyoIqsIxn/0ySs8fWEXyqpwyb5J/DSqeP9q4FpmGXMa/vsxEKdeXwqxq/";
const BOB: &str = "$2b$10$ckkNQ2vIhEc7kvnqlpggeewBDdwnfk6cmFMwAb2.KBmVeLKgbsoJ2";

fn secret(lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{namespace: test, name: people}}\nstringData:\n  .htpasswd: |\n{lines}"
    )
}

fn gateway(backend: &Backend, failures: u32, lines: &[String]) -> Gateway {
    let policy = format!(
        "{{authentication: {{failures: {{requests: {failures}, per: 1h}}, anyOf: [{{name: people, basicAuth: {{secretRef: {{name: people}}, claimsToHeaders: [{{claim: id, header: X-User}}]}}}}]}}}}"
    );
    let spec = format!(
        "{{hostnames: [shop.example], policy: {policy}, rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: one}}]}}]}}"
    );
    Gateway::start(&[
        ("backend.yaml", &backend.manifest("one")),
        ("route.yaml", &route("shop", &spec)),
        ("secret.yaml", &secret(lines)),
    ])
}

/// Who the backend sees, or why nobody.
fn verdict(gateway: &Gateway, credentials: &str) -> String {
    let field = format!("Authorization: Basic {}", STANDARD.encode(credentials));
    let answer = gateway.request("GET", "shop.example", "/", &[&field, "X-User: root"], "");
    let said = answer.json();
    assert!(answer.status != 200 || said["headers"].get("authorization").is_none(), "{said}");
    said["reason"].as_str().or(said["headers"]["x-user"].as_str()).expect("either").to_owned()
}

#[test]
fn people_of_other_programs_files_come_in_until_their_line_goes() {
    let backend = Backend::start("one");
    let (alice, bob) = (format!("alice:{ALICE}"), format!("bob:{BOB}"));
    let gateway = gateway(&backend, 0, &[alice.clone(), bob.clone()]);
    assert_eq!(verdict(&gateway, "alice:correct horse"), "alice");
    assert_eq!(verdict(&gateway, "bob:battery staple"), "bob");
    for wrong in ["alice:battery staple", "bob:correct horse", "carol:correct horse", "bob:", ":"] {
        assert_eq!(verdict(&gateway, wrong), "CredentialsInvalid", "{wrong}");
    }
    gateway.write("secret.yaml", &secret(std::slice::from_ref(&bob)));
    until("alice to be gone", || {
        (verdict(&gateway, "alice:correct horse") == "CredentialsInvalid").then_some(())
    });
    assert_eq!(verdict(&gateway, "bob:battery staple"), "bob");
    gateway.write("secret.yaml", &secret(&[bob.clone(), alice]));
    // What was known of a name that nobody had is not held against her.
    until("alice to be back", || (verdict(&gateway, "alice:correct horse") == "alice").then_some(()));
    gateway.write("secret.yaml", &secret(&["bob:battery staple".into()]));
    gateway.until_answer("shop.example", "/", 503, "PolicyInvalid");
    assert_eq!(verdict(&gateway, "bob:battery staple"), "PolicyInvalid");
    let said = [gateway.process.log(), gateway.ask_admin("/status").body, gateway.ask_admin("/metrics").body]
        .concat();
    assert!(said.contains("line 1 of .htpasswd in Secret test/people"), "{said}");
    for secret in ["battery staple", "correct horse", "ckkNQ2", "HRFGKK", "trialtrial"] {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[test]
fn guesses_are_stopped_and_a_known_password_goes_on_while_others_are_hashed() {
    let backend = Backend::start("one");
    let gateway = gateway(&backend, 5, &[format!("bob:{BOB}")]);
    assert_eq!(verdict(&gateway, "bob:battery staple"), "bob");
    let guesses: Vec<_> = (0..8).map(|guess| verdict(&gateway, &format!("bob:{guess}"))).collect();
    assert_eq!(&guesses[5..], ["TooManyFailures"; 3], "{guesses:?}");
    assert_eq!(verdict(&gateway, "bob:battery staple"), "bob");
}

#[test]
fn a_crowd_of_guesses_is_answered_and_costs_nobody_else_the_way_in() {
    let backend = Backend::start("one");
    let gateway = gateway(&backend, 0, &[format!("bob:{BOB}")]);
    assert_eq!(verdict(&gateway, "bob:battery staple"), "bob");
    let verdicts: Vec<String> = std::thread::scope(|scope| {
        let gateway = &gateway;
        let crowd: Vec<_> =
            (0..120).map(|guess| scope.spawn(move || verdict(gateway, &format!("bob:{guess}")))).collect();
        for _ in 0..20 {
            assert_eq!(verdict(gateway, "bob:battery staple"), "bob");
        }
        crowd.into_iter().map(|one| one.join().expect("answered")).collect()
    });
    let count = |reason: &str| verdicts.iter().filter(|verdict| *verdict == reason).count();
    assert_eq!(count("CredentialsInvalid") + count("Overloaded"), 120, "{verdicts:?}");
    assert!(count("CredentialsInvalid") > 0 && count("Overloaded") > 0, "{verdicts:?}");
}
