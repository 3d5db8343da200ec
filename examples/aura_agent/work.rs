//! The agent's work on a prompt: the scripts, the approval request and the wait for its answer, and the
//! reports to the service. The parent module sends events to the frontend.

use std::time::Duration;

use futures_util::StreamExt as _;
use redis::RedisResult;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{ANSWER_TIMEOUT, Agent, Person, Prompt, Run};

/// How often to ask the service while Pub/Sub seems to work, and while it does not.
const POLL_INTERVAL_SUBSCRIBED: Duration = Duration::from_secs(10);
const POLL_INTERVAL_UNSUBSCRIBED: Duration = Duration::from_secs(1);
/// How often a call of the service is tried.
const MAX_ATTEMPTS: u32 = 5;
/// How sure the agent is of an action that needs approval.
const CONFIDENCE_WITH_APPROVAL: f64 = 0.75;
const TASKS: [&str; 3] = ["main", "agent", "tasks"];

/// Words of the prompt, the script's name, its plan, and the final content.
pub struct Script(pub &'static str, pub &'static str, &'static [Step], &'static [&'static str]);

/// The step's description, its tool, whether it needs approval, and the event that ends the run if the
/// step fails. The tool's name is the request's `actionType`.
pub struct Step(&'static str, &'static str, bool, Option<&'static str>);

const READ: Step = Step("Collect the mails", "read_mail", false, None);
const SEND: Step = Step("Send the summary", "send_email", true, None);
const DELETE: Step = Step("Delete the old files", "delete_files", true, None);
const FAIL: Step = Step("Collect the mails", "read_mail", false, Some("failed"));
const BREAK: Step = Step("Collect the mails", "read_mail", false, Some("error"));

pub const SCRIPTS: [Script; 7] = [
    Script("two approvals", "asks twice in one session", &[READ, SEND, DELETE], &["All ", "done."]),
    Script("delete files", "asks for delete_files", &[DELETE], &["3 files ", "are gone."]),
    Script("no approval", "only reads; nobody is asked", &[READ], &["You have ", "3 new mails."]),
    Script("slowly", "nobody is asked; content in 20 pieces", &[READ], &["Another mail. "; 20]),
    Script("fail", "a tool fails: failed", &[FAIL, SEND], &[]),
    Script("break", "the agent itself breaks: error", &[BREAK, SEND], &[]),
    Script("send a mail", "asks for send_email; as any other", &[READ, SEND], &["It is ", "sent."]),
];

/// Why a run ends early: the event for the frontend, and the error message for the task.
struct Stop {
    event: &'static str,
    why: String,
    note: Option<String>,
}

/// The answer to a request; `None` when nobody decided it.
type Answer = Option<Result<(), Stop>>;

impl Run {
    fn think(&self, kind: &str, content: &str) {
        self.emit("thought", json!({ "thoughtType": kind, "content": content }));
    }

    fn use_tool(&self, Step(_, tool, gated, _): &Step, status: &str) {
        let data = json!({
            "toolName": tool, "tool": tool, "status": status, "requiresApproval": gated,
        });
        self.emit("tool_execution", data);
    }
}

impl Agent {
    pub async fn play(&self, run: &Run, Prompt { prompt, context }: Prompt) {
        let [.., otherwise] = &SCRIPTS;
        let script = SCRIPTS.iter().find(|script| prompt.contains(script.0)).unwrap_or(otherwise);
        run.emit("start", json!({ "message": "On it.", "sessionId": run.session }));
        let task = json!({
            "taskType": script.0.replace(' ', "_"), "description": prompt, "inputData": context,
            "userId": run.person.user, "tenantId": run.person.tenant,
        });
        let made = self.call(run, Method::POST, self.url(&TASKS), &task).await;
        let Some(task) = made.pointer("/data/taskId").and_then(Value::as_str) else {
            return run.end("error", json!({ "error": format!("The task was refused: {made}") }));
        };
        self.report(run, Method::POST, task, "start", &Value::Null).await;
        match self.perform(run, script, task).await {
            Ok(result) => {
                self.report(run, Method::POST, task, "complete", &result).await;
                run.end("end", json!({ "message": "Done.", "taskId": task }));
            }
            Err(Stop { event, why, note }) => {
                let note = json!({ "errorMessage": note });
                self.report(run, Method::POST, task, "fail", &note).await;
                run.end(event, json!({ "error": why, "taskId": task }));
            }
        }
    }

    async fn perform(&self, run: &Run, script: &Script, task: &str) -> Result<Value, Stop> {
        let Script(.., steps, content) = script;
        run.think("analysis", "What is asked, and what does it need?");
        run.think("planning", "One step after the other.");
        let plan = steps.iter().enumerate().map(|(at, step)| shown(at, step, "pending"));
        let plan = plan.inspect(|step| run.emit("plan_step", step.clone())).collect::<Vec<_>>();
        self.report(run, Method::PUT, task, "plan-steps", &plan.into()).await;
        for (at, step) in steps.iter().enumerate() {
            run.think("reasoning", step.0);
            let taken = self.take(run, task, at, step).await;
            let status = if taken.is_ok() { "completed" } else { "failed" };
            run.use_tool(step, status);
            self.advance(run, task, at, step, status).await;
            taken?;
            let progress = json!({ "progress": (at + 1) * 90 / steps.len() });
            self.report(run, Method::PATCH, task, "progress", &progress).await;
        }
        for piece in *content {
            run.emit("content", json!({ "content": piece }));
            self.pause().await;
        }
        run.think("reflection", "That is what was asked for.");
        Ok(json!({ "content": content.concat() }))
    }

    /// Runs one step, after approval if the step needs it.
    async fn take(&self, run: &Run, task: &str, at: usize, step: &Step) -> Result<(), Stop> {
        let Step(_, tool, gated, ends) = step;
        if *gated {
            run.think("decision", "Not without a person's leave.");
            run.use_tool(step, "waiting");
            self.advance(run, task, at, step, "waiting").await;
            let answer = self.ask(run, task, tool).await;
            let answer = answer.map_err(|error| Stop::new("error", format!("Redis: {error}")))?;
            let nobody = || Stop::new("failed", format!("Nobody decided on {tool} in time."));
            answer.ok_or_else(nobody)??;
        }
        self.advance(run, task, at, step, "in_progress").await;
        run.use_tool(step, "running");
        self.pause().await;
        ends.map_or(Ok(()), |event| Err(Stop::new(event, format!("{tool} did not work."))))
    }

    async fn pause(&self) {
        sleep(Duration::from_millis(self.settings.pace_millis)).await;
    }

    /// Asks a person, as the contract has it.
    async fn ask(&self, run: &Run, task: &str, action: &str) -> RedisResult<Answer> {
        let random = Uuid::new_v4();
        let id = format!("req_{:.12}", random.simple().to_string());
        let (session, Person { user, tenant }) = (&run.session, &run.person);
        let context = match action {
            "delete_files" => json!({ "paths": ["a.txt", "b.txt", "c.txt"] }),
            _ => json!({ "to": "team@example.com", "subject": "Weekly summary" }),
        };
        let request = json!({
            "requestId": id, "sessionId": session, "actionType": action, "context": context,
            "status": "pending", "userId": user, "tenantId": tenant, "taskId": task,
            // No time, but a random number: that is how Aura writes it.
            "createdAt": random.as_u64_pair().0 >> 30,
        });
        let pointer =
            json!({ "sessionId": session, "requestId": id, "userId": user, "tenantId": tenant });
        let mut link = self.redis.get_multiplexed_async_connection().await?;
        let request = (format!("hitl:request:{id}"), request.to_string(), 1800);
        let pointer = (format!("hitl:session:{session}"), pointer.to_string(), 3600);
        for (key, value, seconds) in [request, pointer] {
            let mut set = redis::cmd("SET");
            set.arg(key).arg(value).arg("EX").arg(seconds).query_async::<()>(&mut link).await?;
        }
        let question = format!("May I {}?", action.replace('_', " "));
        let mut asked = json!({
            "requestId": id, "id": id, "sessionId": session, "actionType": action, "action": action,
            "message": question, "context": context, "params": context,
            "confidence": CONFIDENCE_WITH_APPROVAL,
        });
        let nested = asked.clone();
        if let Value::Object(asked) = &mut asked {
            asked.insert("version".to_owned(), "1.0".into());
            asked.insert("event".to_owned(), "hitl_request".into());
            asked.insert("data".to_owned(), nested);
        }
        run.emit("hitl", asked);
        let waiting = async {
            loop {
                match self.listen(run, &id).await {
                    Ok(Some(answer)) => return Some(answer),
                    Ok(None) => eprintln!("aura_agent: lost the connection to Redis"),
                    Err(error) => eprintln!("aura_agent: cannot listen: {error}"),
                }
                let answer = self.poll(run, &id).await;
                if answer.is_some() {
                    return answer;
                }
                sleep(POLL_INTERVAL_UNSUBSCRIBED).await;
            }
        };
        match timeout(Duration::from_secs(self.settings.patience_seconds), waiting).await {
            Ok(answer) => Ok(answer),
            Err(_) => Ok(timeout(ANSWER_TIMEOUT, self.withdraw(run, &id)).await.unwrap_or(None)),
        }
    }

    /// Waits on the session's channel. `None`: the connection is lost.
    async fn listen(&self, run: &Run, id: &str) -> RedisResult<Answer> {
        let connecting = async {
            let mut pubsub = self.redis.get_async_pubsub().await?;
            pubsub.subscribe(format!("hitl:channel:{}", run.session)).await?;
            // No message is missed from now on; an earlier signal is under the key.
            let mut link = self.redis.get_multiplexed_async_connection().await?;
            let mut get = redis::cmd("GET");
            get.arg(format!("hitl:signal:{}", run.session));
            RedisResult::Ok((pubsub, get.query_async::<Option<String>>(&mut link).await?))
        };
        let Ok(connected) = timeout(ANSWER_TIMEOUT, connecting).await else { return Ok(None) };
        let (mut pubsub, signal) = connected?;
        let mut found = answer(signal, id);
        let mut messages = pubsub.on_message();
        while found.is_none() {
            found = match timeout(POLL_INTERVAL_SUBSCRIBED, messages.next()).await {
                Ok(Some(message)) => answer(message.get_payload().ok(), id),
                Ok(None) => return Ok(None),
                Err(_) => self.poll(run, id).await,
            };
        }
        Ok(found)
    }

    async fn poll(&self, run: &Run, id: &str) -> Answer {
        let mut url = self.url(&["aura", "hitl", "signals", &run.session]);
        url.query_pairs_mut().append_pair("requestId", id);
        let reply = self.call(run, Method::GET, url, &Value::Null).await;
        answer(reply.get("data")?.as_str().map(ToOwned::to_owned), id)
    }

    /// Withdraws the request, so that nobody decides it after the agent stopped waiting. A decision
    /// that was made first counts.
    async fn withdraw(&self, run: &Run, id: &str) -> Answer {
        let url = self.url(&["aura", "hitl", "requests", id, "cancel"]);
        let reason = json!({ "reason": "Nobody decided in time." });
        let reply = self.call(run, Method::POST, url, &reason).await;
        let standing = answer(reply.get("data").map(Value::to_string), id);
        if standing.is_some() { standing } else { self.poll(run, id).await }
    }

    /// Shows a step's new state to the frontend and to the task, in the same words.
    async fn advance(&self, run: &Run, task: &str, at: usize, step: &Step, status: &str) {
        let step = shown(at, step, status);
        run.emit("plan_step_update", step.clone());
        self.report(run, Method::POST, task, "plan-steps", &step).await;
    }

    /// Reports the task's state to the service. A failure does not stop the work.
    async fn report(&self, run: &Run, method: Method, task: &str, what: &str, body: &Value) {
        let url = self.url(&[&TASKS, [task, what].as_slice()].concat());
        let answer = self.call(run, method, url, body).await;
        if answer.get("success") != Some(&Value::Bool(true)) {
            eprintln!("aura_agent: {task}: {what}: {answer}");
        }
    }

    /// Calls until the service answers. Repeating a call changes nothing, except that a second task may
    /// be created that is never started.
    async fn call(&self, run: &Run, method: Method, url: Url, body: &Value) -> Value {
        let mut failure = Value::Null;
        for attempt in 1..=MAX_ATTEMPTS {
            let mut request = self.http.request(method.clone(), url.clone());
            for (name, value) in &run.headers {
                request = request.header(*name, value);
            }
            request = request.header("X-DWP-Source", "AURA").header("X-DWP-Caller-Type", "AGENT");
            if !body.is_null() {
                request = request.json(body);
            }
            match request.send().await {
                Ok(reply) if !reply.status().is_server_error() => {
                    return reply.json().await.unwrap_or_default();
                }
                Ok(reply) => failure = reply.status().as_str().into(),
                Err(error) => failure = error.to_string().into(),
            }
            sleep(Duration::from_millis(200) * attempt).await;
        }
        failure
    }

    /// An address of the service. Session ids hold whatever a user id holds: each part is encoded.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.settings.service_url.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        url
    }
}

/// A step in the form for the frontend and the task. Steps that need approval have less confidence.
fn shown(at: usize, Step(description, _, gated, _): &Step, status: &str) -> Value {
    let confidence = if *gated { CONFIDENCE_WITH_APPROVAL } else { 0.95 };
    let id = format!("step-{}", at + 1);
    json!({
        "stepId": id, "id": id, "description": description, "title": description,
        "status": status, "confidence": confidence,
    })
}

impl Stop {
    fn new(event: &'static str, why: String) -> Self {
        Self { event, note: Some(why.clone()), why }
    }
}

/// A signal, if it answers this request: key and channel serve the whole session.
fn answer(signal: Option<String>, id: &str) -> Answer {
    let signal: Value = serde_json::from_str(&signal?).ok()?;
    let text = |name: &str| signal.get(name).and_then(Value::as_str);
    let why = || format!("Refused: {}", text("reason").unwrap_or(""));
    match text("status") {
        _ if text("requestId") != Some(id) => None,
        Some("approved") => Some(Ok(())),
        // The service has written the rejecter and the reason into the task.
        Some("rejected") => Some(Err(Stop { event: "error", why: why(), note: None })),
        _ => None,
    }
}
