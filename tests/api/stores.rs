//! What every ledger and every courier must do, whichever engine is behind it: the same suite runs
//! on SQLite with the in-process courier and on Postgres with Redis. No service runs meanwhile, so
//! no relay takes part.

use aura_hitl::config::LedgerConfig;
use aura_hitl::courier::{Courier, Outgoing, Seen, Sent};
use aura_hitl::domain::approver::Caller;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId, TaskId, TenantId, UserId};
use aura_hitl::domain::plan::PlanStep;
use aura_hitl::domain::record::{Delivery, DeliveryReceipt, DeliveryResult, Record};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::session::SessionPointer;
use aura_hitl::domain::task::{Task, TaskFilter, TaskRefusal, TaskStatus, TaskStep};
use aura_hitl::ledger::{LEASE, Ledger, LedgerError, Recorded, Registered, TaskChange, Writing};
use aura_hitl::server::stores;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use support::{
    ALICE, Asked, BOB, MALLORY, Mode, Who, config, decide_on_ledger, eventually, find_record,
    put_request, put_session, reached, test_variable, unique, writing,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A ledger and a courier of one's own.
/// The caller whose task it is.
fn owner(task: &Task) -> Caller {
    Caller { user: task.user.clone(), tenant: task.tenant.clone(), ..ALICE.caller() }
}

struct Stores {
    ledger: Ledger,
    courier: Courier,
    /// The in-process courier's; Redis has its own.
    clock: Clock,
    postgres: Option<PgPool>,
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
                check(Stores::open(Mode::Embedded).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn production() {
                check(Stores::open(Mode::Production).await).await;
            }
        }
    )*};
}

/// The same for what only Redis does.
macro_rules! over_redis {
    ($(async fn $name:ident($stores:ident: Stores) $body:block)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let $stores = Stores::open(Mode::Production).await;
            $body
        }
    )*};
}

