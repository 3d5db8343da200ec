//! A mail server of one's own: aiosmtpd, run by `tests/fixtures/smtp.py`. It ends with the test.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aura_hitl::notices::{MailSecurity, MailSettings};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

use crate::eventually::eventually_within;
use crate::names::test_variable;
use crate::tls::Authority;

/// Who may send mail through a server that asks for it.
const LOGIN: [&str; 2] = ["hitl@example.com", "mail-canary"];

/// A mail server.
pub struct MailServer {
    child: Child,
    port: u16,
    security: MailSecurity,
    authority: Authority,
    mails: Arc<Mutex<Vec<Mail>>>,
    _folder: TempDir,
}

/// A mail as the server took it, and as Python's parser reads it.
#[derive(Clone, Debug)]
pub struct Mail(pub Value);

impl Mail {
    /// The one recipient.
    pub fn to(&self) -> String {
        let to = self.0["to"].as_array().unwrap();
        assert_eq!(to.len(), 1, "{self:?}");
        to[0].as_str().unwrap().to_owned()
    }

    /// All headers of this name.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let headers = self.0["headers"].as_array().unwrap().iter();
        let named = headers.filter(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name));
        named.map(|header| header[1].as_str().unwrap().to_owned()).collect()
    }

    pub fn header(&self, name: &str) -> String {
        let [header] = &self.headers(name)[..] else { panic!("{name}: {self:?}") };
        header.clone()
    }

    pub fn text(&self) -> &str {
        self.0["parts"]["text/plain"].as_str().unwrap()
    }

    pub fn html(&self) -> &str {
        self.0["parts"]["text/html"].as_str().unwrap()
    }
}

impl MailServer {
    /// Without TLS and login, on the loopback interface.
    pub fn plain() -> Self {
        Self::start(MailSecurity::None)
    }

    /// One that asks for a login, and for TLS with a certificate of an authority of its own.
    pub fn start(security: MailSecurity) -> Self {
        let (authority, folder) = (Authority::new(), TempDir::new().unwrap());
        let [certificate, key] = authority.identity().files(&folder);
        let mut command = Command::new(test_variable("TEST_PYTHON"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/smtp.py"));
        let tls = match security {
            MailSecurity::None => "none",
            MailSecurity::StartTls => "starttls",
            MailSecurity::Tls => "implicit",
        };
        command.args(["--tls", tls, "--certificate", &certificate, "--key", &key]);
        if security != MailSecurity::None {
            command.arg("--login").args(LOGIN);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("TEST_PYTHON does not run");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the mail server ended").unwrap();
        let port = first.strip_prefix("port ").unwrap().parse().unwrap();
        let mails = Arc::<Mutex<Vec<Mail>>>::default();
        let taken = mails.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                taken.lock().unwrap().push(Mail(serde_json::from_str(&line).unwrap()));
            }
        });
        Self { child, port, security, authority, mails, _folder: folder }
    }

    /// How the service reaches it.
    pub fn settings(&self) -> MailSettings {
        let login = (self.security != MailSecurity::None).then_some(LOGIN);
        MailSettings {
            security: self.security,
            host: "127.0.0.1".to_owned(),
            port: Some(self.port),
            user: login.map(|[user, _]| user.to_owned()),
            password: login.map(|[_, password]| SecretString::from(password)),
            authority: Some(self.authority.pem.clone()),
            from: "Approvals <approvals@example.com>".to_owned(),
        }
    }

    /// The mails that it took.
    pub fn mails(&self) -> Vec<Mail> {
        self.mails.lock().unwrap().clone()
    }

    /// The mails, once there are so many.
    pub async fn taken(&self, count: usize) -> Vec<Mail> {
        eventually_within(Duration::from_secs(30), async || {
            let mails = self.mails();
            (mails.len() >= count).then_some(mails)
        })
        .await
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
