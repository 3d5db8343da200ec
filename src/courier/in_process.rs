//! The courier of the embedded mode: what Redis would do, within one process.
//!
//! Values live in the ledger's SQLite file with their expiry, so they outlive a restart; messages
//! go over a broadcast channel and, like Pub/Sub, reach only who is listening.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use sqlx::SqlitePool;
use tokio::sync::broadcast;

use super::{Outgoing, Result, Sent, StoredRequest, Unavailable};
use crate::domain::clock::Clock;

/// Messages a slow listener may lag behind before it loses some, as with Pub/Sub.
const BACKLOG: usize = 1024;

/// Writes a value, whatever is there.
const PUT: &str = "INSERT INTO courier_value (key, value, expires_at) VALUES ($1, $2, $3)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at";

/// How many listen to each channel.
type Channels = Arc<Mutex<HashMap<String, usize>>>;

/// The courier within this process.
#[derive(Clone, Debug)]
pub struct InProcessCourier {
    pool: SqlitePool,
    clock: Clock,
    messages: broadcast::Sender<(String, String)>,
    channels: Channels,
}

impl From<sqlx::Error> for Unavailable {
    fn from(error: sqlx::Error) -> Self {
        Self(error.to_string())
    }
}

impl InProcessCourier {
    pub fn new(pool: SqlitePool, clock: Clock) -> Self {
        Self {
            pool,
            clock,
            messages: broadcast::Sender::new(BACKLOG),
            channels: Channels::default(),
        }
    }

    /// Begins to listen, to no channel yet.
    #[must_use]
    pub fn listen(&self) -> InProcessEar {
        let (messages, channels) = (self.messages.subscribe(), Arc::clone(&self.channels));
        InProcessEar { messages, channels, own: HashSet::new() }
    }

    /// Answers how many were listening.
    pub fn publish(&self, channel: &str, payload: &str) -> usize {
        let listeners = lock(&self.channels).get(channel).copied().unwrap_or(0);
        let _nobody_listens = self.messages.send((channel.to_owned(), payload.to_owned()));
        listeners
    }

    fn now_millis(&self) -> i64 {
        self.clock.now().timestamp_millis()
    }

    fn expiry_millis(&self, ttl_seconds: u64) -> i64 {
        self.now_millis() + i64::try_from(ttl_seconds).unwrap_or(0) * 1000
    }

    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    async fn find(&self, key: &str) -> Result<Option<(String, i64)>> {
        let live = "SELECT value, expires_at FROM courier_value WHERE key = $1 AND expires_at > $2";
        let now = self.now_millis();
        Ok(sqlx::query_as(live).bind(key).bind(now).fetch_optional(&self.pool).await?)
    }

    pub async fn find_request(&self, key: &str) -> Result<Option<StoredRequest>> {
        let left = |expires_at: i64| {
            let left = TimeDelta::milliseconds(expires_at - self.now_millis());
            Some(left.to_std().unwrap_or(Duration::ZERO))
        };
        let found = self.find(key).await?;
        Ok(found.map(|(document, expires_at)| StoredRequest {
            document,
            ttl: left(expires_at),
            beside: None,
        }))
    }

    pub async fn text(&self, key: &str) -> Result<Option<String>> {
        Ok(self.find(key).await?.map(|(value, _)| value))
    }

    pub async fn put(
        &self,
        key: &str,
        value: &str,
        ttl_seconds: u64,
        only_new: bool,
    ) -> Result<()> {
        let now = self.now_millis();
        sqlx::query("DELETE FROM courier_value WHERE expires_at <= $1")
            .bind(now)
            .execute(&self.pool)
            .await?;
        let put = if only_new {
            "INSERT INTO courier_value (key, value, expires_at) VALUES ($1, $2, $3)
             ON CONFLICT (key) DO NOTHING"
        } else {
            PUT
        };
        sqlx::query(put)
            .bind(key)
            .bind(value)
            .bind(self.expiry_millis(ttl_seconds))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Sent> {
        let now = self.now_millis();
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut there = Vec::new();
        for key in [super::session_key(outgoing.session), super::request_key(outgoing.request)] {
            let value: Option<String> = sqlx::query_scalar(
                "SELECT value FROM courier_value WHERE key = $1 AND expires_at > $2",
            )
            .bind(key)
            .bind(now)
            .fetch_optional(&mut *transaction)
            .await?;
            there.push(value.unwrap_or_default());
        }
        let seen = outgoing.only_while;
        let seen = [seen.pointer.text.as_deref(), seen.document.as_deref()];
        if there != seen.map(Option::unwrap_or_default) {
            return Ok(Sent::Changed);
        }
        sqlx::query(
            "INSERT INTO courier_value (key, value, rank, expires_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (key) DO UPDATE
                SET value = excluded.value, rank = excluded.rank, expires_at = excluded.expires_at
              WHERE courier_value.rank <= excluded.rank OR courier_value.expires_at <= $5",
        )
        .bind(super::signal_key(outgoing.session))
        .bind(outgoing.signal)
        .bind(outgoing.rank)
        .bind(self.expiry_millis(crate::domain::signal::SIGNAL_TTL_SECONDS))
        .bind(now)
        .execute(&mut *transaction)
        .await?;
        sqlx::query(PUT)
            .bind(super::request_key(outgoing.request))
            .bind(outgoing.document)
            .bind(self.expiry_millis(crate::domain::request::REQUEST_TTL_SECONDS))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        let channel = super::channel(outgoing.session);
        let listeners = if outgoing.aloud { self.publish(&channel, outgoing.signal) } else { 0 };
        Ok(Sent::Published { listeners: i64::try_from(listeners).ok(), history: None })
    }
}

/// Hears what is published in this process, on the channels it has subscribed to.
#[derive(Debug)]
pub struct InProcessEar {
    messages: broadcast::Receiver<(String, String)>,
    channels: Channels,
    own: HashSet<String>,
}

impl InProcessEar {
    /// Begins to hear these channels.
    pub fn subscribe(&mut self, channels: &[String]) {
        for channel in channels {
            if self.own.insert(channel.clone()) {
                *lock(&self.channels).entry(channel.clone()).or_default() += 1;
            }
        }
    }

    /// Ceases to hear these channels.
    pub fn unsubscribe(&mut self, channels: &[String]) {
        for channel in channels {
            if self.own.remove(channel) {
                leave(&self.channels, channel);
            }
        }
    }

    /// The next message and its channel.
    ///
    /// # Errors
    /// [`Unavailable`] when so many came that some were missed.
    pub async fn next(&mut self) -> Result<(String, String)> {
        loop {
            let heard = self.messages.recv().await;
            let (channel, payload) = heard.map_err(|missed| Unavailable(missed.to_string()))?;
            if self.own.contains(&channel) {
                return Ok((channel, payload));
            }
        }
    }
}

impl Drop for InProcessEar {
    fn drop(&mut self) {
        self.own.iter().for_each(|channel| leave(&self.channels, channel));
    }
}

fn leave(channels: &Channels, channel: &str) {
    let mut channels = lock(channels);
    let Some(listeners) = channels.get_mut(channel) else { return };
    *listeners -= 1;
    if *listeners == 0 {
        channels.remove(channel);
    }
}

fn lock(channels: &Channels) -> MutexGuard<'_, HashMap<String, usize>> {
    channels.lock().unwrap_or_else(PoisonError::into_inner)
}
