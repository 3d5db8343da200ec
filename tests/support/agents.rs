//! Agents on Redis: they write requests and sessions' pointers, and subscribe to their sessions'
//! channels. Also lets a test see which commands Redis got and how many subscribers a signal had.

use std::time::Duration;

use aura_hitl::courier::{Courier, Sent};
use futures_util::StreamExt as _;
use redis::AsyncCommands as _;

use crate::eventually::eventually;
use crate::names::{test_variable, unique};

/// A connection to the tests' Redis.
pub async fn redis() -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(test_variable("TEST_REDIS_URL")).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Puts this text under a request's key, as agents do.
pub async fn put_request(courier: &Courier, id: &str, document: &str) {
    assert!(matches!(courier, Courier::Redis(_)), "no agent on Redis in the embedded mode");
    let key = format!("hitl:request:{id}");
    // An agent tries again for longer than the service's time-out for Redis.
    eventually(async || courier.set(&key, document, 1800).await.ok()).await;
}

/// Makes this text a session's pointer, as agents do.
pub async fn put_session(courier: &Courier, session: &str, pointer: &str) {
    assert!(matches!(courier, Courier::Redis(_)), "no agent on Redis in the embedded mode");
    let key = format!("hitl:session:{session}");
    eventually(async || courier.set(&key, pointer, 3600).await.ok()).await;
}

/// Every command that a Redis got while `work` ran, as `MONITOR` shows it.
pub async fn commands_to_redis(
    client: &redis::Client,
    work: impl Future<Output = ()>,
) -> Vec<String> {
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    let end = unique("end-of-monitoring");
    work.await;
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("ECHO").arg(&end).exec_async(&mut connection).await.unwrap();
    let mut told = Vec::new();
    let watching = async {
        while let Some(line) = lines.next().await {
            if line.contains(&end) {
                return;
            }
            told.push(line);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), watching).await.expect("the monitor went silent");
    told
}

/// A subscriber of a channel, as an agent is.
pub struct Subscriber {
    subscription: Box<redis::aio::PubSub>,
    channel: String,
}

impl Subscriber {
    /// On a session's channel.
    pub async fn on(session: &str) -> Self {
        Self::on_redis(format!("hitl:channel:{session}")).await
    }

    /// On a channel of Redis, or on all that a pattern with a `*` names.
    pub async fn on_redis(channel: String) -> Self {
        Self::at(&test_variable("TEST_REDIS_URL"), channel).await
    }

    /// The same of another Redis.
    pub async fn at(url: &str, channel: String) -> Self {
        let client = redis::Client::open(url).unwrap();
        let mut subscription = Box::new(client.get_async_pubsub().await.unwrap());
        if channel.contains('*') {
            subscription.psubscribe(&channel).await.unwrap();
        } else {
            subscription.subscribe(&channel).await.unwrap();
        }
        Self { subscription, channel }
    }

    /// The next message; waits up to 10 s for it.
    pub async fn next(&mut self) -> String {
        let mut messages = self.subscription.on_message();
        let hearing = tokio::time::timeout(Duration::from_secs(10), messages.next()).await;
        hearing.expect("nothing was published").unwrap().get_payload().unwrap()
    }

    /// All messages that were published until now. Publishes an end marker first: Redis keeps the
    /// order, so all messages before the marker are complete.
    pub async fn heard(&mut self) -> Vec<String> {
        let last = unique("last");
        let channel = self.channel.replace('*', "end");
        redis().await.publish::<_, _, ()>(channel, &last).await.unwrap();
        let mut messages = Vec::new();
        loop {
            let message = self.next().await;
            if message == last {
                return messages;
            }
            messages.push(message);
        }
    }
}

/// How many subscribers a published signal reached.
#[track_caller]
pub fn reached(sent: &Sent) -> i64 {
    let Sent::Published { listeners: Some(listeners), .. } = sent else { panic!("{sent:?}") };
    *listeners
}
