//! Requests and signals in Redis: found with the rest of their time, sent only while session and request
//! are as they were seen, and never over a newer one. What only Redis does.

use aura_hitl::courier::{Outgoing, Sent, SessionSnapshot};
use aura_hitl::domain::ids::{RequestId, SessionId};
use aura_hitl::domain::session::SessionPointer;
use support::{Mode, eventually, put_request, put_session, reached, test_variable, unique};
use tokio::sync::mpsc;

use super::Stores;

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
        let only_if = &self.courier.snapshot(&request, session).await.unwrap();
        let (request, document, publish) = (&request, "{}", true);
        let outgoing = Outgoing { request, session, signal, document, rank, publish, only_if };
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
        let send_seeing = async |signal, only_if: SessionSnapshot| {
            let (request, session, only_if) = (&id, &session, &only_if);
            let (document, rank, publish) = ("{}", 1, true);
            let outgoing = Outgoing { request, session, signal, document, rank, publish, only_if };
            stores.courier.send(&outgoing).await.unwrap()
        };
        let send = async |signal, pointer: &SessionPointer| {
            let now = stores.courier.snapshot(&id, &session).await.unwrap();
            send_seeing(signal, SessionSnapshot { pointer: pointer.clone(), ..now }).await
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
        let seen = stores.courier.snapshot(&id, &session).await.unwrap();
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
