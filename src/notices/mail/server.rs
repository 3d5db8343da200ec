//! The SMTP server that takes the mails: `smtp_url`, its TLS and its login, and one conversation with it.
//!
//! TLS is never optional: `smtps://` begins with it, `smtp://` demands STARTTLS, and only a server on the
//! loopback interface may go without, if the address says `?tls=none`. A refusal of one recipient ends
//! that mail alone; every other refusal is a matter of the server or its settings, and is tried again.

use std::fmt::{self, Debug};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lettre::address::Address;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, Tls, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, timeout_at};

use crate::notices::settings::{MailSecurity, MailSettings};

/// How long a connection to the server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take for its last words.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The ports of RFC 8314 and RFC 6409.
const SUBMISSIONS_PORT: u16 = 465;
/// See [`SUBMISSIONS_PORT`].
const SUBMISSION_PORT: u16 = 587;
/// Never `LOGIN` nor `XOAUTH2` alone: what every server of these days takes.
const MECHANISMS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];

/// A server that takes mails.
#[derive(Clone)]
pub struct Server {
    host: String,
    port: u16,
    tls: Tls,
    login: Option<Credentials>,
}

impl Debug for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, tls, login: _ } = self;
        write!(out, "Server({host}:{port}, {tls:?})")
    }
}

/// Why a mail was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The server will never take a mail to this recipient, or this mail.
    #[error("{0}")]
    ForGood(String),
    /// It may take it later.
    #[error("{0}")]
    ForNow(String),
}

impl Server {
    /// The server of these settings.
    ///
    /// # Errors
    /// A sentence that names the setting, when it cannot be used.
    pub fn new(settings: &MailSettings) -> anyhow::Result<Self> {
        let MailSettings { security, host, port, user, password, .. } = settings;
        let login = match (user, password) {
            (None, None) => None,
            (None, Some(_)) => bail!("password_file is set, but smtp_url names no user"),
            (Some(_), None) => bail!("smtp_url names a user, but password_file is not set"),
            (Some(user), Some(password)) => {
                Some(Credentials::new(user.clone(), password.expose_secret().to_owned()))
            }
        };
        let parameters = || {
            let mut parameters = TlsParameters::builder(host.clone());
            if let Some(authority) = &settings.authority {
                // What has none would be taken for an authority that signs nothing.
                let has_one = authority.contains("-----BEGIN CERTIFICATE-----");
                ensure!(has_one, "ca_file has no certificate in PEM");
                let authority = Certificate::from_pem(authority.as_bytes());
                let authority = authority.context("ca_file is not a certificate in PEM")?;
                parameters = parameters.add_root_certificate(authority);
            }
            parameters.build().context("TLS cannot be set up for mail")
        };
        let (tls, usual_port) = match security {
            MailSecurity::Tls => (Tls::Wrapper(parameters()?), SUBMISSIONS_PORT),
            MailSecurity::StartTls => (Tls::Required(parameters()?), SUBMISSION_PORT),
            MailSecurity::None => (Tls::None, SUBMISSION_PORT),
        };
        Ok(Self { host: host.clone(), port: port.unwrap_or(usual_port), tls, login })
    }

    /// Begins a conversation: encrypted unless the server is on the loopback interface, and logged in.
    /// It ends at `deadline`.
    ///
    /// # Errors
    /// A sentence without the password. Nothing was sent then.
    pub async fn connect(&self, deadline: Instant) -> Result<Conversation, String> {
        let connecting = async {
            let hello = ClientId::default();
            let wrapped = match &self.tls {
                Tls::Wrapper(parameters) => Some(parameters.clone()),
                _ => None,
            };
            let address = (&*self.host, self.port);
            let mut connection = AsyncSmtpConnection::connect_tokio1(
                address,
                Some(CONNECT_TIMEOUT),
                &hello,
                wrapped,
                None,
            )
            .await?;
            if let Tls::Required(parameters) = &self.tls {
                connection.starttls(parameters.clone(), &hello).await?;
            }
            if let Some(login) = &self.login {
                connection.auth(&MECHANISMS, login).await?;
            }
            Ok::<_, SmtpError>(connection)
        };
        match timeout_at(deadline, connecting).await {
            Ok(Ok(connection)) => Ok(Conversation { connection, deadline, is_over: false }),
            Ok(Err(error)) => Err(format!("the mail server cannot be used: {error}")),
            Err(_elapsed) => Err("the mail server does not answer".to_owned()),
        }
    }
}

