//! What the intake asks of Redis: the ids of all requests, many requests at once, and the changes that
//! Redis announces. Each is written once, for a single server, Sentinel and Cluster. Only reads: the
//! setting `notify-keyspace-events` is the operator's.

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::SelectAll;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Value, cmd, from_redis_value};

use super::keys::{REQUEST_KEY_PREFIX, SESSION_KEY_PREFIX, request_key};
use super::redis::{RedisCourier, Script, stored, unavailable, with_timeout, without_comments};
use super::topology::{Connection, Node};
use super::types::{Result, StoredRequest, Unavailable};
use crate::domain::ids::RequestId;
use crate::domain::request::MAX_DOCUMENT_BYTES;

static READ_REQUESTS: Script = Script::new(|| without_comments(include_str!("intake.lua")));

/// Requests to read by one script, which takes Redis about half a millisecond.
const READ_BATCH_SIZE: usize = 100;
/// Bytes of requests after which one script reads no further request: that many are copied while
/// Redis serves nobody else.
const READ_BATCH_BYTES: usize = 2 * 1024 * 1024;
/// The most bytes of one request: a pending one of the largest size, and some for a decision's fields.
const MAX_READ_BYTES: usize = MAX_DOCUMENT_BYTES + 64 * 1024;
/// Requests of a Cluster to read at the same time.
const CONCURRENCY: usize = 32;
/// The remaining time to live that the script gives a request which it did not read.
const LEFT_FOR_LATER: i64 = -3;

/// The patterns of the channels on which Redis announces changes of keys. An ACL must name them exactly.
const CHANGES: [&str; 2] = ["__keyspace@*__:hitl:request:*", "__keyspace@*__:hitl:session:*"];

/// A request that was looked for in Redis.
#[derive(Debug)]
pub struct Looked {
    /// The id that was looked for.
    pub id: RequestId,
    /// The replication id of the master that answered; `None` when it did not tell, or was no master.
    pub replication_id: Option<String>,
    /// The request; `None` when there is none.
    pub request: Option<StoredRequest>,
}

/// How far a pass over all keys has come: the nodes that are left, each with its cursor.
#[derive(Debug, Default)]
pub struct Scan {
    left: VecDeque<(Node, u64)>,
    has_begun: bool,
}

/// A key that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// `hitl:request:{requestId}`.
    Request(RequestId),
    /// `hitl:session:{sessionId}`: the name as it stands in the key.
    Session(String),
}

impl RedisCourier {
    /// The next ids of a pass, from about `count` keys of any kind. An id may come twice. `None` when the
    /// pass is over.
    pub async fn scan(&self, scan: &mut Scan, count: usize) -> Result<Option<Vec<RequestId>>> {
        let mut words = cmd("SCAN");
        if !scan.has_begun {
            words.arg(0).arg("MATCH").arg(format!("{REQUEST_KEY_PREFIX}*")).arg("COUNT").arg(count);
            let answers = self.on_masters(words).await?;
            scan.has_begun = true;
            let mut ids = Vec::new();
            for (node, answer) in answers {
                ids.extend(scan.take(node, answer)?);
            }
            return Ok(Some(ids));
        }
        let Some((node, cursor)) = scan.left.pop_front() else { return Ok(None) };
        words
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("{REQUEST_KEY_PREFIX}*"))
            .arg("COUNT")
            .arg(count);
        let target = node.clone();
        let scanning = |redis: Connection| async move { redis.on_node(target, words).await };
        let answer =
            self.link().call(None, scanning).await?.map_err(|error| unavailable(&error))?;
        Ok(Some(scan.take(node, answer)?))
    }

    /// Reads requests and, except on a Cluster, the pointers of their sessions. Requests that did not
    /// fit, or whose master does not answer, are left out; there is always at least one.
    pub async fn look(&self, ids: &[RequestId]) -> Result<Vec<Looked>> {
        if self.is_cluster() {
            let looking = futures_util::stream::iter(ids.to_vec())
                .map(|id| async move { self.look_at_once(&[id], "").await })
                .buffer_unordered(CONCURRENCY);
            let answers: Vec<Result<Vec<Looked>>> = looking.collect().await;
            // A master that is down must not keep the requests of the others from being read.
            let (mut looked, mut failed) = (Vec::with_capacity(ids.len()), None);
            for answer in answers {
                match answer {
                    Ok(some) => looked.extend(some),
                    Err(error) => failed = Some(error),
                }
            }
            return match failed {
                Some(error) if looked.is_empty() => Err(error),
                _ => Ok(looked),
            };
        }
        let mut looked = Vec::with_capacity(ids.len());
        for some in ids.chunks(READ_BATCH_SIZE) {
            looked.extend(self.look_at_once(some, SESSION_KEY_PREFIX).await?);
        }
        Ok(looked)
    }

    async fn look_at_once(&self, ids: &[RequestId], session_prefix: &str) -> Result<Vec<Looked>> {
        type Answer = Option<(Vec<u8>, i64, Option<Vec<u8>>, Option<Vec<u8>>)>;
        let keys = ids.iter().map(request_key).collect();
        let arguments = (session_prefix, READ_BATCH_BYTES, MAX_READ_BYTES);
        let answers: Vec<Value> = self.script(&READ_REQUESTS, keys, arguments).await?;
        let mut answers = answers.into_iter();
        let bad = |error: redis::ParsingError| unavailable(&error.into());
        let replication_id: String = match answers.next() {
            Some(answer) => from_redis_value(answer).map_err(bad)?,
            None => String::new(),
        };
        let replication_id = Some(replication_id).filter(|id| !id.is_empty());
        let mut looked = Vec::with_capacity(ids.len());
        for (id, answer) in ids.iter().zip(answers) {
            let answer: Answer = from_redis_value(answer).map_err(bad)?;
            if answer.as_ref().is_some_and(|(_, millis, ..)| *millis == LEFT_FOR_LATER) {
                continue;
            }
            let (id, replication_id) = (id.clone(), replication_id.clone());
            looked.push(Looked { id, replication_id, request: answer.map(stored) });
        }
        Ok(looked)
    }

    /// Whether Redis, or every master of a Cluster, announces all changes of keys that the intake needs:
    /// writes, deletions and expiries. `false` also when the service may not ask.
    pub async fn announces_changes(&self) -> Result<bool> {
        let mut words = cmd("CONFIG");
        words.arg("GET").arg("notify-keyspace-events");
        let answers = self.on_masters(words).await?;
        let is_enough = |answer: Value| {
            let Ok((_name, flags)) = from_redis_value::<(String, String)>(flat(answer)) else {
                return false;
            };
            flags.contains('K')
                && (flags.contains('A') || "g$x".chars().all(|kind| flags.contains(kind)))
        };
        Ok(!answers.is_empty() && answers.into_iter().all(|(_node, answer)| is_enough(answer)))
    }

    /// Subscribes to the changes of requests and sessions, on every master of a Cluster: each announces
    /// its own keys only.
    pub async fn listen_to_changes(&self) -> Result<RedisChanges> {
        let nodes = if self.is_cluster() {
            let answers = self.on_masters(cmd("PING")).await?;
            answers.into_iter().filter_map(|(node, _pong)| node).map(Some).collect()
        } else {
            vec![None]
        };
        let (mut sinks, mut messages) = (Vec::new(), SelectAll::new());
        for node in nodes {
            let listening = self.link().listen_on(node);
            let (mut sink, heard) = with_timeout(listening).await?.split();
            for pattern in CHANGES {
                with_timeout(sink.psubscribe(pattern)).await?;
            }
            sinks.push(sink);
            messages.push(heard);
        }
        Ok(RedisChanges { sinks, messages })
    }
}

