//! Values of `Authorization` that the service must refuse. Signed with the service's own secret where
//! that makes them harder to refuse.

use aura_hitl::domain::clock::Clock;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// The header that tokens have.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
const ANOTHER_KEY: &[u8] = b"another-secret-of-more-than-32-bytes";

/// A value of the header, and the error code that answers it.
#[derive(Clone, Debug)]
pub struct Forged {
    pub name: String,
    pub authorization: String,
    pub code: &'static str,
}

/// The present time in Unix seconds.
pub fn now() -> i64 {
    Clock::System.now().timestamp()
}

/// The claims of `user123` of `tenant1`, with some replaced, or removed when null.
pub fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "sub": "user123", "tenant_id": "tenant1", "role": "user", "iat": now(), "exp": now() + 600,
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A token of these texts, whether they are JSON or not.
fn signed(header: &str, claims: &str, key: &[u8], algorithm: Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(key);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// A token with these claims, as the Auth server would sign it.
pub fn token(secret: &[u8], claims: &Value) -> String {
    signed(HEADER, &claims.to_string(), secret, Algorithm::HS256)
}

/// All values that must be answered 401.
pub fn all(secret: &[u8]) -> Vec<Forged> {
    let good = claims(&json!({})).to_string();
    let mut all = no_bearers(&token(secret, &claims(&json!({}))));
    let bearers = misspelled(&signed(HEADER, &good, secret, Algorithm::HS256))
        .into_iter()
        .chain(wrongly_signed(secret, &good))
        .chain(odd_headers(secret, &good))
        .chain(texts_that_are_no_claims(secret, &good))
        .map(|(name, token)| (name, token, "E2003"))
        .chain(odd_claims(secret));
    all.extend(bearers.map(|(name, token, code)| Forged {
        name,
        authorization: format!("Bearer {token}"),
        code,
    }));
    all
}

fn no_bearers(genuine: &str) -> Vec<Forged> {
    [
        ("another scheme", "Basic dXNlcjpwYXNz"),
        ("a scheme without a token", "Bearer"),
        ("a scheme with a blank token", "Bearer  "),
        ("a token without a scheme", genuine),
    ]
    .map(|(name, value)| Forged {
        name: name.to_owned(),
        authorization: value.to_owned(),
        code: "E2000",
    })
    .to_vec()
}

/// A genuine token, damaged.
fn misspelled(genuine: &str) -> Vec<(String, String)> {
    let (message, signature) = genuine.rsplit_once('.').unwrap();
    // The last letter of a base64url signature has unused bits. Only zeros in them are valid.
    let (kept, last) = genuine.split_at(genuine.len() - 1);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let spare = alphabet.find(last).unwrap() ^ 1;
    let mut all = [
        ("nonsense", "nonsense".to_owned()),
        ("three blank parts", "..".to_owned()),
        ("no signature", format!("{message}.")),
        ("half a signature", format!("{message}.{}", &signature[..20])),
        ("no signature part", message.to_owned()),
        ("a fourth part", format!("{genuine}.x")),
        ("two tokens", format!("{genuine} {genuine}")),
        ("two tokens as a list", format!("{genuine}, {genuine}")),
        ("a comma behind", format!("{genuine},")),
        ("padding", format!("{genuine}=")),
        ("a blank inside", genuine.replacen('.', ". ", 1)),
        ("in quotes", format!("\"{genuine}\"")),
        ("a spare bit", format!("{kept}{}", &alphabet[spare..=spare])),
    ]
    .map(|(name, token)| (name.to_owned(), token))
    .to_vec();
    for part in 0..3 {
        for (byte, bit) in [(0, 0), (7, 3), (13, 5), (29, 7)] {
            all.push((
                format!("part {part}: bit {bit} of byte {byte}"),
                flipped(genuine, part, byte, bit),
            ));
        }
    }
    all
}

/// The token with one bit of one of its three parts turned over.
pub fn flipped(token: &str, part: usize, byte: usize, bit: u8) -> String {
    let mut parts = token.split('.').map(ToOwned::to_owned).collect::<Vec<_>>();
    let mut bytes = URL_SAFE_NO_PAD.decode(&parts[part]).unwrap();
    let byte = byte % bytes.len();
    bytes[byte] ^= 1 << bit;
    parts[part] = URL_SAFE_NO_PAD.encode(bytes);
    parts.join(".")
}

fn wrongly_signed(secret: &[u8], good: &str) -> Vec<(String, String)> {
    let unsigned = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#));
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(good))
    };
    let by = |key: &[u8]| signed(HEADER, good, key, Algorithm::HS256);
    let mut all = vec![
        ("alg none".to_owned(), unsigned("none")),
        ("alg None".to_owned(), unsigned("None")),
        ("alg HS256, unsigned".to_owned(), unsigned("HS256")),
        ("another key".to_owned(), by(ANOTHER_KEY)),
        ("an empty key".to_owned(), by(b"")),
        ("half the key".to_owned(), by(&secret[..secret.len() / 2])),
    ];
    for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        let honest = format!(r#"{{"alg":"{name}"}}"#);
        all.push((name.to_owned(), signed(&honest, good, secret, algorithm)));
        all.push((format!("{name} as HS256"), signed(HEADER, good, secret, algorithm)));
    }
    // A key in the token, or one to which the token points, must not be trusted.
    let own = b"a-key-that-the-token-brings-along-itself";
    let jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(own), "alg": "HS256" });
    for (name, header) in [
        ("its own jwk", json!({ "alg": "HS256", "jwk": jwk })),
        ("its own jku", json!({ "alg": "HS256", "jku": "http://127.0.0.1/keys" })),
        ("its own kid", json!({ "alg": "HS256", "kid": "../../../../dev/null" })),
    ] {
        all.push((name.to_owned(), signed(&header.to_string(), good, own, Algorithm::HS256)));
    }
    all
}

