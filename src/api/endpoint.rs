//! One route: its address, who may call it, its handler, and its part of the API document.
//!
//! A handler becomes a route as [`open`], [`caller`] or [`approver`]. The last two take only handlers
//! whose first argument is the caller's identity, so no route can forget to ask for it.

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
    /// Whoever has a token, for their own tenant.
    Caller,
    /// A person who names themselves twice, and is no agent.
    Approver,
}

/// A route.
pub struct Endpoint {
    /// The one method it answers.
    pub method: Method,
    /// The address without a prefix, its ids in braces.
    pub path: String,
    /// Who may call it.
    pub access: Access,
    /// What it may answer beyond the errors that all routes of its [`Access`] share.
    pub errors: &'static [ErrorCode],
    /// What its handler says of itself.
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

/// For anybody.
pub fn open<H, A>(handler: H) -> Guarded
where
    H: Handler<A, Output: Responder + 'static>,
    A: FromRequest + 'static,
{
    Guarded { access: Access::Open, route: Route::new().to(handler) }
}

/// For whoever has a token: only for handlers that ask who is calling.
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

/// For whoever may decide: only for handlers that ask for an approver.
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

/// The arguments of a handler whose first one is `First`. actix reads them in this order, so
/// nothing else of the call is looked at before its caller is known.
pub trait BeginsWith<First> {}

macro_rules! begins_with {
    ($($rest:ident)*) => { impl<First, $($rest),*> BeginsWith<First> for (First, $($rest),*) {} };
}
begins_with!();
begins_with!(A);
begins_with!(A B);
begins_with!(A B C);
begins_with!(A B C D);
