//! The reference agent: Aura's side of the wire contract, scripted instead of a model.
//!
//! `POST /aura/test/stream` `{"prompt","context"}` is answered with `text/event-stream`: each event
//! has `id: n`, `event: type`, `data: {…,"type","timestamp"}` (`aura_agent/events.schema.json`), and
//! the stream ends with `data: [DONE]` whatever happens. The prompt chooses the script; the first of these that it holds:
//!
//! | the prompt holds | what happens |
//! |---|---|
//! | `two approvals` | asks for `send_email`, then in the same session for `delete_files` |
//! | `delete files` | asks for `delete_files` |
//! | `no approval` | only reads; nobody is asked |
//! | `slowly` | nobody is asked; the content comes in 20 pieces |
//! | `fail` | a tool fails: `failed` |
//! | `break` | the agent itself breaks: `error` |
//! | anything else, `send a mail` | asks for `send_email` |
//!
//! **A run goes on without its client.** Its events are kept, for a while after its end too. A client
//! that comes back sends `Last-Event-ID: n` and names the run by `context.sessionId`, which it chose
//! or got in `start`; the new prompt is ignored. Only the user who began a run may follow it. A session
//! has one run at a time, because its channel and key in Redis serve the whole session.
//!
//! **Waiting for a person**: write `hitl:request:…` and `hitl:session:…`, emit `hitl`, subscribe,
//! *then* read the key (a decision made in between is there), then listen. Pub/Sub loses messages, so
//! ask the service now and then, and whenever Pub/Sub fails. Only a signal for this request counts.
//! Without a signal in time the answer is "no", and the agent withdraws the request.
//!
//! Uses none of the service's code: it only knows the contract, as other programs do.

#![expect(
    clippy::disallowed_methods,
    reason = "the rules on clocks and routes are the service's; this is another program"
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use actix_web::http::header::HeaderMap;
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpResponseBuilder, HttpServer};
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use futures_util::{Stream, stream};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use work::SCRIPTS;

#[path = "aura_agent/work.rs"]
mod work;

/// How long to wait for one answer of Redis or of the service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a run's events are kept after its end.
const KEEP_EVENTS_FOR: Duration = Duration::from_mins(10);
/// Headers of the stream's request that go along with every call of the service.
const FORWARDED: [&str; 5] =
    ["Authorization", "X-Tenant-ID", "X-User-ID", "X-Trace-Id", "traceparent"];
const DONE: &str = "data: [DONE]\n\n";

/// Aura's side of the contract, scripted: to try the service and the Gateway with.
#[derive(Parser)]
struct Settings {
    /// Address to listen on.
    #[arg(long, env, default_value = "127.0.0.1")]
    host: String,
    #[arg(long, env, default_value_t = 9000)]
    port: u16,
    /// The Redis that the service uses too.
    #[arg(long, env, hide_env_values = true, default_value = "redis://127.0.0.1:6379")]
    redis_url: String,
    /// The service, or a Gateway in front of it: <http://127.0.0.1:8080/api>.
    #[arg(long, env = "AURA_SERVICE_URL", default_value = "http://127.0.0.1:8081")]
    service_url: Url,
    /// The secret that the Auth server, the service and Aura share.
    #[arg(long, env, hide_env_values = true)]
    jwt_secret: String,
    /// Seconds to wait for a person.
    #[arg(long, env = "AURA_PATIENCE_SECONDS", default_value_t = 300)]
    patience_seconds: u64,
    /// Seconds between comments on a silent stream, which keep proxies from giving it up and show us
    /// who is gone. 0: none, as the real agent has it.
    #[arg(long, env = "AURA_HEARTBEAT_SECONDS", default_value_t = 15)]
    heartbeat_seconds: u64,
    /// Milliseconds that a step of a script takes.
    #[arg(long, env = "AURA_PACE_MILLIS", default_value_t = 300)]
    pace_millis: u64,
}

/// What the frontend sends.
#[derive(Deserialize)]
struct Prompt {
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    context: Value,
}

