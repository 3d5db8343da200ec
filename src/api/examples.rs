//! One example of each operation's body and answer, for the API document.

use serde_json::{Value, json};

/// What an operation looks like when all goes well.
pub struct Example {
    /// The body it takes.
    pub body: Option<Value>,
    /// The answer's sentence.
    pub message: &'static str,
    /// The answer's `data`.
    pub data: Value,
}

const TASK: &str = "task_5b1f0c2e7a9d4e3fb8c6d1a2e3f4a5b6";
const REQUEST: &str = "req-12345";
const SESSION: &str = "session_user123_1706149260";
const FINGERPRINT: &str = "867fde4fc583e15bf89001ed3d7d15494603a334605ab747d88130cf7ed58894";
const STEPS: &str =
    r#"[{"stepId":"step-1","description":"Read the inbox","status":"in_progress"}]"#;

/// The example of an operation, by its id.
#[expect(clippy::too_many_lines, reason = "one example for each operation")]
pub fn of(operation: &str) -> Option<Example> {
    let example = |body: Value, message, data| {
        Some(Example { body: (!body.is_null()).then_some(body), message, data })
    };
    let none = Value::Null;
    match operation {
        "approvals_approve" => example(
            json!({ "userId": "user123" }),
            "Request approved successfully",
            json!({ "requestId": REQUEST, "sessionId": SESSION, "status": "approved" }),
        ),
        "approvals_reject" => example(
            json!({ "userId": "user123", "reason": "사용자 거절" }),
            "Request rejected",
            json!({
                "requestId": REQUEST, "sessionId": SESSION, "status": "rejected",
                "reason": "사용자 거절",
            }),
        ),
        "approvals_register" => example(
            json!({
                "sessionId": SESSION, "actionType": "send_email",
                "message": "Send the summary to a@b.c?", "context": { "to": "a@b.c" },
                "taskId": TASK, "planSteps": [plan_step()], "expiresInSeconds": 1800,
            }),
            "Approval request registered",
            json!({
                "requestId": "req_3f2a9c0d1e4b", "sessionId": SESSION, "status": "pending",
                "expiresAt": "2026-01-16T12:30:00", "fingerprint": FINGERPRINT,
            }),
        ),
        "approvals_read" => example(
            none,
            "Approval request retrieved",
            json!(
                r#"{"requestId":"req-12345","sessionId":"session_user123_1706149260","actionType":"send_email","context":{"to":"a@b.c"},"status":"pending","userId":"user123","tenantId":"tenant1","createdAt":8123456789}"#
            ),
        ),
        "signals_read" => example(
            none,
            "Signal retrieved",
            json!(
                r#"{"type":"approval","requestId":"req-12345","status":"approved","timestamp":1706152860}"#
            ),
        ),
        "tasks_create" => example(
            json!({
                "taskType": "mail_summary", "userId": "user123", "tenantId": "tenant1",
                "description": "Summarise the inbox", "inputData": { "folder": "inbox" },
            }),
            "Task created",
            task("REQUESTED", 0),
        ),
        "tasks_list" => example(
            none,
            "Tasks retrieved",
            json!({
                "content": [task("IN_PROGRESS", 40)], "totalElements": 1, "totalPages": 1,
                "number": 0, "size": 20, "first": true, "last": true, "numberOfElements": 1,
                "empty": false,
            }),
        ),
        "tasks_read" => example(none, "Task retrieved", task("IN_PROGRESS", 40)),
        "tasks_start" => example(none, "Task started", task("IN_PROGRESS", 0)),
        "tasks_execute" => example(none, "Task execution started", json!(TASK)),
        "tasks_progress" => example(
            json!({ "progress": 40, "description": "Summarise the inbox" }),
            "Task progress updated",
            task("IN_PROGRESS", 40),
        ),
        "tasks_complete" => {
            example(json!({ "mails": 12 }), "Task completed", task("COMPLETED", 100))
        }
        "tasks_fail" => {
            example(json!({ "errorMessage": "mailbox is full" }), "Task failed", task("FAILED", 40))
        }
        "tasks_replace_plan" => {
            example(json!([plan_step()]), "Plan replaced", task("IN_PROGRESS", 40))
        }
        "tasks_merge_plan" => example(
            json!({ "type": "plan_step_update", "data": plan_step() }),
            "Plan updated",
            task("IN_PROGRESS", 40),
        ),
        "health_main_health" => example(none, "OK", json!("Main Service is running")),
        "health_live" => example(
            none,
            "Service is up",
            json!({ "status": "UP", "service": "aura-hitl", "version": "0.1.0" }),
        ),
        "health_info" => example(none, "OK", json!({ "name": "aura-hitl", "version": "0.1.0" })),
        "health_ready" => example(
            none,
            "Service is ready",
            json!({
                "status": "UP", "service": "aura-hitl", "version": "0.1.0",
                "ready": true, "ledger": { "engine": "postgres", "ready": true },
                "courier": { "engine": "redis", "ready": true },
            }),
        ),
        _ => of_an_outcome(operation),
    }
}

/// The same for the agent's side.
fn of_an_outcome(operation: &str) -> Option<Example> {
    let example = |message, data| Some(Example { body: None, message, data });
    match operation {
        "outcomes_read" => example(
            "Decision retrieved",
            json!({
                "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
                "fingerprint": FINGERPRINT, "expiresAt": "2026-01-16T12:30:00",
                "decidedBy": "user123", "decidedAt": "2026-01-16T12:00:00",
                "settledAt": "2026-01-16T12:00:00",
                "signal": { "state": "sent", "sentAt": "2026-01-16T12:00:00", "listeners": 1 },
            }),
        ),
        "outcomes_acknowledge" => example(
            "Decision acknowledged",
            json!({
                "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
                "actedAt": "2026-01-16T12:00:05",
            }),
        ),
        "outcomes_cancel" => example(
            "Request cancelled",
            json!({ "requestId": REQUEST, "sessionId": SESSION, "status": "cancelled" }),
        ),
        "signals_stream" => example(
            "",
            json!(
                "retry: 1000\n\nid: 1\nevent: approval\ndata: {\"type\":\"approval\",\"requestId\":\"req-12345\",\"status\":\"approved\",\"timestamp\":1706152860,\"fingerprint\":\"867fde4fc583e15bf89001ed3d7d15494603a334605ab747d88130cf7ed58894\"}\n\n"
            ),
        ),
        _ => None,
    }
}

fn plan_step() -> Value {
    json!({ "stepId": "step-1", "description": "Read the inbox", "status": "in_progress" })
}

fn task(status: &str, progress: i32) -> Value {
    let begun = (status != "REQUESTED").then_some("2026-01-16T12:00:00");
    let done = status == "COMPLETED";
    json!({
        "taskId": TASK, "userId": "user123", "tenantId": "tenant1", "taskType": "mail_summary",
        "status": status, "progress": progress, "description": "Summarise the inbox",
        "inputData": { "folder": "inbox" },
        "resultData": done.then(|| json!({ "mails": 12 })),
        "planSteps": if begun.is_some() { STEPS } else { "[]" },
        "hitlRequestId": null,
        "errorMessage": (status == "FAILED").then_some("mailbox is full"),
        "startedAt": begun,
        "completedAt": done.then_some("2026-01-16T12:05:00"),
        "createdAt": "2026-01-16T12:00:00", "updatedAt": "2026-01-16T12:05:00",
    })
}
