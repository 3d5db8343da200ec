//! Every address, who may call it and its handler, on one page. Each is served with and without
//! `/api` in front: some gateways strip it.
//!
//! A handler gets onto this page as `approver`, `caller` or `open`. The first two take only
//! handlers that begin with the caller's identity, so a route cannot forget to ask for it; the few
//! open ones are listed once more in the tests.

use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig};
use actix_web::{FromRequest, Handler, HttpResponse, Resource, Responder, Route};
use indexmap::IndexMap;
use utoipa_swagger_ui::SwaggerUi;

use super::identity::{ApproverOf, CallerOf};
use crate::api::error::ApiError;
use crate::api::{approvals, document, health, outcomes, signals, tasks};

/// What stands in front of every address, or does not.
const PREFIXES: [&str; 2] = ["/api", ""];

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

/// A line of the page.
pub struct Entry {
    /// The one method it answers.
    pub method: Method,
    /// The address without a prefix, its ids in braces.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    route: Route,
}

/// The page.
#[must_use]
pub fn table() -> Vec<Entry> {
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    const PATCH: Method = Method::PATCH;
    vec![
        approver(POST, "/aura/hitl/approve/{requestId}", approvals::approve),
        approver(POST, "/aura/hitl/reject/{requestId}", approvals::reject),
        caller(POST, "/aura/hitl/requests", approvals::register),
        caller(GET, "/aura/hitl/requests/{requestId}", approvals::read),
        caller(GET, "/aura/hitl/requests/{requestId}/decision", outcomes::read),
        caller(POST, "/aura/hitl/requests/{requestId}/ack", outcomes::acknowledge),
        caller(POST, "/aura/hitl/requests/{requestId}/cancel", outcomes::cancel),
        caller(GET, "/aura/hitl/signals/{sessionId}", signals::read),
        caller(GET, "/aura/hitl/signals/{sessionId}/stream", signals::stream),
        caller(GET, "/main/agent/tasks", tasks::list),
        caller(POST, "/main/agent/tasks", tasks::create),
        caller(GET, "/main/agent/tasks/{taskId}", tasks::read),
        caller(POST, "/main/agent/tasks/{taskId}/start", tasks::start),
        caller(POST, "/main/agent/tasks/{taskId}/execute", tasks::execute),
        caller(PATCH, "/main/agent/tasks/{taskId}/progress", tasks::progress),
        caller(POST, "/main/agent/tasks/{taskId}/complete", tasks::complete),
        caller(POST, "/main/agent/tasks/{taskId}/fail", tasks::fail),
        caller(PUT, "/main/agent/tasks/{taskId}/plan-steps", tasks::replace_plan),
        caller(POST, "/main/agent/tasks/{taskId}/plan-steps", tasks::merge_plan),
        open(GET, "/main/health", health::main_health),
        open(GET, "/main/info", health::info),
        open(GET, "/health/live", health::live),
        open(GET, "/health/ready", health::ready),
        open(GET, document::ADDRESS, document::serve),
    ]
}

/// Adds every route, and Swagger UI beside them.
#[expect(clippy::disallowed_methods, reason = "the one place where routes are added")]
pub fn configure(service: &mut ServiceConfig) {
    for prefix in PREFIXES {
        let document = utoipa_swagger_ui::Config::from(format!("{prefix}{}", document::ADDRESS));
        let page = format!("{prefix}/swagger-ui/{{file:.*}}");
        service.service(SwaggerUi::new(page).config(document));
    }
    for prefix in PREFIXES {
        service
            .service(addresses().into_iter().fold(web::scope(prefix), actix_web::Scope::service));
    }
}

/// The page by address. One that is asked with another method than its own answers the contract's
/// 405.
fn addresses() -> Vec<Resource> {
    let mut addresses = IndexMap::<_, Vec<_>>::new();
    for entry in table() {
        addresses.entry(entry.path).or_default().push(entry);
    }
    let resource = |(path, entries): (&str, Vec<Entry>)| {
        let methods = entries.iter().map(|entry| entry.method.as_str()).collect::<Vec<_>>();
        let allow = methods.join(", ");
        let refuse = move || {
            std::future::ready(Err::<HttpResponse, _>(ApiError::method_not_allowed(&allow)))
        };
        entries
            .into_iter()
            .fold(web::resource(path), |resource, entry| resource.route(entry.route))
            .default_service(web::to(refuse))
    };
    addresses.into_iter().map(resource).collect()
}

/// For anybody.
fn open<H, A>(method: Method, path: &'static str, handler: H) -> Entry
where
    H: Handler<A, Output: Responder + 'static>,
    A: FromRequest + 'static,
{
    let route = web::method(method.clone()).to(handler);
    Entry { method, path, access: Access::Open, route }
}

/// For whoever has a token: only for handlers that ask who is calling.
///
/// ```
/// # use aura_hitl::api::{identity::CallerOf, routes::caller};
/// # use actix_web::http::Method;
/// caller(Method::GET, "/x", |caller: CallerOf| async move { caller.0.user.to_string() });
/// ```
///
/// ```compile_fail
/// # use aura_hitl::api::{identity::CallerOf, routes::caller};
/// # use actix_web::http::Method;
/// caller(Method::GET, "/x", || async move { "anybody reads this" });
/// ```
pub fn caller<H, A>(method: Method, path: &'static str, handler: H) -> Entry
where
    H: Handler<A, Output: Responder + 'static>,
    A: BeginsWith<CallerOf> + FromRequest + 'static,
{
    Entry { access: Access::Caller, ..open(method, path, handler) }
}

/// For whoever may decide: only for handlers that ask for an approver.
///
/// ```
/// # use aura_hitl::api::{identity::ApproverOf, routes::approver};
/// # use actix_web::http::Method;
/// approver(Method::POST, "/x", |person: ApproverOf| async move { person.0.user.to_string() });
/// ```
///
/// ```compile_fail
/// # use aura_hitl::api::{identity::CallerOf, routes::approver};
/// # use actix_web::http::Method;
/// approver(Method::POST, "/x", |agent: CallerOf| async move { agent.0.user.to_string() });
/// ```
pub fn approver<H, A>(method: Method, path: &'static str, handler: H) -> Entry
where
    H: Handler<A, Output: Responder + 'static>,
    A: BeginsWith<ApproverOf> + FromRequest + 'static,
{
    Entry { access: Access::Approver, ..open(method, path, handler) }
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

/// Whatever has no address.
///
/// # Errors
/// Always: that there is nothing.
pub async fn unknown() -> Result<HttpResponse, ApiError> {
    Err(ApiError::no_such_address())
}
