//! Waits for background work without asserting how long it takes: the limit only ends a test that would
//! wait for ever. Other servers' work (elections, fail-overs, starts) has a longer limit.

use std::time::Duration;

/// Waits up to 30 s for something that happens in the background.
pub async fn eventually<T>(look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(Duration::from_secs(30), look).await
}

/// [`eventually`] with a longer limit, for the work of other servers.
pub async fn eventually_within<T>(
    limit: std::time::Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, looking).await.expect("it never happened")
}
