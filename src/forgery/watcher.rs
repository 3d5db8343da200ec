//! The watcher: compares every message on a session's channel with the ledger, and reports messages
//! without a decision. By then an agent may have acted on the message: the protocol does not stop a
//! client of Redis that may publish, so the watcher only makes the forgery known.
//!
//! A signal is published after its decision is committed, so the ledger has the decision of every
//! genuine signal. Decisions of this process are in its cache; those of other replicas are looked up
//! in batches. While the ledger does not answer, messages wait; when the queue is full, further ones
//! are dropped and counted.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::courier::Message;
use crate::domain::decision::Decision;
use crate::domain::ids::{RequestId, SessionId};
use crate::domain::signal::{signal_json, signal_request};
use crate::ledger::known_decisions::KnownDecisions;
use crate::ledger::{Ledger, LedgerError};
use crate::observe::metrics::{self, Forgery};

/// How many messages may wait for the ledger.
const QUEUE_LENGTH: usize = 10_000;
/// Messages to look up in one statement.
const BATCH_SIZE: usize = 256;
/// How long messages gather before they are looked up.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before a ledger that did not answer is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How many characters of a forged message to log.
const MAX_LOGGED_CHARS: usize = 200;

/// Takes messages for [`run`] to check. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watcher {
    queue: mpsc::Sender<Message>,
}

/// The messages that [`run`] compares with the ledger.
#[derive(Debug)]
pub struct Unchecked(mpsc::Receiver<Message>);

impl Watcher {
    /// A watcher with an empty queue.
    #[must_use]
    pub fn new() -> (Self, Unchecked) {
        let (queue, unchecked) = mpsc::channel(QUEUE_LENGTH);
        (Self { queue }, Unchecked(unchecked))
    }

    /// Queues a message. Never waits: when the queue is full, the message is dropped and counted.
    pub fn enqueue(&self, message: Message) {
        if self.queue.try_send(message).is_err() {
            metrics::message_unchecked();
        }
    }
}

/// Compares messages with the ledger until the process is asked to stop.
pub async fn run(
    ledger: Ledger,
    decisions: KnownDecisions,
    mut unchecked: Unchecked,
    stopping: CancellationToken,
) {
    let checking = async {
        let mut messages = Vec::with_capacity(BATCH_SIZE);
        while unchecked.0.recv_many(&mut messages, BATCH_SIZE).await > 0 {
            while let Err(error) = check(&ledger, &decisions, &messages).await {
                tracing::debug!(%error, "the watcher waits for the ledger");
                sleep(RETRY_INTERVAL).await;
            }
            let is_flood = messages.len() == BATCH_SIZE;
            messages.clear();
            if !is_flood {
                sleep(BATCH_INTERVAL).await;
            }
        }
    };
    tokio::select! {
        () = checking => {}
        () = stopping.cancelled() => {}
    }
}

async fn check(
    ledger: &Ledger,
    decisions: &KnownDecisions,
    messages: &[Message],
) -> Result<(), LedgerError> {
    let requests = messages.iter().map(request_of).collect::<Vec<_>>();
    let (mut signals, mut unknown) = (HashMap::new(), Vec::new());
    for request in requests.iter().flatten() {
        if let Some(known) = decisions.of_redis(request) {
            let signal = signal(&known.id, &known.session, &known.decision);
            signals.insert(known.id.clone(), signal);
        } else {
            unknown.push(request.clone());
        }
    }
    for (id, session, decision) in ledger.decisions_of(&unknown).await? {
        let signal = signal(&id, &session, &decision);
        signals.insert(id, signal);
    }
    for (message, request) in messages.iter().zip(requests) {
        let genuine = request.as_ref().and_then(|request| signals.get(request));
        if genuine != Some(message) {
            report(message, request.as_ref());
        }
    }
    Ok(())
}

/// The message that is published for the decision of a request of Redis.
fn signal(id: &RequestId, session: &SessionId, decision: &Decision) -> Message {
    Message { channel: session.as_str().to_owned(), payload: signal_json(id, decision) }
}

fn request_of(message: &Message) -> Option<RequestId> {
    signal_request(&message.payload).and_then(|id| RequestId::parse(id).ok())
}

fn report(message: &Message, request: Option<&RequestId>) {
    metrics::forged(Forgery::Message);
    warn!(
        security = true,
        session_id = printable(&message.channel),
        request_id = request.map(RequestId::as_str),
        published = printable(&message.payload),
        "a message on a session's channel that the ledger does not know: somebody else published it, \
         or a failover of the database lost its decision"
    );
}

/// The beginning of an untrusted text, with control and direction characters escaped.
fn printable(text: &str) -> String {
    text.chars().take(MAX_LOGGED_CHARS).flat_map(char::escape_debug).collect()
}