impl Stores {
    async fn open(mode: Mode) -> Self {
        let folder = TempDir::new().unwrap();
        let config = config(mode, &folder).await;
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
        Self { ledger, courier, clock, postgres, _folder: folder }
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

on_all_stores! {
    async fn the_first_decision_wins_and_the_others_see_what_stands(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        let first = won(stores.decide(ALICE, &asked, Verdict::Approve, now).await);
        assert_eq!(first.state, State::Decided(ALICE.decides(Verdict::Approve, now)));
        assert_eq!((first.delivery, first.origin), (Delivery::Owed, Origin::Redis));
        for (who, verdict) in [(BOB, no()), (BOB, Verdict::Approve), (ALICE, Verdict::Approve)] {
            let standing = lost(stores.decide(who, &asked, verdict, now + seconds(1)).await);
            assert_eq!((standing.state, standing.owed_since), (first.state.clone(), now));
        }
    }

    async fn of_many_decisions_at_once_exactly_one_wins(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        let names: Vec<_> = (0..40).map(|number| format!("user{number}")).collect();
        let attempts = names.iter().enumerate().map(|(number, user)| {
            let verdict = if number % 2 == 0 { Verdict::Approve } else { no() };
            stores.decide(Who { user, ..ALICE }, &asked, verdict, now)
        });
        let outcomes = join_all(attempts).await;
        let winners = outcomes.iter().filter(|one| matches!(one, Recorded::Won(_))).count();
        assert_eq!(winners, 1);
        let stands = stores.record(&asked.id).await.state;
        for outcome in outcomes {
            let (Recorded::Won(record) | Recorded::Lost(record)) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(record.state, stands);
        }
    }

    async fn a_registered_request_is_decided_only_as_it_was_registered(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        assert!(matches!(stores.register(ALICE, &asked, start).await, Registered::New(_)));
        let altered = [
            asked.clone().with("context", json!({ "to": "everybody" })),
            asked.clone().with("actionType", json!("delete_files")),
            asked.clone().with("sessionId", json!("another_session")),
            asked.clone().with("userId", json!("bob")),
            asked.clone().with("userId", Value::Null),
        ];
        let decide = async |who, asked: &Asked, origin, verdict, at| {
            stores.decide_as(who, asked, origin, verdict, at).await
        };
        for other in altered {
            let standing = decide(ALICE, &other, Origin::Http, Verdict::Approve, start).await;
            assert_eq!(lost(standing).state, State::Pending, "{}", other.document);
        }
        let in_redis = decide(ALICE, &asked, Origin::Redis, Verdict::Approve, start).await;
        assert_eq!(lost(in_redis).state, State::Pending, "another request of the same content");
        let too_late = start + seconds(1800);
        let late = decide(ALICE, &asked, Origin::Http, Verdict::Approve, too_late).await;
        assert_eq!(lost(late).state, State::Pending);
        // Another tenant's request under the same id is another request.
        let theirs = asked.clone().with("tenantId", json!("tenant2"));
        won(decide(MALLORY, &theirs, Origin::Redis, Verdict::Approve, start).await);
        let in_time = start + seconds(1799);
        let record = won(decide(BOB, &asked, Origin::Http, no(), in_time).await);
        assert_eq!((record.origin, record.delivery), (Origin::Http, Delivery::Sent));
        assert_eq!(record.document, asked.document.to_string());
        assert_eq!(record.owed_since, in_time);
    }

    async fn a_decided_request_leaves_a_task_made_from_it(stores: Stores) {
        let now = now();
        let plan = json!([{ "stepId": "step-1", "description": "보내기", "confidence": 0.85 }]);
        let asked = Asked::new().with("planSteps", plan.clone());
        let record = won(stores.decide(BOB, &asked, Verdict::Approve, now).await);
        let task = stores.task("tenant1", record.task.as_str()).await.unwrap();
        assert_eq!(task.task_type, "send_email");
        assert_eq!(task.user.as_str(), "user123", "it is the asker's task, not the decider's");
        assert_eq!(task.input_data.as_deref(), Some(r#"{"to":"a@b.c"}"#));
        assert_eq!(serde_json::from_str::<Value>(&task.plan_steps).unwrap(), plan);
        assert_eq!(task.status, TaskStatus::InProgress);
        assert_eq!(task.hitl_request_id, Some(RequestId::parse(&asked.id).unwrap()));
        assert_eq!(task.error_message, None);

        let refused = Asked::new();
        let record = won(stores.decide(BOB, &refused, no(), now).await);
        let task = stores.task("tenant1", record.task.as_str()).await.unwrap();
        assert_eq!((task.status, task.plan_steps.as_str()), (TaskStatus::Failed, "[]"));
        assert_eq!(task.error_message.as_deref(), Some("Rejected by bob: not now"));
    }

    async fn the_agents_own_task_is_kept_and_goes_on(stores: Stores) {
        let now = now();
        for verdict in [Verdict::Approve, no()] {
            let kept = stores.keep_task(ALICE, now).await;
            let asked = Asked::new().with("taskId", json!(kept.id.as_str()));
            let record = won(stores.decide(BOB, &asked, verdict.clone(), now).await);
            assert_eq!(record.task, kept.id);
            let task = stores.task("tenant1", kept.id.as_str()).await.unwrap();
            assert_eq!((&task.task_type, &task.input_data), (&kept.task_type, &kept.input_data));
            assert_eq!(task.status, TaskStatus::InProgress, "only the agent knows if it ends");
            assert_eq!(task.error_message.is_some(), verdict != Verdict::Approve);
        }
    }

    async fn a_task_is_found_by_the_request_it_carries(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        let kept = stores.keep_task(ALICE, now).await;
        let carries = |request: &str, task: &Task| {
            format!("UPDATE agent_task SET hitl_request_id = '{request}' WHERE task_id = '{}'", task.id)
        };
        stores.sql(&carries(&asked.id, &kept)).await.unwrap();
        let record = won(stores.decide(ALICE, &asked, no(), now).await);
        assert_eq!(record.task, kept.id);
        let task = stores.task("tenant1", kept.id.as_str()).await.unwrap();
        assert_eq!(task.status, TaskStatus::InProgress);

        let (strange, foreign) = (Asked::new(), stores.keep_task(MALLORY, now).await);
        stores.sql(&carries(&strange.id, &foreign)).await.unwrap();
        let record = won(stores.decide(ALICE, &strange, no(), now).await);
        assert_ne!(record.task, foreign.id);
        let untouched = stores.task("tenant2", foreign.id.as_str()).await.unwrap();
        assert_eq!((untouched.status, untouched.error_message), (TaskStatus::Requested, None));
    }

    async fn another_tenants_task_is_never_touched(stores: Stores) {
        let now = now();
        let foreign = stores.keep_task(MALLORY, now - seconds(60)).await;
        let decided = Asked::new().with("taskId", json!(foreign.id.as_str()));
        let registered = Asked::new().with("taskId", json!(foreign.id.as_str()));
        let record = won(stores.decide(ALICE, &decided, Verdict::Approve, now).await);
        assert_eq!(record.task, foreign.id, "ids are each tenant's own");
        let own = stores.task("tenant1", foreign.id.as_str()).await.unwrap();
        assert_eq!((own.user.as_str(), own.status), (ALICE.user, TaskStatus::InProgress));
        let Registered::New(record) = stores.register(ALICE, &registered, now).await else {
            panic!("a foreign task must not matter");
        };
        assert_eq!(record.task, foreign.id);
        let own = stores.task("tenant1", foreign.id.as_str()).await.unwrap();
        assert_eq!(own.status, TaskStatus::WaitingApproval);
        assert_eq!(stores.task("tenant2", foreign.id.as_str()).await, Some(foreign));
    }

    async fn a_request_is_registered_once(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        let Registered::New(new) = stores.register(ALICE, &asked, now).await else {
            panic!("it was not known");
        };
        assert_eq!((new.state, new.delivery), (State::Pending, Delivery::Sent));
        let other = asked.clone().with("context", json!({ "to": "everybody" }));
        let Registered::Known(known) = stores.register(BOB, &other, now + seconds(5)).await else {
            panic!("it was known");
        };
        assert_eq!((known.fingerprint, known.owed_since), (new.fingerprint, now));
        assert_eq!(known.expires_at, now + seconds(1800));
    }

    async fn a_task_waits_until_its_last_pending_request_is_decided(stores: Stores) {
        let now = now();
        let kept = stores.keep_task(ALICE, now).await;
        let [first, second] =
            [0, 1].map(|_| Asked::new().with("taskId", json!(kept.id.as_str())));
        for asked in [&first, &second] {
            assert!(matches!(stores.register(ALICE, asked, now).await, Registered::New(_)));
        }
        let status = async || stores.task("tenant1", kept.id.as_str()).await.unwrap().status;
        assert_eq!(status().await, TaskStatus::WaitingApproval);
        won(stores.decide_as(BOB, &first, Origin::Http, Verdict::Approve, now).await);
        assert_eq!(status().await, TaskStatus::WaitingApproval);
        won(stores.decide_as(BOB, &second, Origin::Http, no(), now).await);
        assert_eq!(status().await, TaskStatus::InProgress);
    }

    async fn a_task_whose_last_requests_are_decided_at_once_goes_on(stores: Stores) {
        for _race in 0..10 {
            let now = now();
            let kept = stores.keep_task(ALICE, now).await;
            let asked: Vec<_> =
                (0..4).map(|_| Asked::new().with("taskId", json!(kept.id.as_str()))).collect();
            for one in &asked {
                assert!(matches!(stores.register(ALICE, one, now).await, Registered::New(_)));
            }
            let decisions = asked.iter().map(|one| {
                stores.decide_as(BOB, one, Origin::Http, Verdict::Approve, now + seconds(1))
            });
            for recorded in join_all(decisions).await {
                won(recorded);
            }
            let task = stores.task("tenant1", kept.id.as_str()).await.unwrap();
            assert_eq!(task.status, TaskStatus::InProgress);
        }
    }

    async fn a_task_does_not_wait_for_what_has_expired(stores: Stores) {
        let start = stores.clock.now();
        let kept = stores.keep_task(ALICE, start).await;
        let asked = Asked::new().with("taskId", json!(kept.id.as_str()));
        stores.register(ALICE, &asked, start).await;
        let done = TaskStep::Complete { result: None };
        let complete = async || {
            stores.ledger.change_task(&owner(&kept), &kept.id, &done, &stores.clock).await.unwrap()
        };
        stores.clock.advance(seconds(1799));
        assert!(matches!(complete().await, TaskChange::Refused(_)));
        stores.clock.advance(seconds(1));
        assert!(matches!(complete().await, TaskChange::Done(_)));
    }

    async fn a_task_that_is_over_stays_over(stores: Stores) {
        let now = now();
        for last in [TaskStep::Complete { result: None }, TaskStep::Fail { error: None }] {
            let kept = stores.keep_task(ALICE, now).await;
            for step in [TaskStep::Start, last] {
                let caller = owner(&kept);
                let change = stores.ledger.change_task(&caller, &kept.id, &step, &stores.clock);
                assert!(matches!(change.await.unwrap(), TaskChange::Done(_)));
            }
            let over = stores.task("tenant1", kept.id.as_str()).await.unwrap();
            let asked = Asked::new().with("taskId", json!(kept.id.as_str()));
            assert!(matches!(stores.register(ALICE, &asked, now).await, Registered::TaskIsOver));
            let id = RequestId::parse(&asked.id).unwrap();
            assert!(find_record(&stores.ledger, id.as_str()).await.is_none());
            won(stores.decide(BOB, &asked, Verdict::Approve, now).await);
            let still = stores.task("tenant1", kept.id.as_str()).await.unwrap();
            assert_eq!((still.status, still.progress), (over.status, over.progress));
        }
    }

    async fn a_lease_keeps_others_away_until_it_is_over(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let moment = TimeDelta::microseconds(1);
        let mut due = start + LEASE;
        for _round in 0..3 {
            assert!(stores.claim(due - moment).await.is_empty());
            assert_eq!(stores.claim(due).await, [asked.id.as_str()]);
            assert!(stores.claim(due).await.is_empty());
            due += LEASE;
        }
    }

    async fn two_claims_at_once_share_what_is_due(stores: Stores) {
        let start = now();
        let mut asked: Vec<_> = (0..30).map(|_| Asked::new()).collect();
        for one in &asked {
            won(stores.decide(ALICE, one, Verdict::Approve, start).await);
        }
        let claims = (0..6).map(|_| stores.ledger.claim_owed(start + LEASE, 7));
        let mut claimed: Vec<_> = join_all(claims)
            .await
            .into_iter()
            .flat_map(|rows| {
                let rows = rows.unwrap();
                assert!(rows.len() <= 7);
                rows.into_iter().map(|record| record.id.to_string())
            })
            .collect();
        claimed.extend(stores.claim(start + LEASE).await);
        claimed.sort();
        asked.sort_by(|a, b| a.id.cmp(&b.id));
        assert!(asked.iter().map(|one| &one.id).eq(&claimed), "each once: {claimed:?}");
    }

    async fn only_the_delivery_that_was_made_is_settled(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        let first = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let settle = async |record: &Record, delivery, listeners| {
            let settled = DeliveryResult { delivery, listeners, sent_to: None };
            stores.mark(record, &settled, start).await;
        };
        settle(&first, Delivery::Sent, Some(2)).await;
        let sent = stores.record(&asked.id).await;
        assert_eq!((sent.delivery, sent.listeners), (Delivery::Sent, Some(2)));
        assert!(stores.claim(start + LEASE).await.is_empty(), "nothing is owed any more");
        settle(&first, Delivery::Superseded, None).await;
        assert_eq!(stores.record(&asked.id).await.delivery, Delivery::Sent);

        let again = stores.ledger.owe_again(&sent, start + seconds(1)).await.unwrap().unwrap();
        assert_eq!((again.delivery, again.listeners), (Delivery::Owed, None));
        settle(&first, Delivery::Sent, Some(9)).await;
        let owed = stores.record(&asked.id).await;
        assert_eq!((owed.delivery, owed.listeners), (Delivery::Owed, None), "it is a newer debt");
        settle(&again, Delivery::Superseded, None).await;
        assert_eq!(stores.record(&asked.id).await.delivery, Delivery::Superseded);
    }

    async fn a_signal_is_owed_again_by_one_caller_only(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        let owed = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let later = start + seconds(9);
        assert!(stores.ledger.owe_again(&owed, later).await.unwrap().is_none(), "it still is");
        stores.mark(&owed, &DeliveryResult::SENT, start).await;
        let seen = stores.record(&asked.id).await;
        let attempts = join_all((0..10).map(|_| stores.ledger.owe_again(&seen, later))).await;
        let won: Vec<_> = attempts.into_iter().filter_map(Result::unwrap).collect();
        assert_eq!(won.len(), 1);
        assert_eq!((won[0].owed_since, &won[0].state), (later, &seen.state));
        assert!(stores.claim(later + LEASE - TimeDelta::microseconds(1)).await.is_empty());
        assert_eq!(stores.claim(later + LEASE).await, [asked.id.as_str()]);
    }

    async fn what_went_into_a_history_that_is_over_is_owed_again(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        let owed = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let sent_to = |history: &str| DeliveryResult {
            listeners: Some(1),
            sent_to: Some(history.to_owned()),
            ..DeliveryResult::SENT
        };
        let lost = async |histories: &[&str], now| {
            let histories: Vec<_> = histories.iter().map(|&one| one.to_owned()).collect();
            stores.ledger.owe_lost(&histories, now).await.unwrap()
        };
        assert_eq!(lost(&["b"], start).await, 0, "it was never sent");
        stores.mark(&owed, &sent_to("a"), start).await;
        assert_eq!(lost(&["a"], start).await, 0);
        assert_eq!(lost(&["b", "a"], start).await, 0, "a Cluster has several");
        assert_eq!(lost(&["b"], start + seconds(300)).await, 0, "its key would be gone");
        // Every replica notices at once.
        let later = start + seconds(200);
        let lost_by = join_all((0..5).map(|_| lost(&["b", "c"], later))).await;
        assert_eq!(lost_by.iter().sum::<u64>(), 1);
        let again = stores.record(&asked.id).await;
        assert_eq!((again.delivery, again.owed_since), (Delivery::Owed, owed.owed_since));
        assert!(!again.is_unsent() && again.listeners == Some(1), "it counts as sent");
        assert_eq!(stores.claim(later).await, [asked.id.as_str()]);

        // A late note about what went to the old one does not end it.
        stores.mark(&owed, &sent_to("a"), later).await;
        assert_eq!(lost(&["b"], later).await, 1);
        stores.mark(&owed, &sent_to("b"), later).await;
        assert_eq!(lost(&["b"], later).await, 0);
        // Nothing is lost of what is left alone; and whoever asks again is told again.
        assert_eq!(lost(&["c"], later).await, 1);
        let seen = stores.record(&asked.id).await;
        let news = stores.ledger.owe_again(&seen, later).await.unwrap().unwrap();
        assert!(news.is_unsent() && news.listeners.is_none());
        stores.mark(&news, &DeliveryResult::SENT, later).await;
        assert_eq!(lost(&["d"], later).await, 0);
    }

    async fn a_postponed_delivery_is_due_when_it_says(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        let record = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let due = start + TimeDelta::milliseconds(100);
        stores.ledger.postpone(&record, due).await.unwrap();
        assert!(stores.claim(start).await.is_empty());
        assert_eq!(stores.claim(due).await, [asked.id.as_str()]);

        stores.mark(&record, &DeliveryResult::SENT, start).await;
        stores.ledger.postpone(&record, start).await.unwrap();
        assert!(stores.claim(start + seconds(60)).await.is_empty(), "what is sent stays sent");
    }

    async fn thirty_plan_updates_at_once_lose_nothing(stores: Stores) {
        let kept = stores.keep_task(ALICE, now()).await;
        let steps: Vec<_> = (0..30)
            .map(|number| TaskStep::MergePlan(vec![step(&json!({ "stepId": format!("s{number}") }))]))
            .collect();
        let (clock, caller) = (Clock::System, owner(&kept));
        let changes =
            steps.iter().map(|step| stores.ledger.change_task(&caller, &kept.id, step, &clock));
        for change in join_all(changes).await {
            assert!(matches!(change.unwrap(), TaskChange::Done(_)));
        }
        let task = stores.task("tenant1", kept.id.as_str()).await.unwrap();
        let plan: Vec<Value> = serde_json::from_str(&task.plan_steps).unwrap();
        let mut ids: Vec<_> = plan.iter().map(|step| step["stepId"].as_str().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 30);
    }

    async fn a_step_that_is_refused_or_of_another_tenant_changes_nothing(stores: Stores) {
        let kept = stores.keep_task(ALICE, now()).await;
        let change = async |tenant: &TenantId, step: &TaskStep| {
            let caller = Caller { tenant: tenant.clone(), ..owner(&kept) };
            stores.ledger.change_task(&caller, &kept.id, step, &Clock::System).await.unwrap()
        };
        let done = TaskStep::Complete { result: Some("1".to_owned()) };
        let TaskChange::Refused(refusal) = change(&kept.tenant, &done).await else {
            panic!("it has not begun");
        };
        assert_eq!(refusal, TaskRefusal::State(TaskStatus::Requested));
        let foreign = TenantId::parse("tenant2").unwrap();
        assert!(matches!(change(&foreign, &TaskStep::Start).await, TaskChange::NotFound));
        assert_eq!(stores.task("tenant1", kept.id.as_str()).await, Some(kept));
    }

    async fn tasks_are_listed_newest_first_by_page(stores: Stores) {
        let start = now();
        let mut ids = Vec::new();
        for number in 0_i64..7 {
            let who = if number % 2 == 0 { ALICE } else { BOB };
            // Two at a time are of the same moment: the id then says which is newer.
            let at = start + TimeDelta::microseconds(number / 2);
            ids.insert(0, stores.keep_task(who, at).await.id);
        }
        stores.keep_task(MALLORY, start).await;
        let page = async |user: Option<&str>, status, page, size| {
            let filter = TaskFilter {
                tenant: TenantId::parse("tenant1").unwrap(),
                user: user.map(|user| UserId::parse(user).unwrap()),
                status,
                page,
                size,
            };
            let (tasks, total) = stores.ledger.list_tasks(&filter).await.unwrap();
            (tasks.into_iter().map(|task| task.id).collect::<Vec<_>>(), total)
        };
        let mut pages = Vec::new();
        for number in 0..3 {
            let (tasks, total) = page(None, None, number, 3).await;
            assert_eq!(total, 7);
            pages.push(tasks.len());
            ids.retain(|id| !tasks.contains(id));
            assert_eq!(ids.len(), 7 - pages.iter().sum::<usize>(), "no page repeats another");
        }
        assert_eq!(pages, [3, 3, 1]);
        assert_eq!(page(None, None, 3, 3).await, (vec![], 7));
        assert_eq!(page(None, None, u32::MAX, 100).await, (vec![], 7));
        assert_eq!(page(Some("user123"), None, 0, 100).await.1, 4);
        assert_eq!(page(Some("bob"), Some(TaskStatus::Requested), 0, 100).await.1, 3);
        assert_eq!(page(None, Some(TaskStatus::Completed), 0, 100).await, (vec![], 0));
        let first = page(None, None, 0, 1).await.0;
        assert_eq!(stores.task("tenant1", first[0].as_str()).await.unwrap().created_at,
            start + TimeDelta::microseconds(3));
    }

    async fn the_newest_request_of_redis_in_a_session_is_any_tenants(stores: Stores) {
        let (start, name) = (now(), unique("session"));
        let asked = |tenant: &str| Asked::in_session(&name).with("tenantId", json!(tenant));
        let (old, new) = (asked("tenant1"), asked("tenant1"));
        let (foreign, registered) = (asked("tenant2"), asked("tenant1"));
        let session = SessionId::parse(&*name).unwrap();
        let newest = async || {
            let found = stores.ledger.newest_of_redis(&session).await.unwrap();
            found.map(|record| record.id.to_string())
        };
        assert_eq!(newest().await, None);
        won(stores.decide(ALICE, &new, no(), start + seconds(2)).await);
        won(stores.decide(ALICE, &old, Verdict::Approve, start + seconds(1)).await);
        stores.register(ALICE, &registered, start + seconds(4)).await;
        assert_eq!(newest().await, Some(new.id));
        won(stores.decide(MALLORY, &foreign, no(), start + seconds(3)).await);
        assert_eq!(newest().await, Some(foreign.id));
    }

    async fn where_a_newer_request_of_redis_is_known_an_older_one_is_not_decided(stores: Stores) {
        let (start, session) = (now(), unique("session"));
        let decide = async |asked: &Asked, at| {
            let (candidate, caller) = (asked.candidate(Origin::Redis, at), ALICE.caller());
            let state = &State::Decided(ALICE.decides(Verdict::Approve, at));
            let writing =
                Writing { only_newest: true, ..writing(&candidate, state, &caller, at) };
            stores.ledger.record_outcome(&writing).await.unwrap()
        };
        let [old, known, newest, elsewhere] = [(); 4].map(|()| Asked::in_session(&session));
        let elsewhere = elsewhere.with("sessionId", json!(unique("session")));
        let foreign = Asked::in_session(&session).with("tenantId", json!("tenant2"));
        // Neither an older one, nor one of another session, nor a registered one is in the way.
        won(decide(&known, start).await);
        won(stores.decide(ALICE, &elsewhere, no(), start + seconds(9)).await);
        stores.register(ALICE, &newest, start + seconds(9)).await;
        won(decide(&Asked::in_session(&session), start + seconds(1)).await);
        won(stores.decide(MALLORY, &foreign, no(), start + seconds(3)).await);
        assert!(matches!(decide(&old, start + seconds(2)).await, Recorded::MovedOn));
        let tenant = TenantId::parse("tenant1").unwrap();
        let id = RequestId::parse(&*old.id).unwrap();
        assert!(stores.ledger.find_request(&tenant, &id).await.unwrap().is_none());
        // What stands is told all the same.
        assert!(matches!(decide(&known, start).await, Recorded::Lost(_)));
    }

    async fn the_database_refuses_rows_that_cannot_be(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        let record = won(stores.decide(ALICE, &asked, no(), now).await);
        let request = |change: &str| {
            format!("UPDATE hitl_request SET {change} WHERE request_id = '{}'", asked.id)
        };
        let task = |change: &str| {
            format!("UPDATE agent_task SET {change} WHERE task_id = '{}'", record.task)
        };
        stores.sql(&request("reason = 'another'")).await.unwrap();
        stores.sql(&task("progress = 100")).await.unwrap();
        let impossible = [
            request("status = 'pending'"),
            request("status = 'approved'"),
            request("status = 'maybe'"),
            request("status = 'expired', reason = NULL"),
            request("reason = NULL"),
            request("decided_by = NULL"),
            request("decided_at = NULL"),
            request("delivery = 'lost'"),
            request("origin = 'mail'"),
            request("tenant_id = NULL"),
            request("fingerprint = NULL"),
            task("status = 'DONE'"),
            task("progress = 101"),
            task("progress = -1"),
            task("plan_steps = NULL"),
            task("tenant_id = NULL"),
            "INSERT INTO agent_task SELECT * FROM agent_task".to_owned(),
            "INSERT INTO hitl_request SELECT * FROM hitl_request".to_owned(),
        ];
        for statement in impossible {
            let refused = stores.sql(&statement).await;
            let refused = refused.expect_err(&statement).into_database_error();
            let kind = refused.expect("the database says no").kind();
            assert_ne!(kind, sqlx::error::ErrorKind::Other, "{statement}");
        }
    }

    async fn a_row_edited_by_hand_is_an_error_not_a_crash(stores: Stores) {
        let (asked, now) = (Asked::new(), now());
        won(stores.decide(ALICE, &asked, no(), now).await);
        let broken = format!("UPDATE hitl_request SET session_id = 'a b' WHERE request_id = '{}'", asked.id);
        stores.sql(&broken).await.unwrap();
        let (tenant, id) = (&ALICE.caller().tenant, RequestId::parse(&asked.id).unwrap());
        let found = stores.ledger.find_request(tenant, &id).await;
        assert!(matches!(found, Err(LedgerError::Inconsistent(_))), "{found:?}");
    }

    async fn times_come_back_to_the_microsecond(stores: Stores) {
        for micros in [0, 1, 999_999, 1_700_000_000_000_000, 1_706_152_860_123_456, 4_102_444_800_000_001] {
            let at = DateTime::from_timestamp_micros(micros).unwrap();
            let asked = Asked::new();
            let record = won(stores.decide(ALICE, &asked, Verdict::Approve, at).await);
            let State::Decided(decision) = &record.state else { panic!("it is decided") };
            let half_an_hour = at + seconds(1800);
            assert_eq!(
                (record.created_at, record.expires_at, record.owed_since, decision.at),
                (at, half_an_hour, at, at)
            );
            let task = stores.task("tenant1", record.task.as_str()).await.unwrap();
            assert_eq!((task.created_at, task.updated_at, task.started_at), (at, at, Some(at)));
        }
    }

    async fn a_database_that_was_not_migrated_is_recognised(stores: Stores) {
        assert!(stores.ledger.is_migrated().await.unwrap());
        stores.sql("DELETE FROM _sqlx_migrations").await.unwrap();
        assert!(!stores.ledger.is_migrated().await.unwrap());
        stores.sql("DROP TABLE _sqlx_migrations").await.unwrap();
        assert!(!stores.ledger.is_migrated().await.unwrap());
    }
}

/// What the tests need of a courier beyond its own methods: to listen, and to look under the lid.
impl Stores {
    /// Everything published to a session from now on.
    async fn listen(&self, session: &SessionId) -> mpsc::UnboundedReceiver<String> {
        let channel = format!("hitl:channel:{session}");
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut messages = redis_client().get_async_pubsub().await.unwrap();
        messages.subscribe(channel).await.unwrap();
        tokio::spawn(async move {
            use futures_util::StreamExt as _;
            let mut messages = messages.into_on_message();
            while let Some(message) = messages.next().await {
                if sender.send(message.get_payload().unwrap()).is_err() {
                    break;
                }
            }
        });
        receiver
    }

    /// Makes a key's time run out.
    async fn let_expire(&self, key: &str, ttl: i64) {
        let left: i64 = redis_command(&["TTL", key]).await;
        assert!((ttl - 10..=ttl).contains(&left), "{key} lives for {left} s");
        let _done: i64 = redis_command(&["PEXPIRE", key, "1"]).await;
        eventually(async || (redis_command::<i64>(&["EXISTS", key]).await == 0).then_some(()))
            .await;
    }

    async fn send(&self, session: &SessionId, signal: &str, rank: i64) -> Sent {
        let (request, _) = names();
        let only_while = &self.courier.look(&request, session).await.unwrap();
        let (request, document, aloud) = (&request, "{}", true);
        let outgoing = Outgoing { request, session, signal, document, rank, aloud, only_while };
        self.courier.send(&outgoing).await.unwrap()
    }
}

fn redis_client() -> redis::Client {
    redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap()
}

async fn redis_command<T: redis::FromRedisValue>(words: &[&str]) -> T {
    let mut connection = redis_client().get_multiplexed_async_connection().await.unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.unwrap()
}

fn names() -> (RequestId, SessionId) {
    let session = unique("session_김철수@example.com");
    (RequestId::parse(unique("req")).unwrap(), SessionId::parse(session).unwrap())
}

over_redis! {
    async fn a_request_is_found_with_the_rest_of_its_time(stores: Stores) {
        let (id, _) = names();
        let courier = &stores.courier;
        assert_eq!(courier.find_request(&id).await.unwrap(), None);
        put_request(&stores.courier, id.as_str(), "{ \"한글\": 1 }").await;
        let found = courier.find_request(&id).await.unwrap().unwrap();
        assert_eq!(found.document, "{ \"한글\": 1 }");
        let left = found.ttl.unwrap();
        assert!((1_790_000..=1_800_000).contains(&left.as_millis()), "{left:?}");
        stores.let_expire(&format!("hitl:request:{id}"), 1800).await;
        assert_eq!(courier.find_request(&id).await.unwrap(), None);
    }

    async fn a_signal_is_under_its_key_when_its_message_arrives(stores: Stores) {
        let (_, session) = names();
        assert_eq!(reached(&stores.send(&session, "unheard", 1).await), 0);
        let mut first = stores.listen(&session).await;
        assert_eq!(reached(&stores.send(&session, "heard", 2).await), 1);
        assert_eq!(first.recv().await.unwrap(), "heard");
        assert_eq!(stores.courier.signal(&session).await.unwrap().as_deref(), Some("heard"));
        let mut second = stores.listen(&session).await;
        assert_eq!(reached(&stores.send(&session, "{\"거절\"}", 3).await), 2);
        for listener in [&mut first, &mut second] {
            assert_eq!(listener.recv().await.unwrap(), "{\"거절\"}");
        }
        stores.let_expire(&format!("hitl:signal:{session}"), 300).await;
        assert_eq!(stores.courier.signal(&session).await.unwrap(), None);
    }

    async fn an_older_signal_goes_out_but_never_replaces_a_newer(stores: Stores) {
        let (_, session) = names();
        let mut listener = stores.listen(&session).await;
        // Ranks are microseconds: they must not be compared as rounded numbers.
        let rank = 1_706_152_860_123_456;
        for (signal, rank, kept) in [
            ("newer", rank, "newer"),
            ("older", rank - 1, "newer"),
            ("same age", rank, "same age"),
            ("newest", rank + 1, "newest"),
            ("old", rank, "newest"),
        ] {
            stores.send(&session, signal, rank).await;
            assert_eq!(listener.recv().await.unwrap(), signal);
            assert_eq!(stores.courier.signal(&session).await.unwrap().as_deref(), Some(kept));
        }
        stores.let_expire(&format!("hitl:signal:{session}"), 300).await;
        stores.let_expire(&format!("{{hitl:signal:{session}}}:rank"), 300).await;
        stores.send(&session, "late", rank - 5).await;
        assert_eq!(stores.courier.signal(&session).await.unwrap().as_deref(), Some("late"));
    }

    async fn a_signal_goes_out_only_while_session_and_request_are_as_they_were_seen(stores: Stores) {
        let (id, session) = names();
        let mut listener = stores.listen(&session).await;
        let send_seeing = async |signal, only_while: Seen| {
            let (request, session, only_while) = (&id, &session, &only_while);
            let (document, rank, aloud) = ("{}", 1, true);
            let outgoing = Outgoing { request, session, signal, document, rank, aloud, only_while };
            stores.courier.send(&outgoing).await.unwrap()
        };
        let send = async |signal, pointer: &SessionPointer| {
            let now = stores.courier.look(&id, &session).await.unwrap();
            send_seeing(signal, Seen { pointer: pointer.clone(), ..now }).await
        };
        let nothing = stores.courier.session(&session).await.unwrap();
        assert_eq!(reached(&send("to nobody in particular", &nothing).await), 1);
        put_session(&stores.courier, session.as_str(), "{\"requestId\":\"req_1\"}").await;
        let one = stores.courier.session(&session).await.unwrap();
        assert_eq!(reached(&send("for one", &one).await), 1);
        put_session(&stores.courier, session.as_str(), "{\"requestId\":\"req_2\"}").await;
        for stale in [&nothing, &one] {
            assert_eq!(send("stale", stale).await, Sent::Changed);
        }
        let seen = stores.courier.look(&id, &session).await.unwrap();
        put_request(&stores.courier, id.as_str(), "{\"other\":1}").await;
        assert_eq!(send_seeing("stale", seen).await, Sent::Changed);
        let there = stores.courier.find_request(&id).await.unwrap().unwrap();
        assert_eq!(there.document, "{\"other\":1}");
        assert_eq!(stores.courier.signal(&session).await.unwrap().as_deref(), Some("for one"));
        stores.let_expire(&format!("hitl:session:{session}"), 3600).await;
        assert_eq!(send("stale", &one).await, Sent::Changed);
        assert_eq!(reached(&send("last", &nothing).await), 1);
        for expected in ["to nobody in particular", "for one", "last"] {
            assert_eq!(listener.recv().await.unwrap(), expected);
        }
    }
}

on_all_stores! {
    async fn both_stores_answer(stores: Stores) {
        stores.ledger.check_writable().await.unwrap();
        stores.courier.ping().await.unwrap();
        let engines = (stores.ledger.engine(), stores.courier.engine());
        let expected =
            if stores.postgres.is_some() { ("postgres", "redis") } else { ("sqlite", "in-process") };
        assert_eq!(engines, expected);
    }
}

#[tokio::test]
async fn a_key_of_another_type_in_redis_is_no_request_no_session_and_no_failure() {
    let stores = Stores::open(Mode::Production).await;
    let (id, session) = names();
    for key in [format!("hitl:request:{id}"), format!("hitl:session:{session}")] {
        let _length: i64 = redis_command(&["RPUSH", &key, "x"]).await;
    }
    let found = stores.courier.find_request(&id).await.unwrap().unwrap();
    assert_eq!(found.document, "");
    assert!(!stores.courier.session(&session).await.unwrap().allows(&id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_another_tenant_takes_at_this_moment_leaves_a_decision_whole_or_not_made() {
    let stores = Stores::open(Mode::Production).await;
    // Half a decision would have to be put right by a second write, and none may be needed.
    for statement in [
        // Its upgrade is not finished.
        "CREATE UNIQUE INDEX agent_task_pkey ON agent_task (task_id)",
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN RAISE EXCEPTION ''a request is never written twice''; END'",
        "CREATE TRIGGER once BEFORE UPDATE ON hitl_request FOR EACH ROW EXECUTE FUNCTION fail()",
    ] {
        stores.sql(statement).await.unwrap();
    }
    let pool = stores.postgres.as_ref().unwrap();
    let foreign = new_task(&unique("task"), MALLORY, now());
    let asked = Asked::new().with("taskId", json!(foreign.id.as_str()));
    let mut taking = pool.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO agent_task (task_id, user_id, tenant_id, task_type, status, created_at, updated_at)
         VALUES ($1, 'mallory', 'tenant2', 'mail_summary', 'REQUESTED', $2, $2)",
    )
    .bind(foreign.id.as_str())
    .bind(foreign.created_at)
    .execute(&mut *taking)
    .await
    .unwrap();
    let taken = async {
        eventually(async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
        taking.commit().await.unwrap();
    };
    let (recorded, ()) =
        futures_util::future::join(stores.decide(ALICE, &asked, Verdict::Approve, now()), taken)
            .await;
    let record = won(recorded);
    assert_ne!(record.task, foreign.id);
    assert!(stores.task("tenant1", record.task.as_str()).await.is_some());
    let untouched = stores.task("tenant2", foreign.id.as_str()).await.unwrap();
    assert_eq!((untouched.status, untouched.hitl_request_id), (TaskStatus::Requested, None));
}
