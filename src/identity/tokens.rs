//! Verifies bearer tokens: the user, the expiry, and whether a person or an agent acts with the token.
//! Knows no HTTP; `api::identity` compares the headers of a call with the token.

use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::revocations::Revocations;
use crate::domain::approver::{Memberships, Role};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::json::RawObject;

/// Longest bearer token that is accepted, in bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Most roles and most groups of a token that count. The others are ignored.
const MAX_MEMBERSHIPS: usize = 256;

/// Verifies tokens. Clones share their settings, so that a change reaches every worker at once.
#[derive(Clone)]
pub struct TokenVerifier(Arc<ArcSwap<Checks>>);

/// The keys and rules that a token is checked against.
struct Checks {
    key: DecodingKey,
    /// The previous key, while tokens signed with it may still be valid.
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

/// The settings by which tokens are checked.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// The HS256 secret, shared with the Auth server.
    pub secret: SecretString,
    /// The previous secret: tokens signed with it are accepted, too.
    pub previous: Option<SecretString>,
    /// Tolerated difference between the clocks, in seconds.
    pub leeway_seconds: u64,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// A token whose `exp` is further in the future is refused.
    pub max_lifetime_seconds: u64,
    /// A token with this claim is an agent's, like a token with the claim `act`.
    pub agent_claim: Option<ClaimValue>,
    /// Only a token with this claim is a person's and may decide. `None`: every token that is not an
    /// agent's.
    pub person_claim: Option<ClaimValue>,
    /// Revoked tokens.
    pub revocations: Revocations,
}

impl JwtConfig {
    /// Settings with this secret, a lifetime of at most 30 days, and no other requirement.
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

/// A claim and its required value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimValue {
    /// The claim's name.
    pub name: String,
    /// The required value as text. A claim that is a list must contain it.
    pub value: String,
}

