//! `aura-hitl demo --inbox`: three scripted agents ask for different things, and a person decides on the
//! inbox page. The payment needs two people, by the rules of a policy file. Runs the real service with
//! SQLite in a temporary folder, until Ctrl-C.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::api::page;
use crate::api::text::{Language, Text};
use crate::config::Config;
use crate::domain::approver::Role;
use crate::domain::clock::Clock;
use crate::domain::ids::{TenantId, UserId};
use crate::identity;
use crate::policy::Policy;
use crate::server::Replica;

/// The person who decides, for whom two of the agents act, too.
const USER: &str = "user123";
/// The second person whom the payment needs.
const SECOND: &str = "kim";
/// The person for whom the payment agent acts: nobody approves their own payment.
const PAYER: &str = "lee";
const TENANT: &str = "tenant1";
/// How long the token and the requests last.
const VISIT_SECONDS: i64 = 8 * 3600;
/// How long each step of an agent's work takes.
const STEP_DURATION: Duration = Duration::from_millis(1500);
/// How long one call waits for a decision, in seconds.
const WAIT_SECONDS: u32 = 25;

/// Starts the service and the agents, prints the link, and runs until Ctrl-C.
///
/// # Errors
/// When the service cannot start, or a call of an agent fails: then the demo has found a fault.
pub async fn run() -> anyhow::Result<()> {
    let folder = TempDir::new().context("cannot make a temporary folder")?;
    let language = Language::of_terminal();
    let mut config = Config::embedded_in(folder.path())?;
    let rules = Policy::read(&rules(language)).context("the demo's rules are wrong")?;
    config.policy_file = Some(Arc::new(rules));
    let replica = Replica::start(&config, Clock::System).await?;
    let tenant = TenantId::parse(TENANT)?;
    let token = |user: &str| -> anyhow::Result<String> {
        identity::mint(&config.jwt, &UserId::parse(user)?, &tenant, Role::User, VISIT_SECONDS)
    };
    let agents = Agents {
        client: Client::builder().timeout(Duration::from_mins(1)).build()?,
        base: format!("http://{}", replica.address),
        token: token(USER)?,
        second_token: token(SECOND)?,
        payer_token: token(PAYER)?,
        language,
    };
    let played = tokio::select! {
        played = agents.play() => played,
        stopped = tokio::signal::ctrl_c() => stopped.context("cannot wait for Ctrl-C"),
    };
    replica.stop().await;
    played
}

/// The policy file: two people for a payment, anybody for the rest.
fn rules(language: Language) -> String {
    let name = |en: &'static str, ko: &'static str| Text::new(en, ko).in_language(language);
    let payment = name("payments need two people", "결제는 두 사람이 승인");
    let rest = name("everything else", "그 밖의 요청");
    format!(
        r#"
[[rule]]
name = "{payment}"
when = 'actionType == "send_payment"'
risk = "high"
approvers = ["user:{USER}", "user:{SECOND}"]
quorum = 2
self_approval = false

[[rule]]
name = "{rest}"
when = 'true'
approvers = ["tenant"]
decisions = ["approve", "reject", "edit"]
"#
    )
}

struct Agents {
    client: Client,
    base: String,
    /// Of [`USER`].
    token: String,
    /// Of [`SECOND`].
    second_token: String,
    /// Of [`PAYER`].
    payer_token: String,
    language: Language,
}

/// What an agent asks for, and what it does once it may.
struct Script {
    name: Text,
    /// For whom it acts.
    user: &'static str,
    /// The body of its request, without session and task.
    request: Value,
    steps: Vec<Text>,
}

impl Agents {
    async fn play(&self) -> anyhow::Result<()> {
        let link = |token: &str| format!("{}/api{}#token={token}", self.base, page::ADDRESS);
        let (first, second) = (link(&self.token), link(&self.second_token));
        self.say(&Text::new(
            format!(
                "Three agents ask. Decide here; you are signed in as {USER}:\n\n  {first}\n\n\
                 The payment needs two people. The second is {SECOND}, in another tab:\n\n  {second}\n"
            ),
            format!(
                "에이전트 셋이 승인을 요청합니다. 여기에서 결정하세요({USER} 계정으로 로그인됨):\n\n  {first}\n\n\
                 결제는 두 사람이 승인해야 합니다. 다른 탭에서 두 번째 사람({SECOND})으로 여세요:\n\n  {second}\n"
            ),
        ));
        let [mail, payment, files] = self.scripts();
        tokio::try_join!(self.work(1, mail), self.work(2, payment), self.work(3, files))?;
        self.say(&Text::new(
            "All three have ended. The history is on the page until Ctrl-C; nothing is left behind.",
            "셋 모두 끝났습니다. Ctrl-C를 누를 때까지 페이지에서 이력을 볼 수 있고, 그 뒤에는 아무것도 남지 않습니다.",
        ));
        std::future::pending().await
    }

