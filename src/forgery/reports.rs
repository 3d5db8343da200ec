//! Reports what Redis says and the ledger does not know: a writer of Redis has forged it, or a
//! failover of the database has lost its decision. Nobody is answered with it.
//!
//! Must not be told of anything before the ledger was read after Redis: else a decision that was made
//! in between would be taken for a forgery.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::domain::ids::{RequestId, SessionId};
use crate::domain::printable::printable;
use crate::observe::metrics::{self, Forgery};

/// How long a forgery that is still there is not reported again: agents poll often.
const REPORT_INTERVAL: Duration = Duration::from_mins(5);
/// Most forgeries to remember.
const CAPACITY: u64 = 50_000;

/// Reports forgeries, each once; cheap to clone.
#[derive(Clone)]
pub struct Forgeries(Cache<[u8; 32], Arc<()>>);

impl fmt::Debug for Forgeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forgeries").finish_non_exhaustive()
    }
}

impl Default for Forgeries {
    fn default() -> Self {
        let reported = Cache::builder().max_capacity(CAPACITY).time_to_live(REPORT_INTERVAL);
        Self(reported.build())
    }
}

impl Forgeries {
    /// The text under a request's key is not what the ledger knows under its id.
    pub fn request(&self, id: &RequestId, text: &str) {
        if self.is_new("request", id.as_str(), text) {
            metrics::forged(Forgery::Request);
            warn!(security = true, request_id = %id,
                "a request in Redis says what the ledger does not know: it is not what was \
                 registered or decided under its id, or nobody decided it");
        }
    }

    /// The signal under a session's key is none that the ledger knows.
    pub fn signal(&self, session: &SessionId, text: &str) {
        if self.is_new("signal", session.as_str(), text) {
            metrics::forged(Forgery::Signal);
            warn!(
                security = true,
                session_id = printable(session.as_str()),
                "a signal in Redis answers for a decision that the ledger does not know"
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
