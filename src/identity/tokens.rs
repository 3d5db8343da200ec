//! What a bearer token proves: whose it is, for how long, and whether a person or an agent acts with
//! it. Knows no HTTP; headers are compared with it in `api::identity`.

use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::revocations::Revocations;
use crate::domain::approver::Role;
use crate::domain::ids::{TenantId, UserId};
use crate::domain::json::RawObject;

/// Longest bearer token that is looked at.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Checks tokens. Clones share what is in force, so that a change reaches every worker at once.
#[derive(Clone)]
pub struct TokenVerifier(Arc<ArcSwap<Checks>>);

/// What a token is checked against.
struct Checks {
    key: DecodingKey,
    /// The key before it, while tokens signed with that are about.
    previous: Option<DecodingKey>,
    validation: Validation,
    max_lifetime_seconds: u64,
    agent_claim: Option<ClaimValue>,
    person_claim: Option<ClaimValue>,
    revocations: Revocations,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").finish_non_exhaustive()
    }
}

/// How tokens are checked.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// Shared with the Auth server.
    pub secret: SecretString,
    /// The one before it: tokens signed with it are accepted too.
    pub previous: Option<SecretString>,
    /// Forgiven clock difference.
    pub leeway_seconds: u64,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// A token whose `exp` is further away is refused.
    pub max_lifetime_seconds: u64,
    /// Says that an agent acts with the token, as the claim `act` does.
    pub agent_claim: Option<ClaimValue>,
    /// Has to say that a person acts with the token, before it can decide.
    pub person_claim: Option<ClaimValue>,
    /// Tokens that count no more.
    pub revocations: Revocations,
}

impl JwtConfig {
    /// Tokens signed with this secret that live 30 days at most; nothing else is asked of them.
    #[must_use]
    pub fn with_secret(secret: SecretString) -> Self {
        Self {
            secret,
            previous: None,
            leeway_seconds: 0,
            audience: None,
            issuer: None,
            max_lifetime_seconds: 30 * 24 * 3600,
            agent_claim: None,
            person_claim: None,
            revocations: Revocations::default(),
        }
    }
}

/// A claim, and the value that it has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimValue {
    /// The claim's name.
    pub name: String,
    /// Its value as text, or one of its values if it is a list.
    pub value: String,
}

impl ClaimValue {
    /// Reads a setting like `client_type=agent`.
    ///
    /// # Errors
    /// One sentence, when the setting has another form.
    pub fn parse(setting: &str, text: Option<String>) -> anyhow::Result<Option<Self>> {
        let Some(text) = text else { return Ok(None) };
        let parts = text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let parts = parts.filter(|(name, value)| !name.is_empty() && !value.is_empty());
        let (name, value) = parts.with_context(|| {
            format!("{setting} is {text:?}; it looks like client_type=agent: a claim and its value")
        })?;
        Ok(Some(Self { name: name.to_owned(), value: value.to_owned() }))
    }
}

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// It was valid once.
    Expired,
    /// It never was, or not here.
    Invalid,
}

/// A tenant is a string, or an integer that stands for its digits.
#[derive(Deserialize)]
#[serde(untagged)]
enum TenantClaim {
    Text(String),
    Number(i64),
    LargeNumber(u64),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    tenant_id: TenantClaim,
    exp: u64,
    iat: i64,
    role: Option<String>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl TokenVerifier {
    /// A verifier for these settings.
    #[must_use]
    pub fn new(config: &JwtConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Checks::new(config))))
    }

    /// From the next call on, these settings hold.
    pub fn set(&self, config: &JwtConfig) {
        self.0.store(Arc::new(Checks::new(config)));
    }

    /// The person a token stands for.
    ///
    /// # Errors
    /// [`TokenProblem`] when it does not stand for anybody, here and now.
    pub fn verify(&self, token: &str) -> Result<Bearer, TokenProblem> {
        self.0.load().verify(token)
    }
}

