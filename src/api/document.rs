//! The OpenAPI document: the handlers' own, plus what holds for all of them, said once.

use actix_web::{HttpResponse, Responder};
use serde_json::json;
use utoipa::openapi::path::{HttpMethod, Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi as Document, PathItem, Ref, RefOr,
    Required, ResponseBuilder, Type,
};
use utoipa::{Modify, OpenApi};

use super::envelope::Envelope;
use super::error::ErrorCode;
use super::{approvals, health, signals, tasks};

/// Where the document is.
pub const ADDRESS: &str = "/v3/api-docs";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "aura-hitl",
        description = "Human-in-the-loop approvals: decides once, records, and wakes the agent.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/api", description = "As the Gateway forwards it"), (url = "/", description = "With /api stripped")),
    paths(
        approvals::approve, approvals::reject, approvals::register, approvals::read,
        signals::read,
        tasks::create, tasks::list, tasks::read, tasks::start, tasks::progress, tasks::complete,
        tasks::fail, tasks::replace_plan, tasks::merge_plan,
        health::live, health::ready, health::main_health,
    ),
    components(schemas(Envelope<serde_json::Value>)),
    modifiers(&Common)
)]
struct Api;

/// The document of this release.
#[must_use]
pub fn document() -> Document {
    Api::openapi()
}

/// Serves the document.
pub async fn serve() -> impl Responder {
    HttpResponse::Ok().json(document())
}

/// What every authenticated operation asks for and may answer.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(bearer));
        for (path, item) in &mut document.paths.paths {
            if path.contains("health") {
                continue;
            }
            let decides = path.contains("/approve/") || path.contains("/reject/");
            for (method, operation) in operations(item) {
                let has_body = operation.request_body.is_some();
                let has_id = path.contains('{');
                let changes = method != HttpMethod::Get;
                add_headers(operation, decides);
                for (code, applies) in [
                    (ErrorCode::Invalid, true),
                    (ErrorCode::NoToken, true),
                    (ErrorCode::Forbidden, true),
                    (ErrorCode::NotFound, has_id),
                    (ErrorCode::MethodNotAllowed, true),
                    (ErrorCode::WrongState, changes || path.contains("/requests/")),
                    (ErrorCode::Gone, decides),
                    (ErrorCode::TooLarge, has_body),
                    (ErrorCode::NotJson, has_body),
                    (ErrorCode::Internal, true),
                    (ErrorCode::Unavailable, true),
                ] {
                    if applies {
                        add_error(operation, code);
                    }
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    [
        (HttpMethod::Get, item.get.as_mut()),
        (HttpMethod::Put, item.put.as_mut()),
        (HttpMethod::Post, item.post.as_mut()),
        (HttpMethod::Patch, item.patch.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

fn add_headers(operation: &mut Operation, decides: bool) {
    operation.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    let header = |name: &str, required: bool, description: &str, example: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(if required { Required::True } else { Required::False })
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .example(Some(json!(example)))
            .build()
    };
    let parameters = operation.parameters.get_or_insert_default();
    parameters.push(header("X-Tenant-ID", true, "The token's tenant_id.", "tenant1").into());
    parameters.push(header("X-User-ID", decides, "The token's sub.", "user123").into());
    parameters.push(
        header("X-DWP-Source", false, "FRONTEND, AURA, INTERNAL or BATCH.", "FRONTEND").into(),
    );
    parameters.push(
        header("X-DWP-Caller-Type", false, "USER, AGENT or SYSTEM. Agents never decide.", "USER")
            .into(),
    );
    parameters.push(header("X-Trace-Id", false, "Repeated as traceId.", "trace-1").into());
    parameters.push(
        header("Accept-Language", false, "Sentences in Korean (ko) or English.", "ko").into(),
    );
}

fn add_error(operation: &mut Operation, code: ErrorCode) {
    let status = code.status();
    let mut response =
        ResponseBuilder::new().description(status.canonical_reason().unwrap_or("Error")).content(
            "application/json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Envelope_Value")))
                .example(Some(json!({
                    "status": "ERROR", "message": "…", "errorCode": code.as_str(),
                    "success": false, "timestamp": "2026-01-16T12:00:00", "traceId": "trace-1",
                })))
                .build(),
        );
    let header = |name: &str| match name {
        "WWW-Authenticate" => Some("Bearer"),
        "Retry-After" => Some("Seconds to wait before trying again."),
        "Allow" => Some("The methods that the address answers."),
        _ => None,
    };
    let name = match code {
        ErrorCode::NoToken => "WWW-Authenticate",
        ErrorCode::Unavailable => "Retry-After",
        ErrorCode::MethodNotAllowed => "Allow",
        _ => "",
    };
    if let Some(description) = header(name) {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        response = response.header(
            name,
            HeaderBuilder::new().description(Some(description)).schema(Some(schema)).build(),
        );
    }
    operation.responses.responses.insert(status.as_str().to_owned(), RefOr::T(response.build()));
}