    fn scripts(&self) -> [Script; 3] {
        let text = |en: &'static str, ko: &'static str| Text::new(en, ko);
        let word = |en, ko| self.words(&text(en, ko));
        [
            Script {
                user: USER,
                name: text("Mail agent", "메일 에이전트"),
                request: json!({
                    "actionType": "send_email",
                    "decisions": ["approve", "reject", "edit"],
                    "argumentsSchema": {
                        "type": "object",
                        "required": ["to", "subject", "body"],
                        "properties": {
                            "to": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
                            "cc": { "type": "array", "items": { "type": "string" } },
                            "subject": { "type": "string", "minLength": 1 },
                            "body": { "type": "string", "maxLength": 5000 },
                        },
                    },
                    "message": word("Send the weekly summary to the team?", "주간 요약을 팀에 보낼까요?"),
                    "context": {
                        "to": ["team@example.com"], "cc": [],
                        "subject": word("Weekly summary", "주간 요약"),
                        "body": word(
                            "Dear all,\n\n14 tickets were closed this week, 3 are open.\nThe release is on Thursday.\n\nBest regards",
                            "안녕하세요.\n\n이번 주에 14건을 처리했고 3건이 남았습니다.\n배포는 목요일입니다.\n\n감사합니다.",
                        ),
                    },
                }),
                steps: vec![
                    text("Write the summary", "요약 작성"),
                    text("Send the mail", "메일 발송"),
                    text("File a copy", "사본 보관"),
                ],
            },
            Script {
                user: PAYER,
                name: text("Payment agent", "결제 에이전트"),
                request: json!({
                    "actionType": "send_payment",
                    "message": word("Pay invoice 2026-1147 of Hanbit Print?", "한빛인쇄의 청구서 2026-1147을 결제할까요?"),
                    "context": {
                        "payee": word("Hanbit Print Co.", "한빛인쇄 주식회사"), "account": "110-234-567890",
                        "amount": 1_250_000, "currency": "KRW", "invoice": "2026-1147",
                        "items": [
                            { "name": word("Brochures", "안내 책자"), "count": 500, "price": 2000 },
                            { "name": word("Posters", "포스터"), "count": 100, "price": 2500 },
                        ],
                    },
                }),
                steps: vec![
                    text("Check the invoice", "청구서 확인"),
                    text("Make the payment", "결제 실행"),
                ],
            },
            Script {
                user: USER,
                name: text("File agent", "파일 에이전트"),
                request: json!({
                    "actionType": "delete_files",
                    "message": word("Delete 3 old files from the archive?", "보관함에서 오래된 파일 3개를 삭제할까요?"),
                    "context": {
                        "paths": ["/archive/2019/report.pdf", "/archive/2019/invoice\u{202e}fdp.exe", "/archive/2020/notes.txt"],
                        "canBeUndone": false,
                    },
                }),
                steps: vec![
                    text("Find old files", "오래된 파일 찾기"),
                    text("Delete them", "삭제"),
                ],
            },
        ]
    }

