//! A running service for the targets that go through the real router: the embedded mode in a
//! temporary folder, and one connection that stays open.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use aura_hitl::app::Replica;
use aura_hitl::auth;
use aura_hitl::config::Config;
use aura_hitl::domain::approver::Role;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::{TenantId, UserId};
use serde_json::Value;

/// Who calls.
pub const USER: &str = "user123";
/// Of which tenant.
pub const TENANT: &str = "tenant1";
/// Longest that a call may take; a hang is a finding.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer of the service.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The envelope, checked: whatever was asked, this is its form.
    pub fn envelope(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        let envelope: Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {text}"));
        let is_success = self.status < 400;
        assert_eq!(envelope["success"], is_success, "{text}");
        assert_eq!(envelope["status"], if is_success { "SUCCESS" } else { "ERROR" }, "{text}");
        assert_eq!(envelope["errorCode"].is_string(), !is_success, "{text}");
        assert!(envelope["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
        assert_eq!(envelope["timestamp"].as_str().map(str::len), Some(19), "{text}");
        envelope
    }
}

/// The service of this process.
pub struct Service {
    address: SocketAddr,
    /// `Authorization` and the identity headers.
    headers: String,
    connection: Mutex<Option<BufReader<TcpStream>>>,
}

/// Starts the service, once.
pub fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut config = Config::embedded_in(&folder).unwrap();
        config.rate_limit = None;
        let runtime = Box::leak(Box::new(tokio::runtime::Runtime::new().unwrap()));
        let replica = runtime.block_on(Replica::start(&config, Clock::System)).unwrap();
        let replica = Box::leak(Box::new(replica));
        let (user, tenant) = (UserId::parse(USER).unwrap(), TenantId::parse(TENANT).unwrap());
        let token = auth::mint(&config.jwt, &user, &tenant, Role::User, 86_400).unwrap();
        Service {
            address: replica.address,
            headers: format!(
                "Host: x\r\nAuthorization: Bearer {token}\r\nX-Tenant-ID: {TENANT}\r\nX-User-ID: {USER}\r\n"
            ),
            connection: Mutex::new(None),
        }
    })
}

impl Service {
    /// A call with token and identity headers; `target` goes over the wire as it is.
    pub fn call(&self, method: &str, target: &[u8], body: Option<&[u8]>) -> Answer {
        let mut request = [method.as_bytes(), b" ", target, b" HTTP/1.1\r\n"].concat();
        request.extend(self.headers.as_bytes());
        if let Some(body) = body {
            let framing =
                format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            request.extend(framing.as_bytes());
        }
        request.extend(b"\r\n");
        request.extend(body.unwrap_or_default());
        let mut kept = self.connection.lock().unwrap();
        // A connection that was kept may have been closed meanwhile.
        let first = kept.take().and_then(|connection| exchange(connection, &request));
        let (answer, connection) = first.unwrap_or_else(|| {
            let connection = TcpStream::connect(self.address).unwrap();
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            connection.set_nodelay(true).unwrap();
            exchange(BufReader::new(connection), &request).expect("the service does not answer")
        });
        *kept = connection;
        assert!(answer.status < 500, "{answer:?}");
        answer
    }

    /// A call with a JSON body that is in order.
    pub fn json(&self, method: &str, target: &str, body: &Value) -> Value {
        self.call(method, target.as_bytes(), Some(body.to_string().as_bytes())).envelope()
    }
}

/// One request, one answer; the connection comes back if it stays open.
fn exchange(
    mut connection: BufReader<TcpStream>,
    request: &[u8],
) -> Option<(Answer, Option<BufReader<TcpStream>>)> {
    connection.get_mut().write_all(request).ok()?;
    let mut line = String::new();
    connection.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let (mut length, mut is_closing) = (0, false);
    loop {
        line.clear();
        connection.read_line(&mut line).ok()?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(text) = header.strip_prefix("content-length: ") {
            length = text.parse().ok()?;
        }
        is_closing |= header == "connection: close";
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).ok()?;
    Some((Answer { status, body }, (!is_closing).then_some(connection)))
}
