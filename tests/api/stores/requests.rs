//! Requests in the ledger: the first decision wins, a registered request is decided as it was registered,
//! and of two in a session the newest counts. On every ledger.

use aura_hitl::domain::decision::{State, Verdict};
use aura_hitl::domain::ids::{RequestId, SessionId, TenantId};
use aura_hitl::domain::record::Delivery;
use aura_hitl::domain::request::Origin;
use aura_hitl::ledger::{Recorded, Registered, Writing};
use futures_util::future::join_all;
use serde_json::{Value, json};
use support::{ALICE, Asked, BOB, MALLORY, Who, unique, writing};

use super::{Stores, lost, no, now, seconds, won};

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
}
