//! Group commit: writes that arrive at the same time share one statement and one commit. While one
//! batch is written, the next one gathers; nobody waits on purpose.
//!
//! A batch has no two writes with a common subject (a request, a session or a task): the later one
//! goes into a later batch. Its rows are written in the order of their keys, so that the batches of
//! two replicas do not wait for each other in a circle. A batch that fails because of a row is taken
//! apart: each of its rows is written alone, so that a locked or refused row costs only itself.
//! This module must not know tables.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::mem::take;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgDatabaseError;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::engine::{Engine, Row, Statement, Value};
use super::error::LedgerError;
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId};
use crate::observe::metrics;

/// The longest time from a call until its write begins. After that the write is not begun.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most writes in a batch.
const MAX_WRITES: usize = 64;
/// The most bytes in a batch, except for the first write. Postgres keeps the rows of a batch in its
/// working memory, 4 MB by default.
const MAX_BYTES: usize = 1024 * 1024;
/// The most batches at once. While one waits for the disk or for a locked row, the other is written.
/// One alone takes a tenth less of the processor, and decides a fifth fewer.
const MAX_BATCHES: usize = 2;
/// How long a batch waits for a row that somebody else has locked. Rows are locked for the time of a
/// commit, as a rule.
const BATCH_LOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a write that is alone waits for such a row: long enough for a disk that stalls.
const ALONE_LOCK_TIMEOUT: Duration = Duration::from_millis(1700);
/// A lock time-out after this time is that of the session: the batch waited for a lock on a table.
const TABLE_LOCK_TIMEOUT: Duration = Duration::from_millis(900);
/// When a batch fails for a reason that is not a row's, the writes that have waited this long are
/// turned away, because the next batch is likely to fail too.
const TURN_AWAY_AGE: Duration = Duration::from_millis(500);

/// What a write changes. Writes with a common subject are never in one batch.
#[derive(Clone, Copy, Debug, Hash)]
pub enum Subject<'a> {
    /// A request.
    Request(&'a TenantId, &'a RequestId),
    /// A session, whose outcomes are numbered. Tenants share the sessions of Redis.
    Session(&'a SessionId),
    /// A task.
    Task(&'a TenantId, &'a TaskId),
}

/// Why a write was not made.
#[derive(Debug)]
pub enum Failure {
    /// The error of this one write.
    Row(sqlx::Error),
    /// The error of the whole batch, or the write has not begun.
    Batch(LedgerError),
}

impl From<Failure> for LedgerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Row(error) => error.into(),
            Failure::Batch(error) => error,
        }
    }
}

/// The row that was written; `None` when the conditions of the statement were not met.
type Answer<R> = Result<Option<R>, Failure>;

/// The batches of this process; cheap to clone.
#[derive(Debug)]
pub struct Batches<R: Row + Debug>(Arc<Shared<R>>);

impl<R: Row + Debug> Clone for Batches<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<R: Row + Debug> {
    engine: Engine,
    /// The runtime that outlives the HTTP workers.
    runtime: Handle,
    hasher: RandomState,
    queue: Mutex<Queue<R>>,
    /// One permit for each write that may be under way alone. They leave connections to others.
    alone: Semaphore,
}

#[derive(Debug)]
struct Queue<R: Row + Debug> {
    waiting: VecDeque<Write<R>>,
    /// The hashes of the subjects of all writes that are under way. Two subjects with the same hash
    /// count as one.
    busy: HashSet<u64>,
    /// The number of batches under way.
    batches: usize,
}

/// A write that waits for its batch, or is in one.
#[derive(Debug)]
struct Write<R: Row + Debug> {
    statement: Statement,
    /// The first two values are the key of the row.
    values: Vec<Value>,
    subjects: Vec<u64>,
    called_at: Instant,
    stage: Arc<Stage>,
    answer: oneshot::Sender<Answer<R>>,
    /// Set while the write is under way.
    turn: Option<Turn<R>>,
}

/// How far a write is. The caller and the queue change it, whichever is first.
#[derive(Debug, Default)]
struct Stage(AtomicU8);

impl Stage {
    const WAITING: u8 = 0;
    const BEGUN: u8 = 1;
    const LEFT: u8 = 2;

    fn leave_waiting(&self, next: u8) -> bool {
        let order = Ordering::AcqRel;
        self.0.compare_exchange(Self::WAITING, next, order, Ordering::Acquire).is_ok()
    }
}

/// Keeps the subjects of a write busy until it is dropped.
#[derive(Debug)]
struct Turn<R: Row + Debug> {
    shared: Arc<Shared<R>>,
    subjects: Vec<u64>,
}

impl<R: Row + Debug> Drop for Turn<R> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        for subject in &self.subjects {
            queue.busy.remove(subject);
        }
        Shared::start(&self.shared, &mut queue);
    }
}

