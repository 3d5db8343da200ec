//! `aura-hitl demo`: an agent asks, a person decides, the agent goes on. Runs the real service with
//! SQLite in a temporary folder.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::text::{Language, Text};
use crate::config::Config;
use crate::domain::approver::Role;
use crate::domain::clock::Clock;
use crate::domain::ids::{RequestId, TaskId, TenantId, UserId};
use crate::domain::task::Task;
use crate::identity;
use crate::server::Replica;

/// Prints one line. Ignores a closed pipe, as of `demo | head`.
macro_rules! line {
    ($($words:tt)*) => {
        let _unread = writeln!(std::io::stdout(), $($words)*);
    };
}

/// How long the agent waits for a decision, as Aura does.
const DECISION_TIMEOUT: Duration = Duration::from_mins(5);
const USER: &str = "user123";
const TENANT: &str = "tenant1";

/// Plays an approval and a rejection.
///
/// # Errors
/// When a step fails: then the demo has found a fault.
pub async fn run(interactive: bool) -> anyhow::Result<()> {
    let folder = TempDir::new().context("cannot make a temporary folder")?;
    let config = Config::embedded_in(folder.path())?;
    let replica = Replica::start(&config, Clock::System).await?;
    let token = identity::mint(
        &config.jwt,
        &UserId::parse(USER)?,
        &TenantId::parse(TENANT)?,
        Role::User,
        3600,
    )?;
    let stage = Stage {
        client: Client::builder().timeout(Duration::from_secs(10)).build()?,
        base: format!("http://{}", replica.address),
        token,
        language: Language::of_terminal(),
        interactive,
        replica: &replica,
    };
    let played = stage.play().await;
    replica.stop().await;
    played
}

struct Stage<'a> {
    client: Client,
    base: String,
    token: String,
    language: Language,
    interactive: bool,
    replica: &'a Replica,
}

