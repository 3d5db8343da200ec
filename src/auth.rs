//! Who is calling. A handler that takes a [`CallerOf`] or an [`ApproverOf`] cannot be reached
//! without the token and the headers that the contract asks for, nor more often than one person
//! may.
//!
//! Must not trust any header that the token does not confirm.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use percent_encoding::percent_decode;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::error::ApiError;
use crate::config::{ClaimValue, JwtConfig};
use crate::core::Core;
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::json::RawObject;
use crate::domain::printable::printable;
use crate::revocations::Revocations;
use crate::telemetry;

/// Longest bearer token that is looked at.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Values of the headers that name the kind of caller (wire contract) with which nobody decides.
const MACHINES: [&[u8]; 5] = [b"AGENT", b"SYSTEM", b"AURA", b"INTERNAL", b"BATCH"];

/// The caller of a route, as the token and the tenant header agree.
#[derive(Clone, Debug)]
pub struct CallerOf(pub Caller);

/// A caller who may approve or reject: a person, named twice.
#[derive(Clone, Debug)]
pub struct ApproverOf(pub Caller);

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
        if names_critical_extensions(token) {
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
        if self.revocations.revoke(id.as_deref(), &tenant, &user, claims.iat) {
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
    /// See [`Caller::token_id`].
    pub id: Option<String>,
    /// Who acts with it.
    pub actor: Actor,
    /// Until when, in Unix seconds: `exp` and the forgiven difference.
    pub until: u64,
}

/// The present time in Unix seconds.
#[expect(clippy::disallowed_methods, reason = "tokens are checked against the machine's clock")]
fn now() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(u64::MAX)
}

/// Until when the caller of a call is who they are, in Unix seconds.
struct Until(u64);

/// Whether the token of a call says that an agent acts with it.
#[must_use]
pub fn acts_as_agent(request: &HttpRequest) -> bool {
    request.extensions().get::<Actor>() == Some(&Actor::Agent)
}

/// For how long the caller's token is still good: an answer that takes longer must end with it.
#[must_use]
pub fn rest_of_token(request: &HttpRequest) -> Duration {
    let until = request.extensions().get::<Until>().map_or(0, |until| until.0);
    Duration::from_secs(until.saturating_sub(now()))
}

/// RFC 7515 § 4.1.11: whoever does not know what `crit` lists must refuse the token. We know no
/// extension, and a list that is no list (the library takes `null` for none) is none to rely on.
fn names_critical_extensions(token: &str) -> bool {
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

type Checking<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>>>>;

impl FromRequest for CallerOf {
    type Error = ApiError;
    type Future = Checking<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { admit(&request).await.map(|(caller, _actor)| Self(caller)) })
    }
}

impl FromRequest for ApproverOf {
    type Error = ApiError;
    type Future = Checking<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let (caller, actor) = admit(&request).await?;
            if !request.headers().contains_key("X-User-ID") {
                return Err(ApiError::missing_header("X-User-ID"));
            }
            check_headers_of_a_person(request.headers())?;
            match actor {
                Actor::Person => Ok(Self(caller)),
                Actor::Agent => Err(ApiError::agents_do_not_decide()),
                Actor::Unproven => Err(ApiError::not_proven_a_person()),
            }
        })
    }
}

/// Whoever is calling, if they have not called too often.
async fn admit(request: &HttpRequest) -> Result<(Caller, Actor), ApiError> {
    let core = request.app_data::<web::Data<Core>>();
    let core = core.ok_or_else(|| ApiError::internal("no core is configured"))?;
    let (caller, actor) = authenticate(request, &core.tokens)?;
    core.limits.admit(&caller).await?;
    Ok((caller, actor))
}

fn authenticate(
    request: &HttpRequest,
    tokens: &TokenVerifier,
) -> Result<(Caller, Actor), ApiError> {
    let headers = request.headers();
    if headers.get_all(AUTHORIZATION).nth(1).is_some() {
        return Err(ApiError::bad_header("Authorization"));
    }
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(bearer).ok_or_else(ApiError::no_token)?;
    let bearer = tokens.verify(token).map_err(ApiError::bad_token)?;
    request.extensions_mut().insert(Until(bearer.until));
    request.extensions_mut().insert(bearer.actor);
    let Bearer { user, tenant, role, id: token_id, actor, .. } = bearer;
    let caller = Caller { user, tenant, role, token_id, via: telemetry::via(headers) };
    // Known from here on, even if the call is refused.
    request.extensions_mut().insert(caller.clone());

    let is_tenant = names(headers, "X-Tenant-ID", caller.tenant.as_str())?;
    let is_user = names(headers, "X-User-ID", caller.user.as_str())?;
    if !is_tenant.ok_or_else(ApiError::no_tenant)? {
        return Err(ApiError::wrong_tenant());
    }
    if is_user == Some(false) {
        return Err(ApiError::wrong_user());
    }
    let span = tracing::Span::current();
    span.record("user", printable(caller.user.as_str()));
    span.record("tenant", printable(caller.tenant.as_str()));
    Ok((caller, actor))
}

