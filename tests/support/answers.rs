//! The answer to a call: its status, headers and envelope, and checks of them. `assert` checks status
//! and error code, `assert_agrees` that the answer agrees with the recorded decision.

use std::collections::BTreeMap;
use std::time::Duration;

use aura_hitl::domain::decision::State;
use aura_hitl::domain::record::Record;
use reqwest::{Response, StatusCode};
use serde_json::Value;

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub body: Value,
}

/// Repeats a call while the service answers that it is busy and did nothing, as the contract tells
/// clients to.
pub async fn until_there_is_room(mut call: impl AsyncFnMut() -> Answer) -> Answer {
    for _attempt in 0..60 {
        let answer = call().await;
        let message = answer.body["message"].as_str().unwrap_or("");
        if !(answer.code() == "E5000" && message.contains("nothing was decided")) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the service has had no room for 30 s");
}

impl Answer {
    /// Reads the whole answer; of a stream, the events of the first 200 ms.
    pub async fn of(mut response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let is_stream = headers.get("Content-Type").is_some_and(|kind| kind == "text/event-stream");
        let text = if is_stream {
            let mut text = String::new();
            let reading = async {
                while let Ok(Some(some)) = response.chunk().await {
                    text += std::str::from_utf8(&some).unwrap();
                }
            };
            let _goes_on = tokio::time::timeout(Duration::from_millis(200), reading).await;
            text.replace(": keep-alive\n\n", "")
        } else {
            response.text().await.unwrap()
        };
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { status, headers, text, body }
    }

    pub fn code(&self) -> &str {
        self.body["errorCode"].as_str().unwrap_or("")
    }

    pub fn data(&self) -> &Value {
        &self.body["data"]
    }

    /// Checks status and error code at once.
    #[track_caller]
    pub fn assert(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.code()), (status, code), "{}", self.text);
        self
    }

    /// The body without the fields that differ from call to call.
    pub fn bare(&self) -> Value {
        let mut body = self.body.clone();
        for field in ["timestamp", "traceId"] {
            body.as_object_mut().unwrap().remove(field);
        }
        body
    }

    /// The exact answer as its caller sees it, without its times.
    pub fn seen(&self) -> (StatusCode, BTreeMap<String, String>, String) {
        // The CORS middleware names the exposed headers in any order.
        let differs = ["date", "access-control-expose-headers"];
        let headers = self.headers.iter().filter(|(name, _)| !differs.contains(&name.as_str()));
        let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}")));
        let time = self.body["timestamp"].as_str().unwrap_or("no time");
        (self.status, headers.collect(), self.text.replace(time, ""))
    }

    /// Checks that this answer agrees with the recorded decision: a success for the person who made
    /// it, and for everybody else a conflict that names it.
    #[track_caller]
    pub fn assert_agrees(&self, record: &Record, user: &str, verdict: &str) {
        let State::Decided(standing) = &record.state else { panic!("undecided: {record:?}") };
        let stands = standing.verdict.status();
        if standing.by.as_str() == user && stands == verdict {
            self.assert(200, "");
        } else {
            self.assert(409, "E3006");
            assert_eq!(self.data()["decidedBy"], standing.by.as_str());
        }
        assert_eq!(self.data()["status"], stands);
        assert_eq!(self.data()["reason"].as_str(), standing.verdict.reason());
    }
}