impl Stage<'_> {
    async fn play(&self) -> anyhow::Result<()> {
        self.say(
            &format!("aura-hitl runs at {} on SQLite, nothing else.", self.base),
            &format!("aura-hitl이 {} 에서 SQLite만으로 실행 중입니다.", self.base),
        );
        self.title("1. The agent wants to send a mail", "1. 에이전트가 메일을 보내려고 합니다");
        self.approval().await?;
        self.title("2. The agent wants to delete files", "2. 에이전트가 파일을 삭제하려고 합니다");
        self.rejection().await?;
        self.say("That is all. Nothing is left behind.", "끝났습니다. 남는 것은 없습니다.");
        Ok(())
    }

    /// An agent with a task and a plan, whose request is approved.
    async fn approval(&self) -> anyhow::Result<()> {
        let session = "session_user123_1706149260";
        self.say(
            "The agent reports its task and its plan:",
            "에이전트가 작업과 계획을 등록합니다:",
        );
        let task = json!({
            "taskType": "mail_summary", "userId": USER, "tenantId": TENANT,
            "description": "Send the weekly summary", "inputData": { "folder": "INBOX" },
        });
        let task = self.call(Method::POST, "/main/agent/tasks", Some(task)).await?;
        let task_id = field(&task, "/data/taskId")?;
        let task_path = format!("/main/agent/tasks/{task_id}");
        self.call(Method::POST, &format!("{task_path}/start"), None).await?;
        let plan = json!([
            { "stepId": "step-1", "description": "Collect mails", "status": "completed", "confidence": 0.95 },
            { "stepId": "step-2", "description": "Send summary", "status": "waiting", "confidence": 0.85 },
        ]);
        self.call(Method::PUT, &format!("{task_path}/plan-steps"), Some(plan)).await?;

        self.say("It asks before it sends:", "보내기 전에 승인을 요청합니다:");
        let request = json!({
            "sessionId": session, "actionType": "send_email", "taskId": task_id,
            "message": "Send the summary to team@example.com?",
            "context": { "to": "team@example.com", "subject": "Weekly summary" },
        });
        let request = self.call(Method::POST, "/aura/hitl/requests", Some(request)).await?;
        let request_id = field(&request, "/data/requestId")?;
        self.decide("approve", &request_id, json!({ "userId": USER })).await?;
        let signal = self.wait_for_signal(session, &request_id).await?;

        if field(&signal, "/status")? == "approved" {
            self.say("The agent goes on and finishes:", "에이전트가 작업을 이어서 마칩니다:");
            let step = json!({ "type": "plan_step_update", "data": { "id": "step-2", "status": "completed" } });
            self.call(Method::POST, &format!("{task_path}/plan-steps"), Some(step)).await?;
            self.call(Method::POST, &format!("{task_path}/complete"), Some(json!({ "sent": 1 })))
                .await?;
        }
        self.show_row(&task_id).await
    }

    /// An agent without a task, whose request is rejected.
    async fn rejection(&self) -> anyhow::Result<()> {
        let session = "session_user123_1706149999";
        let request = json!({
            "sessionId": session, "actionType": "delete_files",
            "message": "Delete 3 files from the archive?",
            "context": { "paths": ["a.txt", "b.txt", "c.txt"] },
        });
        let request = self.call(Method::POST, "/aura/hitl/requests", Some(request)).await?;
        let request_id = field(&request, "/data/requestId")?;
        let body = json!({ "userId": USER, "reason": "아직 필요한 파일입니다" });
        self.decide("reject", &request_id, body).await?;
        self.wait_for_signal(session, &request_id).await?;
        let (tenant, id) = (TenantId::parse(TENANT)?, RequestId::parse(request_id)?);
        let record = self.replica.state.ledger.find_request(&tenant, &id).await?;
        let record = record.context("the request is not in the ledger")?;
        self.show_row(record.task.as_str()).await
    }

    async fn decide(&self, verb: &str, request_id: &str, body: Value) -> anyhow::Result<()> {
        let path = |verb: &str| format!("/aura/hitl/{verb}/{request_id}");
        if !self.interactive {
            self.say("The person clicks:", "사용자가 버튼을 누릅니다:");
            self.call(Method::POST, &path(verb), Some(body)).await?;
            return Ok(());
        }
        self.say(
            "It is up to you. Paste one of these into another terminal:",
            "결정해 주세요. 다른 터미널에 다음 중 하나를 붙여 넣으세요:",
        );
        let approve = json!({ "userId": USER });
        let reject = json!({ "userId": USER, "reason": "사용자 거절" });
        for (verb, body) in [("approve", approve), ("reject", reject)] {
            line!(
                "\ncurl -X POST {}{} -H 'Authorization: Bearer {}' -H 'X-Tenant-ID: {TENANT}' \
                 -H 'X-User-ID: {USER}' -H 'Content-Type: application/json' -d '{body}'",
                self.base,
                path(verb),
                self.token
            );
        }
        line!("");
        Ok(())
    }

    /// Polls for the signal, as an agent without Redis does.
    async fn wait_for_signal(&self, session: &str, request_id: &str) -> anyhow::Result<Value> {
        let path = format!("/aura/hitl/signals/{session}?requestId={request_id}");
        let waiting = async {
            loop {
                let answer = self.send(Method::GET, &path, None).await?;
                let answer: Value = serde_json::from_str(&answer)?;
                if answer.pointer("/data").is_some() {
                    return anyhow::Ok(answer);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let answer = tokio::time::timeout(DECISION_TIMEOUT, waiting)
            .await
            .context("nobody decided in 300 s")??;
        self.say("The agent is woken by this signal:", "에이전트가 다음 신호를 받습니다:");
        line!("  GET {path}");
        let signal = field(&answer, "/data")?;
        line!("  {signal}\n");
        Ok(serde_json::from_str(&signal)?)
    }

    async fn show_row(&self, task_id: &str) -> anyhow::Result<()> {
        let tenant = TenantId::parse(TENANT)?;
        let task = self.replica.state.ledger.find_task(&tenant, &TaskId::parse(task_id)?).await?;
        let task = task.context("the task is not in the ledger")?;
        self.say(
            "This is the row that admins find in agent_task:",
            "관리자가 agent_task에서 보는 행입니다:",
        );
        for (column, value) in row(&task) {
            line!("  {column:<16}| {value}");
        }
        line!("");
        Ok(())
    }

    /// Sends one HTTP call and prints it with its answer.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        line!("  {method} {path}");
        if let Some(body) = &body {
            line!("  {body}");
        }
        let answer = self.send(method, path, body).await?;
        line!("  → {answer}\n");
        Ok(serde_json::from_str(&answer)?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<String> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.token)
            .header("X-Tenant-ID", TENANT)
            .header("X-User-ID", USER);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status();
        let answer = response.text().await?;
        ensure!(status.is_success(), "{path} answers {status}: {answer}");
        Ok(answer)
    }

    fn title(&self, en: &'static str, ko: &'static str) {
        line!("── {} ──\n", Text::new(en, ko).in_language(self.language));
    }

    fn say(&self, en: &str, ko: &str) {
        line!("{}", Text::new(en.to_owned(), ko.to_owned()).in_language(self.language));
    }
}

fn field(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(ToOwned::to_owned).with_context(|| format!("no {pointer} in {value}"))
}

fn row(task: &Task) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let time =
        |at: Option<chrono::DateTime<chrono::Utc>>| at.map(|at| at.to_string()).unwrap_or_default();
    vec![
        ("task_id", task.id.to_string()),
        ("user_id", task.user.to_string()),
        ("tenant_id", task.tenant.to_string()),
        ("task_type", task.task_type.clone()),
        ("status", task.status.as_str().to_owned()),
        ("progress", task.progress.to_string()),
        ("description", text(&task.description)),
        ("input_data", text(&task.input_data)),
        ("result_data", text(&task.result_data)),
        ("plan_steps", task.plan_steps.clone()),
        (
            "hitl_request_id",
            task.hitl_request_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("error_message", text(&task.error_message)),
        ("started_at", time(task.started_at)),
        ("completed_at", time(task.completed_at)),
        ("created_at", task.created_at.to_string()),
        ("updated_at", task.updated_at.to_string()),
    ]
}
