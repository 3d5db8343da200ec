//! Counts round trips: a proxy before a store that notes each time something is asked after the last
//! answer. What is asked at once, over one connection, is one round trip.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A proxy that counts.
pub struct Turns {
    pub address: SocketAddr,
    begun: Arc<Mutex<Vec<Instant>>>,
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
                tokio::spawn(pass(from_client, to_store, move || {
                    if asked.swap(false, Ordering::SeqCst) {
                        noted.lock().unwrap().push(Instant::now());
                    }
                }));
                let answers = move || is_answered.store(true, Ordering::SeqCst);
                tokio::spawn(pass(from_store, to_client, answers));
            }
        });
        Self { address, begun }
    }

    /// How many have begun between two moments.
    pub fn between(&self, from: Instant, to: Instant) -> usize {
        self.begun.lock().unwrap().iter().filter(|&&at| from <= at && at < to).count()
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, note: impl Fn() + Send) {
    let mut some = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut some).await {
        note();
        if to.write_all(&some[..count]).await.is_err() {
            return;
        }
    }
}
