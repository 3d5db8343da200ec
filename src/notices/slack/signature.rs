//! The signature of Slack's calls: <https://docs.slack.dev/authentication/verifying-requests-from-slack>.

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};

/// How far the time of a call may be from ours, in seconds.
const WINDOW_SECONDS: u64 = 5 * 60;
/// The version of the signature.
const VERSION: &str = "v0";

/// Why a call is not taken for one of Slack's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// It is not signed with the secret.
    Forged,
    /// It is signed, but too long ago, or in the future.
    Late,
}

/// Checks the headers `X-Slack-Request-Timestamp` and `X-Slack-Signature` of a call with this body. The
/// comparison takes equally long wherever the signatures differ.
///
/// # Errors
/// [`Unproven`], when Slack has not sent it now.
pub fn verify(
    secret: &SecretString,
    timestamp: &str,
    signature: &str,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<(), Unproven> {
    let seconds = timestamp.parse::<u32>().map_err(|_invalid| Unproven::Forged)?;
    let given = signature.strip_prefix("v0=").and_then(from_hex).ok_or(Unproven::Forged)?;
    let key = hmac::Key::new(HMAC_SHA256, secret.expose_secret().as_bytes());
    let signed = [format!("{VERSION}:{timestamp}:").as_bytes(), body].concat();
    hmac::verify(&key, &signed, &given).map_err(|_differs| Unproven::Forged)?;
    if now.timestamp().abs_diff(i64::from(seconds)) > WINDOW_SECONDS {
        return Err(Unproven::Late);
    }
    Ok(())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits =
        text.bytes().map(|byte| char::from(byte).to_digit(16)).collect::<Option<Vec<_>>>()?;
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| u8::try_from(pair.iter().fold(0, |sum, digit| sum * 16 + digit)).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Slack's documentation.
    const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
    const BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&\
        channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&\
        command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F\
        397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    const TIMESTAMP: &str = "1531420618";

    fn check(
        secret: &str,
        timestamp: &str,
        signature: &str,
        body: &str,
        later: i64,
    ) -> Result<(), Unproven> {
        let now = DateTime::from_timestamp(1_531_420_618 + later, 0).unwrap();
        verify(&SecretString::from(secret), timestamp, signature, body.as_bytes(), now)
    }

    #[test]
    fn the_example_of_the_documentation_is_valid_for_five_minutes() {
        for later in [-300, 0, 300] {
            assert_eq!(check(SECRET, TIMESTAMP, SIGNATURE, BODY, later), Ok(()));
        }
        for later in [-301, 301, 86_400] {
            assert_eq!(check(SECRET, TIMESTAMP, SIGNATURE, BODY, later), Err(Unproven::Late));
        }
    }

    #[test]
    fn nothing_else_is_valid() {
        let upper = SIGNATURE.replace('a', "A");
        assert_eq!(check(SECRET, TIMESTAMP, &upper, BODY, 0), Ok(()), "hex in any case");
        for (secret, timestamp, signature, body) in [
            ("", TIMESTAMP, SIGNATURE, BODY),
            ("other", TIMESTAMP, SIGNATURE, BODY),
            (SECRET, "1531420619", SIGNATURE, BODY),
            (SECRET, " 1531420618", SIGNATURE, BODY),
            (SECRET, "-1", SIGNATURE, BODY),
            (SECRET, "", SIGNATURE, BODY),
            (SECRET, TIMESTAMP, "", BODY),
            (SECRET, TIMESTAMP, "v0=", BODY),
            (SECRET, TIMESTAMP, &SIGNATURE[..SIGNATURE.len() - 1], BODY),
            (SECRET, TIMESTAMP, &SIGNATURE[..SIGNATURE.len() - 2], BODY),
            (SECRET, TIMESTAMP, &SIGNATURE.replace("v0", "v1"), BODY),
            (SECRET, TIMESTAMP, &SIGNATURE.replace('a', "b"), BODY),
            (SECRET, TIMESTAMP, SIGNATURE, &BODY[1..]),
            (SECRET, TIMESTAMP, SIGNATURE, ""),
        ] {
            assert_eq!(
                check(secret, timestamp, signature, body, 0),
                Err(Unproven::Forged),
                "{signature}"
            );
        }
    }
}
