//! A Slack of one's own. It checks every field of every call by the rules of Slack's public documentation
//! (<https://docs.slack.dev/reference/methods>, <https://docs.slack.dev/reference/block-kit>), keeps the
//! messages, and signs clicks as Slack does. The real service was not at hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use aura_hitl::domain::ids::TenantId;
use aura_hitl::notices::SlackSettings;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use serde_json::{Value, json};
use support::{TestApp, free_port};

/// The channel of the first tenant.
pub const CHANNEL: &str = "C0123";
pub const TOKEN: &str = "xoxb-canary-token";
pub const SIGNING_SECRET: &str = "canary-signing-secret";

/// What Slack has been told.
#[derive(Debug, Default)]
struct Told {
    /// By channel and id; a message that was deleted is not there.
    messages: BTreeMap<(String, String), Value>,
    /// Channel, person, text.
    private: Vec<(String, String, String)>,
    /// The arguments of `views.open`.
    dialogs: Vec<Value>,
    /// How often each method was called.
    calls: BTreeMap<String, usize>,
    /// What was wrong with calls.
    wrong: Vec<String>,
    /// Answers to the next calls, instead of the right ones.
    answers: VecDeque<Answer>,
    count: u32,
}

/// An answer of Slack that is no success.
#[derive(Clone, Debug)]
pub enum Answer {
    /// `{"ok":false,"error":…}`
    Error(&'static str),
    /// 429 with `Retry-After`.
    TooMany(u32),
    /// Another status.
    Status(u16),
    /// Spaces, and no end of them.
    Endless,
}

/// A message with buttons, as a person sees it.
#[derive(Clone, Debug)]
pub struct Message {
    pub channel: String,
    pub ts: String,
    pub content: Value,
}

impl Message {
    /// Every text in it.
    pub fn texts(&self) -> String {
        self.content.to_string()
    }

    /// The button of this id.
    pub fn button(&self, id: &str) -> Option<Value> {
        let blocks = self.content["blocks"].as_array().unwrap().iter();
        let mut buttons = blocks.filter_map(|block| block["elements"].as_array()).flatten();
        buttons.find(|button| button["action_id"] == id).cloned()
    }
}

pub struct Slack {
    port: u16,
    told: Arc<Mutex<Told>>,
}

impl Slack {
    pub fn start() -> Self {
        let (port, told) = (free_port(), Arc::<Mutex<Told>>::default());
        let kept = told.clone();
        let take = move |call: HttpRequest, method: web::Path<String>, body: String| {
            let answer = answer(&mut kept.lock().unwrap(), &call, &method, &body);
            async move { answer }
        };
        #[expect(clippy::disallowed_methods, reason = "these routes are not the service's")]
        let server =
            HttpServer::new(move || App::new().route("/api/{method}", web::to(take.clone())));
        tokio::spawn(server.workers(1).bind(("127.0.0.1", port)).unwrap().run());
        Self { port, told }
    }

    pub fn settings(&self) -> SlackSettings {
        SlackSettings {
            bot_token: TOKEN.into(),
            signing_secret: SIGNING_SECRET.into(),
            team: None,
            channels: [(TenantId::parse("tenant1").unwrap(), CHANNEL.to_owned())].into(),
            api_url: format!("http://127.0.0.1:{}/api", self.port).parse().unwrap(),
        }
    }

    pub fn messages(&self) -> Vec<Message> {
        let told = self.told.lock().unwrap();
        assert!(told.wrong.is_empty(), "{:#?}", told.wrong);
        let all = told.messages.iter();
        all.map(|((channel, ts), content)| Message {
            channel: channel.clone(),
            ts: ts.clone(),
            content: content.clone(),
        })
        .collect()
    }

    /// The messages about a request.
    pub fn about(&self, request: &str) -> Vec<Message> {
        let mut messages = self.messages();
        messages.retain(|message| message.texts().contains(request));
        messages
    }

    /// What was said to people alone, the latest last.
    pub fn private(&self) -> Vec<(String, String, String)> {
        self.told.lock().unwrap().private.clone()
    }

    pub fn dialogs(&self) -> Vec<Value> {
        self.told.lock().unwrap().dialogs.clone()
    }

