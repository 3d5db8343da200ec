//! The API document: the handlers' own, plus what holds for all of them, said once.

use actix_web::http::Method;
use actix_web::{HttpResponse, Responder};
use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi as Document, PathItem, Ref, RefOr,
    Required, ResponseBuilder, Type,
};
use utoipa::{Modify, OpenApi};

use super::envelope::Envelope;
use super::error::ErrorCode;
use super::{approvals, examples, health, outcomes, schemas, signals, tasks};
use crate::api::routes::{self, Access};

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
        outcomes::read, outcomes::acknowledge, outcomes::cancel,
        signals::read, signals::stream,
        tasks::create, tasks::list, tasks::read, tasks::start, tasks::execute, tasks::progress, tasks::complete,
        tasks::fail, tasks::replace_plan, tasks::merge_plan,
        health::live, health::ready, health::main_health, health::info,
        serve,
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

/// Serves the document. Swagger UI shows it at `/swagger-ui/`.
#[utoipa::path(get, path = "/v3/api-docs", tag = "document",
    responses((status = 200, description = "This document", body = Object, example = json!({ "openapi": "3.1.0" }))))]
pub async fn serve() -> impl Responder {
    HttpResponse::Ok().json(document())
}

/// What every operation asks for and may answer, beyond what its handler says itself.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let routes = routes::table();
        for (path, item) in &mut document.paths.paths {
            for (method, operation) in operations(item) {
                let route =
                    routes.iter().find(|route| route.path == path && route.method == method);
                let access = route.map(|route| route.access);
                let is_open = access == Some(Access::Open);
                let decides = access == Some(Access::Approver);
                let withdraws = path.ends_with("/cancel");
                name(operation);
                describe(operation);
                leave_out_what_is_for_programmers(operation);
                add_examples(operation);
                let has_body = operation.request_body.is_some();
                let has_id = path.contains('{');
                let changes = method != Method::GET;
                if !is_open {
                    add_headers(operation, decides);
                }
                let errors: &[(bool, &[ErrorCode])] = &[
                    (!is_open, &[ErrorCode::Invalid, ErrorCode::NoTenant, ErrorCode::BadHeader]),
                    (
                        !is_open,
                        &[ErrorCode::NoToken, ErrorCode::TokenExpired, ErrorCode::TokenInvalid],
                    ),
                    (!is_open, &[ErrorCode::Forbidden, ErrorCode::WrongTenant]),
                    (has_id && !path.contains("/signals/"), &[ErrorCode::NotFound]),
                    (true, &[ErrorCode::MethodNotAllowed]),
                    (decides || withdraws, &[ErrorCode::AlreadyDecided]),
                    (decides, &[ErrorCode::Changed]),
                    (decides, &[ErrorCode::Unconditional]),
                    (path.ends_with("/requests"), &[ErrorCode::Conflict, ErrorCode::WrongState]),
                    (path.ends_with("/ack"), &[ErrorCode::Conflict]),
                    (changes && path.contains("/tasks/"), &[ErrorCode::WrongState]),
                    (decides || path.contains("/requests/"), &[ErrorCode::Unprocessable]),
                    (decides || withdraws, &[ErrorCode::Gone]),
                    (has_body, &[ErrorCode::TooLarge]),
                    (has_body, &[ErrorCode::NotJson]),
                    (!is_open, &[ErrorCode::TooMany]),
                    (!is_open, &[ErrorCode::Internal]),
                    (!is_open, &[ErrorCode::Unavailable]),
                ];
                for (_, codes) in errors.iter().filter(|(applies, _)| *applies) {
                    add_error(operation, codes);
                }
            }
        }
    }
}

/// Handlers in different files share names, and an operation's id must be its own.
fn name(operation: &mut Operation) {
    let tag = operation.tags.as_ref().and_then(|tags| tags.first());
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
}

/// What ids and plans look like: derived schemas do not know.
fn describe(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        parameter.schema = match parameter.name.as_str() {
            "requestId" | "taskId" => Some(schemas::id().into()),
            "sessionId" => Some(schemas::session_id().into()),
            "If-Match" => Some(schemas::text().into()),
            "Last-Event-ID" => Some(schemas::event_id().into()),
            _ => continue,
        };
    }
    let body = match operation.operation_id.as_deref() {
        Some("tasks_complete") => schemas::any(),
        Some("tasks_replace_plan") => schemas::plan(),
        Some("tasks_merge_plan") => schemas::steps(),
        _ => return,
    };
    if let Some(RefOr::T(request)) = &mut operation.request_body {
        for content in request.content.values_mut() {
            if let RefOr::T(content) = content {
                content.schema = Some(body.clone().into());
            }
        }
    }
}

/// The handlers' `# Errors` sections say less than the answers that are listed here.
fn leave_out_what_is_for_programmers(operation: &mut Operation) {
    let kept = operation.description.take();
    let kept = kept.and_then(|text| Some(text.split("# Errors").next()?.trim().to_owned()));
    operation.description = kept.filter(|text| !text.is_empty());
}

