//! Names of keys and channels in Redis. Most follow the wire contract; `…:rank` and `hitl:outcomes` are
//! the service's own.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use redis::cluster_routing::Slot;

use crate::domain::ids::{RequestId, SessionId, TenantId};

/// The prefix of a request's key (wire contract).
pub const REQUEST_KEY_PREFIX: &str = "hitl:request:";

pub fn request_key(id: &RequestId) -> String {
    format!("{REQUEST_KEY_PREFIX}{id}")
}

/// The prefix of a session pointer's key (wire contract).
pub const SESSION_KEY_PREFIX: &str = "hitl:session:";

pub fn session_key(session: &SessionId) -> String {
    format!("{SESSION_KEY_PREFIX}{session}")
}

pub fn signal_key(session: &SessionId) -> String {
    format!("hitl:signal:{session}")
}

/// The key of a signal's rank. It is in the same slot as the signal's key, so that one script can write
/// both on a Redis Cluster. If a key contains braces, its slot is computed from the text in the first
/// pair:
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
pub fn rank_key(session: &SessionId) -> String {
    let key = signal_key(session);
    let plain = format!("{{{key}}}:rank");
    // If the session's id contains a brace, `plain` may be in another slot. Then some number in braces
    // leads to the right one.
    let numbered = (0_u32..).map(|number| format!("{{{number}}}:{key}:rank"));
    let is_beside = |rank_key: &String| Slot::for_key(rank_key) == Slot::for_key(&key);
    std::iter::once(plain).chain(numbered).find(is_beside).unwrap_or_default()
}

/// The prefix of a session's channel (wire contract).
pub const SESSION_CHANNEL_PREFIX: &str = "hitl:channel:";
/// The service's own channel, on which replicas tell each other that a registered request was closed.
/// This must not be published on a session's channel, where agents treat any message as an approval. The
/// payload is the session's id; or, after [`CHANGED_PREFIX`], the tenants and ids of changed requests.
pub const OUTCOMES_CHANNEL: &str = "hitl:outcomes";
/// Begins a payload about changed requests. No session's id has a space.
pub const CHANGED_PREFIX: &str = "changed ";

pub fn channel(session: &SessionId) -> String {
    format!("{SESSION_CHANNEL_PREFIX}{session}")
}

/// The prefix of a registered request's channel; the tenant and the request's id follow (wire contract).
pub const DECISION_CHANNEL_PREFIX: &str = "hitl:decision:";
/// The only message on a registered request's channel (wire contract).
pub const ASK_MESSAGE: &str = "ask";
/// The bytes that are percent-encoded: all but the unreserved characters of RFC 3986.
pub const PERCENT_ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The channel of a registered request. The tenant is percent-encoded, so that no tenant id can produce
/// the name of another tenant's channel.
pub fn decision_channel(tenant: &TenantId, id: &RequestId) -> String {
    format!(
        "{DECISION_CHANNEL_PREFIX}{}:{id}",
        utf8_percent_encode(tenant.as_str(), PERCENT_ENCODED)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_channel_of_a_registered_request_is_spelled_like_the_contract_says() {
        let id = RequestId::parse("req.1_a:b@c-d").unwrap();
        for (tenant, spelled) in [
            ("tenant1", "tenant1"),
            ("A-Z_a.z~9", "A-Z_a.z~9"),
            ("a:b/c d*", "a%3Ab%2Fc%20d%2A"),
            ("김", "%EA%B9%80"),
        ] {
            let channel = decision_channel(&TenantId::parse(tenant).unwrap(), &id);
            assert_eq!(channel, format!("hitl:decision:{spelled}:req.1_a:b@c-d"));
        }
    }

    proptest! {
        #[test]
        fn a_rank_is_kept_beside_its_signal(id in "[ab{}]{1,8}") {
            let session = SessionId::parse(id).unwrap();
            let slots = [signal_key(&session), rank_key(&session)].map(Slot::for_key);
            prop_assert_eq!(slots[0], slots[1]);
        }
    }
}
