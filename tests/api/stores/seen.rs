//! Rows of requests that were only seen in Redis: they refuse no decision, owe nothing and make no task,
//! whatever they say. On every ledger.

use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId};
use aura_hitl::domain::record::{Delivery, DeliveryResult, Ruling};
use aura_hitl::domain::request::Origin;
use aura_hitl::ledger::{
    AskedAgain, GoneRequest, Overdue, Recorded, Registered, SeenRequest, Writing,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use support::{ALICE, Asked, BOB, MALLORY, Who, unique, writing};

use super::{Stores, lost, no, now, seconds, won};

/// The request as the intake has found it.
fn seen(asked: &Asked, at: DateTime<Utc>) -> SeenRequest {
    let candidate = asked.candidate(Origin::Redis, at);
    SeenRequest {
        tenant: candidate.tenant.unwrap(),
        user: candidate.user,
        request: candidate.request,
        seen_at: at,
        asked_at: at,
        expires_at: candidate.expires_at,
        read_at: at,
        has_moved_on: false,
        replication_id: Some("one".to_owned()),
        ruling: Ruling::default(),
    }
}

impl Stores {
    /// Writes what was seen; says whether the row is that now.
    async fn see(&self, seen: SeenRequest) -> bool {
        !self.ledger.write_seen(&[seen]).await.unwrap().is_empty()
    }

    async fn gone(&self, asked: &Asked, from: &str, at: DateTime<Utc>) -> usize {
        let gone = GoneRequest {
            tenant: TenantId::parse(asked.document["tenantId"].as_str().unwrap()).unwrap(),
            id: RequestId::parse(&*asked.id).unwrap(),
            read_at: at,
            replication_id: from.to_owned(),
        };
        self.ledger.close_gone(&[gone], at).await.unwrap().len()
    }

    async fn decide_newest(&self, who: Who<'_>, asked: &Asked, at: DateTime<Utc>) -> Recorded {
        let (candidate, caller) = (asked.candidate(Origin::Redis, at), who.caller());
        let state = &State::Decided(who.decides(Verdict::Approve, at));
        let since = Some(at - seconds(1800));
        let writing = Writing {
            only_newest: true,
            alone_since: since,
            ..writing(&candidate, state, &caller, at)
        };
        self.ledger.record_outcome(&writing).await.unwrap()
    }
}

on_all_stores! {
    async fn what_was_seen_is_pending_and_owes_nothing(stores: Stores) {
        let (asked, start) = (Asked::new().with("taskId", json!(unique("task"))), now());
        assert!(stores.see(seen(&asked, start)).await);
        let row = stores.record(&asked.id).await;
        assert!(row.is_only_seen());
        assert_eq!((row.state, row.delivery, row.sequence), (State::Pending, Delivery::Sent, None));
        assert_eq!(row.document, asked.document.to_string());
        assert!(stores.task("tenant1", row.task.as_str()).await.is_none());
        assert!(stores.task("tenant1", asked.document["taskId"].as_str().unwrap()).await.is_none());
        assert!(!stores.claim(start + seconds(9)).await.contains(&asked.id));
        let listed = stores.ledger.seen_after("", 1000).await.unwrap();
        let listed = listed.into_iter().find(|row| row.id.as_str() == asked.id).unwrap();
        assert_eq!((listed.content_hash, listed.asked_at), (row.content_hash, start));
    }

    async fn what_is_decided_is_what_redis_has_now_and_not_what_was_seen(stores: Stores) {
        for is_expired in [false, true] {
            let (asked, start) = (Asked::new(), now());
            assert!(stores.see(seen(&asked, start)).await);
            let first = stores.record(&asked.id).await;
            if is_expired {
                assert_eq!(stores.gone(&asked, "one", start + seconds(1)).await, 1);
            }
            let task = unique("task");
            let other = asked
                .clone()
                .with("context", json!({ "to": "everybody" }))
                .with("userId", json!("bob"))
                .with("taskId", json!(task))
                .with("sessionId", json!(unique("session")));
            let at = start + seconds(2);
            let decided = won(stores.decide(ALICE, &other, Verdict::Approve, at).await);
            assert_eq!(decided.document, other.document.to_string());
            assert_eq!(decided.session.as_str(), other.document["sessionId"].as_str().unwrap());
            assert_eq!(decided.user.as_ref().unwrap().as_str(), "bob");
            assert_eq!((decided.task.as_str(), decided.asked_at), (&*task, at));
            // A page that reads by `createdAt` neither loses the row nor shows it twice.
            assert_eq!(decided.created_at, first.created_at);
            assert_eq!((decided.delivery, decided.sequence), (Delivery::Owed, Some(1)));
            let task = stores.task("tenant1", &task).await.unwrap();
            assert_eq!(task.hitl_request_id.unwrap().as_str(), asked.id);
            assert!(stores.task("tenant1", first.task.as_str()).await.is_none());
            // From now on it counts.
            assert_eq!(lost(stores.decide(BOB, &asked, no(), at).await).state, decided.state);
            assert!(!stores.see(seen(&asked, at + seconds(1))).await);
            assert_eq!(stores.gone(&asked, "one", at + seconds(1)).await, 0);
            assert_eq!(stores.record(&asked.id).await.document, other.document.to_string());
        }
    }

    async fn a_decision_that_began_before_the_request_expired_is_too_late(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        assert!(stores.see(seen(&asked, start)).await);
        let end = start + seconds(1800);
        let overdue = Overdue::of(&stores.record(&asked.id).await);
        let expired = stores.ledger.expire(&overdue, end).await.unwrap().unwrap();
        // Nobody is told that it expired.
        assert_eq!((&expired.state, expired.sequence), (&State::Expired, None));
        let late = stores.decide_newest(ALICE, &asked, end - seconds(1)).await;
        assert_eq!(lost(late).state, State::Expired);
        // What was read before it expired does not open it again, and what was read after does.
        assert!(!stores.see(seen(&asked, end - seconds(1))).await);
        let again = end + seconds(5);
        assert!(stores.see(seen(&asked, again)).await);
        let row = stores.record(&asked.id).await;
        assert_eq!((row.state, row.created_at, row.closed_at), (State::Pending, again, None));
    }

    async fn a_seen_request_is_in_no_ones_way_but_of_older_ones(stores: Stores) {
        let (start, session) = (now(), unique("session"));
        let [old, new] = [(); 2].map(|()| Asked::in_session(&session));
        // Seen late, and in the other order: the age of the keys counts.
        let late = start + seconds(60);
        let was_asked = |asked: &Asked, at| SeenRequest { asked_at: at, ..seen(asked, late) };
        assert!(stores.see(was_asked(&new, start + seconds(2))).await);
        assert!(stores.see(was_asked(&old, start + seconds(1))).await);
        let newest = stores.ledger.newest_of_redis(&SessionId::parse(&*session).unwrap()).await;
        assert_eq!(newest.unwrap().unwrap().id.as_str(), new.id);
        let refused = stores.decide_newest(ALICE, &old, start + seconds(1)).await;
        assert!(matches!(refused, Recorded::MovedOn), "{refused:?}");
        won(stores.decide_newest(ALICE, &new, start + seconds(2)).await);
        // Of another tenant, only what was decided is.
        let session = unique("session");
        let theirs = Asked::in_session(&session).with("tenantId", json!("tenant2"));
        assert!(stores.see(seen(&theirs, start)).await);
        won(stores.decide_newest(ALICE, &Asked::in_session(&session), start + seconds(1)).await);
        let theirs = stores.decide_newest(MALLORY, &theirs, start + seconds(2)).await;
        assert!(matches!(theirs, Recorded::AnothersSession), "{theirs:?}");
    }

    async fn a_request_that_names_another_tenant_by_now_is_theirs(stores: Stores) {
        for is_seen_again in [false, true] {
            let (asked, start) = (Asked::new(), now());
            assert!(stores.see(seen(&asked, start)).await);
            let theirs = asked.clone().with("tenantId", json!("tenant2"));
            if is_seen_again {
                assert!(stores.see(seen(&theirs, start + seconds(1))).await);
            }
            let at = start + seconds(2);
            won(stores.decide(MALLORY, &theirs, Verdict::Approve, at).await);
            assert!(!stores.see(seen(&asked, at + seconds(1))).await);
            let ours = stores.decide(ALICE, &asked, Verdict::Approve, at + seconds(1)).await;
            assert!(matches!(ours, Recorded::IdTaken), "{ours:?}");
            let id = RequestId::parse(&*asked.id).unwrap();
            let row = stores.ledger.find_request_of_redis(&id).await.unwrap().unwrap();
            assert_eq!(row.tenant.as_str(), "tenant2");
        }
    }

    async fn a_key_that_another_tenant_writes_shows_them_nothing_of_ours(stores: Stores) {
        let (asked, start) = (Asked::new().with("message", json!("ours")), now());
        assert!(stores.see(seen(&asked, start)).await);
        // Their document cannot be written: the id is theirs already.
        let theirs = asked.clone().with("tenantId", json!("tenant2")).with("message", json!("theirs"));
        let Registered::New(_) = stores.register(MALLORY, &theirs, start).await else { panic!() };
        assert!(!stores.see(seen(&theirs, start + seconds(1))).await);
        let id = RequestId::parse(&*asked.id).unwrap();
        assert!(stores.ledger.find_request_of_redis(&id).await.unwrap().is_none());
        let [our_tenant, their_tenant] = ["tenant1", "tenant2"].map(|id| TenantId::parse(id).unwrap());
        assert!(stores.ledger.find_request(&our_tenant, &id).await.unwrap().is_none());
        let kept = stores.ledger.find_request(&their_tenant, &id).await.unwrap().unwrap();
        assert_eq!(kept.origin, Origin::Http);
        assert!(kept.document.contains("theirs"), "{}", kept.document);
    }

    async fn one_row_in_the_way_keeps_no_other_from_being_written(stores: Stores) {
        let (decided, start) = (Asked::new(), now());
        won(stores.decide(ALICE, &decided, no(), start).await);
        let registered = Asked::new();
        let Registered::New(_) = stores.register(ALICE, &registered, start).await else { panic!() };
        let fresh = [(); 3].map(|()| Asked::new());
        let foreign = decided.clone().with("tenantId", json!("tenant2"));
        let all = [&fresh[0], &decided, &fresh[1], &foreign, &registered, &fresh[2]];
        // Two documents of one key are never found together.
        let (first, second) = all.split_at(3);
        let mut written = Vec::new();
        for some in [first, second] {
            let some = some.iter().map(|asked| seen(asked, start)).collect::<Vec<_>>();
            written.extend(stores.ledger.write_seen(&some).await.unwrap());
        }
        let mut written = written.iter().map(RequestId::as_str).collect::<Vec<_>>();
        let mut expected = fresh.iter().map(|asked| &*asked.id).collect::<Vec<_>>();
        written.sort_unstable();
        expected.sort_unstable();
        assert_eq!(written, expected);
        assert_eq!(stores.record(&registered.id).await.origin, Origin::Http);
    }

    async fn a_key_that_another_tenant_has_registered_stands_in_no_ones_way(stores: Stores) {
        let (asked, other, start) = (Asked::new(), Asked::new(), now());
        assert!(stores.see(seen(&asked, start)).await);
        // The other tenant has registered this very id.
        let theirs = asked.clone().with("tenantId", json!("tenant2"));
        let Registered::New(_) = stores.register(MALLORY, &theirs, start).await else { panic!() };
        let both = [seen(&theirs, start + seconds(1)), seen(&other, start + seconds(1))];
        let written = stores.ledger.write_seen(&both).await.unwrap();
        assert_eq!(written.iter().map(RequestId::as_str).collect::<Vec<_>>(), [&*other.id]);
        let id = RequestId::parse(&*asked.id).unwrap();
        assert!(stores.ledger.find_request_of_redis(&id).await.unwrap().is_none());
    }

    async fn what_has_gone_is_closed_only_where_it_was(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        assert!(stores.see(seen(&asked, start)).await);
        assert_eq!(stores.gone(&asked, "another", start + seconds(1)).await, 0);
        // It was read before it was written there.
        assert_eq!(stores.gone(&asked, "one", start - seconds(1)).await, 0);
        assert_eq!(stores.gone(&asked, "one", start + seconds(1)).await, 1);
        assert_eq!(stores.gone(&asked, "one", start + seconds(1)).await, 0);
    }

    async fn who_asks_again_is_noted_once_the_answer_was_sent(stores: Stores) {
        let (asked, start) = (Asked::new(), now());
        let record = won(stores.decide(ALICE, &asked, Verdict::Approve, start).await);
        let until = start + seconds(1000);
        let again = |read_at| AskedAgain {
            id: record.id.clone(),
            tenant: record.tenant.clone(),
            content_hash: record.content_hash.clone(),
            until,
            read_at,
        };
        let note = async |asked| stores.ledger.note_asked_again(&[asked]).await.unwrap().len();
        assert_eq!(note(again(start + seconds(9))).await, 0, "its answer is owed");
        stores.mark(&record, &DeliveryResult::SENT, start + seconds(2)).await;
        assert_eq!(note(again(start + seconds(1))).await, 0, "read before the answer was sent");
        let other = AskedAgain { content_hash: "other".to_owned(), ..again(start + seconds(9)) };
        assert_eq!(note(other).await, 0);
        assert_eq!(note(again(start + seconds(9))).await, 1);
        assert_eq!(stores.record(&asked.id).await.asked_again_until, Some(until));
        stores.ledger.forget_asked_again(std::slice::from_ref(&record.id)).await.unwrap();
        assert_eq!(stores.record(&asked.id).await.asked_again_until, None);
        // Its answer, sent again, answers that too.
        assert_eq!(note(again(start + seconds(9))).await, 1);
        let sent = stores.record(&asked.id).await;
        let owed = stores.ledger.owe_again(&sent, start + seconds(10)).await.unwrap().unwrap();
        assert_eq!(owed.asked_again_until, None);
    }

    async fn one_holder_has_a_lease(stores: Stores) {
        let start = now();
        let hold = async |who: &str, at: i64| {
            let at = start + seconds(at);
            stores.ledger.hold_lease("intake", who, at, at + seconds(3)).await.unwrap()
        };
        assert!(hold("one", 0).await && !hold("two", 2).await && hold("one", 2).await);
        assert!(!hold("two", 4).await && hold("two", 5).await && !hold("one", 5).await);
        stores.ledger.give_lease_back("intake", "one").await.unwrap();
        assert!(!hold("one", 6).await);
        stores.ledger.give_lease_back("intake", "two").await.unwrap();
        assert!(hold("one", 6).await);
    }
}
