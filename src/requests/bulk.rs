//! Decides several requests in one call: each by itself, or all of them or none.
//!
//! Each goes through the same door as a single decision (`decide`). A bulk counts as that many calls of
//! its person, and waits for room among them.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};

use super::decide::{Attempt, Outcome, Prepared, PreparedDecision, decide};
use super::error::{RequestError, Result};
use crate::domain::approver::Caller;
use crate::domain::decision::Verdict;
use crate::domain::ids::RequestId;
use crate::domain::record::Record;
use crate::domain::rules::Expected;
use crate::ledger::LedgerError;
use crate::state::AppState;

/// Requests of one bulk that are decided at the same time. They share the ledger's batches.
const AT_ONCE: usize = 32;
/// How long a bulk waits for room in its person's rate limit.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to try to record all, while others decide some of the same requests.
const MAX_TRIES: u32 = 20;
/// The pause before the next try, longer each time.
const PAUSE: Duration = Duration::from_millis(5);
/// How long to go on trying.
const PATIENCE: Duration = Duration::from_secs(8);
/// Most bytes of documents in one write that is never taken apart. Postgres keeps them in its memory.
const MAX_ATOMIC_BYTES: usize = 8 * 1024 * 1024;

/// One request of a bulk, and what the person says to it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The request.
    pub id: RequestId,
    /// Approve or reject.
    pub verdict: Verdict,
    /// The content that the person saw.
    pub expected: Expected,
}

/// The result of a bulk that is done whole or not at all.
#[derive(Debug)]
pub enum Whole {
    /// All requests are decided as the caller said, now or before, or have the caller's approval.
    Done(Vec<Outcome>),
    /// Nothing was recorded. The result of each request: what it was before, what stood in the way, or
    /// nothing.
    Refused(Vec<Standing>),
    /// Nothing was recorded: the requests have more bytes together than this.
    TooLarge(usize),
}

/// Where one request of a refused bulk stands.
#[derive(Debug)]
pub enum Standing {
    /// It was decided before, in the same way by the same person, or has the person's approval.
    Repeat(Outcome),
    /// It cannot be decided.
    Obstacle(RequestError),
    /// It could have been decided.
    Free,
}

impl Standing {
    /// The obstacle that an error is, if it is one of the request, and not of a store.
    fn of(error: RequestError) -> Result<Self> {
        match error {
            RequestError::Refused(_)
            | RequestError::Unreadable(_)
            | RequestError::Mismatch(..)
            | RequestError::UnrecordedDecision => Ok(Self::Obstacle(error)),
            RequestError::Courier(_)
            | RequestError::Ledger(_)
            | RequestError::TooMany(_)
            | RequestError::Work(_)
            | RequestError::OutcomeUnknown(_) => Err(error),
        }
    }
}

/// Decides each request by itself. The results are in the order of the items.
pub async fn decide_each(
    app: &AppState,
    caller: &Caller,
    items: Vec<Item>,
) -> Vec<Result<Outcome>> {
    let until = Instant::now() + ROOM_TIMEOUT;
    let deciding = items.into_iter().enumerate().map(|(place, item)| async move {
        // The call itself was counted for the first request.
        if place > 0 {
            app.limits.admit_until(caller, until).await?;
        }
        item.expected.check_is_named(app.policy)?;
        // Boxed, because the future is large.
        Box::pin(decide(app, caller, &item.id, item.verdict, None, &item.expected)).await
    });
    let deciding = deciding.collect::<Vec<_>>();
    stream::iter(deciding).buffered(AT_ONCE).collect().await
}

/// Decides all requests in one write, or none.
///
/// # Errors
/// [`RequestError::TooMany`] without room in the rate limit; [`RequestError::Ledger`] when the ledger
/// does not answer. After [`RequestError::OutcomeUnknown`] all decisions may be recorded, or none.
pub async fn decide_all(app: &AppState, caller: &Caller, items: Vec<Item>) -> Result<Whole> {
    admit_all(app, caller, items.len()).await?;
    let now = app.clock.now();
    let attempts = items.iter().map(|Item { id, verdict, expected }| Attempt {
        app,
        caller,
        id,
        verdict: verdict.clone(),
        remember: None,
        expected,
        now,
    });
    let attempts = attempts.collect::<Vec<_>>();
    let until = Instant::now() + PATIENCE;
    for number in 0..MAX_TRIES {
        if number > 0 {
            tokio::time::sleep(PAUSE * number).await;
        }
        let preparing = attempts.iter().map(prepare).collect::<Vec<_>>();
        let prepared = stream::iter(preparing).buffered(AT_ONCE).collect::<Vec<_>>().await;
        if prepared.iter().any(Result::is_err) {
            return refused_before(prepared);
        }
        let prepared = prepared.into_iter().collect::<Result<Vec<_>>>()?;
        let is_outdated = prepared.iter().any(|one| matches!(one, Prepared::Outdated));
        if bytes_of(&prepared) > MAX_ATOMIC_BYTES {
            return Ok(Whole::TooLarge(MAX_ATOMIC_BYTES));
        }
        if !is_outdated && let Some(done) = record(&attempts, prepared).await? {
            return Ok(done);
        }
        if Instant::now() >= until {
            break;
        }
    }
    let problem = "others decided some of these requests at the same time".to_owned();
    Err(LedgerError::NotExecuted(problem).into())
}

