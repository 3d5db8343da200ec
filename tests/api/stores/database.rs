//! The database itself: what its constraints refuse, what a row edited by hand does, times, and a schema
//! that is not there. On every ledger.

use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::RequestId;
use aura_hitl::ledger::LedgerError;
use chrono::DateTime;
use support::{ALICE, Asked};

use super::{Stores, no, now, seconds, won};

on_all_stores! {
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
            "UPDATE hitl_delivery SET delivery = 'lost'".to_owned(),
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

    async fn both_stores_answer(stores: Stores) {
        stores.ledger.check_writable().await.unwrap();
        stores.courier.ping().await.unwrap();
        let engines = (stores.ledger.engine(), stores.courier.engine());
        let expected =
            if stores.postgres.is_some() { ("postgres", "redis") } else { ("sqlite", "in-process") };
        assert_eq!(engines, expected);
    }
}

/// The engines' migrations had numbers of their own at first; since then a number means the same on
/// both.
#[test]
fn migrations_of_both_engines_carry_the_same_numbers() {
    let numbered = |engine: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/");
        let files = std::fs::read_dir(format!("{folder}{engine}")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names = names.filter(|name| name.as_str() >= "0014").collect::<Vec<_>>();
        names.sort();
        names
    };
    assert_eq!(numbered("postgres"), numbered("sqlite"));
    assert!(numbered("postgres").len() > 10);
}
