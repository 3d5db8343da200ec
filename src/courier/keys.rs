//! Names of keys and channels in Redis. Most are the wire contract's.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use redis::cluster_routing::Slot;

use crate::domain::ids::{RequestId, SessionId, TenantId};

/// What stands before a request's id in its key (wire contract).
pub const REQUEST: &str = "hitl:request:";

pub fn request_key(id: &RequestId) -> String {
    format!("{REQUEST}{id}")
}

/// What stands before the session in the key of its pointer (wire contract).
pub const SESSION: &str = "hitl:session:";

pub fn session_key(session: &SessionId) -> String {
    format!("{SESSION}{session}")
}

pub fn signal_key(session: &SessionId) -> String {
    format!("hitl:signal:{session}")
}

/// Where a signal's rank is kept: in the slot of the signal's own key, so that a Redis Cluster lets
/// one script write both. A key's slot is that of what stands in its first pair of braces, if any:
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.
pub fn rank_key(session: &SessionId) -> String {
    let key = signal_key(session);
    let plain = format!("{{{key}}}:rank");
    // Braces in the session's id undo ours. Then some number leads to the same slot.
    let numbered = (0_u32..).map(|number| format!("{{{number}}}:{key}:rank"));
    let is_beside = |rank_key: &String| Slot::for_key(rank_key) == Slot::for_key(&key);
    std::iter::once(plain).chain(numbered).find(is_beside).unwrap_or_default()
}

/// What stands before the session in the name of its channel (wire contract).
pub const CHANNEL: &str = "hitl:channel:";
/// A channel of our own, on which replicas tell each other of outcomes that must not be published on
/// a session's channel, since agents there take anything for an approval. The payload is the session.
pub const OUTCOMES: &str = "hitl:outcomes";

pub fn channel(session: &SessionId) -> String {
    format!("{CHANNEL}{session}")
}

/// What stands before tenant and request in the channel of a registered request (wire contract).
pub const DECISION: &str = "hitl:decision:";
/// The only message there (wire contract).
pub const ASK: &str = "ask";
/// What RFC 3986 calls unreserved stays as it is; all other bytes are percent-encoded.
pub const RESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The tenant is percent-encoded, so that no tenant's name reaches into another tenant's channels.
pub fn decision_channel(tenant: &TenantId, id: &RequestId) -> String {
    format!("{DECISION}{}:{id}", utf8_percent_encode(tenant.as_str(), RESERVED))
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