impl<R: Row + Debug> Write<R> {
    fn answer(self, answer: Answer<R>) {
        // The caller may write the same row next.
        drop(self.turn);
        let _caller_left = self.answer.send(answer);
    }

    /// The number of bytes of its texts.
    fn size(&self) -> usize {
        let text = |value: &Value| match value {
            Value::Text(Some(text)) => text.len(),
            _ => 0,
        };
        self.values.iter().map(text).sum()
    }

    fn is_late(&self) -> bool {
        self.called_at.elapsed() >= QUEUE_TIMEOUT
    }
}

impl<R: Row + Debug> Batches<R> {
    /// Batches of this engine. `max_alone` is the most writes that are under way outside of a batch.
    pub fn new(engine: Engine, max_alone: usize) -> Self {
        Self(Arc::new(Shared {
            engine,
            runtime: Handle::current(),
            hasher: RandomState::new(),
            queue: Mutex::new(Queue { waiting: VecDeque::new(), busy: HashSet::new(), batches: 0 }),
            alone: Semaphore::new(max_alone.max(1)),
        }))
    }

    /// Runs a statement for one row of values, in a batch with others of the same statement. The
    /// first two values are the key of the row. `called_at` is when the call began of which this
    /// write is a part.
    ///
    /// # Errors
    /// [`Failure`]. If the write has not begun in time, it never begins.
    pub async fn write(
        &self,
        statement: Statement,
        values: Vec<Value>,
        subjects: &[Subject<'_>],
        called_at: Instant,
    ) -> Answer<R> {
        let (answer, mut answered) = oneshot::channel();
        let stage = Arc::<Stage>::default();
        let hash = |subject: &Subject<'_>| self.0.hasher.hash_one(subject);
        let subjects = subjects.iter().map(hash).collect();
        let write = Write {
            statement,
            values,
            subjects,
            called_at,
            stage: Arc::clone(&stage),
            answer,
            turn: None,
        };
        {
            let mut queue = self.0.queue();
            queue.waiting.push_back(write);
            Shared::start(&self.0, &mut queue);
        }
        let patience = QUEUE_TIMEOUT.saturating_sub(called_at.elapsed());
        let answer = match timeout(patience, &mut answered).await {
            Err(_elapsed) if stage.leave_waiting(Stage::LEFT) => {
                return Err(Failure::Batch(too_late()));
            }
            Err(_elapsed) => answered.await,
            Ok(answer) => answer,
        };
        answer.unwrap_or_else(|_panic| {
            let problem = "the batch panicked".to_owned();
            Err(Failure::Batch(LedgerError::OutcomeUnknown(problem)))
        })
    }
}

fn too_late() -> LedgerError {
    LedgerError::NotExecuted("too many writes wait".to_owned())
}

impl<R: Row + Debug> Shared<R> {
    fn queue(&self) -> MutexGuard<'_, Queue<R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to write batches, unless as many as allowed are under way or nothing waits.
    fn start(shared: &Arc<Self>, queue: &mut Queue<R>) {
        if queue.batches < MAX_BATCHES && !queue.waiting.is_empty() {
            queue.batches += 1;
            shared.runtime.spawn(Self::write_batches(Arc::clone(shared)));
        }
    }

    /// Writes batches until no write can begin.
    async fn write_batches(shared: Arc<Self>) {
        let mut lane = Lane { shared, is_open: true };
        while let Some(batch) = lane.next_batch() {
            Self::write_batch(&lane.shared, batch).await;
        }
    }

    async fn write_batch(shared: &Arc<Self>, batch: Vec<Write<R>>) {
        let Some(statement) = batch.first().map(|write| write.statement) else { return };
        metrics::batch_written(batch.len());
        crash_point!("batch-gathered");
        let (engine, began) = (&shared.engine, Instant::now());
        let rows = batch.iter().map(|write| &*write.values).collect::<Vec<_>>();
        let written = engine.write_rows(statement, &rows, BATCH_LOCK_TIMEOUT);
        let written = engine.within_timeout(written).await;
        crash_point!("batch-written");
        let error = match written {
            Ok(rows) => {
                for (write, row) in batch.into_iter().zip(rows) {
                    write.answer(row.map_err(Failure::Row));
                }
                return;
            }
            Err(error) => error,
        };
        match Blame::of(&error, began.elapsed()) {
            Blame::Everything => {
                let error = LedgerError::from(error);
                shared.turn_away(&error);
                for write in batch {
                    write.answer(Err(Failure::Batch(error.clone())));
                }
            }
            Blame::Row if batch.len() == 1 => {
                if let Some(write) = batch.into_iter().next() {
                    write.answer(Err(Failure::Row(error)));
                }
            }
            Blame::Row | Blame::Lock => {
                for write in batch {
                    shared.runtime.spawn(Self::write_alone(Arc::clone(shared), write));
                }
            }
        }
    }

