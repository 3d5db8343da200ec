//! SIGHUP: keys and passwords change under calls of which none fails, and what cannot be applied
//! changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aura_hitl::identity::JwtConfig;
use aura_hitl::identity::{TokenProblem, TokenVerifier};
use reqwest::{Client, Method};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use support::forged::{self, claims, now};
use support::tls::{Authority, RIGHTS, StrictRedis};
use support::{Answer, PrivatePostgres, Program, Running, eventually, kill, unique};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::tls::{SECRET, is_late};

const OLD: &str = "canary-old-secret-0123456789abcdef01234567";
const NEW: &str = "canary-new-secret-0123456789abcdef01234567";
const RELOADED: &str = "the settings were reloaded";
const REFUSED: &str = "the settings were not reloaded; all of them stay as they were";

/// A service whose settings are in files.
struct Site {
    folder: TempDir,
    service: Running,
    /// Lines about reloading that were seen.
    seen: usize,
}

impl Site {
    /// With these files; a variable that ends in `_FILE` names one.
    async fn start(program: impl FnOnce(&TempDir) -> Program, files: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().unwrap();
        let mut program = program(&folder).with("AURA_HITL_CONFIG", "settings.toml");
        std::fs::write(folder.path().join("settings.toml"), "rate_limit_per_second = 0\n").unwrap();
        for (variable, text) in files {
            std::fs::write(folder.path().join(variable), text).unwrap();
            program = program.with(variable, variable);
        }
        let service = program.serve().await;
        Self { folder, service, seen: 0 }
    }

    /// As a file is replaced under a reader.
    fn write(&self, name: &str, text: &str) {
        let [aside, file] = [unique("aside"), name.to_owned()].map(|name| self.file(&name));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, file).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sends SIGHUP; what the log says about it, once the stores have answered in time.
    async fn reload(&mut self) -> Value {
        loop {
            let line = self.reload_once().await;
            if !line["error"].as_str().is_some_and(is_late) {
                return line;
            }
        }
    }

    async fn reload_once(&mut self) -> Value {
        kill("-HUP", self.service.pid());
        let line = eventually(async || {
            let lines = self.service.log().into_iter();
            lines.filter(|line| line["target"] == "aura_hitl::server::reload").nth(self.seen)
        })
        .await;
        self.seen += 1;
        line
    }

    async fn reload_refused(&mut self, reason: &str) {
        let line = self.reload().await;
        assert_eq!(
            (&line["level"], &line["message"]),
            (&"ERROR".into(), &REFUSED.into()),
            "{line}"
        );
        assert!(line["error"].as_str().unwrap().contains(reason), "{reason:?} is not in {line}");
    }

    async fn reloaded(&mut self, changed: &str) {
        let line = self.reload().await;
        assert_eq!((&line["message"], &line["changed"]), (&RELOADED.into(), &changed.into()));
    }

    fn caller(&self, token: &str) -> Caller {
        Caller { base: self.service.base.clone(), token: token.to_owned(), client: Client::new() }
    }

    /// Nothing of any secret was said.
    fn kept_its_secrets(&self) {
        let said = self.service.stdout() + &self.service.stderr();
        let leak = said.lines().find(|line| line.contains("canary"));
        assert_eq!(leak, None);
    }
}

#[derive(Clone)]
struct Caller {
    base: String,
    token: String,
    client: Client,
}

impl Caller {
    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let call = self.client.request(method, format!("{}{path}", self.base));
        let call = call.bearer_auth(&self.token).header("X-Tenant-ID", "tenant1");
        let call = call.header("X-User-ID", "user123");
        let call = if body.is_null() { call } else { call.json(&body) };
        Answer::of(call.send().await.unwrap()).await
    }

    async fn tasks(&self) -> Answer {
        self.call(Method::GET, "/main/agent/tasks", Value::Null).await
    }

    /// Registers a request and approves it, as long as nobody says that it is enough.
    fn decide_all_the_time(self) -> Deciding {
        let (is_enough, decided) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stop, count) = (Arc::clone(&is_enough), Arc::clone(&decided));
        let work = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let body = json!({ "sessionId": unique("session"), "actionType": "send_email" });
                let asked = self.call(Method::POST, "/aura/hitl/requests", body).await;
                let id = asked.assert(201, "").data()["requestId"].as_str().unwrap();
                let path = format!("/aura/hitl/approve/{id}");
                let answer = self.call(Method::POST, &path, json!({ "userId": "user123" })).await;
                answer.assert(200, "");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Deciding { work, is_enough, decided }
    }
}

