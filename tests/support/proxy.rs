//! A bad network: a TCP proxy that can delay, stall, cut with RST and reopen.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Forwards all data.
    Open,
    /// Keeps connections open and holds all data back.
    Stalled,
    /// Connections are refused, and those that were open have been reset.
    Cut,
}

/// A proxy in front of one address. Ends when dropped.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The state for new connections. Abandoned older ones have their own.
    weather: Arc<Mutex<watch::Sender<Weather>>>,
    abandoned: Mutex<Vec<watch::Sender<Weather>>>,
    delay_micros: Arc<AtomicU64>,
    target: Arc<Mutex<SocketAddr>>,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy that passes everything on to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = Arc::new(Mutex::new(watch::Sender::new(Weather::Open)));
        let delay_micros = Arc::new(AtomicU64::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let (watching, delay, count) = (weather.clone(), delay_micros.clone(), connections.clone());
        let target = Arc::new(Mutex::new(target));
        let leading = target.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let weather = watching.lock().unwrap().subscribe();
                let target = *leading.lock().unwrap();
                tokio::spawn(pass(client, target, weather, delay.clone()));
            }
        });
        let abandoned = Mutex::default();
        Self { address, weather, abandoned, delay_micros, target, connections, accepting }
    }

    /// Delays data by this long, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.delay_micros.store(u64::try_from(delay.as_micros()).unwrap(), Ordering::Relaxed);
    }

    /// Forwards new connections to another address.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    /// From now on no data passes, and no connection ends: a black hole.
    pub fn stall(&self) {
        self.weather.lock().unwrap().send_replace(Weather::Stalled);
    }

    /// No data passes over the existing connections any more, and none of them ends. New connections
    /// work. A firewall that lost its connection table behaves so.
    pub fn abandon(&self) {
        let fresh = watch::Sender::new(Weather::Open);
        let old = std::mem::replace(&mut *self.weather.lock().unwrap(), fresh);
        old.send_replace(Weather::Stalled);
        self.abandoned.lock().unwrap().push(old);
    }

    /// Resets every connection (RST, not FIN), and every one that is made until it is reopened.
    pub fn cut(&self) {
        self.weather.lock().unwrap().send_replace(Weather::Cut);
    }

    /// Forwards all data again, also the data that was held back.
    pub fn reopen(&self) {
        self.weather.lock().unwrap().send_replace(Weather::Open);
    }

    /// How many connections have been made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(
    mut client: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    delay: Arc<AtomicU64>,
) {
    let (mut watching, mut waiting) = (weather.clone(), weather.clone());
    let cut = async move {
        drop(watching.wait_for(|now| *now == Weather::Cut).await);
    };
    tokio::pin!(cut);
    let connecting = async move {
        drop(waiting.wait_for(|now| *now != Weather::Stalled).await);
        TcpStream::connect(target).await
    };
    let server = tokio::select! {
        server = connecting => server,
        () = &mut cut => return reset(client),
    };
    let Ok(mut server) = server else { return reset(client) };
    let _best_effort = (client.set_nodelay(true), server.set_nodelay(true));
    let was_cut = {
        let ((client_in, client_out), (server_in, server_out)) = (client.split(), server.split());
        let there = pump(client_in, server_out, weather.clone(), &delay);
        let back = pump(server_in, client_out, weather, &delay);
        tokio::select! {
            _ended = async { tokio::join!(there, back) } => false,
            () = cut => true,
        }
    };
    if was_cut {
        reset(client);
        reset(server);
    }
}

/// One direction, until its sender has finished or its receiver is gone.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    delay: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let micros = delay.load(Ordering::Relaxed);
        if micros > 0 {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        drop(weather.wait_for(|now| *now == Weather::Open).await);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}

/// Closes with RST: there is no time to linger.
fn reset(stream: TcpStream) {
    let _best_effort = stream.set_zero_linger();
    drop(stream);
}
