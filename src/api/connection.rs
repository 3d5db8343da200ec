//! A client's connection: how long the service waits for the client, and how much work of an HTTP
//! worker the connection may take.
//!
//! With actix alone, a client can hold its connection for ever: by sending the head of a second call
//! byte by byte, by never ending a chunked body, or by not reading the answers. A busy worker also
//! misses actix's own time-outs. So this module times every wait for a client, with two exceptions:
//! `api::body` times the bodies that handlers read, and `server::http` closes idle connections. The
//! time that the service itself takes is not limited here.
//!
//! Pipelined calls stay in the socket until the call before them is answered. actix would read them
//! until its buffer is full, then poll the connection without a pause, and answer all of them before
//! its worker serves another connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Extensions, Payload, ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest, web};
use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::observe::metrics;

/// For each this many connections, one is kept free for new clients: idle connections are closed.
const CONNECTIONS_PER_SPARE: usize = 16;
/// How long a client may take to send the head of a call.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may keep its connection open after the answer that closes it, as actix counts.
/// This module waits twice as long: actix may miss this time-out, and does not apply it to chunked
/// bodies.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client may read nothing of an answer that did not fit into the socket's buffers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes to read at once while the connection waits for a call. A head is seldom longer, and a worker
/// answers all calls of one read before it serves another connection.
const READ_BYTES: usize = 4096;

type Timer = Pin<Box<Sleep>>;

/// The open connections of this process, and the idle ones among them: those that wait for a call of
/// which no byte has arrived. When connections run short, the longest idle connection is closed, so
/// that idle clients do not keep out new ones.
#[derive(Debug)]
pub struct Connections {
    /// With more open connections than this, each new one closes an idle one.
    close_idle_above: usize,
    open: AtomicUsize,
    idle: Mutex<BTreeMap<u64, Arc<Idle>>>,
    next: AtomicU64,
    /// Cancelled when the process is asked to stop. From then on each answer closes its connection.
    stopping: CancellationToken,
}

/// A connection that waits for a call.
#[derive(Debug, Default)]
struct Idle {
    should_close: AtomicBool,
    waker: AtomicWaker,
}

impl Connections {
    /// No connection yet; `most` connections may be open at once.
    #[must_use]
    pub fn new(most: usize, stopping: CancellationToken) -> Arc<Self> {
        let (open, idle, next) = (AtomicUsize::new(0), Mutex::default(), AtomicU64::new(0));
        let close_idle_above = most.saturating_sub((most / CONNECTIONS_PER_SPARE).max(1));
        Arc::new(Self { close_idle_above, open, idle, next, stopping })
    }

    fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.close_one_if_short();
    }

    fn close_one_if_short(&self) {
        if self.open.load(Ordering::Relaxed) > self.close_idle_above
            && let Some((_, longest)) = self.idle().pop_first()
        {
            longest.should_close.store(true, Ordering::Release);
            longest.waker.wake();
        }
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lists a connection among the idle ones until this is dropped.
struct IdleEntry {
    connections: Arc<Connections>,
    number: u64,
    idle: Arc<Idle>,
}

impl IdleEntry {
    fn insert(connections: &Arc<Connections>) -> Self {
        let number = connections.next.fetch_add(1, Ordering::Relaxed);
        let idle = Arc::<Idle>::default();
        connections.idle().insert(number, Arc::clone(&idle));
        // When the last client connected, there may have been no idle connection to close.
        connections.close_one_if_short();
        Self { connections: Arc::clone(connections), number, idle }
    }

    /// Whether to close the connection. If not now, the task is woken when the answer changes.
    fn should_close(&self, context: &Context<'_>) -> bool {
        self.idle.waker.register(context.waker());
        self.idle.should_close.load(Ordering::Acquire)
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.connections.idle().remove(&self.number);
    }
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    connections: Arc<Connections>,
    /// Set while the connection waits for a call of which no byte has arrived.
    idle: Option<IdleEntry>,
    /// At least one byte of the next call's head has arrived.
    has_begun: bool,
    state: Rc<ConnectionState>,
    /// Runs while the client does not read the answer.
    answer: Option<Timer>,
    /// actix asked for bytes, and there may be more in the socket than were read.
    is_read_deferred: bool,
}

/// What a connection and the calls on it share.
struct ConnectionState {
    stage: Cell<Stage>,
    /// Runs while the client has to send a head, or has to close the connection.
    deadline: RefCell<Option<Timer>>,
    /// The last call's body was not read to its end, so no call can follow.
    is_last: Cell<bool>,
    /// Calls whose answers are not sent completely. The handler of a stream ends long before its answer.
    unsent_answers: Cell<usize>,
    /// The call is a long-poll or a stream: it ends as soon as its client hangs up.
    ends_with_client: Cell<bool>,
    /// See [`Connections`].
    stopping: CancellationToken,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A call, which the client may be sending.
    Call,
    /// The body of the current call, which its handler is reading.
    Body,
    /// The service's answer.
    Answer,
}

impl Connection {
    /// Takes over a new connection.
    #[must_use]
    pub fn new(stream: TcpStream, connections: &Arc<Connections>) -> Self {
        let state = ConnectionState {
            stage: Cell::new(Stage::Call),
            deadline: RefCell::new(Some(Box::pin(sleep(HEAD_TIMEOUT)))),
            is_last: Cell::new(false),
            unsent_answers: Cell::new(0),
            ends_with_client: Cell::new(false),
            stopping: connections.stopping.clone(),
        };
        metrics::client_connected();
        connections.opened();
        Self {
            stream,
            connections: Arc::clone(connections),
            idle: None,
            has_begun: false,
            state: Rc::new(state),
            answer: None,
            is_read_deferred: false,
        }
    }

    /// Gives the connection's calls access to its state.
    pub fn share_state(&self, data: &mut Extensions) {
        data.insert(Rc::clone(&self.state));
    }

    /// Reads at most [`READ_BYTES`], until the deadline.
    fn poll_read_head(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = READ_BYTES.min(buffer.remaining());
        let mut little = ReadBuf::new(buffer.initialize_unfilled_to(size));
        let read = if std::mem::take(&mut self.is_read_deferred) {
            // Lets the worker serve its other connections first.
            context.waker().wake_by_ref();
            Poll::Pending
        } else {
            Pin::new(&mut self.stream).poll_read(context, &mut little)
        };
        self.is_read_deferred = little.remaining() == 0;
        let count = little.filled().len();
        buffer.advance(count);
        self.has_begun |= count > 0;
        if self.has_begun || self.state.unsent_answers.get() > 0 {
            self.idle = None;
        } else if read.is_pending() {
            let entry = self.idle.get_or_insert_with(|| IdleEntry::insert(&self.connections));
            if entry.should_close(context) {
                // actix takes zero bytes for a client that has hung up.
                return Poll::Ready(Ok(()));
            }
        }
        let mut deadline = self.state.deadline.borrow_mut();
        if count > 0 {
            deadline.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
        }
        match deadline.as_mut().map(|deadline| deadline.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => read,
        }
    }

    /// Reads no bytes, but notices when the client hangs up.
    fn poll_closed(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let count = ready!(self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte)))?;
        if count == 0 {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        self.is_read_deferred = true;
        Poll::Pending
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::client_left();
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A client that does not read its answers can send no further calls.
        if this.answer.is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = match this.state.stage.get() {
            Stage::Call => this.poll_read_head(context, buffer),
            Stage::Body => Pin::new(&mut this.stream).poll_read(context, buffer),
            Stage::Answer => this.poll_closed(context, buffer),
        };
        let has_ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if has_ended && this.state.ends_with_client.get() {
            // For actix, end of input only means that no further call follows: it would go on waiting.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(context, bytes) else {
            let answer = this.answer.get_or_insert_with(|| Box::pin(sleep(ANSWER_TIMEOUT)));
            ready!(answer.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        this.answer = None;
        // The next bytes belong to another call.
        this.has_begun = false;
        this.state.clear_deadline();
        // The answer is sent, so the next call may be read.
        this.is_read_deferred = false;
        context.waker().wake_by_ref();
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl ConnectionState {
    /// Stops the deadline, unless the client has to close the connection.
    fn clear_deadline(&self) {
        if !self.is_last.get() {
            self.deadline.take();
        }
    }

    /// Starts the deadline by which the client has to close the connection.
    fn expect_close(&self) {
        self.is_last.set(true);
        self.deadline.replace(Some(Box::pin(sleep(CLOSE_TIMEOUT * 2))));
    }
}

/// Marks this call as one that ends when its client hangs up, for long-polls and streams. Other calls
/// go on: a client may close its sending side and still wait for the answer.
pub fn end_with_client(request: &HttpRequest) {
    if let Some(state) = request.conn_data::<Rc<ConnectionState>>() {
        state.ends_with_client.set(true);
    }
}

/// Marks the connection as busy with a call until this is dropped.
struct CallInProgress(Rc<ConnectionState>);

impl CallInProgress {
    fn begin(state: Rc<ConnectionState>) -> Self {
        state.stage.set(Stage::Answer);
        state.clear_deadline();
        Self(state)
    }
}

impl Drop for CallInProgress {
    fn drop(&mut self) {
        self.0.stage.set(Stage::Call);
    }
}

/// Counts a call whose answer is not sent completely, until this is dropped.
struct UnsentAnswer(Rc<ConnectionState>);

impl UnsentAnswer {
    fn begin(state: Rc<ConnectionState>) -> Self {
        state.unsent_answers.set(state.unsent_answers.get() + 1);
        Self(state)
    }
}

impl Drop for UnsentAnswer {
    fn drop(&mut self) {
        self.0.unsent_answers.set(self.0.unsent_answers.get().saturating_sub(1));
    }
}

/// The body of an answer. Dropped when the answer has been sent.
pub struct AnswerBody {
    body: BoxBody,
    _unsent_answer: Option<UnsentAnswer>,
}

impl MessageBody for AnswerBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<web::Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(context)
    }
}

/// Middleware: tells the connection when a call has arrived, when its handler reads the body, and when
/// the answer is ready. If the body is not at its end by then, the answer closes the connection.
///
/// # Errors
/// Those of the inner service.
pub async fn track_calls<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<AnswerBody>, actix_web::Error> {
    let unsent_answer =
        request.conn_data::<Rc<ConnectionState>>().cloned().map(UnsentAnswer::begin);
    let answer = track_call(request, next).await?;
    Ok(answer.map_body(|_, body| AnswerBody { body: body.boxed(), _unsent_answer: unsent_answer }))
}

async fn track_call<B: MessageBody>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let Some(state) = request.conn_data::<Rc<ConnectionState>>().cloned() else {
        return next.call(request).await;
    };
    let _in_progress = CallInProgress::begin(Rc::clone(&state));
    let is_stopping = || state.stopping.is_cancelled();
    let body = match request.take_payload() {
        Payload::None => {
            let mut answer = next.call(request).await;
            if is_stopping() {
                end_connection(&mut answer);
            }
            return answer;
        }
        body => Rc::new(RefCell::new(body)),
    };
    let (bytes, reading) = (Rc::clone(&body), Rc::clone(&state));
    let bytes = poll_fn(move |context| {
        let bytes = bytes.borrow_mut().poll_next_unpin(context);
        match &bytes {
            Poll::Ready(Some(Ok(_more_may_follow))) => {}
            Poll::Ready(_) => reading.stage.set(Stage::Answer),
            Poll::Pending if reading.stage.replace(Stage::Body) == Stage::Body => {}
            // The connection was not polled for reading until now.
            Poll::Pending => context.waker().wake_by_ref(),
        }
        bytes
    });
    request.set_payload(Payload::Stream { payload: Box::pin(bytes) });
    let mut answer = next.call(request).await;
    if !is_fully_read(&mut body.borrow_mut()) {
        state.expect_close();
        end_connection(&mut answer);
    } else if is_stopping() {
        end_connection(&mut answer);
    }
    answer
}

/// Makes this answer the last one on its connection.
fn end_connection<B>(answer: &mut Result<ServiceResponse<B>, actix_web::Error>) {
    if let Ok(answer) = answer {
        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
}

/// Whether a body can be read to its end without waiting.
fn is_fully_read(body: &mut Payload) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match body.poll_next_unpin(&mut context) {
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Ok(_more_may_follow))) => {}
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
}