    pub fn calls(&self, method: &str) -> usize {
        self.told.lock().unwrap().calls.get(method).copied().unwrap_or(0)
    }

    /// Answers the next calls like this.
    pub fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.told.lock().unwrap().answers.extend(answers);
    }
}

fn answer(told: &mut Told, call: &HttpRequest, method: &str, body: &str) -> HttpResponse {
    *told.calls.entry(method.to_owned()).or_default() += 1;
    let header = |name: &str| call.headers().get(name).map(|value| value.to_str().unwrap());
    let ok = |more: Value| {
        let mut answer = json!({ "ok": true });
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        HttpResponse::Ok().json(answer)
    };
    let error = |code: &str| HttpResponse::Ok().json(json!({ "ok": false, "error": code }));
    if call.method() != "POST" || header("content-type") != Some("application/json; charset=utf-8")
    {
        told.wrong.push(format!("{method}: {:?}", header("content-type")));
    }
    if header("authorization") != Some(&format!("Bearer {TOKEN}")) {
        return error("invalid_auth");
    }
    match told.answers.pop_front() {
        Some(Answer::Error(code)) => return error(code),
        Some(Answer::TooMany(seconds)) => {
            let answer = json!({ "ok": false, "error": "ratelimited" });
            return HttpResponse::TooManyRequests()
                .insert_header(("Retry-After", seconds.to_string()))
                .json(answer);
        }
        Some(Answer::Endless) => {
            let spaces = web::Bytes::from(vec![b' '; 64 * 1024]);
            let endless = futures_util::stream::repeat_with(move || {
                Ok::<_, std::convert::Infallible>(spaces.clone())
            });
            return HttpResponse::Ok().streaming(endless);
        }
        Some(Answer::Status(status)) => {
            return HttpResponse::build(status.try_into().unwrap()).body("<html>sorry</html>");
        }
        None => {}
    }
    let given: Value = serde_json::from_str(body).unwrap();
    let text = |name: &str| given[name].as_str().unwrap_or_default().to_owned();
    let mut wrong = Wrong { method: method.to_owned(), found: Vec::new() };
    let reply = match method {
        "chat.postMessage" => {
            wrong.keys(
                &given,
                &["channel", "text", "blocks"],
                &["unfurl_links", "unfurl_media", "parse", "link_names", "thread_ts"],
            );
            wrong.message(&given);
            told.count += 1;
            let ts = format!("1700000000.{:06}", told.count);
            // A message to a person is posted to the direct conversation.
            let channel = match text("channel") {
                user if user.starts_with('U') => format!("D{user}"),
                channel => channel,
            };
            let thread = text("thread_ts");
            if !thread.is_empty() && !told.messages.contains_key(&(channel.clone(), thread)) {
                wrong.found.push("thread_ts names no message".to_owned());
            }
            told.messages.insert((channel.clone(), ts.clone()), given.clone());
            ok(json!({ "channel": channel, "ts": ts, "message": {} }))
        }
        "chat.update" => {
            wrong.keys(&given, &["channel", "ts", "text", "blocks"], &["parse", "link_names"]);
            wrong.message(&given);
            match told.messages.get_mut(&(text("channel"), text("ts"))) {
                Some(message) => {
                    *message = given.clone();
                    ok(
                        json!({ "channel": given["channel"], "ts": given["ts"], "text": given["text"] }),
                    )
                }
                None => error("message_not_found"),
            }
        }
        "chat.postEphemeral" => {
            wrong.keys(&given, &["channel", "user", "text", "blocks"], &["parse", "link_names"]);
            wrong.message(&given);
            told.private.push((text("channel"), text("user"), text("text")));
            ok(json!({ "message_ts": "1700000000.999999" }))
        }
        "views.open" => {
            wrong.keys(&given, &["trigger_id", "view"], &[]);
            wrong.view(&given["view"]);
            told.dialogs.push(given.clone());
            ok(json!({ "view": { "id": "V1" } }))
        }
        _ => error("unknown_method"),
    };
    told.wrong.extend(wrong.found.iter().map(|found| format!("{method}: {found}: {body}")));
    reply
}

/// What is wrong with a call.
struct Wrong {
    method: String,
    found: Vec<String>,
}

impl Wrong {
    fn is(&mut self, right: bool, what: &str, value: &Value) {
        if !right {
            self.found.push(format!("{what}: {value}"));
        }
    }

