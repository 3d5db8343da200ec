//! Tasks in the ledger: what a decision makes of the task it belongs to, what plans are updated to, and
//! how tasks are listed. On every ledger.

use aura_hitl::domain::approver::Caller;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::decision::Verdict;
use aura_hitl::domain::ids::{RequestId, TenantId, UserId};
use aura_hitl::domain::request::Origin;
use aura_hitl::domain::task::{Task, TaskFilter, TaskRefusal, TaskStatus, TaskStep};
use aura_hitl::ledger::{LedgerError, Registered};
use aura_hitl::tasks::TaskError;
use aura_hitl::tasks::change::take_step;
use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{
    ALICE, Asked, BOB, MALLORY, Mode, eventually, find_record, insert_task_of_mallory, unique,
};

use super::{Stores, new_task, no, now, owner, seconds, step, won};

on_all_stores! {
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
            take_step(&stores.ledger, &owner(&kept), &kept.id, &done, &stores.clock).await
        };
        stores.clock.advance(seconds(1799));
        assert!(matches!(complete().await, Err(TaskError::Refused(_))));
        stores.clock.advance(seconds(1));
        complete().await.unwrap();
    }

    async fn a_task_that_is_over_stays_over(stores: Stores) {
        let now = now();
        for last in [TaskStep::Complete { result: None }, TaskStep::Fail { error: None }] {
            let kept = stores.keep_task(ALICE, now).await;
            for step in [TaskStep::Start, last] {
                let caller = owner(&kept);
                let change = take_step(&stores.ledger, &caller, &kept.id, &step, &stores.clock);
                change.await.unwrap();
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

    async fn thirty_plan_updates_at_once_lose_nothing(stores: Stores) {
        let kept = stores.keep_task(ALICE, now()).await;
        let steps: Vec<_> = (0..30)
            .map(|number| TaskStep::MergePlan(vec![step(&json!({ "stepId": format!("s{number}") }))]))
            .collect();
        let (clock, caller) = (Clock::System, owner(&kept));
        let changes = steps.iter().map(async |step| {
            // On a busy machine one may be told to come again, which loses nothing either.
            loop {
                match take_step(&stores.ledger, &caller, &kept.id, step, &clock).await {
                    Err(TaskError::Ledger(LedgerError::Locked(_))) => {}
                    change => break change.unwrap(),
                }
            }
        });
        join_all(changes).await;
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
            take_step(&stores.ledger, &caller, &kept.id, step, &Clock::System).await
        };
        let done = TaskStep::Complete { result: Some("1".to_owned()) };
        let Err(TaskError::Refused(refusal)) = change(&kept.tenant, &done).await else {
            panic!("it has not begun");
        };
        assert_eq!(refusal, TaskRefusal::State(TaskStatus::Requested));
        let foreign = TenantId::parse("tenant2").unwrap();
        assert!(matches!(change(&foreign, &TaskStep::Start).await, Err(TaskError::NotFound)));
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
    insert_task_of_mallory(&mut taking, foreign.id.as_str()).await;
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