impl Checks {
    fn new(config: &JwtConfig) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        let mut required = vec!["exp", "sub"];
        validation.leeway = config.leeway_seconds;
        validation.validate_nbf = true;
        validation.validate_aud = config.audience.is_some();
        if let Some(audience) = &config.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        let key =
            |secret: &SecretString| DecodingKey::from_secret(secret.expose_secret().as_bytes());
        Self {
            key: key(&config.secret),
            previous: config.previous.as_ref().map(key),
            validation,
            max_lifetime_seconds: config.max_lifetime_seconds,
            agent_claim: config.agent_claim.clone(),
            person_claim: config.person_claim.clone(),
            revocations: config.revocations.clone(),
        }
    }

    fn verify(&self, token: &str) -> Result<Bearer, TokenProblem> {
        use jsonwebtoken::errors::ErrorKind;
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenProblem::Invalid);
        }
        if has_crit_header(token) {
            return Err(TokenProblem::Invalid);
        }
        let decode = |key| jsonwebtoken::decode::<Claims>(token, key, &self.validation);
        let claims = match (decode(&self.key), &self.previous) {
            // Only then may it be another key's: claims are looked at after the signature.
            (Err(error), Some(previous)) if *error.kind() == ErrorKind::InvalidSignature => {
                decode(previous)
            }
            (decoded, _) => decoded,
        };
        let claims = claims.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => TokenProblem::Expired,
            _ => TokenProblem::Invalid,
        })?;
        let claims = claims.claims;
        // Also milliseconds in place of seconds, and no expiry at all.
        if claims.exp > now().saturating_add(self.max_lifetime_seconds + self.validation.leeway) {
            return Err(TokenProblem::Invalid);
        }
        let tenant = match claims.tenant_id {
            TenantClaim::Text(text) => text,
            TenantClaim::Number(number) => number.to_string(),
            TenantClaim::LargeNumber(number) => number.to_string(),
        };
        let role = if claims.role.as_deref() == Some("admin") { Role::Admin } else { Role::User };
        let (Ok(user), Ok(tenant)) = (UserId::parse(claims.sub), TenantId::parse(tenant)) else {
            return Err(TokenProblem::Invalid);
        };
        let id = match claims.others.get("jti") {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) if !number.is_f64() => Some(number.to_string()),
            _ => None,
        };
        if self.revocations.is_revoked(id.as_deref(), &tenant, &user, claims.iat) {
            return Err(TokenProblem::Invalid);
        }
        // The rules for names are those of what every store and log can keep.
        let id = id.filter(|id| UserId::parse(id.as_str()).is_ok());
        let until = claims.exp.saturating_add(self.validation.leeway);
        Ok(Bearer { user, tenant, role, id, actor: self.actor(&claims.others), until })
    }

    /// Who acts with a token, as its claims say.
    fn actor(&self, claims: &Map<String, Value>) -> Actor {
        let says = |claim: &ClaimValue| claims.get(&claim.name).is_some_and(|is| claim.is_in(is));
        // RFC 8693 § 4.1: whoever `act` names acts for the token's subject.
        let is_delegated = claims.get("act").is_some_and(|act| !act.is_null());
        if is_delegated || self.agent_claim.as_ref().is_some_and(says) {
            Actor::Agent
        } else if self.person_claim.as_ref().is_none_or(says) {
            Actor::Person
        } else {
            Actor::Unproven
        }
    }
}

impl ClaimValue {
    /// Whether a claim has this value: as text, a number or a truth value, or in a list.
    fn is_in(&self, claim: &Value) -> bool {
        match claim {
            Value::String(text) => *text == self.value,
            Value::Array(values) => values.iter().any(|value| self.is_in(value)),
            Value::Number(number) => number.to_string() == self.value,
            Value::Bool(is) => self.value == if *is { "true" } else { "false" },
            Value::Null | Value::Object(_) => false,
        }
    }
}

/// Who acts with a token, as far as the token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The person whom it names: it says nothing else, or what `person_claim` asks for.
    Person,
    /// An agent.
    Agent,
    /// It lacks what `person_claim` asks for.
    Unproven,
}

/// Whom a token stands for.
#[derive(Debug, PartialEq, Eq)]
pub struct Bearer {
    /// `sub`.
    pub user: UserId,
    /// `tenant_id`.
    pub tenant: TenantId,
    /// `role`.
    pub role: Role,
    /// `jti`; see `Caller::token_id`.
    pub id: Option<String>,
    /// Who acts with it.
    pub actor: Actor,
    /// Until when, in Unix seconds: `exp` and the forgiven difference.
    pub until: u64,
}

/// The present time in Unix seconds.
#[expect(clippy::disallowed_methods, reason = "tokens are checked against the machine's clock")]
#[must_use]
pub fn now() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(u64::MAX)
}

/// RFC 7515 § 4.1.11: whoever does not know what `crit` lists must refuse the token. We know no
/// extension, and a list that is no list (the library takes `null` for none) is none to rely on.
fn has_crit_header(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header = header.and_then(|text| serde_json::from_slice::<RawObject>(&text).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

/// Makes a token as the Auth server would, with the current key; for development and the demo.
///
/// # Errors
/// When the token would live longer than tokens may; what the JWT library says, if it cannot sign.
#[expect(clippy::disallowed_methods, reason = "tokens are checked against the machine's clock")]
pub fn mint(
    config: &JwtConfig,
    user: &UserId,
    tenant: &TenantId,
    role: Role,
    ttl_seconds: i64,
) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Minted<'a> {
        sub: &'a str,
        tenant_id: &'a str,
        role: &'a str,
        iat: i64,
        exp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
    }
    let longest = i64::try_from(config.max_lifetime_seconds).unwrap_or(i64::MAX);
    anyhow::ensure!(
        ttl_seconds <= longest,
        "a token may live {longest} seconds (jwt_max_lifetime_seconds), not {ttl_seconds}"
    );
    let now = Utc::now().timestamp();
    let claims = Minted {
        sub: user.as_str(),
        tenant_id: tenant.as_str(),
        role: if role == Role::Admin { "admin" } else { "user" },
        iat: now,
        exp: now + ttl_seconds,
        aud: config.audience.as_deref(),
        iss: config.issuer.as_deref(),
    };
    let key = EncodingKey::from_secret(config.secret.expose_secret().as_bytes());
    Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_have_a_value_as_text_or_in_a_list() {
        let agent = ClaimValue { name: "kind".to_owned(), value: "agent".to_owned() };
        for (claim, is_in) in [
            (serde_json::json!("agent"), true),
            (serde_json::json!(["user", "agent"]), true),
            (serde_json::json!("Agent"), false),
            (serde_json::json!("agent user"), false),
            (serde_json::json!({ "agent": true }), false),
            (serde_json::json!(null), false),
        ] {
            assert_eq!(agent.is_in(&claim), is_in, "{claim}");
        }
        let yes = ClaimValue { name: "bot".to_owned(), value: "true".to_owned() };
        assert!(yes.is_in(&serde_json::json!(true)));
    }
}
