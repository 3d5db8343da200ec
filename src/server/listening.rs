//! The listening socket: how it is opened, and how it is closed without losing a call.

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::config::Config;

/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How long a handshake that has begun may take to end.
const HANDSHAKE_TIME: Duration = Duration::from_millis(10);
/// How long actix may take to accept the connections that wait in the queue.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the accepting thread of actix may take to pause.
const PAUSE_TIME: Duration = Duration::from_millis(10);
/// How long an accepted connection may take to reach an HTTP worker.
const DISPATCH_TIME: Duration = Duration::from_millis(100);

/// Opens the listening socket.
///
/// # Errors
/// One sentence, when nothing can listen there.
pub fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((config.host.as_str(), config.port)).map_err(|error| {
        let address = format!("{}:{}", config.host, config.port);
        cannot_listen(&address, &error, ["HOST", "PORT"])
    })?;
    // The standard library's backlog is 128. If it is full, some clients believe that they are
    // connected although the system has not queued their connection.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The error of a listener, in one sentence that names the settings to change.
#[must_use]
pub fn cannot_listen(address: &str, error: &io::Error, [host, port]: [&str; 2]) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => {
            format!("another program uses this port; stop it, or set {port} to a free one")
        }
        ErrorKind::PermissionDenied => {
            format!("this port is for privileged users; set {port} to 1024 or more")
        }
        _ => format!(
            "this machine does not have this address; set {host} to 127.0.0.1 for this machine alone, \
             or to 0.0.0.0 for other machines, too"
        ),
    };
    anyhow::anyhow!("cannot listen on {address}: {advice}")
}

/// Refuses new connections, after every connection that the system has already completed was
/// accepted and has reached an HTTP worker.
///
/// The system completes a connection before the service accepts it, and the client may send a call
/// at once. Closing the socket resets the connections that wait to be accepted, and actix drops
/// accepted connections that no worker has taken yet. A proxy passes a refused call on to another
/// replica, but does not repeat a decision whose connection was reset. So first no new handshake may
/// begin, then the queue is emptied, and only then the socket stops listening.
pub async fn refuse_new_connections(listener: &TcpListener, server: &ServerHandle) {
    if let Err(error) = ignore_new_handshakes(listener) {
        warn!(%error, "connections that are made while the listener closes may break");
    }
    sleep(HANDSHAKE_TIME).await;
    let accepted = async {
        while has_waiting_connections(listener) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    if timeout(ACCEPT_TIMEOUT, accepted).await.is_err() {
        warn!("connections that were not accepted in time will break");
    }
    server.pause().await;
    sleep(PAUSE_TIME).await;
    if let Err(error) = rustix::net::shutdown(listener, Shutdown::Read) {
        warn!(%error, "the listener stays open until the server stops");
    }
    sleep(DISPATCH_TIME).await;
}

fn has_waiting_connections(listener: &TcpListener) -> bool {
    let mut listening = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut listening, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// Drops the first packet of every new handshake. Its client sends it again a second later, and is
/// refused then.
#[cfg(target_os = "linux")]
fn ignore_new_handshakes(listener: &TcpListener) -> io::Result<()> {
    use socket2::{SockFilter, SockRef};

    /// Loads a byte of the TCP header; compares with a number; returns. From `linux/bpf_common.h`:
    /// `BPF_LD | BPF_B | BPF_ABS`, `BPF_ALU | BPF_AND | BPF_K`, `BPF_JMP | BPF_JEQ | BPF_K`,
    /// `BPF_RET | BPF_K`.
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// Other systems have no such filter.
#[cfg(not(target_os = "linux"))]
fn ignore_new_handshakes(_listener: &TcpListener) -> io::Result<()> {
    Ok(())
}