impl Scan {
    /// Takes one answer to `SCAN`: the ids in it, and the cursor for the next call.
    fn take(&mut self, node: Node, answer: Value) -> Result<Vec<RequestId>> {
        let (cursor, keys): (u64, Vec<Vec<u8>>) =
            from_redis_value(answer).map_err(|error| unavailable(&error.into()))?;
        if cursor != 0 {
            self.left.push_back((node, cursor));
        }
        let id = |key: Vec<u8>| request_of(&String::from_utf8(key).ok()?);
        Ok(keys.into_iter().filter_map(id).collect())
    }
}

/// The announced changes of keys, over connections of their own.
pub struct RedisChanges {
    sinks: Vec<PubSubSink>,
    messages: SelectAll<PubSubStream>,
}

impl std::fmt::Debug for RedisChanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisChanges").finish_non_exhaustive()
    }
}

impl RedisChanges {
    /// Waits for the next change. The future may be dropped without losing one.
    ///
    /// # Errors
    /// [`Unavailable`] when all connections are closed. [`Self::ping`] notices the loss of one.
    pub async fn next(&mut self) -> Result<Option<Changed>> {
        let message = self.messages.next().await;
        let message = message.ok_or_else(|| Unavailable("the connection is closed".to_owned()))?;
        Ok(changed(message.get_channel_name()))
    }

    /// Checks that every connection still works.
    ///
    /// # Errors
    /// [`Unavailable`] when Redis does not answer on one.
    pub async fn ping(&mut self) -> Result<()> {
        for sink in &mut self.sinks {
            with_timeout(sink.ping::<Value>()).await?;
        }
        Ok(())
    }
}

/// The key that a channel of `CHANGES` is about; `None` when its name is not valid.
fn changed(channel: &str) -> Option<Changed> {
    let (_database, key) = channel.split_once("__:")?;
    match key.strip_prefix(SESSION_KEY_PREFIX) {
        Some(session) => Some(Changed::Session(session.to_owned())),
        None => request_of(key).map(Changed::Request),
    }
}

fn request_of(key: &str) -> Option<RequestId> {
    RequestId::parse(key.strip_prefix(REQUEST_KEY_PREFIX)?).ok()
}

/// An answer to `CONFIG GET` as a list: RESP3 and a Cluster answer with a map.
fn flat(answer: Value) -> Value {
    match answer {
        Value::Map(pairs) => {
            Value::Array(pairs.into_iter().flat_map(|(name, value)| [name, value]).collect())
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_from_the_name_of_its_channel() {
        let id = RequestId::parse("req__:1").unwrap();
        assert_eq!(changed("__keyspace@0__:hitl:request:req__:1"), Some(Changed::Request(id)));
        let session = Changed::Session("session __:김".to_owned());
        assert_eq!(changed("__keyspace@15__:hitl:session:session __:김"), Some(session));
        for odd in ["__keyspace@0__:hitl:request:a b", "__keyspace@0__:hitl:signal:s", "hitl"] {
            assert_eq!(changed(odd), None, "{odd}");
        }
    }
}
