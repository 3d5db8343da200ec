//! How much a person and a tenant may register: pending requests, and bytes of requests and tasks in an
//! hour. Whoever has
//! too much is told so, and nobody else notices.
//!
//! A person's pending requests are counted in the ledger with each registration, up to the limit. A
//! tenant's figures are read every `REFRESH_INTERVAL` and continued here in between, so a tenant can
//! exceed its limits by what the other replicas register in that time, and a person by the calls that
//! are under way at once.

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

/// How old a tenant's figures may be.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Seconds after which a person or a tenant with too many pending requests may try again.
const PENDING_RETRY_SECONDS: u64 = 30;
/// Tenants to remember; with more, those with old figures and nothing unsaved are forgotten.
const MAX_TENANTS: usize = 4096;

/// The limits.
#[derive(Clone, Copy, Debug)]
pub struct QuotaLimits {
    /// Pending registered requests of one person.
    pub pending_per_person: u32,
    /// Pending registered requests of one tenant.
    pub pending_per_tenant: u32,
    /// Bytes of the requests that one tenant registers, and of the tasks that it writes, in a clock hour.
    pub bytes_per_tenant_hour: u64,
}

/// The quotas of this process; cheap to clone, and clones share them.
#[derive(Clone, Debug)]
pub struct Quotas {
    limits: QuotaLimits,
    tenants: Arc<Mutex<HashMap<TenantId, Arc<AsyncMutex<Usage>>>>>,
}

/// What is known of a tenant.
#[derive(Debug, Default)]
struct Usage {
    refreshed_at: Option<Instant>,
    /// Pending requests, as of then and with what was registered here since.
    pending: u64,
    /// The hour that the bytes are about.
    hour: DateTime<Utc>,
    /// Bytes registered in it, those of `unsaved` not included.
    bytes: u64,
    /// Bytes registered here that the ledger has not been told of.
    unsaved: u64,
}

/// Why a request may not be registered.
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
    /// Quotas with these limits, of which nothing is used.
    #[must_use]
    pub fn new(limits: QuotaLimits) -> Self {
        Self { limits, tenants: Arc::default() }
    }

    /// Makes sure that this person may register this request.
    ///
    /// # Errors
    /// [`QuotaError`]; the request must not be registered then.
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

    /// Makes sure that this tenant may have so many bytes of a task written.
    ///
    /// # Errors
    /// [`QuotaError`]; they must not be written then.
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

    /// Counts bytes of a task that were written.
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

    /// Whether so many more bytes fit into the hour.
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

    /// Tells the ledger what was registered here, and reads what all replicas have registered.
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