    /// One agent: does the first step of its plan, asks, and does the others if it may.
    async fn work(&self, number: u32, script: Script) -> anyhow::Result<()> {
        let Script { name, user, mut request, steps } = script;
        let task = json!({
            "taskType": request.pointer("/actionType"), "userId": user, "tenantId": TENANT,
            "description": request.pointer("/message"), "inputData": request.pointer("/context"),
        });
        let task = self.call(user, Method::POST, "/main/agent/tasks", Some(task)).await?;
        let task = text_at(&task, "/data/taskId")?;
        let task_path = format!("/main/agent/tasks/{task}");
        self.call(user, Method::POST, &format!("{task_path}/start"), None).await?;
        self.report(user, &task_path, &steps, 1, "waiting").await?;
        if let Some(fields) = request.as_object_mut() {
            fields.insert("sessionId".to_owned(), format!("session_{user}_{number}").into());
            fields.insert("taskId".to_owned(), task.into());
            fields.insert("expiresInSeconds".to_owned(), VISIT_SECONDS.into());
            fields.insert("planSteps".to_owned(), self.plan(&steps, 1, "waiting"));
        }
        let asked = self.call(user, Method::POST, "/aura/hitl/requests", Some(request)).await?;
        let id = text_at(&asked, "/data/requestId")?;
        self.tell(&name, &Text::new("waits for you", "결정을 기다립니다"));
        let decision = self.wait(user, &id).await?;
        let by = decision.pointer("/decidedBy").and_then(Value::as_str).unwrap_or_default();
        if decision.pointer("/status").and_then(Value::as_str) != Some("approved") {
            let reason = decision.pointer("/reason").and_then(Value::as_str).unwrap_or_default();
            self.tell(
                &name,
                &Text::new(
                    format!("stops: not approved ({by}: {reason})"),
                    format!("중단: 승인되지 않음 ({by}: {reason})"),
                ),
            );
            let body = Some(json!({ "errorMessage": reason }));
            self.call(user, Method::POST, &format!("{task_path}/fail"), body).await?;
            return Ok(());
        }
        let approved = if decision.pointer("/arguments").is_some() {
            Text::new(
                format!("goes on: approved by {by}, with other arguments"),
                format!("계속 진행: {by} 승인(내용 수정됨)"),
            )
        } else {
            Text::new(format!("goes on: approved by {by}"), format!("계속 진행: {by} 승인"))
        };
        self.tell(&name, &approved);
        for done in 1..steps.len() {
            self.report(user, &task_path, &steps, done, "in_progress").await?;
            sleep(STEP_DURATION).await;
        }
        self.report(user, &task_path, &steps, steps.len(), "completed").await?;
        self.call(user, Method::POST, &format!("/aura/hitl/requests/{id}/ack"), None).await?;
        let result = Some(json!({ "steps": steps.len() }));
        self.call(user, Method::POST, &format!("{task_path}/complete"), result).await?;
        self.tell(&name, &Text::new("is done", "완료"));
        Ok(())
    }

    /// The plan when so many steps are done, and the next one has this status.
    fn plan(&self, steps: &[Text], done: usize, next: &str) -> Value {
        let step = |(place, text): (usize, &Text)| {
            let status = match place {
                place if place < done => "completed",
                place if place == done => next,
                _ => "pending",
            };
            json!({ "stepId": format!("step-{}", place + 1), "description": self.words(text), "status": status })
        };
        steps.iter().enumerate().map(step).collect()
    }

    async fn report(
        &self,
        user: &str,
        task: &str,
        steps: &[Text],
        done: usize,
        next: &str,
    ) -> anyhow::Result<()> {
        let plan = Some(self.plan(steps, done, next));
        self.call(user, Method::PUT, &format!("{task}/plan-steps"), plan).await?;
        if next == "in_progress" {
            let progress = Some(json!({ "progress": done * 100 / steps.len().max(1) }));
            self.call(user, Method::PATCH, &format!("{task}/progress"), progress).await?;
        }
        Ok(())
    }

    /// Waits until the request is no longer pending.
    async fn wait(&self, user: &str, id: &str) -> anyhow::Result<Value> {
        loop {
            let path = format!("/aura/hitl/requests/{id}/decision?waitSeconds={WAIT_SECONDS}");
            let answer = self.call(user, Method::GET, &path, None).await?;
            let decision = answer.pointer("/data").context("an answer without data")?;
            if decision.pointer("/status").and_then(Value::as_str) != Some("pending") {
                return Ok(decision.clone());
            }
        }
    }

    async fn call(
        &self,
        user: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let call = self.client.request(method, format!("{}{path}", self.base));
        let token = if user == PAYER { &self.payer_token } else { &self.token };
        let call = call.bearer_auth(token).header("X-Tenant-ID", TENANT);
        let call = match body {
            Some(body) => call.json(&body),
            None => call,
        };
        let response = call.send().await?;
        let status = response.status();
        let answer = response.text().await?;
        ensure!(status.is_success(), "{path} answers {status}: {answer}");
        Ok(serde_json::from_str(&answer)?)
    }

    fn tell(&self, name: &Text, what: &Text) {
        let (name, what) = (self.words(name), self.words(what));
        // A closed pipe, as of `demo --inbox | head`, is none of the demo's business.
        let _unread = writeln!(std::io::stdout(), "{name}: {what}");
    }

    fn say(&self, text: &Text) {
        let _unread = writeln!(std::io::stdout(), "{}", self.words(text));
    }

    fn words(&self, text: &Text) -> String {
        text.clone().in_language(self.language)
    }
}

fn text_at(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.map(ToOwned::to_owned).with_context(|| format!("no {pointer} in {value}"))
}
