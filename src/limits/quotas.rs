//! Quotas: how many pending requests a person and a tenant may have, and how many bytes of requests and
//! tasks a tenant may write in an hour. One caller's excess must not affect other callers.
//!
//! A person's pending requests are counted in the ledger with each registration, up to the limit. A
//! tenant's figures are read from the ledger every `REFRESH_INTERVAL`; in between, this process adds what
//! it registers itself. So a tenant can exceed its limits by what the other replicas register in that
//! time, and a person by their concurrent calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::too_many::{Limit, TooMany};
use crate::domain::approver::Caller;
use crate::domain::ids::TenantId;
use crate::domain::record::Candidate;
use crate::ledger::{Ledger, LedgerError};

/// How often a tenant's figures are read from the ledger.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// `Retry-After` for a person or a tenant with too many pending requests, in seconds.
const PENDING_RETRY_SECONDS: u64 = 30;
/// Most tenants to keep in memory. Above it, tenants with outdated figures and no unsaved bytes are
/// removed.
const MAX_TENANTS: usize = 4096;

/// The quotas' limits.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits {
    /// Pending registered requests of one person.
    pub pending_per_person: u32,
    /// Pending registered requests of one tenant.
    pub pending_per_tenant: u32,
    /// Bytes of the requests that one tenant registers and of the tasks that it writes, per clock hour.
    pub bytes_per_tenant_hour: u64,
}

/// The quotas of this process. Cheap to clone; clones share the figures.
#[derive(Clone, Debug)]
pub struct Quotas {
    limits: QuotaLimits,
    tenants: Arc<Mutex<HashMap<TenantId, Arc<AsyncMutex<Usage>>>>>,
}

/// What one tenant has used.
#[derive(Debug, Default)]
struct Usage {
    refreshed_at: Option<Instant>,
    /// Pending requests at `refreshed_at`, plus those registered by this process since.
    pending: u64,
    /// The clock hour in which the bytes are counted.
    hour: DateTime<Utc>,
    /// Bytes written in that hour, without `unsaved`.
    bytes: u64,
    /// Bytes written by this process that are not yet added to the ledger's figure.
    unsaved: u64,
}

/// Why a registration or a change of a task is refused.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// A limit is reached.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The ledger did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Quotas {
    /// Quotas with these limits, with nothing used yet.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { limits, tenants: Arc::default() }
    }

    /// Checks that this person may register this request.
    ///
    /// # Errors
    /// [`QuotaError::TooMany`] when a limit is reached, [`QuotaError::Ledger`] when the ledger does not
    /// answer. The request must not be registered then.
    pub async fn check(
        &self,
        ledger: &Ledger,
        caller: &Caller,
        candidate: &Candidate,
        now: DateTime<Utc>,
    ) -> Result<(), QuotaError> {
        let limits = self.limits;
        let of_person = u64::from(limits.pending_per_person);
        let pending = ledger.count_pending(&caller.tenant, Some(&caller.user), of_person).await?;
        if pending >= of_person {
            return Err(pending_limit(Limit::PendingOfPerson(of_person)).into());
        }
        let usage = self.usage(&caller.tenant);
        let mut usage = usage.lock().await;
        usage.refresh(ledger, &caller.tenant, limits, now).await?;
        let of_tenant = u64::from(limits.pending_per_tenant);
        if usage.pending >= of_tenant {
            return Err(pending_limit(Limit::PendingOfTenant(of_tenant)).into());
        }
        Ok(usage.check_bytes_left(size(candidate), limits, now)?)
    }

    /// Checks that this tenant may write this many bytes into a task.
    ///
    /// # Errors
    /// [`QuotaError::TooMany`] when the tenant's bytes of this hour are used up, [`QuotaError::Ledger`]
    /// when the ledger does not answer. The bytes must not be written then.
    pub async fn check_bytes(
        &self,
        ledger: &Ledger,
        tenant: &TenantId,
        bytes: u64,
        now: DateTime<Utc>,
    ) -> Result<(), QuotaError> {
        let usage = self.usage(tenant);
        let mut usage = usage.lock().await;
        usage.refresh(ledger, tenant, self.limits, now).await?;
        Ok(usage.check_bytes_left(bytes, self.limits, now)?)
    }

    /// Counts bytes that were written into a task.
    pub async fn count_bytes(&self, tenant: &TenantId, bytes: u64) {
        self.usage(tenant).lock().await.unsaved += bytes;
    }

    /// Counts a request that was registered.
    pub async fn count(&self, caller: &Caller, candidate: &Candidate) {
        let usage = self.usage(&caller.tenant);
        let mut usage = usage.lock().await;
        usage.pending += 1;
        usage.unsaved += size(candidate);
    }

    fn usage(&self, tenant: &TenantId) -> Arc<AsyncMutex<Usage>> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() > MAX_TENANTS {
            tenants.retain(|_, usage| usage.try_lock().is_ok_and(|usage| usage.is_worth_keeping()));
        }
        tenants.entry(tenant.clone()).or_default().clone()
    }
}

impl Usage {
    fn is_fresh(&self) -> bool {
        self.refreshed_at.is_some_and(|at| at.elapsed() < REFRESH_INTERVAL)
    }

    /// Checks that the tenant may write this many more bytes in this hour.
    fn check_bytes_left(
        &self,
        bytes: u64,
        limits: QuotaLimits,
        now: DateTime<Utc>,
    ) -> Result<(), TooMany> {
        let of_hour = limits.bytes_per_tenant_hour;
        if self.bytes + self.unsaved + bytes <= of_hour {
            return Ok(());
        }
        let rest = self.hour + TimeDelta::hours(1) - now;
        let rest = u64::try_from(rest.num_milliseconds()).unwrap_or(0);
        let retry_after_seconds = rest.div_ceil(1000).max(1);
        Err(TooMany { limit: Limit::BytesOfTenant(of_hour), retry_after_seconds })
    }

    fn is_worth_keeping(&self) -> bool {
        self.is_fresh() || self.unsaved > 0
    }

    /// Adds this process's bytes to the ledger's figure, and reads the figures of all replicas.
    async fn refresh(
        &mut self,
        ledger: &Ledger,
        tenant: &TenantId,
        limits: QuotaLimits,
        now: DateTime<Utc>,
    ) -> Result<(), LedgerError> {
        let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
        if self.is_fresh() && hour == self.hour {
            return Ok(());
        }
        let unsaved = if hour == self.hour { self.unsaved } else { 0 };
        self.bytes = ledger.add_usage(tenant, hour, unsaved).await?;
        (self.hour, self.unsaved) = (hour, 0);
        self.pending = ledger.count_pending(tenant, None, limits.pending_per_tenant.into()).await?;
        self.refreshed_at = Some(Instant::now());
        Ok(())
    }
}

fn pending_limit(limit: Limit) -> TooMany {
    TooMany { limit, retry_after_seconds: PENDING_RETRY_SECONDS }
}

fn size(candidate: &Candidate) -> u64 {
    candidate.request.document.len() as u64
}