fn odd_headers(secret: &[u8], good: &str) -> Vec<(String, String)> {
    let headers = [
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"HS256 "}"#,
        r#"{"alg":"HS-256"}"#,
        r#"{"alg":""}"#,
        r#"{"alg":"dir"}"#,
        r#"{"alg":null}"#,
        r#"{"alg":256}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":{"HS256":1}}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":true}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":"exp"}"#,
        r#"{"alg":"HS256","crit":null}"#,
        r#"{"alg":"HS256","crit":{}}"#,
        r#"{"alg":"HS256","crit":["exp"],"crit":null}"#,
        r#"{"alg":"HS256","cri\u0074":["exp"]}"#,
        r#"{"alg":"HS256"} x"#,
        r#"["HS256"]"#,
        r#""HS256""#,
        "",
    ];
    let forged = headers
        .map(|header| (format!("header {header}"), signed(header, good, secret, Algorithm::HS256)));
    forged.to_vec()
}

/// Texts that no JSON library writes.
fn texts_that_are_no_claims(secret: &[u8], good: &str) -> Vec<(String, String)> {
    let (open, close) = (&good[1..], &good[..good.len() - 1]);
    let mut texts = ["", "[]", "null", "\"user123\"", close].map(ToOwned::to_owned).to_vec();
    texts.extend([format!("{good} x"), format!("{good}{good}")]);
    for claim in [
        r#""sub":"user123""#,
        r#""sub":"root""#,
        r#""\u0073ub":"root""#,
        r#""tenant_id":"tenant1""#,
        r#""tenant_id":"tenant2""#,
        r#""role":"admin""#,
        r#""exp":9999999999"#,
        r#""iat":0"#,
    ] {
        texts.extend([format!("{{{claim},{open}"), format!("{close},{claim}}}")]);
    }
    let forged = texts
        .iter()
        .map(|text| (format!("claims {text}"), signed(HEADER, text, secret, Algorithm::HS256)));
    forged.collect()
}

fn odd_claims(secret: &[u8]) -> Vec<(String, String, &'static str)> {
    let table = [
        (json!({ "exp": now() - 59 }), "E2002"),
        (json!({ "exp": now() - 86400 }), "E2002"),
        (json!({ "exp": 0 }), "E2002"),
        (json!({ "exp": (now() + 600).to_string() }), "E2003"),
        (json!({ "exp": 9_999_999_999.5 }), "E2003"),
        (json!({ "exp": 1e300 }), "E2003"),
        (json!({ "exp": -1 }), "E2003"),
        (json!({ "exp": true }), "E2003"),
        (json!({ "exp": [now() + 600] }), "E2003"),
        (json!({ "exp": u64::MAX }), "E2003"),
        (json!({ "exp": (now() + 600) * 1000 }), "E2003"),
        (json!({ "exp": null }), "E2003"),
        (json!({ "iat": "now" }), "E2003"),
        (json!({ "iat": now().to_string() }), "E2003"),
        (json!({ "iat": 1_700_000_000.5 }), "E2003"),
        (json!({ "iat": null }), "E2003"),
        (json!({ "nbf": now() + 59 }), "E2003"),
        (json!({ "nbf": "0" }), "E2003"),
        (json!({ "sub": null }), "E2003"),
        (json!({ "sub": "" }), "E2003"),
        (json!({ "sub": "   " }), "E2003"),
        (json!({ "sub": "user\n123" }), "E2003"),
        (json!({ "sub": 7 }), "E2003"),
        (json!({ "sub": ["user123"] }), "E2003"),
        (json!({ "sub": "x".repeat(257) }), "E2003"),
        (json!({ "tenant_id": null }), "E2003"),
        (json!({ "tenant_id": "" }), "E2003"),
        (json!({ "tenant_id": { "id": "tenant1" } }), "E2003"),
        (json!({ "tenant_id": ["tenant1"] }), "E2003"),
        (json!({ "tenant_id": 1.5 }), "E2003"),
        (json!({ "tenant_id": true }), "E2003"),
        (json!({ "padding": "x".repeat(9000) }), "E2003"),
    ];
    let forged = table.into_iter().map(|(changes, code)| {
        let name = changes.to_string().chars().take(60).collect::<String>();
        (name, token(secret, &claims(&changes)), code)
    });
    let expired = claims(&json!({ "exp": now() - 86400 })).to_string();
    let expired = signed(HEADER, &expired, ANOTHER_KEY, Algorithm::HS256);
    forged.chain([("expired and of another key".to_owned(), expired, "E2003")]).collect()
}
