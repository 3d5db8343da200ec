//! Who is calling. A handler that takes a [`CallerOf`] or an [`ApproverOf`] only runs for a call with
//! a valid token and the headers of the contract, and only within the person's rate limit.
//!
//! Must not trust any header that the token does not confirm.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};
use percent_encoding::percent_decode;

use super::error::ApiError;
use super::headers::via;
use crate::domain::approver::Caller;
use crate::domain::printable::printable;
use crate::identity::{Actor, Bearer, TokenVerifier, now};
use crate::state::AppState;

/// Values of `X-DWP-Caller-Type` and `X-DWP-Source` that stand for machines, which may not decide.
const MACHINE_CALLERS: [&[u8]; 5] = [b"AGENT", b"SYSTEM", b"AURA", b"INTERNAL", b"BATCH"];

/// The caller of a route: the token and the header `X-Tenant-ID` name the same tenant.
#[derive(Clone, Debug)]
pub struct CallerOf(pub Caller);

/// A caller who may approve or reject: a person, whom the token and `X-User-ID` both name.
#[derive(Clone, Debug)]
pub struct ApproverOf(pub Caller);

/// When the token of a call expires, in Unix seconds.
struct TokenExpiry(u64);

/// Whether the token of a call says that an agent acts with it.
#[must_use]
pub fn acts_as_agent(request: &HttpRequest) -> bool {
    request.extensions().get::<Actor>() == Some(&Actor::Agent)
}

/// How long the caller's token is still valid. Long-polls and streams must end by then.
#[must_use]
pub fn token_time_left(request: &HttpRequest) -> Duration {
    let until = request.extensions().get::<TokenExpiry>().map_or(0, |until| until.0);
    Duration::from_secs(until.saturating_sub(now()))
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

/// Authenticates the caller and checks the rate limit.
async fn admit(request: &HttpRequest) -> Result<(Caller, Actor), ApiError> {
    let app = request.app_data::<web::Data<AppState>>();
    let app = app.ok_or_else(|| ApiError::internal("no state is configured"))?;
    let (caller, actor) = authenticate(request, &app.tokens)?;
    app.limits.admit(&caller).await?;
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
    request.extensions_mut().insert(TokenExpiry(bearer.until));
    request.extensions_mut().insert(bearer.actor);
    let Bearer { user, tenant, role, memberships, id: token_id, actor, .. } = bearer;
    let caller = Caller { user, tenant, role, memberships, token_id, via: via(headers) };
    // A call that is refused below is recorded with its caller, too.
    request.extensions_mut().insert(caller.clone());

    let is_tenant = matches_claim(headers, "X-Tenant-ID", caller.tenant.as_str())?;
    let is_user = matches_claim(headers, "X-User-ID", caller.user.as_str())?;
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

/// Whether an identity header has the value of the token's claim; `None` without the header. A value
/// that differs and holds a comma is a repeated header that a proxy has joined.
fn matches_claim(
    headers: &HeaderMap,
    name: &'static str,
    claim: &str,
) -> Result<Option<bool>, ApiError> {
    let mut values = headers.get_all(name);
    let Some(value) = values.next() else { return Ok(None) };
    let value = value.as_bytes().trim_ascii();
    if value.is_empty() || values.next().is_some() {
        return Err(ApiError::bad_header(name));
    }
    let is_equal = encodes_claim(value, claim);
    if !is_equal && value.contains(&b',') {
        return Err(ApiError::bad_header(name));
    }
    Ok(Some(is_equal))
}

/// Whether a header's value is an encoding of the claim: UTF-8, percent-encoded UTF-8 (Java), or
/// Latin-1 (`fetch` in browsers).
fn encodes_claim(value: &[u8], claim: &str) -> bool {
    value == claim.as_bytes()
        || percent_decode(value).eq(claim.bytes())
        || claim.chars().map(|letter| u8::try_from(letter).ok()).eq(value.iter().copied().map(Some))
}

/// Checks that `X-DWP-Caller-Type` and `X-DWP-Source` have a person's values or are absent.
fn check_headers_of_a_person(headers: &HeaderMap) -> Result<(), ApiError> {
    for (name, person) in [("X-DWP-Caller-Type", "USER"), ("X-DWP-Source", "FRONTEND")] {
        let mut values = headers.get_all(name);
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err(ApiError::bad_header(name));
        }
        let is = |word: &[u8]| value.as_bytes().trim_ascii().eq_ignore_ascii_case(word);
        if MACHINE_CALLERS.into_iter().any(is) {
            return Err(ApiError::agents_do_not_decide());
        }
        if !is(person.as_bytes()) {
            return Err(ApiError::bad_caller_kind(name, person));
        }
    }
    Ok(())
}

/// Headers that only browsers send.
const SENT_BY_BROWSERS: [&str; 6] = [
    "Origin",
    "X-Forwarded-Origin",
    "Referer",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "Sec-Fetch-Dest",
];

/// Whether a call comes from an agent: its headers or its token say so, or no header says that a
/// person or a browser sends it. The Gateway replaces `Origin` by `X-Forwarded-Origin`.
#[must_use]
pub fn is_agent(caller: &Caller, request: &HttpRequest) -> bool {
    let says = |header: &Option<String>, value: &str| {
        header.as_deref().is_some_and(|header| header.eq_ignore_ascii_case(value))
    };
    let has = |name: &str| request.headers().contains_key(name);
    if says(&caller.via.caller_type, "AGENT") || says(&caller.via.source, "AURA") {
        return true;
    }
    let is_person = says(&caller.via.caller_type, "USER") || says(&caller.via.source, "FRONTEND");
    let is_browser = SENT_BY_BROWSERS.into_iter().any(has);
    acts_as_agent(request) || !is_person && !is_browser
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
                prop_assert_eq!(matches_claim(&header(&form), "X-User-ID", &claim).unwrap(), Some(true));
                // Another claim may have the same form only if that form encodes it, too.
                let is_others = forms(&other).contains(&form)
                    || percent_decode(&form).eq(other.bytes());
                let named = matches_claim(&header(&form), "X-User-ID", &other);
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
            if encodes_claim(&value, &claim) {
                let latin1: Option<Vec<u8>> = claim.chars().map(|c| u8::try_from(c).ok()).collect();
                prop_assert!(
                    value == claim.as_bytes()
                        || percent_decode(&value).collect::<Vec<_>>() == claim.as_bytes()
                        || latin1.is_some_and(|latin1| latin1 == value)
                );
            }
        }
    }
}
