//! The API document's schemas of ids and plan steps. The rules that they describe are in
//! [`crate::domain::ids`] and [`crate::domain::plan`].

use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::ids::{MAX_NAME_BYTES, MAX_REQUEST_ID_BYTES};
use crate::domain::plan::{MAX_STEPS, STEP_STATUSES};

/// A request's or a task's id.
pub fn id() -> Schema {
    of(json!({ "type": "string", "pattern": id_pattern() }))
}

/// A request's or a task's id, or `null`.
pub fn optional_id() -> Schema {
    of(json!({ "type": ["string", "null"], "pattern": id_pattern() }))
}

fn id_pattern() -> String {
    format!("^[A-Za-z0-9._:@-]{{1,{MAX_REQUEST_ID_BYTES}}}$")
}

/// A session's id. U+FFFD is excluded: actix puts it in place of bytes that are not UTF-8.
pub fn session_id() -> Schema {
    of(json!({
        "type": "string", "minLength": 1, "maxLength": MAX_NAME_BYTES,
        "pattern": r"^[^\s\u0000-\u001F\u007F-\u009F\uFFFD]+$",
        "description": format!("1 to {MAX_NAME_BYTES} bytes of UTF-8."),
        "example": "session_user123_1706149260",
    }))
}

/// Any text.
pub fn text() -> Schema {
    of(json!({ "type": "string" }))
}

/// The sequence number of an outcome within its session.
pub fn event_id() -> Schema {
    of(json!({ "type": "string", "pattern": "^[0-9]{1,18}$" }))
}

/// Any JSON.
pub fn any() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()
}

/// What a person says to a request of a bulk.
pub fn verdict() -> Schema {
    of(json!({ "type": "string", "enum": ["approve", "reject"], "example": "approve" }))
}

/// Of whom a grant covers requests.
pub fn grant_scope() -> Schema {
    of(json!({ "type": "string", "enum": ["session", "requester"], "example": "session" }))
}

/// Whether a grant covers only requests that say the same.
pub fn grant_arguments() -> Schema {
    of(json!({ "type": "string", "enum": ["exact", "any"], "example": "exact" }))
}

/// Any JSON object, or `null`.
pub fn object() -> Schema {
    of(json!({ "type": ["object", "null"] }))
}

/// A JSON Schema, or `null`.
pub fn json_schema() -> Schema {
    of(json!({ "type": ["object", "boolean", "null"] }))
}

/// The ways to decide a request that an agent can handle.
pub fn decisions() -> Schema {
    let ways = json!({ "type": "string", "enum": ["approve", "reject", "edit", "respond"] });
    of(json!({ "type": ["array", "null"], "items": ways, "minItems": 1, "uniqueItems": true }))
}

/// A risk.
pub fn risk() -> Schema {
    of(json!({ "type": ["string", "null"], "enum": ["low", "medium", "high", "critical", null] }))
}

/// Makes a type of a schema, because utoipa's attributes take types.
macro_rules! schema_type {
    ($(#[$meaning:meta])* $name:ident = $schema:expr) => {
        $(#[$meaning])*
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.into()
            }
        }

        impl ToSchema for $name {}
    };
}

schema_type!(
    /// A request's or a task's id.
    Id = id()
);
schema_type!(
    /// A session's id.
    SessionIdText = session_id()
);
schema_type!(
    /// Any JSON.
    AnyJson = any()
);
schema_type!(
    /// One plan step.
    PlanStep = of(step())
);
schema_type!(
    /// Plan steps.
    Plan = of(json!({ "type": "array", "maxItems": MAX_STEPS, "items": a_step() }))
);
schema_type!(
    /// One plan step, or several.
    PlanUpdate = {
        let several = json!({ "type": "array", "maxItems": MAX_STEPS, "items": a_step() });
        of(json!({ "anyOf": [a_step(), several] }))
    }
);

/// Plan steps, or `null`.
pub fn optional_plan() -> Schema {
    of(json!({ "type": ["array", "null"], "maxItems": MAX_STEPS, "items": a_step() }))
}

fn a_step() -> Value {
    json!({ "$ref": "#/components/schemas/PlanStep" })
}

/// One plan step, flat or wrapped in `data`. Its id is `stepId`, or `id` if `stepId` is absent or
/// `null`.
fn step() -> Value {
    let none = || json!({ "type": "null" });
    let id = || json!({ "type": ["string", "integer"], "minLength": 1, "maxLength": 128, "pattern": r"[^\s\u0085\uFEFF]" });
    let anything = json!({ "type": ["null", "boolean", "number", "string", "array", "object"] });
    let known_by = |name: &str, step_id: Value, id: Value| {
        json!({
            "type": "object", "required": [name],
            "properties": {
                "stepId": step_id,
                "id": id,
                "status": { "type": ["string", "null"], "enum": statuses() },
                "confidence": { "type": ["number", "null"], "minimum": 0, "maximum": 1 },
            },
        })
    };
    let flat = [known_by("stepId", id(), anything), known_by("id", none(), id())];
    let wrapped = json!({
        "type": "object", "required": ["data"],
        "properties": { "stepId": none(), "id": none(), "data": { "anyOf": flat.clone() } },
    });
    json!({ "anyOf": flat.into_iter().chain([wrapped]).collect::<Value>() })
}

/// The states of a step, and `null`.
fn statuses() -> Value {
    STEP_STATUSES.map(Value::from).into_iter().chain([Value::Null]).collect()
}

/// Parses a constant schema. A test compares the result with the constant.
fn of(schema: Value) -> Schema {
    serde_json::from_value(schema).unwrap_or_default()
}
