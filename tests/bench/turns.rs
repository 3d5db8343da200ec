//! Tells how many round trips to a store an answer waits for: a proxy before the store that can hold
//! its answers back. What goes on beside the answer does not count, as it should not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// A proxy that can make a store be far away.
pub struct Turns {
    pub address: SocketAddr,
    delay_millis: Arc<AtomicU64>,
}

impl Turns {
    /// Before a store on this port of this machine.
    pub async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let delay_millis = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_millis);
        tokio::spawn(async move {
            while let Ok((client, _from)) = listener.accept().await {
                let store = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                client.set_nodelay(true).unwrap();
                store.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_store, to_store) = store.into_split();
                tokio::spawn(pass(from_client, to_store, Arc::default()));
                tokio::spawn(pass(from_store, to_client, Arc::clone(&delay)));
            }
        });
        Self { address, delay_millis }
    }

    /// Each answer comes so much later from now on.
    pub fn delay(&self, millis: u64) {
        self.delay_millis.store(millis, Ordering::SeqCst);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay_millis: Arc<AtomicU64>) {
    let mut some = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut some).await {
        let millis = delay_millis.load(Ordering::SeqCst);
        if millis > 0 {
            sleep(Duration::from_millis(millis)).await;
        }
        if to.write_all(&some[..count]).await.is_err() {
            return;
        }
    }
}
