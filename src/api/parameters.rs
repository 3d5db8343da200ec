//! The parameters that several operations share. The API document has each of them once, under
//! `components`.

use serde_json::Value;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{RefOr, Required};

use super::endpoint::Access;
use super::schemas;

/// A parameter under its name in `components`.
pub type Named = (&'static str, Parameter);

/// The parameters that handlers read: ids in the path, and headers. A handler's `#[utoipa::path]` names
/// the headers; utoipa finds the ids by itself.
pub fn of_handlers() -> [Named; 6] {
    let id = |name, schema: Schema, example: &str| {
        let id = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(schema))
            .example(Some(Value::from(example)));
        (name, id.build())
    };
    let if_match = "Decide only what still has this ETag; several, and *, are taken, too.";
    [
        id("requestId", schemas::id(), "req-12345"),
        id("sessionId", schemas::session_id(), "session_user123_1706149260"),
        id("taskId", schemas::id(), "task_5b1f0c2e7a9d4e3fb8c6d1a2e3f4a5b6"),
        id("grantId", schemas::id(), "grant_3f2a9c0d1e4b4c5d8e9fa0b1c2d3e4f5"),
        ("If-Match", header("If-Match", schemas::text()).description(Some(if_match)).build()),
        ("Last-Event-ID", header("Last-Event-ID", schemas::event_id()).build()),
    ]
}

/// The headers that describe the caller and the call.
///
/// Only required headers have an example: Swagger UI fills every example into "Try it out", and would
/// also send an `If-Match` or a language that the user did not choose. Routes for approvers accept only
/// a person's value of `X-DWP-Source` and `X-DWP-Caller-Type`; other routes accept any value.
pub fn of_callers(access: Access) -> Vec<Named> {
    const USER: &str = "The token's sub.";
    const SOURCE: &str = "FRONTEND, AURA, INTERNAL or BATCH.";
    const KIND: &str = "USER, AGENT or SYSTEM. Agents never decide.";
    let required = |name, description, example: &str| {
        let header = header(name, schemas::text()).description(Some(description));
        header.required(Required::True).example(Some(Value::from(example))).build()
    };
    let optional =
        |name, description| header(name, schemas::text()).description(Some(description)).build();
    let only = |name, description, value: &str| {
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([value]));
        header(name, schema).description(Some(description)).build()
    };
    let [user, source, kind] = match access {
        Access::Open => return Vec::new(),
        Access::Caller => [
            ("X-User-ID", optional("X-User-ID", USER)),
            ("X-DWP-Source", optional("X-DWP-Source", SOURCE)),
            ("X-DWP-Caller-Type", optional("X-DWP-Caller-Type", KIND)),
        ],
        Access::Approver => [
            ("X-User-ID.approver", required("X-User-ID", USER, "user123")),
            ("X-DWP-Source.approver", only("X-DWP-Source", SOURCE, "FRONTEND")),
            ("X-DWP-Caller-Type.approver", only("X-DWP-Caller-Type", KIND, "USER")),
        ],
    };
    let traced = "W3C trace context; its trace id stands in for X-Trace-Id.";
    vec![
        ("X-Tenant-ID", required("X-Tenant-ID", "The token's tenant_id.", "tenant1")),
        user,
        source,
        kind,
        ("X-Agent-ID", optional("X-Agent-ID", "Which agent calls; recorded with a decision.")),
        ("X-Trace-Id", optional("X-Trace-Id", "Repeated as traceId.")),
        ("traceparent", optional("traceparent", traced)),
        ("X-Gateway-Request-Id", optional("X-Gateway-Request-Id", "Repeated as gatewayRequestId.")),
        ("Accept-Language", optional("Accept-Language", "Sentences in Korean (ko) or English.")),
    ]
}

/// An optional header.
fn header(name: &str, schema: impl Into<RefOr<Schema>>) -> ParameterBuilder {
    let header = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header);
    header.required(Required::False).schema(Some(schema))
}
