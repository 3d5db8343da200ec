//! Deliveries while replicas of an older release run, which keep them in `hitl_request`: both releases see
//! what the other has owed, claimed, sent and deleted, until the upgrade is finished. `scripts/upgrade` has
//! such replicas; here their statements are the test's.

use aura_hitl::config::LedgerConfig;
use aura_hitl::domain::decision::Verdict;
use aura_hitl::domain::record::{Delivery, DeliveryResult};
use aura_hitl::ledger::LEASE;
use sqlx::{AssertSqlSafe, raw_sql};
use support::{ALICE, Asked};

use super::{Stores, now, seconds, won};

const MIGRATION: &str = include_str!("../../../migrations/postgres/0052_delivery.sql");

impl Stores {
    /// Makes the database as it is between `migrate` and `migrate --finish`: nothing has gone to the narrow
    /// table but what the migration brings there.
    async fn as_half_upgraded(&self) {
        let (_, rest) = MIGRATION.split_once("CREATE FUNCTION").unwrap();
        let pool = self.postgres.as_ref().unwrap();
        let sql = format!("DELETE FROM hitl_delivery; CREATE FUNCTION{rest}");
        raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
    }

    /// Runs a statement of the older release on the request, and checks that both tables agree.
    async fn older(&self, asked: &Asked, change: &str) {
        let sql = format!("UPDATE hitl_request SET {change} WHERE request_id = '{}'", asked.id);
        self.sql(&sql).await.unwrap();
        self.assert_agreement(asked, true).await;
    }

    /// Whether both tables say the same of the request's delivery.
    async fn assert_agreement(&self, asked: &Asked, expected: bool) {
        let agree = "SELECT (r.delivery, r.owed_since, r.due_at, r.attempts, r.sent_at, r.listeners, r.sent_to)
                            IS NOT DISTINCT FROM
                            (d.delivery, d.owed_since, d.due_at, d.attempts, d.sent_at, d.listeners, d.sent_to)
                       FROM hitl_request r LEFT JOIN hitl_delivery d USING (tenant_id, request_id)
                      WHERE request_id = $1";
        let agree = sqlx::query_scalar::<_, bool>(agree).bind(&asked.id);
        let agree = agree.fetch_one(self.postgres.as_ref().unwrap()).await.unwrap();
        assert_eq!(agree, expected);
    }

    async fn deliveries(&self) -> i64 {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM hitl_delivery");
        count.fetch_one(self.postgres.as_ref().unwrap()).await.unwrap()
    }
}

over_redis! {
    async fn what_is_owed_or_was_just_sent_comes_with_the_migration(stores: Stores) {
        let (owed, sent, earlier, start) = (Asked::new(), Asked::new(), Asked::new(), now());
        for one in [&owed, &sent, &earlier] {
            won(stores.decide(ALICE, one, Verdict::Approve, start).await);
        }
        for (one, minutes) in [(&sent, 9), (&earlier, 11)] {
            let change = format!(
                "UPDATE hitl_request SET delivery = 'sent', listeners = 1, sent_to = 'a',
                        sent_at = now() - interval '{minutes} min' WHERE request_id = '{}'",
                one.id
            );
            stores.sql(&change).await.unwrap();
        }
        stores.sql("UPDATE hitl_request SET due_at = now() WHERE delivery = 'owed'").await.unwrap();
        stores.as_half_upgraded().await;
        assert_eq!(stores.deliveries().await, 2);
        for one in [&owed, &sent] {
            stores.assert_agreement(one, true).await;
        }
        let record = stores.record(&earlier.id).await;
        assert_eq!((record.delivery, record.listeners), (Delivery::Sent, Some(1)));
        assert!(record.sent_at.is_some() && record.replication_id.as_deref() == Some("a"));
        // Its agent asks again: from now on it has a row.
        let again = stores.ledger.owe_again(&record, start).await.unwrap().unwrap();
        assert_eq!((again.delivery, again.listeners, again.sent_at), (Delivery::Owed, None, None));
        stores.assert_agreement(&earlier, true).await;
        assert_eq!(stores.claim(start + LEASE).await.len(), 2);
    }

    async fn an_older_release_sees_what_this_one_owes_claims_and_sends(stores: Stores) {
        stores.as_half_upgraded().await;
        let (asked, start) = (Asked::new(), now());
        let record = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        stores.assert_agreement(&asked, true).await;
        assert_eq!(stores.claim(start + LEASE).await, [asked.id.as_str()]);
        stores.assert_agreement(&asked, true).await;
        stores.ledger.postpone(&record, start + seconds(5)).await.unwrap();
        stores.assert_agreement(&asked, true).await;
        stores.mark(&record, &DeliveryResult::SENT, start).await;
        stores.assert_agreement(&asked, true).await;
        let seen = stores.record(&asked.id).await;
        assert!(stores.ledger.owe_again(&seen, start + seconds(6)).await.unwrap().is_some());
        stores.assert_agreement(&asked, true).await;
    }

    async fn this_release_sees_what_an_older_one_owes_claims_and_sends(stores: Stores) {
        stores.as_half_upgraded().await;
        let (asked, start) = (Asked::new(), now());
        won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        // As if the older release had decided it.
        stores.sql("DELETE FROM hitl_delivery").await.unwrap();
        stores.older(&asked, "delivery = 'owed', owed_since = now(), due_at = now() - interval '1 s'").await;
        assert_eq!(stores.claim(now()).await, [asked.id.as_str()]);
        stores.older(&asked, "due_at = now() + interval '3 s', attempts = attempts + 1").await;
        assert!(stores.claim(now()).await.is_empty(), "the older one has the lease");
        stores.older(&asked, "delivery = 'sent', listeners = 0, sent_at = now(), sent_to = 'a'").await;
        let record = stores.record(&asked.id).await;
        assert_eq!((record.delivery, record.listeners), (Delivery::Sent, Some(0)));
        assert!(stores.claim(start + seconds(60)).await.is_empty());
        assert_eq!(stores.ledger.owe_lost(&["b".to_owned()], now()).await.unwrap(), 1);
        stores.assert_agreement(&asked, true).await;
        // What has nothing to do with deliveries, and requests that owe nothing, leave the table alone.
        stores.older(&asked, "heard_at = now()").await;
        stores.register(ALICE, &Asked::new(), start).await;
        assert_eq!(stores.deliveries().await, 1);
        stores.sql(&format!("DELETE FROM hitl_request WHERE request_id = '{}'", asked.id)).await.unwrap();
        assert_eq!(stores.deliveries().await, 0);
    }

    async fn once_the_upgrade_is_finished_sending_does_not_rewrite_the_request(stores: Stores) {
        stores.as_half_upgraded().await;
        let LedgerConfig::Postgres { url, .. } = &stores.config.ledger else { panic!("no Postgres") };
        // Finishing again is safe.
        for _round in 0..2 {
            stores.ledger.finish(Some(url)).await.unwrap();
        }
        let (asked, start) = (Asked::new(), now());
        let record = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let version = async || {
            let version = "SELECT ctid::text FROM hitl_request WHERE request_id = $1";
            let version = sqlx::query_scalar::<_, String>(version).bind(&asked.id);
            version.fetch_one(stores.postgres.as_ref().unwrap()).await.unwrap()
        };
        let before = version().await;
        assert_eq!(stores.claim(start + LEASE).await, [asked.id.as_str()]);
        stores.mark(&record, &DeliveryResult::SENT, start).await;
        assert_eq!(stores.record(&asked.id).await.delivery, Delivery::Sent);
        assert_eq!(version().await, before);
        stores.assert_agreement(&asked, false).await;
    }
}
