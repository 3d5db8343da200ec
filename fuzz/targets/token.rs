//! Tokens: the first line of the input is a header, the rest are claims, signed with the service's
//! own secret. What is taken must have been signed by us and say what it is taken for; the same
//! token with any bit turned over is worth nothing.
#![no_main]

use aura_hitl::identity::{TokenProblem, TokenVerifier};
use aura_hitl::identity::JwtConfig;
use aura_hitl::domain::approver::Role;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use libfuzzer_sys::fuzz_target;
use secrecy::SecretString;
use serde_json::Value;

const SECRET: &str = "a secret of the fuzz targets, of more than 32 bytes";
const LEEWAY_SECONDS: u64 = 10;

fn verifier() -> TokenVerifier {
    TokenVerifier::new(&JwtConfig {
        secret: SecretString::from(SECRET),
        previous: None,
        leeway_seconds: LEEWAY_SECONDS,
        audience: None,
        issuer: None,
    })
}

fn signature(message: &str) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap()
}

fuzz_target!(|data: &[u8]| {
    let verifier = verifier();
    // As it is, the input is nobody's token.
    if let Ok(text) = std::str::from_utf8(data)
        && verifier.verify(text).is_ok()
    {
        let (message, given) = text.rsplit_once('.').unwrap();
        assert_eq!(given, signature(message), "a token that we did not sign was taken");
    }
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (header, claims) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let token = format!("{message}.{}", signature(&message));
    let Ok(bearer) = verifier.verify(&token) else { return };
    let (user, tenant, role) = (bearer.user, bearer.tenant, bearer.role);

    // Read once more, by another reader.
    let header: Value = serde_json::from_slice(header).unwrap();
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none());
    // In a claim that nobody asks for, the first reader does not mind what is not UTF-8.
    let claims: Value = serde_json::from_str(&String::from_utf8_lossy(claims)).unwrap();
    assert_eq!(claims["sub"], user.as_str());
    let said = &claims["tenant_id"];
    assert!(
        said == tenant.as_str()
            || (said.is_i64() || said.is_u64()) && said.to_string() == tenant.as_str()
    );
    assert_eq!(claims["role"] == "admin", role == Role::Admin);
    assert!(claims["iat"].is_i64() || claims["iat"].is_u64());
    let now = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).timestamp();
    let now = u64::try_from(now).unwrap();
    assert!((now - LEEWAY_SECONDS - 1..253_402_300_800).contains(&claims["exp"].as_u64().unwrap()));
    assert!(claims["nbf"].as_f64().is_none_or(|nbf| nbf <= (now + LEEWAY_SECONDS + 1) as f64));

    // Damaged, in each of its three parts.
    let mut bytes = token.clone().into_bytes();
    let places = [0, at.max(1) - 1, message.len() - 1, token.len() - 1, data.len() % token.len()];
    for place in places {
        for bit in 0..7 {
            bytes[place] ^= 1 << bit;
            let damaged = String::from_utf8(bytes.clone()).unwrap();
            assert_eq!(verifier.verify(&damaged), Err(TokenProblem::Invalid), "{damaged}");
            bytes[place] ^= 1 << bit;
        }
    }
});