    /// Writes one row of a batch that failed.
    async fn write_alone(shared: Arc<Self>, write: Write<R>) {
        let patience = QUEUE_TIMEOUT.saturating_sub(write.called_at.elapsed());
        let permit = timeout(patience, shared.alone.acquire()).await;
        if permit.is_err() || write.is_late() {
            return write.answer(Err(Failure::Batch(too_late())));
        }
        let engine = &shared.engine;
        let row = [&*write.values];
        let written = engine.write_rows(write.statement, &row, ALONE_LOCK_TIMEOUT);
        let written = engine.within_timeout(written).await;
        crash_point!("batch-apart");
        let row = written.and_then(|rows| rows.into_iter().next().unwrap_or(Ok(None)));
        drop(permit);
        write.answer(row.map_err(Failure::Row));
    }

    /// Turns away the writes that have waited for long, after an error that is not a row's.
    fn turn_away(&self, error: &LedgerError) {
        let is_old = |write: &Write<R>| write.called_at.elapsed() >= TURN_AWAY_AGE;
        let waiting = take(&mut self.queue().waiting);
        let (old, young): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(is_old);
        {
            let mut queue = self.queue();
            // What came in between is younger.
            let newer = std::mem::replace(&mut queue.waiting, young);
            queue.waiting.extend(newer);
        }
        let error = LedgerError::NotExecuted(format!("the write before failed: {error}"));
        for write in old {
            write.answer(Err(Failure::Batch(error.clone())));
        }
    }
}

/// One of the tasks that write batches. Another one takes its place if it panics.
struct Lane<R: Row + Debug> {
    shared: Arc<Shared<R>>,
    is_open: bool,
}

impl<R: Row + Debug> Lane<R> {
    /// Takes the writes of the next batch from the queue: the first one that can begin, and others
    /// of the same statement, in the order of the queue. Closes the lane when none can begin.
    fn next_batch(&mut self) -> Option<Vec<Write<R>>> {
        let mut batch = Vec::<Write<R>>::new();
        let mut size = 0;
        let mut queue = self.shared.queue();
        // The subjects of the writes that wait on. What comes after them waits for them.
        let mut blocked = HashSet::new();
        for mut write in take(&mut queue.waiting) {
            let is_free = |subject| !queue.busy.contains(subject) && !blocked.contains(subject);
            let is_next = write.subjects.iter().all(is_free)
                && batch.first().is_none_or(|first| {
                    first.statement.name() == write.statement.name()
                        && batch.len() < MAX_WRITES
                        && size + write.size() <= MAX_BYTES
                });
            if !is_next {
                blocked.extend(write.subjects.iter().copied());
                queue.waiting.push_back(write);
            } else if write.stage.leave_waiting(Stage::BEGUN) {
                metrics::left_queue(write.called_at.elapsed());
                size += write.size();
                queue.busy.extend(&write.subjects);
                let subjects = take(&mut write.subjects);
                write.turn = Some(Turn { shared: Arc::clone(&self.shared), subjects });
                batch.push(write);
            }
        }
        if batch.is_empty() {
            queue.batches -= 1;
            self.is_open = false;
            return None;
        }
        drop(queue);
        batch.sort_unstable_by(|one, other| key(&one.values).cmp(&key(&other.values)));
        Some(batch)
    }
}

impl<R: Row + Debug> Drop for Lane<R> {
    fn drop(&mut self) {
        if self.is_open {
            let mut queue = self.shared.queue();
            queue.batches -= 1;
            Shared::start(&self.shared, &mut queue);
        }
    }
}

/// The key of a row: its first two values.
fn key(values: &[Value]) -> [Option<&str>; 2] {
    [0, 1].map(|at| match values.get(at) {
        Some(Value::Text(text)) => text.as_deref(),
        _ => None,
    })
}

/// What a batch failed for.
enum Blame {
    /// One of its rows: refused by a constraint, or invalid.
    Row,
    /// One of its rows, which somebody else has locked.
    Lock,
    /// The server, the connection, or a lock on a whole table.
    Everything,
}

impl Blame {
    fn of(error: &sqlx::Error, took: Duration) -> Self {
        let sqlx::Error::Database(cause) = error else { return Self::Everything };
        let Some(cause) = cause.try_downcast_ref::<PgDatabaseError>() else {
            return Self::Everything;
        };
        match cause.code() {
            // Postgres says where it waited for a row, and nothing about a table.
            "55P03" if took >= TABLE_LOCK_TIMEOUT && cause.r#where().is_none() => Self::Everything,
            // Lock time-out, statement time-out, conflict, deadlock.
            "55P03" | "57014" | "40001" | "40P01" => Self::Lock,
            // Invalid value, constraint violation, two rows that are one.
            code if ["22", "23", "21"].iter().any(|class| code.starts_with(class)) => Self::Row,
            _ => Self::Everything,
        }
    }
}
