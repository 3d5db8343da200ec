//! What is measured: PostgreSQL and Redis with durable settings, the release binary as production
//! runs it, and the people, requests and calls that keep it busy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use aura_hitl::domain::approver::{Caller, Role, Via};
use aura_hitl::domain::ids::{TenantId, UserId};
use aura_hitl::identity;
use aura_hitl::identity::JwtConfig;
use aura_hitl::ledger::Ledger;
use redis::aio::MultiplexedConnection;
use secrecy::SecretString;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use support::{PrivatePostgres, PrivateRedis, Program, eventually_within};
use tempfile::TempDir;

pub const SECRET: &str = "a-secret-for-benchmarks-0123456789";
/// Connections to Postgres, as config/production.toml has them.
pub const POOL: u32 = 20;
/// People who decide, spread over as many tenants.
const PEOPLE: usize = 50;
const TENANTS: usize = 10;
/// As compose.yaml has it, but that the file is rewritten between measurements, not amid one.
const REDIS: [&str; 8] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "everysec",
    "--auto-aof-rewrite-percentage",
    "0",
    "--maxmemory",
    "1gb",
];

/// Somebody who calls.
pub struct Person {
    pub user: String,
    pub tenant: String,
    pub token: String,
}

impl Person {
    pub fn new(user: &str, tenant: &str, role: Role) -> Self {
        let jwt = JwtConfig::with_secret(SecretString::from(SECRET));
        let (id, of) = (UserId::parse(user).unwrap(), TenantId::parse(tenant).unwrap());
        let token = identity::mint(&jwt, &id, &of, role, 7200).unwrap();
        Self { user: user.to_owned(), tenant: tenant.to_owned(), token }
    }

    /// As the library sees them.
    pub fn caller(&self) -> Caller {
        Caller {
            user: UserId::parse(&*self.user).unwrap(),
            tenant: TenantId::parse(&*self.tenant).unwrap(),
            role: Role::User,
            memberships: std::sync::Arc::default(),
            token_id: None,
            via: Via::default(),
        }
    }
}

/// Everybody, and an admin of the first tenant as the last.
pub fn people() -> Vec<Person> {
    let person = |number| {
        let tenant = format!("tenant{}", number % TENANTS);
        Person::new(&format!("user{number:02}"), &tenant, Role::User)
    };
    let admin = Person::new("admin0", "tenant0", Role::Admin);
    (0..PEOPLE).map(person).chain([admin]).collect()
}

/// Who of them is the admin.
pub const ADMIN: usize = PEOPLE;

/// A request as an agent writes it, in a session of its own.
pub struct Asked {
    pub request: String,
    pub session: String,
    /// Who decides it.
    pub person: usize,
}

impl Asked {
    /// So many of them, nobody's before.
    pub fn fresh(count: usize) -> Vec<Self> {
        let one = |number| {
            let random = uuid::Uuid::new_v4().simple().to_string();
            let (person, random) = (number % PEOPLE, &random[..12]);
            Self {
                request: format!("req_{random}"),
                session: format!("session_user{person:02}_{random}"),
                person,
            }
        };
        (0..count).map(one).collect()
    }

    pub fn document(&self) -> String {
        let Self { request, session, person } = self;
        json!({
            "requestId": request, "sessionId": session, "actionType": "send_email",
            "context": { "to": "a@b.c", "subject": "Weekly report", "attachments": 2 },
            "status": "pending", "userId": format!("user{person:02}"),
            "tenantId": format!("tenant{}", person % TENANTS), "createdAt": 8_123_456_789_u64,
        })
        .to_string()
    }

    fn pointer(&self) -> String {
        let Self { request, session, person } = self;
        json!({
            "sessionId": session, "requestId": request, "userId": format!("user{person:02}"),
            "tenantId": format!("tenant{}", person % TENANTS),
        })
        .to_string()
    }

    /// Registers it over HTTP, as an agent does that has no Redis.
    pub fn registration(&self) -> Call {
        let Self { request, session, person } = self;
        let body = json!({
            "requestId": request, "sessionId": session, "actionType": "send_email",
            "context": { "to": "a@b.c", "subject": "Weekly report", "attachments": 2 },
        });
        let (path, body) = ("/api/aura/hitl/requests".to_owned(), body.to_string());
        Call { person: *person, method: "POST", path, body }
    }

    pub fn approval(&self) -> Call {
        let body = format!(r#"{{"userId":"user{:02}"}}"#, self.person);
        let path = format!("/api/aura/hitl/approve/{}", self.request);
        Call { person: self.person, method: "POST", path, body }
    }
}

/// A call over HTTP.
pub struct Call {
    pub person: usize,
    pub method: &'static str,
    pub path: String,
    /// Empty for none.
    pub body: String,
}

impl Call {
    pub fn get(person: usize, path: String) -> Self {
        Self { person, method: "GET", path, body: String::new() }
    }
}

/// Calls in the form that calls.lua reads.
pub fn script(people: &[Person], calls: &[Call]) -> String {
    let mut text = format!("{}\n", people.len());
    for Person { user, tenant, token } in people {
        writeln!(
            text,
            "Authorization: Bearer {token}\tX-Tenant-ID: {tenant}\tX-User-ID: {user}\tX-DWP-Source: FRONTEND\tX-DWP-Caller-Type: USER"
        )
        .unwrap();
    }
    for Call { person, method, path, body } in calls {
        writeln!(text, "{}\t{method} {path}\t{body}", person + 1).unwrap();
    }
    text
}

/// The servers, and where files may be left.
pub struct World {
    pub postgres: PrivatePostgres,
    pub redis: PrivateRedis,
    pub connection: MultiplexedConnection,
    pub folder: TempDir,
    pub people: Vec<Person>,
}

impl World {
    pub async fn start() -> Self {
        let postgres = PrivatePostgres::start().await;
        let redis = PrivateRedis::start_with(&REDIS).await;
        let connection = redis.client().get_multiplexed_async_connection().await.unwrap();
        Self { postgres, redis, connection, folder: TempDir::new().unwrap(), people: people() }
    }