/// Calls under way, of which none may fail.
struct Deciding {
    work: JoinHandle<()>,
    is_enough: Arc<AtomicBool>,
    decided: Arc<AtomicU32>,
}

impl Deciding {
    /// Waits for some more.
    async fn goes_on(&self) {
        let enough = self.decided.load(Ordering::Relaxed) + 5;
        eventually(async || {
            let is_over = self.work.is_finished();
            (is_over || self.decided.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.is_enough.store(true, Ordering::Relaxed);
        self.work.await.unwrap();
    }
}

fn token(secret: &str) -> String {
    forged::token(secret.as_bytes(), &claims(&json!({})))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_replaced_under_calls_of_which_none_fails() {
    let program = |folder: &TempDir| Program::new(folder, &[]);
    let files = [("JWT_SECRET_FILE", OLD), ("JWT_SECRET_PREVIOUS_FILE", "")];
    let mut site = Site::start(program, &files).await;
    let (old, new) = (site.caller(&token(OLD)), site.caller(&token(NEW)));
    let deciding = old.clone().decide_all_the_time();
    deciding.goes_on().await;
    new.tasks().await.assert(401, "E2003");

    site.write("JWT_SECRET_FILE", NEW);
    site.write("JWT_SECRET_PREVIOUS_FILE", OLD);
    site.reloaded("jwt_secret, jwt_secret_previous").await;
    let deciding_anew = new.clone().decide_all_the_time();
    deciding.goes_on().await;
    deciding_anew.goes_on().await;
    deciding.end().await;

    site.write("JWT_SECRET_PREVIOUS_FILE", "\n");
    site.reloaded("jwt_secret_previous").await;
    old.tasks().await.assert(401, "E2003");
    deciding_anew.goes_on().await;
    deciding_anew.end().await;
    let line = site.reload().await;
    assert_eq!(line["message"], "the settings were read again; none has changed");
    site.kept_its_secrets();
}

#[test]
fn a_token_of_the_previous_key_is_judged_like_any_other() {
    let jwt = JwtConfig {
        previous: Some(SecretString::from(OLD)),
        audience: Some("aura".to_owned()),
        ..JwtConfig::with_secret(SecretString::from(NEW))
    };
    let verifier = TokenVerifier::new(&jwt);
    let judged = |secret: &str, changes: Value| {
        verifier
            .verify(&forged::token(secret.as_bytes(), &claims(&changes)))
            .map(|bearer| bearer.until)
    };
    let until = now() + 1000;
    for secret in [OLD, NEW] {
        let good = judged(secret, json!({ "aud": "aura", "exp": until }));
        assert_eq!(good, Ok(u64::try_from(until).unwrap()));
        let late = judged(secret, json!({ "aud": "aura", "exp": now() - 1 }));
        assert_eq!(late, Err(TokenProblem::Expired));
        assert_eq!(judged(secret, json!({ "aud": "others" })), Err(TokenProblem::Invalid));
    }
    let stranger = "another-secret-of-more-than-32-bytes";
    for exp in [until, now() - 1] {
        let changes = json!({ "aud": "aura", "exp": exp });
        assert_eq!(judged(stranger, changes), Err(TokenProblem::Invalid));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_or_needs_a_restart_changes_nothing() {
    let program = |folder: &TempDir| Program::new(folder, &[]);
    let files = [("JWT_SECRET_FILE", OLD), ("JWT_SECRET_PREVIOUS_FILE", "")];
    let mut site = Site::start(program, &files).await;
    let old = site.caller(&token(OLD));
    for (file, text, reason) in [
        ("settings.toml", "colour = \"canary\"\n", "colour"),
        ("settings.toml", "host = \"canary-unclosed\n", "line 1"),
        ("settings.toml", "jwt_leeway_seconds = 31\n", "at most 30"),
        ("JWT_SECRET_FILE", "canary-short", "at least 32"),
        ("JWT_SECRET_FILE", "", "at least 32"),
        ("JWT_SECRET_PREVIOUS_FILE", "canary-short", "JWT_SECRET_PREVIOUS has 12 bytes"),
        (
            "settings.toml",
            "rate_limit_per_second = 0\nmax_connections = 9\ncors_origins = [\"https://a.b\"]\n",
            "these settings have changed and need a restart: cors_origins, max_connections",
        ),
        ("settings.toml", "approvers = \"requester\"\n", "need a restart: approvers"),
        (
            "settings.toml",
            "redis_url = \"redis://:canary@redis\"\n",
            "DATABASE_URL is not set, although Redis is configured",
        ),
        (
            "settings.toml",
            "redis_url = \"redis://:canary@redis\"\ndatabase_url = \"sqlite:canary\"\n",
            "needs a restart",
        ),
        ("settings.toml", "database_url = \"sqlite:canary\"\n", "needs a restart"),
    ] {
        let good = std::fs::read_to_string(site.file(file)).unwrap();
        site.write(file, text);
        // Beside it something that by itself would be applied.
        let other =
            if file == "JWT_SECRET_FILE" { "JWT_SECRET_PREVIOUS_FILE" } else { "JWT_SECRET_FILE" };
        let before = std::fs::read_to_string(site.file(other)).unwrap();
        site.write(other, NEW);
        site.reload_refused(reason).await;
        old.tasks().await.assert(200, "");
        site.caller(&token(NEW)).tasks().await.assert(401, "E2003");
        site.write(file, &good);
        site.write(other, &before);
    }
    std::fs::remove_file(site.file("JWT_SECRET_PREVIOUS_FILE")).unwrap();
    site.reload_refused("cannot read the file JWT_SECRET_PREVIOUS_FILE").await;
    assert!(site.service.is_alive());
    site.kept_its_secrets();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_revoked_by_a_list_that_holds_as_a_whole_or_not_at_all() {
    let program = |folder: &TempDir| {
        std::fs::write(folder.path().join("revoked.toml"), "jti = []\n").unwrap();
        Program::new(folder, &[]).with("AURA_HITL_REVOCATIONS_FILE", "revoked.toml")
    };
    let mut site = Site::start(program, &[("JWT_SECRET_FILE", OLD)]).await;
    let with_id = forged::token(OLD.as_bytes(), &claims(&json!({ "jti": "token-1" })));
    let (named, other) = (site.caller(&with_id), site.caller(&token(OLD)));
    named.tasks().await.assert(200, "");

    let not_before = "[[not_before]]\ntenant = \"tenant1\"\nuser = \"user123\"\n";
    for wrong in
        ["jti = [\"token-1\", 7, []]\n".to_owned(), format!("jti = [\"token-1\"]\n{not_before}")]
    {
        site.write("revoked.toml", &wrong);
        site.reload_refused("revoked.toml").await;
        named.tasks().await.assert(200, "");
    }
    site.write("revoked.toml", "jti = [\"token-1\"]\n");
    site.reloaded("revocations_file").await;
    named.tasks().await.assert(401, "E2003");
    other.tasks().await.assert(200, "");
    site.write("revoked.toml", &format!("{not_before}time = \"2999-01-01T00:00:00Z\"\n"));
    site.reloaded("revocations_file").await;
    other.tasks().await.assert(401, "E2003");
    site.write("revoked.toml", "jti = []\n");
    site.reloaded("revocations_file").await;
    named.tasks().await.assert(200, "");
    std::fs::remove_file(site.file("revoked.toml")).unwrap();
    site.reload_refused("revocations_file").await;
    named.tasks().await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_while_calls_go_on() {
    let mut site =
        Site::start(|folder| Program::new(folder, &[]), &[("JWT_SECRET_FILE", OLD)]).await;
    let caller = site.caller(&token(OLD));
    let many = async || {
        let answers = (0..20).map(|_| caller.tasks());
        let answers = futures_util::future::join_all(answers).await;
        answers.iter().filter(|answer| answer.status == 429).count()
    };
    assert_eq!(many().await, 0);
    site.write("settings.toml", "rate_limit_per_second = 1\nrate_limit_burst = 3\n");
    site.reloaded("rate_limit_burst, rate_limit_per_second").await;
    assert!(many().await > 0);
    site.write("settings.toml", "rate_limit_per_second = 0\n");
    site.reloaded("rate_limit_burst, rate_limit_per_second").await;
    assert_eq!(many().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_replaced_under_calls_of_which_none_fails() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let trusted = authority.file(&folder);
    let postgres = PrivatePostgres::start().await;
    postgres.welcome("service", "canary1").await;
    postgres.prove(&authority.identity()).await;
    let redis = StrictRedis::start(&authority.identity(), "canary1", RIGHTS).await;
    let database = |password: &str| postgres.strict_url(&format!("service:{password}"), &trusted);
    let courier = |password: &str| redis.url(&format!("service:{password}"));
    let program = |folder: &TempDir| {
        Program::new(folder, &[])
            .with("JWT_SECRET", SECRET)
            .with("AURA_HITL_REDIS_CA_FILE", &trusted)
    };
    let (first, second) = (database("canary1"), courier("canary1"));
    let files = [("DATABASE_URL_FILE", &*first), ("REDIS_URL_FILE", &*second)];
    let mut site = Site::start(program, &files).await;
    let deciding = site.caller(&token(SECRET)).decide_all_the_time();
    deciding.goes_on().await;

    // Not the right ones, and not the same place.
    for (file, text, reason) in [
        ("DATABASE_URL_FILE", database("canary2"), "password authentication failed"),
        ("DATABASE_URL_FILE", database("canary1").replace("/hitl", "/postgres"), "needs a restart"),
        ("REDIS_URL_FILE", courier("canary2"), "Password authentication failed"),
        ("REDIS_URL_FILE", courier("canary1") + "/1", "needs a restart"),
    ] {
        let good = std::fs::read_to_string(site.file(file)).unwrap();
        site.write(file, &text);
        site.reload_refused(reason).await;
        site.write(file, &good);
    }
    deciding.goes_on().await;

    postgres.sql("ALTER ROLE service PASSWORD 'canary2'").await;
    let user = ["ACL", "SETUSER", "service"];
    let _ok: String = redis.plain.command(&[&user[..], &[">canary2"]].concat()).await;
    site.write("DATABASE_URL_FILE", &database("canary2"));
    site.write("REDIS_URL_FILE", &courier("canary2"));
    site.reloaded("database_url, redis_url").await;
    deciding.goes_on().await;
    let _ok: String = redis.plain.command(&[&user[..], &["<canary1"]].concat()).await;
    deciding.goes_on().await;
    deciding.end().await;

    // Now that nobody calls, all connections are cut: none can be made with the old passwords.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'";
    postgres.sql(cut).await;
    let _count: i64 = redis.plain.command(&["CLIENT", "KILL", "USER", "service"]).await;
    let caller = site.caller(&token(SECRET));
    eventually(async || {
        let ready = caller.call(Method::GET, "/health/ready", Value::Null).await;
        (ready.status == 200).then_some(())
    })
    .await;
    let deciding = caller.decide_all_the_time();
    deciding.goes_on().await;
    deciding.end().await;
    let old = PgConnection::connect(&database("canary1")).await.unwrap_err();
    assert!(old.to_string().contains("password authentication failed"), "{old}");

    // A password that was changed without a word ends being ready, and the log says why.
    let _ok: String = redis.plain.command(&[&user[..], &["resetpass"]].concat()).await;
    let _count: i64 = redis.plain.command(&["CLIENT", "KILL", "USER", "service"]).await;
    let caller = site.caller("none");
    eventually(async || {
        let ready = caller.call(Method::GET, "/health/ready", Value::Null).await;
        let mut lines = site.service.log().into_iter();
        let why = lines.any(|line| {
            let is_due_to = |error: &str| error.contains("Password authentication failed");
            line["message"] == "not ready" && line["error"].as_str().is_some_and(is_due_to)
        });
        (ready.status == 503 && why).then_some(())
    })
    .await;
    site.kept_its_secrets();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn being_asked_to_reload_before_the_start_is_complete_does_not_end_it() {
    let folder = TempDir::new().unwrap();
    // A Postgres that says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://service@{}/hitl", silent.local_addr().unwrap());
    let program = Program::new(&folder, &[])
        .with("DATABASE_URL", url)
        .with("REDIS_URL", "redis://127.0.0.1:1")
        .with("JWT_SECRET", SECRET);
    let mut starting = program.start();
    let _connection = silent.accept().await.unwrap();
    kill("-HUP", starting.pid());
    // It goes on, and says why it waits once the connection has been silent for too long.
    let waits = eventually(async || {
        starting.log().into_iter().find(|line| line["message"] == "waiting for the database")
    })
    .await;
    assert!(waits["error"].as_str().unwrap().contains("no answer in time"), "{waits}");
    let status = starting.stop().await;
    assert!(status.success(), "{status:?}");
}
