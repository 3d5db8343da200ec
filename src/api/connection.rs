//! A client's connection: how long it may keep us waiting, and how much of a worker it may take.
//!
//! actix alone lets a client hold its connection for ever by sending any head but the first byte by
//! byte, by never ending a chunked body, or by not taking the answers; and what times it keeps, it
//! may miss when a worker is busy. So all waiting for a client is timed here, but for the bodies
//! that handlers read (`api::body`) and for idle connections (`app`). How long we take is no matter.
//!
//! Calls that are sent ahead of their turn stay in the socket until it comes. actix would read them
//! until its buffer is full, from then on poll the connection without a pause, and answer them all
//! before its worker turns to anybody else.

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

/// One of so many connections is kept free for new clients, by closing idle ones.
const SPARE_PART: usize = 16;
/// Longest a client may take to send a call's head.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may go on after an answer that ends its connection, as actix counts it. We
/// wait twice as long, for actix may miss it and does not count for chunked bodies.
pub const CLOSING: Duration = Duration::from_secs(1);
/// Longest a client may take nothing of an answer that did not fit into the socket's buffers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes to read at once where calls begin. A head is seldom longer, and a worker answers all the
/// calls of one reading before it turns to another connection.
const READING: usize = 4096;

type Timer = Pin<Box<Sleep>>;

/// The open connections of this process, and those among them that wait for a call and have sent
/// nothing of it. When connections run short, the one that has waited the longest is closed, so that
/// idle clients are in nobody's way.
#[derive(Debug)]
pub struct Connections {
    /// With more than this, an idle one is closed for each new one.
    plenty: usize,
    open: AtomicUsize,
    idle: Mutex<BTreeMap<u64, Arc<Idle>>>,
    next: AtomicU64,
    /// Set when the process is asked to stop: answers end their connections from then on.
    stopping: CancellationToken,
}

/// A connection that waits for a call.
#[derive(Debug, Default)]
struct Idle {
    is_to_close: AtomicBool,
    waker: AtomicWaker,
}

impl Connections {
    /// No connection yet, of at most so many.
    #[must_use]
    pub fn new(most: usize, stopping: CancellationToken) -> Arc<Self> {
        let (open, idle, next) = (AtomicUsize::new(0), Mutex::default(), AtomicU64::new(0));
        let plenty = most.saturating_sub((most / SPARE_PART).max(1));
        Arc::new(Self { plenty, open, idle, next, stopping })
    }

    fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.close_one_if_short();
    }

    fn close_one_if_short(&self) {
        if self.open.load(Ordering::Relaxed) > self.plenty
            && let Some((_, longest)) = self.idle().pop_first()
        {
            longest.is_to_close.store(true, Ordering::Release);
            longest.waker.wake();
        }
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among the idle ones, until it is dropped.
struct IdlePlace {
    connections: Arc<Connections>,
    number: u64,
    idle: Arc<Idle>,
}

impl IdlePlace {
    fn take(connections: &Arc<Connections>) -> Self {
        let number = connections.next.fetch_add(1, Ordering::Relaxed);
        let idle = Arc::<Idle>::default();
        connections.idle().insert(number, Arc::clone(&idle));
        // All the others may have been at work when the last client came.
        connections.close_one_if_short();
        Self { connections: Arc::clone(connections), number, idle }
    }

    /// Whether the connection is to be closed; if not, the task is woken when it is.
    fn is_to_close(&self, context: &Context<'_>) -> bool {
        self.idle.waker.register(context.waker());
        self.idle.is_to_close.load(Ordering::Acquire)
    }
}

impl Drop for IdlePlace {
    fn drop(&mut self) {
        self.connections.idle().remove(&self.number);
    }
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    connections: Arc<Connections>,
    /// While it waits for a call and nothing of that has come.
    idle: Option<IdlePlace>,
    /// Something of the next call's head has come.
    has_begun: bool,
    turn: Rc<Turn>,
    /// Runs while an answer waits to be taken.
    answer: Option<Timer>,
    /// We were asked to read, and did not read all that is there.
    is_put_off: bool,
}

/// What the stream alone cannot tell, and the calls that come over it can.
struct Turn {
    stage: Cell<Stage>,
    /// Runs while a head or the connection's end is due.
    patience: RefCell<Option<Timer>>,
    /// The last call left a body unread: no other can follow it.
    is_last: Cell<bool>,
    /// Calls whose answers are not all sent. A stream's call is over long before its answer is.
    unanswered: Cell<usize>,
    /// A call waits on purpose: nobody goes on waiting for a client that has hung up.
    ends_with_client: Cell<bool>,
    /// See [`Connections`].
    stopping: CancellationToken,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A call, which the client may be sending.
    Call,
    /// The body of the call under way, for which its handler has asked.
    Body,
    /// Our answer.
    Answer,
}

impl Connection {
    /// Takes over a new connection.
    #[must_use]
    pub fn new(stream: TcpStream, connections: &Arc<Connections>) -> Self {
        let turn = Turn {
            stage: Cell::new(Stage::Call),
            patience: RefCell::new(Some(Box::pin(sleep(PATIENCE)))),
            is_last: Cell::new(false),
            unanswered: Cell::new(0),
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
            turn: Rc::new(turn),
            answer: None,
            is_put_off: false,
        }
    }

    /// Makes the connection known to its calls.
    pub fn introduce(&self, data: &mut Extensions) {
        data.insert(Rc::clone(&self.turn));
    }

    /// Reads a little, while there is patience.
    fn poll_read_call(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = READING.min(buffer.remaining());
        let mut little = ReadBuf::new(buffer.initialize_unfilled_to(size));
        let read = if std::mem::take(&mut self.is_put_off) {
            // After the worker's other connections have had their turn.
            context.waker().wake_by_ref();
            Poll::Pending
        } else {
            Pin::new(&mut self.stream).poll_read(context, &mut little)
        };
        self.is_put_off = little.remaining() == 0;
        let count = little.filled().len();
        buffer.advance(count);
        self.has_begun |= count > 0;
        if self.has_begun || self.turn.unanswered.get() > 0 {
            self.idle = None;
        } else if read.is_pending() {
            let place = self.idle.get_or_insert_with(|| IdlePlace::take(&self.connections));
            if place.is_to_close(context) {
                // To actix, the client has hung up.
                return Poll::Ready(Ok(()));
            }
        }
        let mut patience = self.turn.patience.borrow_mut();
        if count > 0 {
            patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        }
        match patience.as_mut().map(|patience| patience.as_mut().poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            _ => read,
        }
    }

    /// Reads nothing, but notices a client that goes away.
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
        self.is_put_off = true;
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
        // Whoever does not take our answers is not listened to.
        if this.answer.is_some() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = match this.turn.stage.get() {
            Stage::Call => this.poll_read_call(context, buffer),
            Stage::Body => Pin::new(&mut this.stream).poll_read(context, buffer),
            Stage::Answer => this.poll_closed(context, buffer),
        };
        let has_ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        if has_ended && this.turn.ends_with_client.get() {
            // To actix an end is only that of the calls, and it would wait on.
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
        // What comes next is another call.
        this.has_begun = false;
        this.turn.be_patient();
        // Now that we are heard, it may be the client's turn again.
        this.is_put_off = false;
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

impl Turn {
    /// Nothing is due, unless it is the end.
    fn be_patient(&self) {
        if !self.is_last.get() {
            self.patience.take();
        }
    }

    /// The end is due.
    fn end(&self) {
        self.is_last.set(true);
        self.patience.replace(Some(Box::pin(sleep(CLOSING * 2))));
    }
}

/// Says that this call waits on purpose, and is to end when its client hangs up. Others go on: a
/// client may have said all that it will say and still want to hear the answer.
pub fn end_with_client(request: &HttpRequest) {
    if let Some(turn) = request.conn_data::<Rc<Turn>>() {
        turn.ends_with_client.set(true);
    }
}

/// A call under way, until it is dropped.
struct UnderWay(Rc<Turn>);

impl UnderWay {
    fn begin(turn: Rc<Turn>) -> Self {
        turn.stage.set(Stage::Answer);
        turn.be_patient();
        Self(turn)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.stage.set(Stage::Call);
    }
}

/// A call whose answer is not all sent, until it is dropped.
struct Unanswered(Rc<Turn>);

impl Unanswered {
    fn begin(turn: Rc<Turn>) -> Self {
        turn.unanswered.set(turn.unanswered.get() + 1);
        Self(turn)
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get().saturating_sub(1));
    }
}

/// The body of an answer, which knows when it has been sent.
pub struct AnswerBody {
    body: BoxBody,
    _unanswered: Option<Unanswered>,
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

/// Middleware: tells the connection that a call has come, when its body is wanted, and when its
/// answer is there. If the body has not come to its end by then, the answer ends the connection.
///
/// # Errors
/// Those of the inner service.
pub async fn take_turns<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<AnswerBody>, actix_web::Error> {
    let unanswered = request.conn_data::<Rc<Turn>>().cloned().map(Unanswered::begin);
    let answer = take_turn(request, next).await?;
    Ok(answer.map_body(|_, body| AnswerBody { body: body.boxed(), _unanswered: unanswered }))
}

async fn take_turn<B: MessageBody>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let Some(turn) = request.conn_data::<Rc<Turn>>().cloned() else {
        return next.call(request).await;
    };
    let _under_way = UnderWay::begin(Rc::clone(&turn));
    let is_stopping = || turn.stopping.is_cancelled();
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
    let (bytes, reading) = (Rc::clone(&body), Rc::clone(&turn));
    let bytes = poll_fn(move |context| {
        let bytes = bytes.borrow_mut().poll_next_unpin(context);
        match &bytes {
            Poll::Ready(Some(Ok(_more_may_follow))) => {}
            Poll::Ready(_) => reading.stage.set(Stage::Answer),
            Poll::Pending if reading.stage.replace(Stage::Body) == Stage::Body => {}
            // Until now the connection was not read.
            Poll::Pending => context.waker().wake_by_ref(),
        }
        bytes
    });
    request.set_payload(Payload::Stream { payload: Box::pin(bytes) });
    let mut answer = next.call(request).await;
    if !is_all_there(&mut body.borrow_mut()) {
        turn.end();
        end_connection(&mut answer);
    } else if is_stopping() {
        end_connection(&mut answer);
    }
    answer
}

/// Says that no further call is answered on this connection.
fn end_connection<B>(answer: &mut Result<ServiceResponse<B>, actix_web::Error>) {
    if let Ok(answer) = answer {
        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
}

/// Whether the rest of a body need not be waited for.
fn is_all_there(body: &mut Payload) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match body.poll_next_unpin(&mut context) {
            Poll::Ready(None) => return true,
            Poll::Ready(Some(Ok(_more_may_follow))) => {}
            Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
        }
    }
}
