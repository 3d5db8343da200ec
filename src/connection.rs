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
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, Payload, ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{HttpMessage as _, HttpRequest, web};
use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::metrics;

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

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
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
    /// A call waits on purpose: nobody goes on waiting for a client that has hung up.
    ends_with_client: Cell<bool>,
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
    pub fn new(stream: TcpStream) -> Self {
        let turn = Turn {
            stage: Cell::new(Stage::Call),
            patience: RefCell::new(Some(Box::pin(sleep(PATIENCE)))),
            is_last: Cell::new(false),
            ends_with_client: Cell::new(false),
        };
        metrics::client_connected();
        Self { stream, turn: Rc::new(turn), answer: None, is_put_off: false }
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

/// Middleware: tells the connection that a call has come, when its body is wanted, and when its
/// answer is there. If the body has not come to its end by then, the answer ends the connection.
///
/// # Errors
/// Those of the inner service.
pub async fn take_turns<B: MessageBody>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let Some(turn) = request.conn_data::<Rc<Turn>>().cloned() else {
        return next.call(request).await;
    };
    let _under_way = UnderWay::begin(Rc::clone(&turn));
    let stopping = request.app_data::<web::Data<Core>>().map(|core| core.stopping.clone());
    let is_stopping = || stopping.as_ref().is_some_and(CancellationToken::is_cancelled);
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
