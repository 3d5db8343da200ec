//! Bodies, through the real router. The first byte chooses the operation, the rest is its body.
//! What is taken is JSON, and what is kept is what was sent.
#![no_main]

use std::sync::Mutex;

use aura_hitl_fuzz::{TENANT, USER, service};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A task under way, and a pending request; each is made anew once it has been used up.
static TASK: Mutex<Option<String>> = Mutex::new(None);
static REQUEST: Mutex<Option<String>> = Mutex::new(None);

fn task() -> String {
    TASK.lock()
        .unwrap()
        .get_or_insert_with(|| {
            let body = json!({ "taskType": "t", "userId": USER, "tenantId": TENANT });
            let made = service().json("POST", "/main/agent/tasks", &body);
            let id = made["data"]["taskId"].as_str().unwrap().to_owned();
            service().json("POST", &format!("/main/agent/tasks/{id}/start"), &json!({}));
            id
        })
        .clone()
}

fn request() -> String {
    REQUEST
        .lock()
        .unwrap()
        .get_or_insert_with(|| {
            let body = json!({ "sessionId": "session_of_decisions", "actionType": "a" });
            let made = service().json("POST", "/aura/hitl/requests", &body);
            made["data"]["requestId"].as_str().unwrap().to_owned()
        })
        .clone()
}

/// A field of a JSON object, as it is spelled there.
fn field<'a>(object: &'a [u8], name: &str) -> Option<&'a RawValue> {
    let fields: std::collections::HashMap<String, &RawValue> =
        serde_json::from_slice(object).unwrap();
    fields.get(name).copied()
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else { return };
    let task_call = |method, what: &str| (method, format!("/main/agent/tasks/{}/{what}", task()));
    let (method, target) = match choice % 9 {
        0 => ("POST", format!("/aura/hitl/approve/{}", request())),
        1 => ("POST", format!("/aura/hitl/reject/{}", request())),
        2 => ("POST", "/aura/hitl/requests".to_owned()),
        3 => ("POST", "/main/agent/tasks".to_owned()),
        4 => task_call("PATCH", "progress"),
        5 => task_call("POST", "complete"),
        6 => task_call("POST", "fail"),
        7 => task_call("PUT", "plan-steps"),
        _ => task_call("POST", "plan-steps"),
    };
    let answer = service().call(method, target.as_bytes(), Some(body));
    let envelope = answer.envelope();
    assert!([200, 201, 400, 403, 409, 413].contains(&answer.status), "{target}: {envelope}");
    if answer.status == 409 {
        // Its task or request is used up.
        TASK.lock().unwrap().take();
        REQUEST.lock().unwrap().take();
    }
    let is_blank = body.trim_ascii().is_empty() && matches!(choice % 9, 5 | 6);
    let parsed = serde_json::from_slice::<Value>(body);
    if answer.status == 400 {
        let fields = envelope["data"].as_object().expect("data names what is wrong");
        assert!(!fields.is_empty() && fields.values().all(Value::is_string), "{envelope}");
    }
    if answer.status >= 300 {
        return;
    }
    assert!(is_blank || parsed.is_ok(), "taken, and no JSON: {envelope}");
    let kept = field(&answer.body, "data").unwrap().get().as_bytes();
    let data = &envelope["data"];
    match choice % 9 {
        0 | 1 => {
            assert_eq!(parsed.unwrap()["userId"], USER);
            assert_eq!(data["status"], if choice % 9 == 0 { "approved" } else { "rejected" });
            REQUEST.lock().unwrap().take();
        }
        2 => {
            let id = data["requestId"].as_str().unwrap();
            let read = service().call("GET", format!("/aura/hitl/requests/{id}").as_bytes(), None);
            let document = read.envelope()["data"].as_str().unwrap().to_owned();
            for name in ["context", "planSteps"] {
                let sent = field(body, name).map(RawValue::get).filter(|sent| *sent != "null");
                let kept = field(document.as_bytes(), name).map(RawValue::get);
                assert_eq!(sent, kept.filter(|kept| *kept != "null"), "{name}: {document}");
            }
            let parsed = parsed.unwrap();
            let document: Value = serde_json::from_str(&document).unwrap();
            assert_eq!(
                (&document["actionType"], &document["sessionId"]),
                (&parsed["actionType"], &parsed["sessionId"])
            );
            assert_eq!(
                (&document["userId"], &document["tenantId"]),
                (&json!(USER), &json!(TENANT))
            );
        }
        3 => {
            let sent = field(body, "inputData").map(RawValue::get).filter(|sent| *sent != "null");
            let kept = field(kept, "inputData").map(RawValue::get);
            assert_eq!(sent, kept.filter(|kept| *kept != "null"));
        }
        // 40.0 is the whole number 40.
        4 => assert_eq!(data["progress"].as_f64(), parsed.unwrap()["progress"].as_f64()),
        5 => {
            let sent = std::str::from_utf8(body).unwrap().trim_ascii();
            let kept = field(kept, "resultData").map(RawValue::get).unwrap();
            assert_eq!(if sent.is_empty() { "null" } else { sent }, kept);
            TASK.lock().unwrap().take();
        }
        6 => {
            assert_eq!(data["status"], "FAILED");
            TASK.lock().unwrap().take();
        }
        _ => {
            let plan = data["planSteps"].as_str().unwrap();
            let plan: Vec<Value> = serde_json::from_str(plan).unwrap();
            assert!(plan.len() <= 1000 && plan.iter().all(Value::is_object));
            if plan.len() > 900 {
                TASK.lock().unwrap().take();
            }
        }
    }
});
