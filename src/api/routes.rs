//! The table of all routes: who may call each, its handler, and its own errors. Method and address are
//! in the handler's `#[utoipa::path]`, with the rest of its entry in the API document. Each route is
//! served with and without the prefix `/api`, because some gateways strip it.
//!
//! A test lists the open routes again, so that none becomes open by mistake.

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
use crate::api::{
    approvals, bulk, comments, detail, document, grants, health, inbox, lists, outcomes, page,
    signals, slack, tasks,
};

/// The prefixes under which every address is served.
const PREFIXES: [&str; 2] = ["/api", ""];

/// One line for each route: who may call it, its handler, and the errors of this route alone.
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

/// All routes.
#[must_use]
pub fn table() -> Vec<Endpoint> {
    endpoints! {
        approver approvals::approve [NotFound, AlreadyDecided, Gone, Changed, Unprocessable, Unconditional]
        approver approvals::reject [NotFound, AlreadyDecided, Gone, Changed, Unprocessable, Unconditional]
        approver approvals::respond [NotFound, AlreadyDecided, Gone, Changed, Unprocessable, Unconditional]
        approver bulk::decide [Conflict]
        caller lists::list []
        caller approvals::register [Conflict, WrongState]
        caller approvals::read [NotFound, Unprocessable]
        caller detail::read [NotFound, Unprocessable]
        caller outcomes::read [NotFound, Unprocessable]
        caller outcomes::acknowledge [NotFound, Conflict, Unprocessable]
        caller outcomes::cancel [NotFound, AlreadyDecided, Gone, Unprocessable]
        caller comments::add [NotFound, AlreadyDecided, Conflict, Gone, Unprocessable]
        caller comments::list [NotFound, Unprocessable]
        caller grants::list []
        caller grants::end [NotFound]
        caller inbox::stream []
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

/// Adds all routes, Swagger UI and the inbox page.
#[expect(clippy::disallowed_methods, reason = "the one place where routes are added")]
pub fn configure(service: &mut ServiceConfig) {
    for prefix in PREFIXES {
        let document = utoipa_swagger_ui::Config::from(format!("{prefix}{}", document::ADDRESS));
        let page = format!("{prefix}/swagger-ui/{{file:.*}}");
        service.service(SwaggerUi::new(page).config(document));
    }
    for prefix in PREFIXES {
        let resources = addresses().into_iter().chain(page_addresses()).chain([slack_address()]);
        service.service(resources.fold(web::scope(prefix), actix_web::Scope::service));
    }
}

/// The inbox page and its files. They are no part of the API, nor of its document.
fn page_addresses() -> Vec<Resource> {
    let resource = |address: &str, route: fn() -> Route| {
        let refuse = || {
            std::future::ready(Err::<HttpResponse, _>(ApiError::method_not_allowed("GET, HEAD")))
        };
        let resource = web::resource(address).default_service(web::to(refuse));
        page::METHODS
            .into_iter()
            .fold(resource, |resource, method| resource.route(route().method(method)))
    };
    vec![
        resource(page::ADDRESS.trim_end_matches('/'), || Route::new().to(page::with_slash)),
        resource(page::ADDRESS, || Route::new().to(page::index)),
        resource(page::FILES_ADDRESS, || Route::new().to(page::file)),
    ]
}

/// Where Slack says that somebody clicked. It is no part of the API, nor of its document: its extractor
/// takes Slack's signature instead of a token.
fn slack_address() -> Resource {
    let refuse =
        || std::future::ready(Err::<HttpResponse, _>(ApiError::method_not_allowed("POST")));
    web::resource(slack::ADDRESS)
        .default_service(web::to(refuse))
        .route(web::post().to(slack::interact))
}

/// The routes by address. An address answers 405 `E1002` to a method without a route.
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

/// Fallback handler, for an address without a route.
///
/// # Errors
/// Always 404 `E1004`.
pub async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(ApiError::no_such_address())
}
