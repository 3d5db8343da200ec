//! A service of one's own for each test: port 0, a fresh database, its own session names. Both
//! modes run through the same code; production needs the servers that `scripts/test` starts.
//! `both_modes!` and `over_redis!` define tests that get one.

use std::time::Duration;

use aura_hitl::config::{Config, LedgerConfig};
use aura_hitl::courier::{Courier, RedisSettings, ScanSettings, StoredRequest};
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::State;
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId, UserId};
use aura_hitl::domain::record::{Delivery, Record};
use aura_hitl::domain::task::{Task, TaskFilter};
use aura_hitl::identity;
use aura_hitl::ledger::Pooler;
use aura_hitl::server::Replica;
use aura_hitl::state::AppState;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::agents::{put_request, put_session};
use crate::answers::Answer;
use crate::asked::Asked;
use crate::eventually::eventually;
use crate::ledger::{find_record, fresh_database};
use crate::names::test_variable;
use crate::people::{ALICE, Who};
use crate::sockets::{RawAnswer, head, raw};

/// The two ways to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// SQLite, in-process courier.
    Embedded,
    /// Postgres and Redis.
    Production,
}

/// Defines one test per mode; the body gets a [`TestApp`].
#[macro_export]
macro_rules! both_modes {
    ($(#[$doc:meta])* async fn $name:ident($app:ident: TestApp) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $(#[$doc])*
            async fn check($app: $crate::TestApp) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                check($crate::TestApp::spawn($crate::Mode::Embedded).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn production() {
                check($crate::TestApp::spawn($crate::Mode::Production).await).await;
            }
        }
    };
}

/// Defines a test of what agents on Redis need, which the embedded mode does not have.
#[macro_export]
macro_rules! over_redis {
    ($(#[$doc:meta])* async fn $name:ident($app:ident: TestApp) $body:block) => {
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let $app: TestApp = $crate::TestApp::spawn($crate::Mode::Production).await;
            $body
        }
    };
}

/// The settings of a mode, on a free port. The folder holds what the embedded mode keeps.
pub async fn config(mode: Mode, folder: &TempDir) -> Config {
    let mut config = Config::embedded_in(folder.path()).unwrap();
    // A test's few users ask for more in a second than people do. `limits.rs` sets limits again.
    config.rate_limit = None;
    // The tests share a Redis, and each service would have rows of all tests. Those of the intake have
    // a Redis of their own.
    config.intake = None;
    if mode == Mode::Production {
        config.ledger = LedgerConfig::Postgres {
            url: SecretString::from(fresh_database().await),
            pooler: Pooler::None,
            max_connections: 10,
        };
        config.redis =
            Some(RedisSettings::Url(SecretString::from(test_variable("TEST_REDIS_URL"))));
    }
    config
}

/// Switches the intake on, for a service with a Redis of its own.
pub fn watch_redis(config: &mut Config) {
    config.intake = Some(ScanSettings {
        interval: Duration::from_secs(1),
        count: 1000,
        keys_per_second: 50_000,
    });
}

/// A running service and the people around it.
pub struct TestApp {
    pub mode: Mode,
    pub config: Config,
    pub state: AppState,
    pub base: String,
    pub client: Client,
    replica: Option<Replica>,
    _data_dir: TempDir,
}

impl TestApp {
    /// A service with the settings of a mode, on the machine's clock.
    pub async fn spawn(mode: Mode) -> Self {
        Self::spawn_with(mode, Clock::System, |_| {}).await
    }

    /// The same with other settings or another clock.
    pub async fn spawn_with(mode: Mode, clock: Clock, adjust: impl FnOnce(&mut Config)) -> Self {
        let folder = TempDir::new().unwrap();
        let mut config = config(mode, &folder).await;
        adjust(&mut config);
        let replica = Replica::start(&config, clock).await.unwrap();
        Self {
            mode,
            base: format!("http://{}", replica.address),
            state: replica.state.clone(),
            client: Client::new(),
            config,
            replica: Some(replica),
            _data_dir: folder,
        }
    }

    /// Stops the service and starts it again on the same stores.
    pub async fn restart(&mut self) {
        self.replica.take().unwrap().stop().await;
        let replica = Replica::start(&self.config, Clock::System).await.unwrap();
        self.base = format!("http://{}", replica.address);
        self.state = replica.state.clone();
        self.client = Client::new();
        self.replica = Some(replica);
    }

    pub fn token(&self, user: &str, tenant: &str, role: Role) -> String {
        let (user, tenant) = (UserId::parse(user).unwrap(), TenantId::parse(tenant).unwrap());
        identity::mint(&self.config.jwt, &user, &tenant, role, 600).unwrap()
    }

    /// A call by a user, with token and both identity headers.
    pub fn call(&self, who: Who<'_>, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.token(who.user, who.tenant, who.role))
            .header("X-Tenant-ID", who.tenant)
            .header("X-User-ID", who.user)
    }

    pub async fn get(&self, who: Who<'_>, path: &str) -> Answer {
        Answer::of(self.call(who, Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, who: Who<'_>, path: &str, body: Value) -> Answer {
        Answer::of(self.call(who, Method::POST, path).json(&body).send().await.unwrap()).await
    }

    pub async fn approve(&self, who: Who<'_>, id: &str) -> Answer {
        let path = format!("/api/aura/hitl/approve/{id}");
        self.post(who, &path, json!({ "userId": who.user })).await
    }

    pub async fn reject(&self, who: Who<'_>, id: &str, reason: Option<&str>) -> Answer {
        let path = format!("/api/aura/hitl/reject/{id}");
        let mut body = json!({ "userId": who.user });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        self.post(who, &path, body).await
    }

    /// `GET …/signals/{session}`, percent-encoding the session.
    pub async fn poll(&self, who: Who<'_>, session: &str, wanted: Option<&str>) -> Option<Value> {
        let mut url = reqwest::Url::parse(&format!("{}/aura/hitl/signals", self.base)).unwrap();
        url.path_segments_mut().unwrap().push(session);
        if let Some(wanted) = wanted {
            url.query_pairs_mut().append_pair("requestId", wanted);
        }
        let path = url.as_str().strip_prefix(&self.base).unwrap().to_owned();
        let answer = self.get(who, &path).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.body.get("data").map(|data| serde_json::from_str(data.as_str().unwrap()).unwrap())
    }

    /// Writes a request and its session's pointer to Redis as Aura does. Without Redis, registers it.
    pub async fn ask(&self, asked: &Asked) {
        if let Courier::InProcess = self.state.courier {
            let name = |field: &str, other| asked.document[field].as_str().unwrap_or(other);
            let owner = Who {
                user: name("userId", ALICE.user),
                tenant: name("tenantId", ALICE.tenant),
                role: Role::User,
            };
            self.register(owner, asked).await.assert(201, "");
            return;
        }
        self.put(&asked.id, &asked.document.to_string()).await;
        let name = |field: &str, other: &str| match &asked.document[field] {
            Value::Null => json!(other),
            named => named.clone(),
        };
        let pointer = json!({
            "sessionId": asked.session, "requestId": asked.id,
            "userId": name("userId", "user123"), "tenantId": name("tenantId", "tenant1"),
        });
        self.point(&asked.session, &pointer.to_string()).await;
    }

    /// The signal under the session's key, if there is one.
    pub async fn signal(&self, session: &str) -> Option<String> {
        self.state.courier.signal(&SessionId::parse(session).unwrap()).await.unwrap()
    }

    /// The task row that a request has.
    pub async fn task_of(&self, request: &str) -> aura_hitl::domain::task::Task {
        let record = self.record(request).await;
        self.state.ledger.find_task(&record.tenant, &record.task).await.unwrap().unwrap()
    }

    /// The ledger's row of a request; in these tests no two tenants have the same id, unless they
    /// say so.
    pub async fn record(&self, request: &str) -> aura_hitl::domain::record::Record {
        find_record(&self.state.ledger, request).await.unwrap()
    }

    /// The ledger's row of a tenant's request.
    pub async fn record_of(&self, tenant: &str, request: &str) -> Option<Record> {
        let (tenant, id) = (TenantId::parse(tenant).unwrap(), RequestId::parse(request).unwrap());
        self.state.ledger.find_request(&tenant, &id).await.unwrap()
    }

    /// Registers a request over HTTP, as agents do that cannot reach Redis.
    pub async fn register(&self, who: Who<'_>, asked: &Asked) -> Answer {
        self.post(who, "/aura/hitl/requests", asked.registration()).await
    }

    /// Waits until what a request owes Redis is there, or need not be any more, and its row says so.
    pub async fn settled(&self, request: &str) -> Record {
        eventually(async || {
            let record = self.record(request).await;
            let is_noted = !self.state.ledger.has_unwritten_receipt(&record);
            (record.delivery != Delivery::Owed && is_noted).then_some(record)
        })
        .await
    }

    /// Puts exactly this text under a request's key.
    pub async fn put(&self, id: &str, document: &str) {
        put_request(&self.state.courier, id, document).await;
    }

    /// Makes exactly this text a session's pointer.
    pub async fn point(&self, session: &str, pointer: &str) {
        put_session(&self.state.courier, session, pointer).await;
    }

    /// What is under a request's key.
    pub async fn stored(&self, id: &str) -> StoredRequest {
        let id = RequestId::parse(id).unwrap();
        self.state.courier.find_request(&id).await.unwrap().unwrap()
    }

    /// Whether the ledger has never heard of a request.
    pub async fn is_unrecorded(&self, id: &str) -> bool {
        find_record(&self.state.ledger, id).await.is_none()
    }

    /// Whether the ledger knows no decision on a request.
    pub async fn is_undecided(&self, id: &str) -> bool {
        let record = find_record(&self.state.ledger, id).await;
        record.is_none_or(|record| record.state == State::Pending)
    }

    /// Every task of a tenant.
    pub async fn tasks(&self, tenant: &str) -> Vec<Task> {
        let tenant = TenantId::parse(tenant).unwrap();
        let filter = TaskFilter { tenant, user: None, status: None, page: 0, size: 1000 };
        self.state.ledger.list_tasks(&filter).await.unwrap().0
    }

    /// Runs a statement on the ledger's database, as an operator's or agent's own SQL would.
    pub async fn sql(&self, statement: impl Into<String>) {
        let statement = AssertSqlSafe(statement.into());
        match (&self.config.ledger, self.state.ledger.sqlite_pool()) {
            (LedgerConfig::Postgres { url, .. }, _) => {
                let mut connection = PgConnection::connect(url.expose_secret()).await.unwrap();
                connection.execute(statement).await.unwrap();
            }
            (_, pool) => {
                pool.unwrap().execute(statement).await.unwrap();
            }
        }
    }

    /// Sends bytes as they are and reads until the service closes the connection.
    pub async fn raw(&self, bytes: impl Into<Vec<u8>>) -> RawAnswer {
        raw(self.base.strip_prefix("http://").unwrap().to_owned(), bytes.into()).await
    }

    /// The first lines of a call on a socket of one's own, up to the token.
    pub fn head(&self, who: Who<'_>, method: &Method, path: &str) -> String {
        head(&self.token(who.user, who.tenant, who.role), method, path)
    }
}