/// The user and tenant of the token.
#[derive(PartialEq, Eq)]
struct Person {
    user: String,
    tenant: String,
}

/// One prompt and its events.
struct Run {
    session: String,
    person: Person,
    headers: Vec<(&'static str, String)>,
    log: watch::Sender<Log>,
}

#[derive(Default)]
struct Log {
    /// The events in their wire format. Event n is the nth.
    events: Vec<String>,
    over: bool,
}

struct Agent {
    settings: Settings,
    http: reqwest::Client,
    redis: redis::Client,
    /// By session.
    runs: Mutex<HashMap<String, Arc<Run>>>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let prompts = SCRIPTS.map(|script| format!("  {:<14} {}\n", script.0, script.1));
    let help = format!("A prompt may hold (the first one counts):\n{}", prompts.concat());
    let settings = Settings::from_arg_matches(&Settings::command().after_help(help).get_matches())?;
    let agent = Data::new(Agent {
        http: reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build()?,
        redis: redis::Client::open(settings.redis_url.as_str())?,
        runs: Mutex::default(),
        settings,
    });
    let shared = agent.clone();
    let app = move || {
        App::new().app_data(shared.clone()).route("/aura/test/stream", web::post().to(stream))
    };
    let server = HttpServer::new(app).workers(1).disable_signals().shutdown_timeout(2);
    let server = server.bind((agent.settings.host.as_str(), agent.settings.port))?.run();
    let handle = server.handle();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        for run in agent.runs().values() {
            run.end("error", json!({ "error": "The agent is being stopped." }));
        }
        handle.stop(true).await;
    });
    Ok(server.await?)
}

/// The one route.
async fn stream(agent: Data<Agent>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let headers = request.headers();
    let heartbeat = agent.heartbeat();
    let last = headers.get("Last-Event-ID").map(|id| id.to_str().unwrap_or("").parse());
    let after = last.clone().and_then(Result::ok).unwrap_or(0);
    let found = match (agent.identify(headers), serde_json::from_slice(&body), last) {
        (None, ..) => Err((HttpResponse::Unauthorized(), "Not a valid token and its headers.")),
        (_, Err(_), _) => Err((HttpResponse::BadRequest(), "Not a prompt and its context.")),
        (_, _, Some(Err(_))) => Err((HttpResponse::BadRequest(), "Not a Last-Event-ID.")),
        (Some(person), Ok(prompt), Some(Ok(_))) => agent
            .find(&prompt, &person)
            .ok_or_else(|| (HttpResponse::NotFound(), "There is no such run any more.")),
        (Some(person), Ok(prompt), None) => agent
            .into_inner()
            .begin(person, headers, prompt)
            .ok_or_else(|| (HttpResponse::Conflict(), "The session has a run under way.")),
    };
    let open = |mut reply: HttpResponseBuilder| {
        reply.content_type("text/event-stream").insert_header(("Cache-Control", "no-cache"));
        reply
    };
    match found {
        Ok(run) => open(HttpResponse::Ok()).streaming(follow(&run, after, heartbeat)),
        Err((reply, why)) => {
            let content = event(after + 1, "content", json!({ "content": why }));
            open(reply).body(content + &event(after + 2, "error", json!({ "error": why })) + DONE)
        }
    }
}