    /// Makes a database with the ledger's schema.
    pub async fn database(&self, name: &str) -> Database {
        let mut connection = PgConnection::connect(&self.postgres.url()).await.unwrap();
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::query(create).execute(&mut connection).await.unwrap();
        let url = format!("postgres://postgres@127.0.0.1:{}/{name}", self.postgres.port());
        let secret = SecretString::from(url.clone());
        let ledger =
            Ledger::connect_postgres(&secret, aura_hitl::ledger::Pooler::None, 1).await.unwrap();
        ledger.migrate(Some(&secret)).await.unwrap();
        ledger.close().await;
        let connection = PgConnection::connect(&url).await.unwrap();
        Database { url, connection }
    }

    /// The service on these servers.
    pub fn program(&self, database: &str) -> Program {
        production(&self.folder, database, &self.redis.url())
    }

    /// Writes what agents write when they ask.
    pub async fn ask(&self, asked: &[Asked]) {
        let mut connection = self.connection.clone();
        for some in asked.chunks(500) {
            let mut writing = redis::pipe();
            for one in some {
                writing.set_ex(format!("hitl:request:{}", one.request), one.document(), 1800);
                writing.set_ex(format!("hitl:session:{}", one.session), one.pointer(), 3600);
            }
            writing.exec_async(&mut connection).await.unwrap();
        }
    }

    /// How often Redis has run which command, those in scripts included.
    pub async fn commands(&self) -> BTreeMap<String, f64> {
        let info: String = self.redis.command(&["INFO", "commandstats"]).await;
        let lines =
            info.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
        let calls = |calls: &str| calls.split(',').next().unwrap().parse().unwrap();
        lines.map(|(name, rest)| (name.to_owned(), calls(rest))).collect()
    }

    /// Empties Redis, and its file.
    pub async fn forget(&self) {
        let _ok: String = self.redis.command(&["FLUSHALL"]).await;
        let _started: String = self.redis.command(&["BGREWRITEAOF"]).await;
        eventually_within(Duration::from_secs(30), async || {
            let info: String = self.redis.command(&["INFO", "persistence"]).await;
            info.contains("aof_rewrite_in_progress:0").then_some(())
        })
        .await;
    }
}

/// A database of the ledger's.
pub struct Database {
    pub url: String,
    pub connection: PgConnection,
}

impl Database {
    /// Fills it with so many decided requests and their tasks; see fill.sql.
    pub async fn refill(&mut self, rows: i64) {
        let fill = include_str!("fill.sql").replace("$rows", &rows.to_string());
        for statement in [
            "TRUNCATE hitl_request, hitl_delivery, agent_task CASCADE".to_owned(),
            fill,
            // As autovacuum would, by and by.
            "VACUUM ANALYZE hitl_request, hitl_delivery, agent_task".to_owned(),
            "CHECKPOINT".to_owned(),
        ] {
            let statement = sqlx::AssertSqlSafe(statement);
            sqlx::raw_sql(statement).execute(&mut self.connection).await.unwrap();
        }
    }

    /// Empties it and fills it with so many requests by a statement of the bench.
    pub async fn fill(&mut self, sql: &str, rows: i64) {
        for statement in [
            "TRUNCATE hitl_request, hitl_delivery, agent_task, hitl_search CASCADE".to_owned(),
            sql.replace("$rows", &rows.to_string()),
            "VACUUM ANALYZE hitl_request, hitl_search".to_owned(),
            "CHECKPOINT".to_owned(),
        ] {
            let statement = sqlx::AssertSqlSafe(statement);
            sqlx::raw_sql(statement).execute(&mut self.connection).await.unwrap();
        }
    }

    /// Some requests of the large tenant that were registered over HTTP.
    pub async fn requests_of_tenant0(&mut self) -> Vec<String> {
        let some = "SELECT request_id FROM hitl_request
                     WHERE tenant_id = 'tenant0' AND origin = 'http' ORDER BY request_id LIMIT 500";
        sqlx::query_scalar(some).fetch_all(&mut self.connection).await.unwrap()
    }
}

/// The binary that is measured.
pub fn binary() -> PathBuf {
    std::env::var_os("AURA_HITL_BINARY").expect("scripts/bench sets AURA_HITL_BINARY").into()
}

/// The service as config/production.toml has it, with no limit on what one person may ask for.
pub fn production(folder: &TempDir, database: &str, redis: &str) -> Program {
    let settings = concat!(env!("CARGO_MANIFEST_DIR"), "/config/production.toml");
    Program::of(&binary(), folder, &["serve"])
        .with("AURA_HITL_CONFIG", settings)
        .with("HOST", "127.0.0.1")
        .with("DATABASE_URL", database)
        .with("REDIS_URL", redis)
        .with("JWT_SECRET", SECRET)
        .with("AURA_HITL_RATE_LIMIT_PER_SECOND", "0")
}