impl ClaimValue {
    /// Reads a setting like `client_type=agent`.
    ///
    /// # Errors
    /// A sentence that shows the valid form, when the setting has no `=`, or the name or value is blank.
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

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenProblem {
    /// The token has expired.
    Expired,
    /// The token is invalid or revoked, or has claims that the settings do not allow.
    Invalid,
}

/// The claim `tenant_id`: a string, or an integer that is read as its digits.
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
    /// A verifier with these settings.
    #[must_use]
    pub fn new(config: &JwtConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Checks::new(config))))
    }

    /// Replaces the settings, from the next call on.
    pub fn set(&self, config: &JwtConfig) {
        self.0.store(Arc::new(Checks::new(config)));
    }

    /// Whether what a person said at this time with the token of this `jti` no longer holds, because the
    /// token has been revoked since. When it was issued is not known: at that time at the latest.
    #[must_use]
    pub fn is_revoked(
        &self,
        id: Option<&str>,
        tenant: &TenantId,
        user: &UserId,
        at: DateTime<Utc>,
    ) -> bool {
        self.0.load().revocations.is_revoked(id, tenant, user, at.timestamp())
    }

    /// Verifies a token and reads its claims.
    ///
    /// # Errors
    /// [`TokenProblem::Expired`] when the token has expired, [`TokenProblem::Invalid`] when it is refused
    /// for any other reason.
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
            // The library checks the signature before the claims, so any other error concerns a token
            // of the current key.
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
        // Also refuses an `exp` in milliseconds, which would be thousands of years away.
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
        let memberships = Arc::new(memberships(claims.role.as_deref(), &claims.others));
        let id = match claims.others.get("jti") {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) if !number.is_f64() => Some(number.to_string()),
            _ => None,
        };
        if self.revocations.is_revoked(id.as_deref(), &tenant, &user, claims.iat) {
            return Err(TokenProblem::Invalid);
        }
        // A valid user id is text that every store and log can keep; the same rules fit a token id.
        let id = id.filter(|id| UserId::parse(id.as_str()).is_ok());
        let until = claims.exp.saturating_add(self.validation.leeway);
        let actor = self.actor(&claims.others);
        Ok(Bearer { user, tenant, role, memberships, id, actor, until })
    }

    /// Who acts with a token, according to its claims.
    fn actor(&self, claims: &Map<String, Value>) -> Actor {
        let says = |claim: &ClaimValue| claims.get(&claim.name).is_some_and(|is| claim.is_in(is));
        // RFC 8693 § 4.1: the party that `act` names acts on behalf of the token's subject.
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
    /// Whether a claim has this value: as a string, a number or a boolean, or as an entry of a list.
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

/// The roles and groups that a token names. `roles` and `groups` are lists of texts, or one text. A name
/// that is no valid id is ignored.
fn memberships(role: Option<&str>, claims: &Map<String, Value>) -> Memberships {
    let names = |claim: &str| match claims.get(claim) {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let unique = |names: Vec<&str>| {
        let mut kept = Vec::<String>::new();
        for name in names {
            // The rules of a user id fit a role and a group: text that every store and log can keep.
            let is_new = !kept.iter().any(|known| known == name);
            if is_new && kept.len() < MAX_MEMBERSHIPS && UserId::parse(name).is_ok() {
                kept.push(name.to_owned());
            }
        }
        kept
    };
    let roles = role.into_iter().chain(names("roles")).collect();
    Memberships { roles: unique(roles), groups: unique(names("groups")) }
}

/// Who acts with a token, according to its claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// The user whom the token names: it has the claim that `person_claim` requires, or none is required.
    Person,
    /// An agent: the token has the claim `act`, or the one that `agent_claim` names.
    Agent,
    /// Unknown: the token lacks the claim that `person_claim` requires.
    Unproven,
}

/// The claims of a verified token.
#[derive(Debug, PartialEq, Eq)]
pub struct Bearer {
    /// `sub`.
    pub user: UserId,
    /// `tenant_id`.
    pub tenant: TenantId,
    /// `role`.
    pub role: Role,
    /// `role`, `roles` and `groups`.
    pub memberships: Arc<Memberships>,
    /// `jti`; see `Caller::token_id`.
    pub id: Option<String>,
    /// Who acts with the token.
    pub actor: Actor,
    /// When the token stops being valid, in Unix seconds: `exp` plus the tolerated clock difference.
    pub until: u64,
}

/// The present time in Unix seconds.
#[expect(clippy::disallowed_methods, reason = "tokens are checked against the machine's clock")]
#[must_use]
pub fn now() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(u64::MAX)
}

/// Whether a token's header has a `crit` field, or cannot be read. RFC 7515 § 4.1.11: a verifier must
/// refuse a token if it does not know the extensions in `crit`. The service knows none. `crit: null` is
/// not a list, but jsonwebtoken reads it as absent, so it is refused here.
fn has_crit_header(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let header = header.and_then(|text| serde_json::from_slice::<RawObject>(&text).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

/// Makes a token like the Auth server's, signed with the current secret; for development and the demo.
///
/// # Errors
/// When `ttl_seconds` exceeds `jwt_max_lifetime_seconds`, or the JWT library cannot sign.
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
    fn roles_and_groups_are_the_tokens_own_each_once_and_never_without_bound() {
        let claims = |claims: Value| claims.as_object().cloned().unwrap();
        let read = memberships(
            Some("admin"),
            &claims(serde_json::json!({
                "roles": ["auditor", "admin", 7, null, ["x"], "", "a\n"], "groups": "finance",
            })),
        );
        assert_eq!(
            (read.roles, read.groups),
            (vec!["admin".to_owned(), "auditor".to_owned()], vec!["finance".to_owned()],)
        );
        let many = (0..1000).map(|n| format!("g{n}")).collect::<Vec<_>>();
        let read = memberships(None, &claims(serde_json::json!({ "groups": many })));
        assert_eq!((read.roles.len(), read.groups.len()), (0, MAX_MEMBERSHIPS));
        let none = memberships(None, &claims(serde_json::json!({ "groups": { "a": true } })));
        assert_eq!(none, Memberships::default());
    }

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
