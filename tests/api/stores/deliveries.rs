//! Deliveries that the ledger owes: who claims them, for how long, when they are settled, and when they
//! are owed again. On every ledger.

use aura_hitl::domain::decision::Verdict;
use aura_hitl::domain::record::{Delivery, DeliveryResult, Record};
use aura_hitl::ledger::LEASE;
use chrono::TimeDelta;
use futures_util::future::join_all;
use support::{ALICE, Asked};

use super::{Stores, now, seconds, won};

on_all_stores! {
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
            let settled = DeliveryResult { delivery, listeners, replication_id: None };
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
            replication_id: Some(history.to_owned()),
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
}

/// Who has to wait for whom, where a request and its delivery are two rows. Each test holds a row until the
/// others wait for it, in this order.
mod at_once {
    use aura_hitl::domain::ids::RequestId;
    use aura_hitl::ledger::AskedAgain;
    use sqlx::{Postgres, Transaction};
    use support::eventually;

    use super::*;

    impl Stores {
        /// Locks rows for a while.
        async fn hold(&self, statement: &'static str) -> Transaction<'static, Postgres> {
            let mut holding = self.postgres.as_ref().unwrap().begin().await.unwrap();
            sqlx::query(statement).execute(&mut *holding).await.unwrap();
            holding
        }

        async fn number(&self, query: &'static str) -> i64 {
            sqlx::query_scalar(query).fetch_one(self.postgres.as_ref().unwrap()).await.unwrap()
        }

        /// Until so many statements wait for locks.
        async fn waiting(&self, statements: i64) {
            const WAITING: &str = "SELECT COUNT(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
            eventually(async || (self.number(WAITING).await >= statements).then_some(())).await;
        }

        /// A request whose signal was sent.
        async fn sent(&self, asked: &Asked) -> Record {
            let record = won(self.decide(ALICE, asked, Verdict::Approve, now()).await);
            let sent = DeliveryResult { listeners: Some(0), ..DeliveryResult::SENT };
            self.mark(&record, &sent, now()).await;
            self.record(&asked.id).await
        }
    }

    const ORPHANS: &str = "SELECT COUNT(*) FROM hitl_delivery d
        WHERE NOT EXISTS (SELECT FROM hitl_request r
                           WHERE (r.tenant_id, r.request_id) = (d.tenant_id, d.request_id))";

    over_redis! {
        async fn a_purge_leaves_alone_what_is_being_owed_again(stores: Stores) {
            let (asked, in_days) = (Asked::new(), now() + TimeDelta::days(2));
            let record = stores.sent(&asked).await;
            let holding = stores.hold("SELECT FROM hitl_delivery FOR UPDATE").await;
            let ledger = stores.ledger.clone();
            let owing =
                tokio::spawn(async move { ledger.owe_again(&record, in_days + seconds(1)).await });
            stores.waiting(1).await;
            assert_eq!(stores.ledger.purge_requests(in_days, 10).await.unwrap(), 0);
            drop(holding);
            let owed = owing.await.unwrap().unwrap().unwrap();
            assert_eq!(owed.delivery, Delivery::Owed);
            assert_eq!(stores.ledger.purge_requests(in_days, 10).await.unwrap(), 0);
            // However long ago it was owed.
            assert_eq!(stores.ledger.purge_requests(in_days + seconds(9), 10).await.unwrap(), 0);
            assert_eq!(stores.number(ORPHANS).await, 0);
        }

        async fn what_is_being_purged_is_not_owed_again(stores: Stores) {
            let (asked, in_days) = (Asked::new(), now() + TimeDelta::days(2));
            let record = stores.sent(&asked).await;
            let holding = stores.hold("SELECT FROM hitl_delivery FOR UPDATE").await;
            let ledger = stores.ledger.clone();
            let purging = tokio::spawn(async move { ledger.purge_requests(in_days, 10).await });
            stores.waiting(1).await;
            let ledger = stores.ledger.clone();
            let owing =
                tokio::spawn(async move { ledger.owe_again(&record, in_days + seconds(1)).await });
            stores.waiting(2).await;
            drop(holding);
            assert_eq!(purging.await.unwrap().unwrap(), 1);
            assert!(owing.await.unwrap().unwrap().is_none());
            assert_eq!(stores.number("SELECT COUNT(*) FROM hitl_delivery").await, 0);
        }

        async fn who_was_heard_meanwhile_is_not_told_again(stores: Stores) {
            let asked = Asked::new();
            let record = stores.sent(&asked).await;
            let holding = stores.hold("UPDATE hitl_request SET heard_at = now()").await;
            let ledger = stores.ledger.clone();
            let seen = record.clone();
            let claiming = tokio::spawn(async move { ledger.claim_unheard(&seen, now()).await });
            stores.waiting(1).await;
            holding.commit().await.unwrap();
            assert!(claiming.await.unwrap().unwrap().is_none());
            assert_eq!(stores.record(&asked.id).await.delivery, Delivery::Sent);
        }

        async fn an_answer_that_is_owed_again_is_not_asked_for_again(stores: Stores) {
            let asked = Asked::new();
            let record = stores.sent(&asked).await;
            let again = AskedAgain {
                id: RequestId::parse(asked.id.as_str()).unwrap(),
                tenant: record.tenant.clone(),
                content_hash: record.content_hash.clone(),
                until: now() + seconds(1000),
                read_at: now(),
            };
            let holding = stores.hold("SELECT FROM hitl_request FOR UPDATE").await;
            let ledger = stores.ledger.clone();
            let owing = tokio::spawn(async move { ledger.owe_again(&record, now()).await });
            stores.waiting(1).await;
            let ledger = stores.ledger.clone();
            let noting = tokio::spawn(async move { ledger.note_asked_again(&[again]).await });
            stores.waiting(2).await;
            drop(holding);
            assert!(owing.await.unwrap().unwrap().is_some());
            assert!(noting.await.unwrap().unwrap().is_empty());
            assert_eq!(stores.record(&asked.id).await.asked_again_until, None);
        }
    }
}
