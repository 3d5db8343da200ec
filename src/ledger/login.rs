//! Why Postgres cannot be used, in one sentence that says what to do. Never contains a password.

use std::io::ErrorKind;

use sqlx::postgres::PgConnectOptions;

use super::connections::NotSent;

/// Why Postgres cannot be used: one sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct LoginError {
    sentence: String,
    /// Whether another try may succeed without a change of settings.
    pub may_pass: bool,
}

impl LoginError {
    pub(super) fn new(error: sqlx::Error, options: Option<&PgConnectOptions>) -> Self {
        let host = options.map_or("its host", PgConnectOptions::get_host);
        let at = place(options);
        let (sentence, may_pass) = match error {
            sqlx::Error::Database(refusal) => {
                let (advice, may_pass) = match refusal.code().as_deref() {
                    Some("28P01" | "28000") => ("correct user and password in DATABASE_URL", false),
                    Some("3D000") => ("create it, or correct DATABASE_URL", false),
                    Some("53300") => {
                        ("lower database_max_connections, or raise its max_connections", true)
                    }
                    // Postgres is starting or stopping.
                    Some("57P03" | "57P01") => ("try again", true),
                    _ => ("check DATABASE_URL", false),
                };
                (format!("Postgres refuses the login: {}; {advice}", refusal.message()), may_pass)
            }
            sqlx::Error::Io(error) if error.to_string().contains("lookup address") => (
                format!("Postgres cannot be found: there is no host {host}; correct DATABASE_URL"),
                false,
            ),
            sqlx::Error::Io(error) => {
                let refused = error.kind() == ErrorKind::ConnectionRefused;
                let why = if refused { "connection refused".to_owned() } else { error.to_string() };
                (does_not_answer(&at, &why), true)
            }
            sqlx::Error::Tls(cause) if cause.to_string().contains("not support TLS") => (
                format!(
                    "Postgres{at} has no TLS, which sslmode in DATABASE_URL demands; turn it on \
                     there, or change sslmode"
                ),
                false,
            ),
            sqlx::Error::Configuration(cause) => {
                let cause = anyhow::Error::from_boxed(cause);
                let cause = cause.root_cause();
                (format!("Postgres cannot be used: {cause}; check DATABASE_URL"), false)
            }
            sqlx::Error::AnyDriverError(cause) if cause.is::<NotSent>() => {
                (format!("Postgres cannot be used{at}: {cause}"), true)
            }
            error => (format!("Postgres cannot be used: {error}; check DATABASE_URL"), false),
        };
        Self { sentence, may_pass }
    }

    pub(super) fn no_answer(options: Option<&PgConnectOptions>) -> Self {
        let sentence = does_not_answer(&place(options), "no answer in time");
        Self { sentence, may_pass: true }
    }

    pub(super) fn permanent(sentence: &str) -> Self {
        Self { sentence: sentence.to_owned(), may_pass: false }
    }
}

fn place(options: Option<&PgConnectOptions>) -> String {
    let place =
        |options: &PgConnectOptions| format!(" at {}:{}", options.get_host(), options.get_port());
    options.map(place).unwrap_or_default()
}

fn does_not_answer(at: &str, why: &str) -> String {
    format!("Postgres does not answer{at} ({why}); start it, or correct DATABASE_URL")
}