/// A conversation with the server, in which one mail follows the other.
pub struct Conversation {
    connection: AsyncSmtpConnection,
    deadline: Instant,
    is_over: bool,
}

impl Conversation {
    /// Whether no further mail can be sent in it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Sends one mail to one recipient.
    ///
    /// # Errors
    /// [`Refused`]. After [`Refused::ForNow`] the server may have taken it all the same.
    pub async fn send(&mut self, from: &Address, to: &Address, mail: &[u8]) -> Result<(), Refused> {
        let deadline = self.deadline;
        let sent = timeout_at(deadline, self.speak(from, to, mail)).await;
        let result = sent.unwrap_or_else(|_elapsed| {
            self.is_over = true;
            Err(Refused::ForNow("the mail server does not answer".to_owned()))
        });
        if result.is_err() && !self.is_over {
            // What was begun is forgotten, so that the next mail can follow.
            let reset = timeout_at(deadline, self.connection.command(Rset)).await;
            self.is_over = !matches!(reset, Ok(Ok(_)));
        }
        result
    }

    async fn speak(&mut self, from: &Address, to: &Address, mail: &[u8]) -> Result<(), Refused> {
        let mut parameters = Vec::new();
        if !(from.as_ref() as &str).is_ascii() || !(to.as_ref() as &str).is_ascii() {
            if !self.connection.server_info().supports_feature(Extension::SmtpUtfEight) {
                let why = "the address is not ASCII, and the mail server takes no such address";
                return Err(Refused::ForGood(why.to_owned()));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !mail.is_ascii() {
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        let begun = self.connection.command(Mail::new(Some(from.clone()), parameters)).await;
        begun.map_err(|error| self.for_now("the sender", &error))?;
        let named = self.connection.command(Rcpt::new(to.clone(), Vec::new())).await;
        named.map_err(|error| self.refused("the recipient", &error))?;
        let begun = self.connection.command(Data).await;
        begun.map_err(|error| self.refused("the mail", &error))?;
        let taken = self.connection.message(mail).await;
        taken.map_err(|error| self.refused("the mail", &error))?;
        Ok(())
    }

    /// An answer that is no number, or none at all, ends the conversation.
    fn note(&mut self, error: &SmtpError) {
        // 421: the server closes the connection.
        let code = error.status().map(u16::from);
        self.is_over |= code.is_none_or(|code| code == 421);
    }

    fn for_now(&mut self, what: &str, error: &SmtpError) -> Refused {
        self.note(error);
        Refused::ForNow(format!("the mail server refuses {what}: {error}"))
    }

    fn refused(&mut self, what: &str, error: &SmtpError) -> Refused {
        self.note(error);
        // These speak of the login, not of the recipient: an operator can mend them.
        let is_login = matches!(error.status().map(u16::from), Some(530 | 534 | 535 | 538));
        if error.is_permanent() && !is_login {
            return Refused::ForGood(format!("the mail server refuses {what}: {error}"));
        }
        Refused::ForNow(format!("the mail server does not take {what}: {error}"))
    }

    /// Ends the conversation. What it was for is done.
    pub async fn end(mut self) {
        if !self.is_over {
            let _said = timeout_at(Instant::now() + QUIT_TIMEOUT, self.connection.quit()).await;
        }
    }
}
