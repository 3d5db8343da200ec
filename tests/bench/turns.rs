//! Counts round trips: a proxy before a store that notes each time something is asked after the last
//! answer. What is asked at once, over one connection, is one round trip.
//!
//! A Postgres connection that is asked for nothing but its attention, when a pool hands it out or
//! takes it back, makes a round trip, too; these are told apart.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Postgres' message `Sync` alone.
const PING: [u8; 5] = [b'S', 0, 0, 0, 4];

/// A proxy that counts.
pub struct Turns {
    pub address: SocketAddr,
    begun: Arc<Mutex<Vec<Turn>>>,
}

struct Turn {
    at: Instant,
    is_ping: bool,
}

impl Turns {
    /// Before a store on this port of this machine.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, begun) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let noted = Arc::clone(&begun);
        tokio::spawn(async move {
            while let Ok((client, _from)) = listener.accept().await {
                let store = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                client.set_nodelay(true).unwrap();
                store.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_store, to_store) = store.into_split();
                let is_answered = Arc::new(AtomicBool::new(true));
                let (asked, noted) = (Arc::clone(&is_answered), Arc::clone(&noted));
                tokio::spawn(pass(from_client, to_store, move |some| {
                    if asked.swap(false, Ordering::SeqCst) {
                        let turn = Turn { at: Instant::now(), is_ping: some == PING };
                        noted.lock().unwrap().push(turn);
                    }
                }));
                let answers = move |_some: &[u8]| is_answered.store(true, Ordering::SeqCst);
                tokio::spawn(pass(from_store, to_client, answers));
            }
        });
        Self { address, begun }
    }

    /// How many have begun between two moments, and how many of them were pings.
    pub fn between(&self, from: Instant, to: Instant) -> [f64; 2] {
        let begun = self.begun.lock().unwrap();
        let some = begun.iter().filter(|turn| from <= turn.at && turn.at < to);
        [some.clone().count() as f64, some.filter(|turn| turn.is_ping).count() as f64]
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, note: impl Fn(&[u8]) + Send) {
    let mut some = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut some).await {
        note(&some[..count]);
        if to.write_all(&some[..count]).await.is_err() {
            return;
        }
    }
}
