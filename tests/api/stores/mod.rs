//! What every ledger and every courier must do, whichever engine is behind it: the same suite runs
//! on SQLite with the in-process courier and on Postgres with Redis. No service runs meanwhile, so
//! no relay takes part.

use aura_hitl::config::{Config, LedgerConfig};
use aura_hitl::courier::Courier;
use aura_hitl::domain::approver::Caller;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{TaskId, TenantId};
use aura_hitl::domain::plan::PlanStep;
use aura_hitl::domain::record::{DeliveryReceipt, DeliveryResult, Record};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::task::Task;
use aura_hitl::ledger::{Ledger, Recorded, Registered};
use aura_hitl::server::stores;
use chrono::{DateTime, TimeDelta, Utc};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use support::{ALICE, Asked, Mode, Who, decide_on_ledger, find_record, unique, writing};
use tempfile::TempDir;

/// The caller whose task it is.
fn owner(task: &Task) -> Caller {
    Caller { user: task.user.clone(), tenant: task.tenant.clone(), ..ALICE.caller() }
}

/// A ledger and a courier of one's own.
struct Stores {
    ledger: Ledger,
    courier: Courier,
    /// The in-process courier's; Redis has its own.
    clock: Clock,
    postgres: Option<PgPool>,
    config: Config,
    _folder: TempDir,
}

/// Defines one test per pair of engines; the body gets its [`Stores`].
macro_rules! on_all_stores {
    ($(async fn $name:ident($stores:ident: Stores) $body:block)*) => {$(
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            async fn check($stores: Stores) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                check(Stores::open(support::Mode::Embedded).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn production() {
                check(Stores::open(support::Mode::Production).await).await;
            }
        }
    )*};
}

/// The same for what only Redis does.
macro_rules! over_redis {
    ($(async fn $name:ident($stores:ident: Stores) $body:block)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let $stores = Stores::open(support::Mode::Production).await;
            $body
        }
    )*};
}

mod batches;
mod database;
mod deliveries;
mod older;
mod requests;
mod seen;
mod signals;
mod tasks;

impl Stores {
    async fn open(mode: Mode) -> Self {
        let folder = TempDir::new().unwrap();
        let config = support::config(mode, &folder).await;
        let (ledger, _lock) = stores::open_ledger(&config, false).await.unwrap();
        stores::migrate(&config, &ledger).await.unwrap();
        let postgres = match &config.ledger {
            LedgerConfig::Postgres { url, .. } => {
                Some(PgPool::connect(url.expose_secret()).await.unwrap())
            }
            LedgerConfig::Sqlite { .. } => None,
        };
        let clock = Clock::manual();
        let courier = match &config.redis {
            Some(redis) => Courier::redis(redis).unwrap(),
            None => Courier::InProcess,
        };
        Self { ledger, courier, clock, postgres, config, _folder: folder }
    }

    /// The ledger of another replica on the same database.
    async fn another_ledger(&self) -> Ledger {
        stores::open_ledger(&self.config, false).await.unwrap().0
    }

    /// Runs SQL of the test's own.
    async fn sql(&self, statement: &str) -> sqlx::Result<()> {
        let statement = AssertSqlSafe(statement.to_owned());
        if let Some(pool) = &self.postgres {
            return sqlx::query(statement).execute(pool).await.map(drop);
        }
        let pool = self.ledger.sqlite_pool().unwrap();
        sqlx::query(statement).execute(&pool).await.map(drop)
    }

    async fn decide(
        &self,
        who: Who<'_>,
        asked: &Asked,
        verdict: Verdict,
        now: DateTime<Utc>,
    ) -> Recorded {
        self.decide_as(who, asked, Origin::Redis, verdict, now).await
    }

    async fn decide_as(
        &self,
        who: Who<'_>,
        asked: &Asked,
        origin: Origin,
        verdict: Verdict,
        now: DateTime<Utc>,
    ) -> Recorded {
        decide_on_ledger(&self.ledger, who, asked, origin, verdict, now).await
    }

    async fn register(&self, who: Who<'_>, asked: &Asked, now: DateTime<Utc>) -> Registered {
        let (candidate, caller) = (asked.candidate(Origin::Http, now), who.caller());
        let writing = writing(&candidate, &State::Pending, &caller, now);
        self.ledger.register(&writing).await.unwrap()
    }

    async fn mark(&self, record: &Record, settled: &DeliveryResult, at: DateTime<Utc>) {
        self.ledger
            .record_receipts(&[DeliveryReceipt::of(record, settled.clone(), at)])
            .await
            .unwrap();
    }

    async fn task(&self, tenant: &str, id: &str) -> Option<Task> {
        let tenant = TenantId::parse(tenant).unwrap();
        self.ledger.find_task(&tenant, &TaskId::parse(id).unwrap()).await.unwrap()
    }

    /// A task that an agent keeps.
    async fn keep_task(&self, who: Who<'_>, now: DateTime<Utc>) -> Task {
        let task = new_task(&unique("task"), who, now);
        self.ledger.insert_task(&task).await.unwrap();
        task
    }

    /// Every row of a session's delivery that is due.
    async fn claim(&self, now: DateTime<Utc>) -> Vec<String> {
        let claimed = self.ledger.claim_owed(now, 100).await.unwrap();
        claimed.into_iter().map(|record| record.id.to_string()).collect()
    }

    async fn record(&self, id: &str) -> Record {
        find_record(&self.ledger, id).await.unwrap()
    }
}

fn new_task(id: &str, who: Who<'_>, now: DateTime<Utc>) -> Task {
    let (id, caller) = (TaskId::parse(id).unwrap(), who.caller());
    Task::requested(id, caller.user, caller.tenant, "mail_summary".to_owned(), now)
}

fn no() -> Verdict {
    Verdict::Reject { reason: "not now".to_owned() }
}

fn now() -> DateTime<Utc> {
    Clock::System.now()
}

fn seconds(count: i64) -> TimeDelta {
    TimeDelta::seconds(count)
}

fn step(fields: &Value) -> PlanStep {
    PlanStep::read(&serde_json::value::to_raw_value(fields).unwrap()).unwrap()
}

#[track_caller]
fn won(recorded: Recorded) -> Record {
    match recorded {
        Recorded::Won(record) => record,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn lost(recorded: Recorded) -> Record {
    match recorded {
        Recorded::Lost(record) => record,
        other => panic!("{other:?}"),
    }
}
