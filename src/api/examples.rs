//! Examples for the API document that several handlers show.

use serde_json::{Value, json};

use super::error::ErrorCode;

/// A task's id.
pub const TASK: &str = "task_5b1f0c2e7a9d4e3fb8c6d1a2e3f4a5b6";
/// A request's id.
pub const REQUEST: &str = "req-12345";
/// A session's id.
pub const SESSION: &str = "session_user123_1706149260";
/// A request's fingerprint.
pub const FINGERPRINT: &str = "867fde4fc583e15bf89001ed3d7d15494603a334605ab747d88130cf7ed58894";

/// A successful answer.
pub fn success(message: &str, data: impl Into<Value>) -> Value {
    json!({
        "status": "SUCCESS", "message": message, "data": data.into(),
        "success": true, "timestamp": "2026-01-16T12:00:00",
    })
}

/// The answer of an error.
pub fn failure(code: ErrorCode) -> Value {
    match code {
        ErrorCode::Invalid => failure_with(code, &json!({ "userId": "is required" })),
        ErrorCode::AlreadyDecided => failure_with(
            code,
            &json!({
                "requestId": REQUEST, "sessionId": SESSION, "status": "approved",
                "decidedBy": "user123", "decidedAt": "2026-01-16T12:00:00",
            }),
        ),
        _ => failure_with(code, &Value::Null),
    }
}

/// The answer of an error, with `data` unless it is `null`.
pub fn failure_with(code: ErrorCode, data: &Value) -> Value {
    let mut answer = json!({
        "status": "ERROR", "message": "…", "errorCode": code.as_str(),
        "success": false, "timestamp": "2026-01-16T12:00:00", "traceId": "trace-1",
    });
    if let (Some(fields), false) = (answer.as_object_mut(), data.is_null()) {
        fields.insert("data".to_owned(), data.clone());
    }
    answer
}

/// A step of a plan.
pub fn plan_step() -> Value {
    json!({ "stepId": "step-1", "description": "Read the inbox", "status": "in_progress" })
}

/// A task in this state.
pub fn task(status: &str, progress: i32) -> Value {
    const STEPS: &str =
        r#"[{"stepId":"step-1","description":"Read the inbox","status":"in_progress"}]"#;
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