/// RFC 6750 § 2.1: the scheme, in any case, and one token.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether an identity header names whom the token names; `None` without the header. What is not
/// equal and holds a comma is a header sent twice that a proxy has joined.
fn names(headers: &HeaderMap, name: &'static str, claim: &str) -> Result<Option<bool>, ApiError> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    let value = value.as_bytes().trim_ascii();
    if value.is_empty() || values.next().is_some() {
        return Err(ApiError::bad_header(name));
    }
    let is_equal = spells(value, claim);
    if !is_equal && value.contains(&b',') {
        return Err(ApiError::bad_header(name));
    }
    Ok(Some(is_equal))
}

/// Whether a header's value is a claim: its UTF-8 bytes, its percent-encoded UTF-8 (Java), or its
/// Latin-1 bytes (fetch in browsers).
fn spells(value: &[u8], claim: &str) -> bool {
    value == claim.as_bytes()
        || percent_decode(value).eq(claim.bytes())
        || claim.chars().map(|letter| u8::try_from(letter).ok()).eq(value.iter().copied().map(Some))
}

/// Checks the headers that name the kind of caller: a person's, or none.
fn check_headers_of_a_person(headers: &HeaderMap) -> Result<(), ApiError> {
    for (name, person) in [("X-DWP-Caller-Type", "USER"), ("X-DWP-Source", "FRONTEND")] {
        let mut values = headers.get_all(name);
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err(ApiError::bad_header(name));
        }
        let is = |word: &[u8]| value.as_bytes().trim_ascii().eq_ignore_ascii_case(word);
        if MACHINES.into_iter().any(is) {
            return Err(ApiError::agents_do_not_decide());
        }
        if !is(person.as_bytes()) {
            return Err(ApiError::bad_caller_kind(name, person));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    /// Each form in which a header may carry a claim.
    fn forms(claim: &str) -> Vec<Vec<u8>> {
        let mut forms = vec![
            claim.as_bytes().to_vec(),
            utf8_percent_encode(claim, NON_ALPHANUMERIC).to_string().into_bytes(),
        ];
        forms.extend(claim.chars().map(|letter| u8::try_from(letter).ok()).collect::<Option<_>>());
        forms
    }

    fn header(value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let name = actix_web::http::header::HeaderName::from_static("x-user-id");
        headers.append(name, actix_web::http::header::HeaderValue::from_bytes(value).unwrap());
        headers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_header_names_a_claim_in_each_form_and_nobody_else(
            claim in "[aé김%,4]{1,4}", other in "[aé김%,4]{1,4}",
        ) {
            for form in forms(&claim) {
                prop_assert_eq!(names(&header(&form), "X-User-ID", &claim).unwrap(), Some(true));
                // Another claim may have the same form only if that form spells it, too.
                let is_others = forms(&other).contains(&form)
                    || percent_decode(&form).eq(other.bytes());
                let named = names(&header(&form), "X-User-ID", &other);
                if is_others {
                    prop_assert_eq!(named.unwrap(), Some(true));
                } else if form.contains(&b',') {
                    prop_assert!(named.is_err());
                } else {
                    prop_assert_eq!(named.unwrap(), Some(false));
                }
            }
        }

        #[test]
        fn any_bytes_are_equal_different_or_refused(value in any::<Vec<u8>>(), claim in "\\PC{1,8}") {
            if spells(&value, &claim) {
                let latin1: Option<Vec<u8>> = claim.chars().map(|c| u8::try_from(c).ok()).collect();
                prop_assert!(
                    value == claim.as_bytes()
                        || percent_decode(&value).collect::<Vec<_>>() == claim.as_bytes()
                        || latin1.is_some_and(|latin1| latin1 == value)
                );
            }
        }
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
