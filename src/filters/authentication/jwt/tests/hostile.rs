//! Hostile tokens, one by one.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::*;

/// A good token's parts.
fn parts() -> (String, String, String) {
    let token = of(&claims());
    let mut parts = token.split('.').map(str::to_owned);
    let mut next = || parts.next().expect("three parts");
    (next(), next(), next())
}

fn hmac_signed(name: &str, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
    let header = format!(r#"{{"alg":"{name}","kid":"ec"}}"#);
    let signed = format!("{}.{}", b64(header), b64(claims().to_string()));
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", b64(tag))
}

/// What is wrong, and the token.
fn hostile() -> Vec<(String, String)> {
    let (header, payload, signature) = parts();
    let claims_text = claims().to_string();
    let flipped = |part: &str, place: usize| {
        let mut bytes = URL_SAFE_NO_PAD.decode(part).expect("base64");
        bytes[place] ^= 1;
        b64(bytes)
    };
    let with_header = |header: &str| signed(header, &claims_text);
    let spaced = |part: &str| format!("{} {}", &part[..4], &part[4..]);
    let mut tokens: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, token: String| tokens.push((what.to_owned(), token));

    // Form.
    add("no signature part", format!("{header}.{payload}"));
    add("an empty signature", format!("{header}.{payload}."));
    add("an empty payload", format!("{header}..{signature}"));
    add("an empty header", format!(".{payload}.{signature}"));
    add("dots alone", "..".into());
    add("a trailing dot", format!("{header}.{payload}.{signature}."));
    add("a leading dot", format!(".{header}.{payload}.{signature}"));
    add("four parts", format!("{header}.{payload}.{signature}.{signature}"));
    add("five parts, as if encrypted", format!("{header}.{payload}.{signature}.{signature}.{signature}"));
    add("a padded signature", format!("{header}.{payload}.{signature}=="));
    add("a padded signature of one", format!("{header}.{payload}.{signature}="));
    add("a padded header", format!("{header}=.{payload}.{signature}"));
    add("a padded payload", format!("{header}.{payload}=.{signature}"));
    add("a space in the signature", format!("{header}.{payload}.{}", spaced(&signature)));
    add("a space in the payload", format!("{header}.{}.{signature}", spaced(&payload)));
    add("a space at the end", format!("{header}.{payload}.{signature} x"));
    add("a percent sign", format!("{header}.{payload}.{signature}%3D"));
    add("the other alphabet", {
        let standard = STANDARD.encode(URL_SAFE_NO_PAD.decode(&signature).expect("base64"));
        format!("{header}.{payload}.{standard}")
    });
    add("a padded alphabet", {
        let padded = URL_SAFE.encode(URL_SAFE_NO_PAD.decode(&signature).expect("base64"));
        format!("{header}.{payload}.{padded}")
    });
    add("bits at the end that mean nothing", {
        // 64 bytes leave four bits of the last sign unused.
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let (rest, last) = signature.split_at(signature.len() - 1);
        let place = alphabet.iter().position(|sign| *sign == last.as_bytes()[0]).expect("base64");
        format!("{header}.{payload}.{rest}{}", char::from(alphabet[place | 1]))
    });
    add("a signature and a half", format!("{header}.{payload}.{signature}{}", &signature[..43]));
    add("half a signature", format!("{header}.{payload}.{}", &signature[..43]));
    add("JSON instead of compact form", format!(r#"{{"payload":"{payload}","signature":"{signature}"}}"#));
    add("an oversized token", of(&with("pad", "x".repeat(8 << 10))));
    add(
        "an oversized header",
        with_header(&format!(r#"{{"alg":"ES256","kid":"ec","x":"{}"}}"#, "x".repeat(8 << 10))),
    );

    // Signature.
    add("a changed signature", format!("{header}.{payload}.{}", flipped(&signature, 5)));
    add("a changed payload", format!("{header}.{}.{signature}", flipped(&payload, 5)));
    add("another's claims", format!("{header}.{}.{signature}", b64(with("sub", "root").to_string())));
    add("another header", format!("{}.{payload}.{signature}", b64(r#"{"alg":"ES256"}"#)));
    add("a stranger's key", sign_with(&KEYS.stranger, ES256, &claims_text));
    add("a stranger's key, no kid", sign_with(&KEYS.stranger, r#"{"alg":"ES256"}"#, &claims_text));
    add("zeros", format!("{header}.{payload}.{}", b64([0; 64])));
    add("ones", format!("{header}.{payload}.{}", b64([0xff; 64])));
    add("a signature in DER", {
        let der = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            KEYS.ec.to_pkcs8v1().expect("a document").as_ref(),
        )
        .expect("the same key");
        sign_with(&der, ES256, &claims_text)
    });
    add("r and s swapped", {
        let raw = URL_SAFE_NO_PAD.decode(&signature).expect("base64");
        format!("{header}.{payload}.{}", b64([&raw[32..], &raw[..32]].concat()))
    });

    // Algorithm.
    for name in [
        "none", "None", "NONE", "nOnE", "", " ", "es256", "ES256 ", "ES256K", "RS1", "HS256", "HS384",
        "HS512", "dir", "A128KW",
    ] {
        add(&format!("alg {name:?}"), with_header(&format!(r#"{{"alg":"{name}","kid":"ec"}}"#)));
        add(&format!("alg {name:?} without a signature"), {
            format!("{}.{payload}.", b64(format!(r#"{{"alg":"{name}","kid":"ec"}}"#)))
        });
    }
    add("no alg", with_header(r#"{"kid":"ec"}"#));
    for other in ["null", "1", "[\"ES256\"]", "{}", "true"] {
        add(&format!("alg {other}"), with_header(&format!(r#"{{"alg":{other},"kid":"ec"}}"#)));
    }
    for other in ["ES384", "ES512", "RS256", "PS256", "EdDSA", "Ed25519"] {
        add(
            &format!("{other} over a P-256 signature"),
            with_header(&format!(r#"{{"alg":"{other}","kid":"ec"}}"#)),
        );
    }
    add("RSA's name over PSS", rsa_signed(&RSA_PSS_SHA256, r#"{"alg":"RS256","kid":"rsa"}"#, &claims_text));
    add(
        "PSS's name over PKCS#1",
        rsa_signed(&RSA_PKCS1_SHA256, r#"{"alg":"PS256","kid":"rsa"}"#, &claims_text),
    );
    add(
        "another hash than said",
        rsa_signed(&RSA_PKCS1_SHA256, r#"{"alg":"RS384","kid":"rsa"}"#, &claims_text),
    );
    add("HMAC with the set as secret", hmac_signed("HS256", hmac::HMAC_SHA256, jwks().as_bytes()));
    add("HMAC with the public point", hmac_signed("HS256", hmac::HMAC_SHA256, KEYS.ec.public_key().as_ref()));
    add(
        "HMAC with x",
        hmac_signed(
            "HS256",
            hmac::HMAC_SHA256,
            ec_jwk(&KEYS.ec, "P-256")["x"].as_str().expect("x").as_bytes(),
        ),
    );
    add(
        "HMAC with the modulus",
        hmac_signed("HS512", hmac::HMAC_SHA512, rsa_jwk()["n"].as_str().expect("n").as_bytes()),
    );
    add("HMAC with the oct key of the set", {
        let header = r#"{"alg":"HS256","kid":"shared"}"#;
        let signed = format!("{}.{payload}", b64(header));
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef0123456789abcdef");
        format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())))
    });
    add(
        "HMAC under the name of ES256",
        hmac_signed("ES256", hmac::HMAC_SHA256, KEYS.ec.public_key().as_ref()),
    );

    // Header.
    let stranger = ec_jwk(&KEYS.stranger, "P-256");
    add(
        "its own jwk",
        sign_with(&KEYS.stranger, &json!({"alg": "ES256", "jwk": stranger}).to_string(), &claims_text),
    );
    for (name, value) in [
        ("jwk", json!(ec_jwk(&KEYS.ec, "P-256"))),
        ("jku", json!("https://evil.example/jwks.json")),
        ("x5u", json!("https://evil.example/cert.pem")),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("crit", json!(["b64"])),
        ("crit", json!("exp")),
        ("crit", json!(null)),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
        ("epk", json!({})),
        ("cty", json!("JWT")),
        ("cty", json!(1)),
        ("kid", json!(1)),
        ("kid", json!(null)),
        ("kid", json!(["ec"])),
        ("kid", json!("nobody")),
        ("kid", json!("../../dev/null")),
        ("kid", json!("ec' OR '1'='1")),
        ("kid", json!("rsa")),
        ("kid", json!("x".repeat(257))),
        ("typ", json!("logout+jwt")),
        ("typ", json!("dpop+jwt")),
        ("typ", json!("secevent+jwt")),
        ("typ", json!("JWE")),
        ("typ", json!("")),
        ("typ", json!(7)),
        ("typ", json!("application/x/JWT")),
    ] {
        let mut header: Value = json!({"alg": "ES256", "kid": "ec"});
        header[name] = value.clone();
        add(&format!("{name}: {value}"), with_header(&header.to_string()));
    }
    add("alg twice", with_header(r#"{"alg":"ES256","alg":"ES256","kid":"ec"}"#));
    add("none, then ES256", with_header(r#"{"alg":"none","alg":"ES256","kid":"ec"}"#));
    add("a member twice by escapes", with_header(r#"{"alg":"ES256","\u0061lg":"none","kid":"ec"}"#));
    add("a header that is a list", with_header(r#"[{"alg":"ES256"}]"#));
    add("a header that is text", with_header("\"ES256\""));
    add("a header with a mark before it", with_header("\u{feff}{\"alg\":\"ES256\"}"));
    add("a header with something behind it", with_header(r#"{"alg":"ES256"}{}"#));
    add("a header that is no JSON", with_header("alg=ES256"));
    add("a header with a NUL", with_header("{\"alg\":\"ES256\"}\0"));

    // Claims.
    add("claims twice", signed(ES256, &claims_text.replacen('{', "{\"sub\":\"root\",", 1)));
    add("aud twice", signed(ES256, &claims_text.replacen('{', "{\"aud\":\"shop-api\",", 1)));
    add("a nested member twice", signed(ES256, &claims_text.replacen('{', r#"{"x":{"a":1,"a":2},"#, 1)));
    add("claims that are a list", signed(ES256, "[]"));
    add("claims that are text", signed(ES256, "\"alice\""));
    add("claims with something behind them", signed(ES256, &format!("{claims_text} x")));
    add(
        "claims nested without end",
        signed(ES256, &format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500))),
    );
    for name in ["iss", "aud", "exp"] {
        add(&format!("no {name}"), of(&without(name)));
    }
    for (name, value) in [
        ("iss", json!("https://login.shop.example/")),
        ("iss", json!("HTTPS://login.shop.example")),
        ("iss", json!("https://login.evil.example")),
        ("iss", json!([ISSUER])),
        ("iss", json!(null)),
        ("iss", json!("")),
        ("aud", json!("shop-api2")),
        ("aud", json!("SHOP-API")),
        ("aud", json!("shop-api other-api")),
        ("aud", json!([])),
        ("aud", json!(["x", 1, "shop-api"])),
        ("aud", json!({"shop-api": true})),
        ("aud", json!(null)),
        ("aud", json!(true)),
        ("exp", json!(now() - 31)),
        ("exp", json!(0)),
        ("exp", json!(-1)),
        ("exp", json!((now() + 300).to_string())),
        ("exp", json!(null)),
        ("exp", json!(true)),
        ("exp", json!([now() + 300])),
        ("exp", json!({})),
        ("nbf", json!(now() + 60)),
        ("nbf", json!("0")),
        ("nbf", json!(null)),
        ("nbf", json!(1e300)),
        ("iat", json!("yesterday")),
        ("iat", json!(null)),
        ("sub", json!(7)),
        ("sub", json!(["alice"])),
        ("sub", json!(null)),
        ("jti", json!(7)),
        ("scope", json!(7)),
        ("scope", json!(["a", 1])),
    ] {
        add(&format!("{name}: {value}"), of(&with(name, value)));
    }
    tokens
}

#[tokio::test]
async fn no_hostile_token_counts() {
    let filter = filter(json!({}));
    let tokens = hostile();
    assert!(tokens.len() >= 80, "{}", tokens.len());
    assert_eq!(verdict(&filter, &of(&claims())).await, Ok(()), "the control");
    let mut counted = Vec::new();
    for (what, token) in &tokens {
        if verdict(&filter, token).await != Err(ErrorKind::TokenInvalid) {
            counted.push(what);
        }
    }
    assert!(counted.is_empty(), "of {} these were not refused: {counted:?}", tokens.len());
}

#[tokio::test]
async fn none_of_them_is_nobody_where_credentials_are_optional() {
    let mut spec = spec(json!({}));
    spec["mode"] = "Optional".into();
    let filter = linked_in(spec, World::default());
    for (what, token) in hostile() {
        assert_eq!(verdict(&filter, &token).await, Err(ErrorKind::TokenInvalid), "{what}");
    }
    assert_eq!(ask(&filter, &mut request("/", &[])).await, Ok(()));
}
