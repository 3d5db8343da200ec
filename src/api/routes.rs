//! Every route on one page: who may call it, its handler, and the errors of its own. Method and
//! address stand in the handler's `#[utoipa::path]`, with the rest of its part of the API document.
//! Each route is served with and without `/api` in front: some gateways strip it.
//!
//! The few open routes are listed once more in the tests.

use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpResponse, Resource, Route};
use indexmap::IndexMap;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::endpoint::{Endpoint, approver, caller, open};
use crate::api::error::ApiError;
use crate::api::error::ErrorCode::{
    AlreadyDecided, Changed, Conflict, Gone, NotFound, Unconditional, Unprocessable, WrongState,
};
use crate::api::{approvals, document, health, outcomes, signals, tasks};

/// What stands in front of every address, or does not.
const PREFIXES: [&str; 2] = ["/api", ""];

/// A line for each route: who may call it, its handler, and what it may answer beyond the errors
/// that all routes of its kind share.
macro_rules! endpoints {
    ($($access:ident $module:ident::$handler:ident $errors:tt)*) => {
        vec![$({
            #[derive(OpenApi)]
            #[openapi(paths($module::$handler))]
            struct Documented;
            Endpoint::new($access($module::$handler), &$errors, Documented::openapi())
        },)*]
    };
}

/// The page.
#[must_use]
pub fn table() -> Vec<Endpoint> {
    endpoints! {
        approver approvals::approve [NotFound, AlreadyDecided, Gone, Changed, Unprocessable, Unconditional]
        approver approvals::reject [NotFound, AlreadyDecided, Gone, Changed, Unprocessable, Unconditional]
        caller approvals::register [Conflict, WrongState]
        caller approvals::read [NotFound, Unprocessable]
        caller outcomes::read [NotFound, Unprocessable]
        caller outcomes::acknowledge [NotFound, Conflict, Unprocessable]
        caller outcomes::cancel [NotFound, AlreadyDecided, Gone, Unprocessable]
        caller signals::read []
        caller signals::stream []
        caller tasks::list []
        caller tasks::create []
        caller tasks::read [NotFound]
        caller tasks::start [NotFound, WrongState]
        caller tasks::execute [NotFound, WrongState]
        caller tasks::progress [NotFound, WrongState]
        caller tasks::complete [NotFound, WrongState]
        caller tasks::fail [NotFound, WrongState]
        caller tasks::replace_plan [NotFound, WrongState]
        caller tasks::merge_plan [NotFound, WrongState]
        open health::main_health []
        open health::info []
        open health::live []
        open health::ready []
        open document::serve []
    }
}

/// The API document of this release.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    document::assemble(table())
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
    let mut addresses = IndexMap::<String, Vec<_>>::new();
    for Endpoint { path, method, route, .. } in table() {
        addresses.entry(path).or_default().push((method, route));
    }
    let resource = |(path, routes): (String, Vec<(Method, Route)>)| {
        let methods = routes.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>();
        let allow = methods.join(", ");
        let refuse = move || {
            std::future::ready(Err::<HttpResponse, _>(ApiError::method_not_allowed(&allow)))
        };
        routes
            .into_iter()
            .fold(web::resource(path), |resource, (_method, route)| resource.route(route))
            .default_service(web::to(refuse))
    };
    addresses.into_iter().map(resource).collect()
}

/// Whatever has no address.
///
/// # Errors
/// Always: that there is nothing.
pub async fn unknown() -> Result<HttpResponse, ApiError> {
    Err(ApiError::no_such_address())
}