fn event(id: usize, kind: &str, mut data: Value) -> String {
    if let Value::Object(data) = &mut data {
        data.insert("type".to_owned(), kind.into());
        data.insert("timestamp".to_owned(), unix_seconds().into());
    }
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A run's events above an id as they come, and the end.
fn follow(
    run: &Run,
    after: usize,
    heartbeat: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    stream::unfold((run.log.subscribe(), after, false), move |(mut log, sent, done)| async move {
        if done {
            return None;
        }
        loop {
            let (news, over) = {
                let log = log.borrow_and_update();
                (log.events.get(sent..).unwrap_or_default().to_vec(), log.over)
            };
            if over || !news.is_empty() {
                let chunk = Bytes::from(news.concat() + if over { DONE } else { "" });
                return Some((Ok(chunk), (log, sent + news.len(), over)));
            }
            if timeout(heartbeat, log.changed()).await.is_err() {
                return Some((Ok(Bytes::from_static(b": waiting\n\n")), (log, sent, false)));
            }
        }
    })
}

impl Run {
    fn emit(&self, kind: &str, data: Value) {
        self.log.send_modify(|log| {
            if !log.over {
                log.events.push(event(log.events.len() + 1, kind, data));
            }
        });
    }

    /// Ends the run with this event. Before a failure, sends the reason as content, which people read.
    fn end(&self, kind: &str, data: Value) {
        if let Some(why) = data.get("error") {
            self.emit("content", json!({ "content": why }));
        }
        self.emit(kind, data);
        self.log.send_modify(|log| log.over = true);
    }
}

impl Agent {
    /// Ignores a poisoned lock: no change of this map can be left half done.
    fn runs(&self) -> MutexGuard<'_, HashMap<String, Arc<Run>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heartbeat(&self) -> Duration {
        let seconds = Some(self.settings.heartbeat_seconds).filter(|seconds| *seconds != 0);
        seconds.map_or(Duration::MAX, Duration::from_secs)
    }

    /// The token's person, unless a header says otherwise.
    fn identify(&self, headers: &HeaderMap) -> Option<Person> {
        #[derive(Deserialize)]
        struct Claims {
            sub: String,
            tenant_id: Value,
        }
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or(""));
        let token = header("Authorization")?.strip_prefix("Bearer ")?;
        let key = DecodingKey::from_secret(self.settings.jwt_secret.as_bytes());
        let mut rules = Validation::new(Algorithm::HS256);
        rules.validate_aud = false;
        let Claims { sub, tenant_id } = jsonwebtoken::decode(token, &key, &rules).ok()?.claims;
        let tenant = match tenant_id {
            Value::String(text) => text,
            number => number.as_i64()?.to_string(),
        };
        let fits = header("X-Tenant-ID") == Some(&tenant)
            && header("X-User-ID").is_none_or(|user| user == sub);
        fits.then_some(Person { user: sub, tenant })
    }

    fn find(&self, prompt: &Prompt, person: &Person) -> Option<Arc<Run>> {
        let run = self.runs().get(prompt.context.get("sessionId")?.as_str()?).cloned();
        run.filter(|run| run.person == *person)
    }

    /// Starts a run, which goes on without a client, unless the session has one already.
    fn begin(
        self: Arc<Self>,
        person: Person,
        from: &HeaderMap,
        prompt: Prompt,
    ) -> Option<Arc<Run>> {
        let named = prompt.context.get("sessionId").and_then(Value::as_str).map(ToOwned::to_owned);
        let session =
            named.unwrap_or_else(|| format!("session_{}_{}", person.user, unix_seconds()));
        let header = |name| Some((name, from.get(name)?.to_str().ok()?.to_owned()));
        let headers = FORWARDED.into_iter().filter_map(header).collect();
        let run = Arc::new(Run { session, person, headers, log: watch::Sender::default() });
        {
            let taken = |by: &Arc<Run>| by.person != run.person || !by.log.borrow().over;
            let mut runs = self.runs();
            if runs.get(&run.session).is_some_and(taken) {
                return None;
            }
            runs.insert(run.session.clone(), Arc::clone(&run));
        }
        let begun = Arc::clone(&run);
        tokio::spawn(async move {
            // On a task of its own, so that the stream ends even if it panics.
            let (agent, playing) = (Arc::clone(&self), Arc::clone(&run));
            if tokio::spawn(async move { agent.play(&playing, prompt).await }).await.is_err() {
                run.end("error", json!({ "error": "The agent has a bug." }));
            }
            sleep(KEEP_EVENTS_FOR).await;
            self.runs().retain(|_, kept| !Arc::ptr_eq(kept, &run));
        });
        Some(begun)
    }
}
