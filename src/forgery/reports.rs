//! Reports requests and signals in Redis that contradict the ledger: a writer of Redis forged them, or
//! a failover of the database lost their decision. Callers never see them.
//!
//! Must only get content of Redis that was read before the ledger: a decision that is committed
//! between the two reads would look like a forgery.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::domain::ids::{RequestId, SessionId};
use crate::domain::printable::printable;
use crate::observe::metrics::{self, Forgery};

/// A forgery is reported at most once in this time. Agents poll often.
const REPORT_INTERVAL: Duration = Duration::from_mins(5);
/// How many reported forgeries to remember.
const MAX_FORGERIES: u64 = 50_000;

/// Reports forgeries, each once in a while. Cheap to clone.
#[derive(Clone)]
pub struct Forgeries(Cache<[u8; 32], Arc<()>>);

impl fmt::Debug for Forgeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forgeries").finish_non_exhaustive()
    }
}

impl Default for Forgeries {
    fn default() -> Self {
        let reported = Cache::builder().max_capacity(MAX_FORGERIES).time_to_live(REPORT_INTERVAL);
        Self(reported.build())
    }
}

impl Forgeries {
    /// Reports a text under a request's key that contradicts the ledger's record of that id.
    pub fn request(&self, id: &RequestId, text: &str) {
        if self.is_new("request", id.as_str(), text) {
            metrics::forged(Forgery::Request);
            warn!(security = true, request_id = %id,
                "a request in Redis contradicts the ledger: its content is not what was registered or \
                 decided under its id, or the ledger has no such decision");
        }
    }

    /// Reports a signal under a session's key that the ledger does not know.
    pub fn signal(&self, session: &SessionId, text: &str) {
        if self.is_new("signal", session.as_str(), text) {
            metrics::forged(Forgery::Signal);
            warn!(
                security = true,
                session_id = printable(session.as_str()),
                "a signal in Redis belongs to no decision that the ledger knows"
            );
        }
    }

    /// Whether this signal was reported a moment ago.
    #[must_use]
    pub fn is_known_signal(&self, session: &SessionId, text: &str) -> bool {
        self.0.contains_key(&digest("signal", session.as_str(), text))
    }

    fn is_new(&self, kind: &str, subject: &str, text: &str) -> bool {
        self.0.entry(digest(kind, subject, text)).or_default().is_fresh()
    }
}

fn digest(kind: &str, subject: &str, text: &str) -> [u8; 32] {
    let parts = [kind, subject, text].map(Sha256::digest);
    Sha256::digest(parts.concat()).into()
}