/// Counts a bulk of this size against the rate limit. The call itself was counted for one.
async fn admit_all(app: &AppState, caller: &Caller, size: usize) -> Result<()> {
    let until = Instant::now() + ROOM_TIMEOUT;
    for _more in 1..size {
        app.limits.admit_until(caller, until).await?;
    }
    Ok(())
}

async fn prepare(attempt: &Attempt<'_>) -> Result<Prepared> {
    attempt.expected.check_is_named(attempt.app.policy)?;
    Box::pin(attempt.prepare()).await
}

/// The results when some requests cannot be decided.
///
/// # Errors
/// The error of a store that does not answer.
fn refused_before(prepared: Vec<Result<Prepared>>) -> Result<Whole> {
    let standing = |prepared| match prepared {
        Ok(Prepared::Repeat(decided)) => Ok(Standing::Repeat(decided)),
        Ok(Prepared::Open(_) | Prepared::Outdated) => Ok(Standing::Free),
        Err(error) => Standing::of(error),
    };
    Ok(Whole::Refused(prepared.into_iter().map(standing).collect::<Result<_>>()?))
}

fn bytes_of(prepared: &[Prepared]) -> usize {
    let size = |one: &Prepared| match one {
        Prepared::Repeat(_) | Prepared::Outdated => 0,
        Prepared::Open(prepared) => prepared.size(),
    };
    prepared.iter().map(size).sum()
}

/// Records all prepared decisions in one write, and sends their signals. `None`: somebody else changed
/// one of the requests, and they are to be prepared again.
async fn record(attempts: &[Attempt<'_>], prepared: Vec<Prepared>) -> Result<Option<Whole>> {
    let pairs = || attempts.iter().zip(&prepared);
    let open = pairs().filter_map(|(attempt, one)| Some((attempt, one.open()?)));
    let open = open.collect::<Vec<_>>();
    let records = match open.first() {
        None => Vec::new(),
        Some((attempt, first)) => {
            let writings = open.iter().map(|(attempt, one)| attempt.writing(one));
            let writings = writings.collect::<Vec<_>>();
            crash_point!("deciding");
            match attempt.app.ledger.record_all(&writings).await {
                Ok(Some(records)) => records,
                Ok(None) => return refused(attempts, &prepared).await,
                // Others hold locks on some of the rows; Postgres ends what waits for them too long, and
                // one of two writes that wait for each other.
                Err(LedgerError::Locked(_)) => return Ok(None),
                Err(error @ LedgerError::OutcomeUnknown(_)) => {
                    // All were recorded, or none.
                    match attempt.is_recorded(first).await {
                        Some(true) => find_all(&open, error).await?,
                        Some(false) => return Ok(None),
                        None => return Err(RequestError::OutcomeUnknown(error)),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    };
    drop(open);
    let mut records = records.into_iter();
    let finishing = attempts.iter().zip(prepared).map(|(attempt, one)| {
        let record = one.open().and_then(|_open| records.next());
        async move {
            match (one, record) {
                (Prepared::Repeat(outcome), _) => Some(outcome),
                (Prepared::Open(open), Some(record)) => Some(attempt.finish(*open, &record).await),
                (Prepared::Open(_), None) | (Prepared::Outdated, _) => None,
            }
        }
    });
    let finishing = finishing.collect::<Vec<_>>();
    let decided = stream::iter(finishing).buffered(AT_ONCE).collect::<Vec<_>>().await;
    let decided = decided.into_iter().collect::<Option<Vec<_>>>();
    let missing = || LedgerError::Inconsistent("a written row was not returned".to_owned());
    Ok(Some(Whole::Done(decided.ok_or_else(missing)?)))
}

/// The results when the ledger has refused the write, if it says of any request why.
async fn refused(attempts: &[Attempt<'_>], prepared: &[Prepared]) -> Result<Option<Whole>> {
    let mut is_refused = false;
    let mut standings = Vec::with_capacity(prepared.len());
    for (attempt, one) in attempts.iter().zip(prepared) {
        standings.push(match one {
            Prepared::Repeat(decided) => Standing::Repeat(decided.clone()),
            Prepared::Outdated => Standing::Free,
            Prepared::Open(open) => match attempt.refused(open).await {
                Ok(()) => Standing::Free,
                Err(error) => {
                    is_refused = true;
                    Standing::of(error)?
                }
            },
        });
    }
    Ok(is_refused.then_some(Whole::Refused(standings)))
}

/// The rows of decisions that were all recorded.
async fn find_all(
    open: &[(&Attempt<'_>, &PreparedDecision)],
    error: LedgerError,
) -> Result<Vec<Record>> {
    let mut records = Vec::with_capacity(open.len());
    for (attempt, one) in open {
        match attempt.row_after(one).await {
            Ok(Some(record)) => records.push(record),
            _ => return Err(RequestError::OutcomeUnknown(error)),
        }
    }
    Ok(records)
}
