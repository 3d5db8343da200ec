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
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::api::error::ApiError;
use crate::config::JwtConfig;
use crate::core::Core;
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::json::RawObject;
use crate::telemetry;

/// A later `exp` is a mistake (milliseconds, or no expiry at all): the end of the year 9999.
const LATEST_EXPIRY: u64 = 253_402_300_799;
/// Longest bearer token that is looked at.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

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
    #[expect(dead_code, reason = "read only so that a token without an integer iat is refused")]
    iat: i64,
    role: Option<String>,
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
        Self { key: key(&config.secret), previous: config.previous.as_ref().map(key), validation }
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
        if claims.exp > LATEST_EXPIRY {
            return Err(TokenProblem::Invalid);
        }
        let tenant = match claims.tenant_id {
            TenantClaim::Text(text) => text,
            TenantClaim::Number(number) => number.to_string(),
            TenantClaim::LargeNumber(number) => number.to_string(),
        };
        let role = if claims.role.as_deref() == Some("admin") { Role::Admin } else { Role::User };
        match (UserId::parse(claims.sub), TenantId::parse(tenant)) {
            (Ok(user), Ok(tenant)) => {
                let until = claims.exp.saturating_add(self.validation.leeway);
                Ok(Bearer { user, tenant, role, until })
            }
            _ => Err(TokenProblem::Invalid),
        }
    }
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
    /// Until when, in Unix seconds: `exp` and the forgiven difference.
    pub until: u64,
}

/// Until when the caller of a call is who they are, in Unix seconds.
struct Until(u64);

/// For how long the caller's token is still good: an answer that takes longer must end with it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "tokens are checked against the machine's clock")]
pub fn rest_of_token(request: &HttpRequest) -> Duration {
    let until = request.extensions().get::<Until>().map_or(0, |until| until.0);
    let now = u64::try_from(Utc::now().timestamp()).unwrap_or(u64::MAX);
    Duration::from_secs(until.saturating_sub(now))
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
/// What the JWT library says, if it cannot sign.
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
        Box::pin(async move { admit(&request).await.map(Self) })
    }
}

impl FromRequest for ApproverOf {
    type Error = ApiError;
    type Future = Checking<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let caller = admit(&request).await?;
            if sole_header(request.headers(), "X-User-ID")?.is_none() {
                return Err(ApiError::missing_header("X-User-ID"));
            }
            if says_it_is_an_agent(request.headers()) {
                return Err(ApiError::agents_do_not_decide());
            }
            Ok(Self(caller))
        })
    }
}

/// Whoever is calling, if they have not called too often.
async fn admit(request: &HttpRequest) -> Result<Caller, ApiError> {
    let core = request.app_data::<web::Data<Core>>();
    let core = core.ok_or_else(|| ApiError::internal("no core is configured"))?;
    let caller = authenticate(request, &core.tokens)?;
    core.limits.admit(&caller).await?;
    Ok(caller)
}

fn authenticate(request: &HttpRequest, tokens: &TokenVerifier) -> Result<Caller, ApiError> {
    let headers = request.headers();
    if headers.get_all(AUTHORIZATION).nth(1).is_some() {
        return Err(ApiError::bad_header("Authorization"));
    }
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(bearer).ok_or_else(ApiError::no_token)?;
    let bearer = tokens.verify(token).map_err(ApiError::bad_token)?;
    request.extensions_mut().insert(Until(bearer.until));
    let Bearer { user, tenant, role, .. } = bearer;

    let asked_tenant = sole_header(headers, "X-Tenant-ID")?.ok_or_else(ApiError::no_tenant)?;
    let asked_user = sole_header(headers, "X-User-ID")?;
    if asked_tenant != tenant.as_str() {
        return Err(ApiError::wrong_tenant());
    }
    if asked_user.is_some_and(|asked| asked != user.as_str()) {
        return Err(ApiError::wrong_user());
    }
    let span = tracing::Span::current();
    span.record("user", user.as_str());
    span.record("tenant", tenant.as_str());
    Ok(Caller { user, tenant, role, via: telemetry::via(headers) })
}

/// RFC 6750 § 2.1: the scheme, in any case, and one token.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// An identity header: absent, or there once with something in it. A list is a header sent twice
/// that a proxy has joined.
fn sole_header<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).map(str::trim).unwrap_or_default();
    if text.is_empty() || text.contains(',') || values.next().is_some() {
        return Err(ApiError::bad_header(name));
    }
    Ok(Some(text))
}

/// Whether any of the headers that name the kind of caller names an agent.
fn says_it_is_an_agent(headers: &HeaderMap) -> bool {
    [("X-DWP-Caller-Type", "AGENT"), ("X-DWP-Source", "AURA")].into_iter().any(|(name, agent)| {
        // However it is quoted, listed or followed by parameters.
        headers
            .get_all(name)
            .flat_map(|value| value.as_bytes().split(|byte| !byte.is_ascii_alphanumeric()))
            .any(|word| word.eq_ignore_ascii_case(agent.as_bytes()))
    })
}
