//! One route: its address, who may call it, its handler, and its part of the API document.
//!
//! [`open`], [`caller`] or [`approver`] makes a route of a handler. The last two only accept handlers
//! whose first argument is the caller's identity, so a route without authentication does not compile.

use actix_web::http::Method;
use actix_web::{FromRequest, Handler, Responder, Route};
use utoipa::openapi::{Components, OpenApi, PathItem};

use super::error::ErrorCode;
use super::identity::{ApproverOf, CallerOf};

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// A caller with a token, for their own tenant.
    Caller,
    /// A person, not an agent, whom both the token and `X-User-ID` name.
    Approver,
}

/// A route.
pub struct Endpoint {
    /// The HTTP method.
    pub method: Method,
    /// The address without a prefix, its ids in braces.
    pub path: String,
    /// Who may call it.
    pub access: Access,
    /// The errors of this route alone; all routes of an [`Access`] share further ones.
    pub errors: &'static [ErrorCode],
    /// The API document's entry, from the handler's `#[utoipa::path]`.
    pub documentation: PathItem,
    /// The schemas that the documentation refers to.
    pub components: Components,
    /// The handler itself.
    pub route: Route,
}

impl Endpoint {
    /// The route of one handler: method and address are those of its `#[utoipa::path]`.
    #[must_use]
    pub fn new(handler: Guarded, errors: &'static [ErrorCode], document: OpenApi) -> Self {
        let (path, documentation) = document.paths.paths.into_iter().next().unwrap_or_default();
        let methods = [
            (Method::GET, &documentation.get),
            (Method::POST, &documentation.post),
            (Method::PUT, &documentation.put),
            (Method::PATCH, &documentation.patch),
            (Method::DELETE, &documentation.delete),
        ];
        let method = methods.into_iter().find(|(_, operation)| operation.is_some());
        let method = method.map(|(method, _)| method).unwrap_or_default();
        let route = handler.route.method(method.clone());
        let components = document.components.unwrap_or_default();
        Self { method, path, access: handler.access, errors, documentation, components, route }
    }
}

/// A handler and who may call it.
pub struct Guarded {
    access: Access,
    route: Route,
}

/// A handler for anybody.
pub fn open<H, A>(handler: H) -> Guarded
where
    H: Handler<A, Output: Responder + 'static>,
    A: FromRequest + 'static,
{
    Guarded { access: Access::Open, route: Route::new().to(handler) }
}

/// A handler for callers with a token. Its first argument must be [`CallerOf`].
///
/// ```
/// # use aura_hitl::api::{endpoint::caller, identity::CallerOf};
/// caller(|caller: CallerOf| async move { caller.0.user.to_string() });
/// ```
///
/// ```compile_fail
/// # use aura_hitl::api::{endpoint::caller, identity::CallerOf};
/// caller(|| async move { "anybody reads this" });
/// ```
pub fn caller<H, A>(handler: H) -> Guarded
where
    H: Handler<A, Output: Responder + 'static>,
    A: BeginsWith<CallerOf> + FromRequest + 'static,
{
    Guarded { access: Access::Caller, ..open(handler) }
}

/// A handler for people who may decide. Its first argument must be [`ApproverOf`].
///
/// ```
/// # use aura_hitl::api::{endpoint::approver, identity::ApproverOf};
/// approver(|person: ApproverOf| async move { person.0.user.to_string() });
/// ```
///
/// ```compile_fail
/// # use aura_hitl::api::{endpoint::approver, identity::CallerOf};
/// approver(|agent: CallerOf| async move { agent.0.user.to_string() });
/// ```
pub fn approver<H, A>(handler: H) -> Guarded
where
    H: Handler<A, Output: Responder + 'static>,
    A: BeginsWith<ApproverOf> + FromRequest + 'static,
{
    Guarded { access: Access::Approver, ..open(handler) }
}

/// The arguments of a handler, of which `First` is the first. actix extracts them in order, so the
/// caller is authenticated before the rest of the call is read.
pub trait BeginsWith<First> {}

macro_rules! begins_with {
    ($($rest:ident)*) => { impl<First, $($rest),*> BeginsWith<First> for (First, $($rest),*) {} };
}
begins_with!();
begins_with!(A);
begins_with!(A B);
begins_with!(A B C);
begins_with!(A B C D);