    fn keys(&mut self, given: &Value, required: &[&str], optional: &[&str]) {
        let Some(fields) = given.as_object() else {
            self.found.push(format!("no object: {given}"));
            return;
        };
        let has = fields.keys().map(String::as_str).collect::<BTreeSet<_>>();
        let all = required.iter().chain(optional).copied().collect::<BTreeSet<_>>();
        self.is(required.iter().all(|name| has.contains(name)), "a field is missing", given);
        self.is(has.is_subset(&all), "a field is unknown", given);
    }

    fn message(&mut self, given: &Value) {
        let text = given["text"].as_str().unwrap_or_default();
        self.is((1..=4000).contains(&text.chars().count()), "the length of text", given);
        // Markup and mentions begin with <, entities with &.
        self.is(!text.contains(['<', '>']), "text has markup", given);
        let entities = ["&amp;", "&lt;", "&gt;"];
        let bare = entities.iter().fold(text.to_owned(), |text, entity| text.replace(entity, ""));
        self.is(!bare.contains('&'), "text has a bare &", given);
        self.blocks(&given["blocks"], 50);
    }

    fn blocks(&mut self, blocks: &Value, most: usize) {
        let Some(blocks) = blocks.as_array() else {
            self.found.push(format!("no blocks: {blocks}"));
            return;
        };
        self.is((1..=most).contains(&blocks.len()), "the number of blocks", &blocks.len().into());
        for block in blocks {
            match block["type"].as_str() {
                Some("header") => {
                    self.keys(block, &["type", "text"], &["block_id"]);
                    self.text(&block["text"], 150);
                }
                Some("section") if block.get("fields").is_some() => {
                    self.keys(block, &["type", "fields"], &["block_id"]);
                    let fields = block["fields"].as_array().unwrap();
                    self.is((1..=10).contains(&fields.len()), "the number of fields", block);
                    for field in fields {
                        self.text(field, 2000);
                    }
                }
                Some("section") => {
                    self.keys(block, &["type", "text"], &["block_id"]);
                    self.text(&block["text"], 3000);
                }
                Some("actions") => {
                    self.keys(block, &["type", "elements"], &["block_id"]);
                    let elements = block["elements"].as_array().unwrap();
                    self.is((1..=25).contains(&elements.len()), "the number of elements", block);
                    let ids =
                        elements.iter().map(|it| it["action_id"].as_str()).collect::<BTreeSet<_>>();
                    self.is(ids.len() == elements.len(), "an action_id twice", block);
                    for element in elements {
                        self.button(element);
                    }
                }
                Some("input") if self.method == "views.open" => self.input(block),
                _ => self.is(false, "an unknown block", block),
            }
        }
    }

    /// Only plain text, in which nothing is markup.
    fn text(&mut self, text: &Value, most: usize) {
        self.keys(text, &["type", "text"], &["emoji"]);
        self.is(text["type"] == "plain_text", "not plain_text", text);
        let length = text["text"].as_str().unwrap_or_default().encode_utf16().count();
        self.is((1..=most).contains(&length), "the length of a text", text);
    }

    fn short(&mut self, value: &Value, most: usize) {
        let length = value.as_str().unwrap_or_default().encode_utf16().count();
        self.is((1..=most).contains(&length), "the length of a value", value);
    }

    fn button(&mut self, button: &Value) {
        self.keys(button, &["type", "text", "action_id"], &["value", "style", "url"]);
        self.is(button["type"] == "button", "no button", button);
        self.text(&button["text"], 75);
        self.short(&button["action_id"], 255);
        for (name, most) in [("value", 2000), ("url", 3000)] {
            if let Some(value) = button.get(name) {
                self.short(value, most);
            }
        }
        if let Some(style) = button.get("style") {
            self.is(["primary", "danger"].contains(&style.as_str().unwrap()), "the style", button);
        }
    }

    fn input(&mut self, block: &Value) {
        self.keys(block, &["type", "label", "element"], &["block_id", "optional", "hint"]);
        self.text(&block["label"], 2000);
        self.short(&block["block_id"], 255);
        let element = &block["element"];
        self.keys(element, &["type"], &["action_id", "multiline", "max_length"]);
        self.is(element["type"] == "plain_text_input", "no input", element);
        self.short(&element["action_id"], 255);
        let longest = element["max_length"].as_u64().unwrap_or(1);
        self.is((1..=3000).contains(&longest), "max_length", element);
    }

