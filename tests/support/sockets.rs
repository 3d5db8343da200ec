//! Raw HTTP on a socket, for bytes that no HTTP client sends: the head of a call, its end, and the
//! answers until the service closes the connection or the time-out ends.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::answers::Answer;

/// The answers on a raw socket.
#[derive(Debug)]
pub struct RawAnswer {
    /// Everything, as it came.
    pub text: String,
    /// Whether the service closed the connection before the time-out.
    pub is_closed: bool,
}

impl RawAnswer {
    /// The first answer.
    pub fn first(&self) -> Answer {
        let (head, body) = self.text.split_once("\r\n\r\n").unwrap_or((&self.text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no answer: {:?}", self.text));
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: reqwest::header::HeaderMap::new(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
            text: self.text.clone(),
        }
    }

    /// How many answers there are.
    pub fn count(&self) -> usize {
        self.text.matches("HTTP/1.1 ").count() - self.text.matches("HTTP/1.1 100 ").count()
    }
}

/// Sends bytes as they are and reads until the service closes the connection.
pub async fn raw(address: impl ToSocketAddrs + Send + 'static, bytes: Vec<u8>) -> RawAnswer {
    let (text, is_closed) = tokio::task::spawn_blocking(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The service may answer and close before it has read everything.
        let _sent = socket.write_all(&bytes);
        let mut answer = Vec::new();
        let mut some = [0; 4096];
        let is_closed = loop {
            match socket.read(&mut some) {
                Ok(0) => break true,
                Ok(count) => answer.extend(&some[..count]),
                Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        };
        (String::from_utf8_lossy(&answer).into_owned(), is_closed)
    })
    .await
    .unwrap();
    RawAnswer { text, is_closed }
}

/// The first lines of a call on a socket of one's own, up to the token.
pub fn head(token: &str, method: &Method, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n")
}

/// What ends the head of a call on a socket of one's own, and the only one on it.
pub fn framed(body: &str) -> String {
    let length = body.len();
    format!(
        "Connection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// `%`-encodes every byte that is not a letter, a digit or one of `-._~`.
pub fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