/// The example of the body and of every answer that the handler documents.
fn add_examples(operation: &mut Operation) {
    let Some(example) = operation.operation_id.as_deref().and_then(examples::of) else { return };
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for content in body.content.values_mut() {
            if let RefOr::T(content) = content {
                content.example.clone_from(&example.body);
            }
        }
    }
    let success = json!({
        "status": "SUCCESS", "message": example.message, "data": example.data,
        "success": true, "timestamp": "2026-01-16T12:00:00",
    });
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let answer = if status.starts_with('2') {
            success.clone()
        } else {
            let mut answer = error_example(ErrorCode::Unavailable);
            if let (Some(answer), Some(data)) = (answer.as_object_mut(), success.get("data")) {
                let mut data = data.clone();
                for (field, value) in [
                    ("/status", json!("DOWN")),
                    ("/ready", false.into()),
                    ("/courier/ready", false.into()),
                ] {
                    if let Some(field) = data.pointer_mut(field) {
                        *field = value;
                    }
                }
                answer.insert("data".to_owned(), data);
            }
            answer
        };
        for (kind, content) in &mut response.content {
            if let RefOr::T(content) = content {
                let is_json = kind == "application/json";
                content.example = Some(if is_json { answer.clone() } else { example.data.clone() });
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, item.get.as_mut()),
        (Method::PUT, item.put.as_mut()),
        (Method::POST, item.post.as_mut()),
        (Method::PATCH, item.patch.as_mut()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

/// Only required headers have an example: Swagger UI fills every example into "Try it out", and an
/// `If-Match` or a language that nobody chose would be sent along. Deciding routes take one value of
/// the headers that name the kind of caller; the others read any.
fn add_headers(operation: &mut Operation, decides: bool) {
    operation.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    let header = |name: &str, description: &str, example: Option<&str>| {
        let values = match name {
            "X-DWP-Source" if decides => Some(["FRONTEND"]),
            "X-DWP-Caller-Type" if decides => Some(["USER"]),
            _ => None,
        };
        let required = if example.is_some() { Required::True } else { Required::False };
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(required)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String).enum_values(values)))
            .example(example.map(Value::from))
            .build()
    };
    let parameters = operation.parameters.get_or_insert_default();
    for (name, description, example) in [
        ("X-Tenant-ID", "The token's tenant_id.", Some("tenant1")),
        ("X-User-ID", "The token's sub.", decides.then_some("user123")),
        ("X-DWP-Source", "FRONTEND, AURA, INTERNAL or BATCH.", None),
        ("X-DWP-Caller-Type", "USER, AGENT or SYSTEM. Agents never decide.", None),
        ("X-Agent-ID", "Which agent calls; recorded with a decision.", None),
        ("X-Trace-Id", "Repeated as traceId.", None),
        ("traceparent", "W3C trace context; its trace id stands in for X-Trace-Id.", None),
        ("X-Gateway-Request-Id", "Repeated as gatewayRequestId.", None),
        ("Accept-Language", "Sentences in Korean (ko) or English.", None),
    ] {
        parameters.push(header(name, description, example).into());
    }
}

/// One status and the codes that come with it, each with an example.
fn add_error(operation: &mut Operation, codes: &[ErrorCode]) {
    let Some(first) = codes.first() else { return };
    let status = first.status();
    let names = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
    let reason = status.canonical_reason().unwrap_or("Error");
    let examples = codes.iter().map(|code| {
        (code.as_str(), ExampleBuilder::new().value(Some(error_example(*code))).build())
    });
    let mut response = ResponseBuilder::new().description(format!("{reason}: {names}")).content(
        "application/json",
        ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Envelope_Value")))
            .examples_from_iter(examples)
            .build(),
    );
    let header = match first {
        ErrorCode::NoToken => Some(("WWW-Authenticate", "Bearer")),
        ErrorCode::TooMany | ErrorCode::Unavailable => {
            Some(("Retry-After", "Seconds to wait before trying again."))
        }
        ErrorCode::MethodNotAllowed => Some(("Allow", "The methods that the address answers.")),
        _ => None,
    };
    if let Some((name, description)) = header {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        response = response.header(
            name,
            HeaderBuilder::new().description(Some(description)).schema(Some(schema)).build(),
        );
    }
    operation.responses.responses.insert(status.as_str().to_owned(), RefOr::T(response.build()));
}

fn error_example(code: ErrorCode) -> Value {
    let mut answer = json!({
        "status": "ERROR", "message": "…", "errorCode": code.as_str(),
        "success": false, "timestamp": "2026-01-16T12:00:00", "traceId": "trace-1",
    });
    let data = match code {
        ErrorCode::Invalid => json!({ "userId": "is required" }),
        ErrorCode::AlreadyDecided => json!({
            "requestId": "req-12345", "sessionId": "session_user123_1706149260",
            "status": "approved", "decidedBy": "user123", "decidedAt": "2026-01-16T12:00:00",
        }),
        _ => return answer,
    };
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("data".to_owned(), data);
    }
    answer
}