    fn view(&mut self, view: &Value) {
        let required = ["type", "title", "blocks"];
        self.keys(view, &required, &["submit", "close", "callback_id", "private_metadata"]);
        self.is(view["type"] == "modal", "no modal", view);
        for name in ["title", "submit", "close"] {
            self.text(&view[name], 24);
        }
        self.short(&view["callback_id"], 255);
        self.short(&view["private_metadata"], 3000);
        self.blocks(&view["blocks"], 100);
    }
}

/// A click on a button of a message, as Slack sends it.
pub fn click(person: &str, message: &Message, button: &Value) -> Value {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let action_ts = format!("1700000001.{:06}", COUNT.fetch_add(1, Ordering::Relaxed));
    json!({
        "type": "block_actions",
        "user": { "id": person, "username": "somebody", "name": "somebody", "team_id": "T1" },
        "api_app_id": "A1", "token": "deprecated",
        "container": { "type": "message", "message_ts": message.ts, "channel_id": message.channel,
                       "is_ephemeral": false },
        "trigger_id": "12321423423.333649436676.d8c1bb837935619ccad0f624c448ffb3",
        "team": { "id": "T1", "domain": "acme" }, "enterprise": null, "is_enterprise_install": false,
        "channel": { "id": message.channel, "name": "approvals" },
        "message": { "type": "message", "ts": message.ts, "text": message.content["text"],
                     "blocks": message.content["blocks"], "user": "UBOT", "bot_id": "B1" },
        "state": { "values": {} },
        "response_url": "https://hooks.slack.example/actions/T1/1/x",
        "actions": [{
            "action_id": button["action_id"], "block_id": "b1", "text": button["text"],
            "value": button["value"], "style": button["style"], "type": "button",
            "action_ts": action_ts,
        }],
    })
}

/// A dialog that somebody has filled in.
pub fn submission(person: &str, dialog: &Value, reason: Option<&str>) -> Value {
    let view = &dialog["view"];
    json!({
        "type": "view_submission", "team": { "id": "T1", "domain": "acme" },
        "user": { "id": person, "username": "somebody", "name": "somebody", "team_id": "T1" },
        "api_app_id": "A1", "token": "deprecated", "trigger_id": "1.2.3", "response_urls": [],
        "view": {
            "id": "V1", "team_id": "T1", "type": "modal", "callback_id": view["callback_id"],
            "private_metadata": view["private_metadata"], "hash": "1.x", "blocks": view["blocks"],
            "state": { "values": { "reason": { "reason": { "type": "plain_text_input", "value": reason } } } },
        },
    })
}

/// A call of Slack: its body, the time and the signature.
#[derive(Clone, Debug)]
pub struct Signed {
    pub body: String,
    pub timestamp: String,
    pub signature: String,
}

impl Signed {
    pub fn at(payload: &Value, seconds: i64, secret: &str) -> Self {
        let body = serde_urlencoded::to_string([("payload", payload.to_string())]).unwrap();
        let timestamp = seconds.to_string();
        let key = hmac::Key::new(HMAC_SHA256, secret.as_bytes());
        let tag = hmac::sign(&key, format!("v0:{timestamp}:{body}").as_bytes());
        let mut signature = "v0=".to_owned();
        for byte in tag.as_ref() {
            write!(signature, "{byte:02x}").unwrap();
        }
        Self { body, timestamp, signature }
    }

    pub fn now(payload: &Value, app: &TestApp) -> Self {
        Self::at(payload, app.state.clock.now().timestamp(), SIGNING_SECRET)
    }

    /// Sends it as Slack does. Returns the status and the body.
    pub async fn send(&self, app: &TestApp) -> (u16, String) {
        let call = app
            .client
            .post(format!("{}/api/aura/hitl/slack/interactions", app.base))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("User-Agent", "Slackbot 1.0 (+https://api.slack.com/robots)")
            .header("X-Slack-Request-Timestamp", &self.timestamp)
            .header("X-Slack-Signature", &self.signature)
            .body(self.body.clone());
        let answer = call.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}
