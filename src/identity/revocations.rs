//! Tokens that are revoked before they expire: single tokens by their id (`jti`), or all tokens of a
//! user that were issued before a given time.
//!
//! The list is a file, read at start and on SIGHUP. One invalid entry refuses the whole file, because a
//! list of which only half is in force is worse than the previous list.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::domain::ids::{TenantId, UserId};

/// The list of revoked tokens.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    ids: HashSet<String>,
    /// By tenant and user: tokens issued before this time (Unix seconds) are revoked.
    not_before: HashMap<(String, String), i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRevocations {
    jti: Option<Vec<Name>>,
    not_before: Option<Vec<RawNotBefore>>,
}

/// A string, or an integer that is read as its digits, as in tokens.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be text or an integer")]
enum Name {
    Number(i64),
    Text(String),
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        match name {
            Name::Number(number) => number.to_string(),
            Name::Text(text) => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNotBefore {
    tenant: Name,
    user: Name,
    time: String,
}

impl Revocations {
    /// Reads the list from a file's text (TOML).
    ///
    /// # Errors
    /// A sentence that names the invalid entry and the valid form: the text is not TOML, has neither list,
    /// has an unknown key, or has an invalid id or time.
    pub fn read(file: &Path, text: &str) -> anyhow::Result<Self> {
        let name = || format!("revocations_file names {}", file.display());
        let raw: RawRevocations = config::Config::builder()
            .add_source(config::File::from_str(text, config::FileFormat::Toml))
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| anyhow::anyhow!("{}", first_line(&error.to_string())))
            .with_context(|| format!("{}, which cannot be read", name()))?;
        ensure!(
            raw.jti.is_some() || raw.not_before.is_some(),
            "{}, which holds neither jti nor not_before; write jti = [] to revoke nothing",
            name()
        );
        let mut not_before = HashMap::new();
        for RawNotBefore { tenant, user, time } in raw.not_before.unwrap_or_default() {
            let (tenant, user) = (String::from(tenant), String::from(user));
            let instant = DateTime::parse_from_rfc3339(&time).ok().with_context(|| {
                format!("{}: {time:?} is not a time like 2026-01-16T12:00:00Z", name())
            })?;
            ensure!(
                TenantId::parse(tenant.as_str()).is_ok() && UserId::parse(user.as_str()).is_ok(),
                "{}: {tenant:?} and {user:?} are not a tenant and a user",
                name()
            );
            // Rounded up, because `iat` has whole seconds.
            let from = instant.with_timezone(&Utc).timestamp_millis().saturating_add(999) / 1000;
            let latest = not_before.entry((tenant, user)).or_insert(from);
            *latest = (*latest).max(from);
        }
        let ids: HashSet<_> = raw.jti.into_iter().flatten().map(String::from).collect();
        for id in &ids {
            ensure!(
                !id.is_empty() && id.trim() == id,
                "{}: the jti {id:?} is blank or has blanks around it, which would revoke nothing",
                name()
            );
        }
        Ok(Self { ids, not_before })
    }

    /// Whether a token with this `jti`, issued to this user at `iat` (Unix seconds), is revoked.
    #[must_use]
    pub fn is_revoked(&self, id: Option<&str>, tenant: &TenantId, user: &UserId, iat: i64) -> bool {
        if id.is_some_and(|id| self.ids.contains(id)) {
            return true;
        }
        if self.not_before.is_empty() {
            return false;
        }
        let person = (tenant.as_str().to_owned(), user.as_str().to_owned());
        self.not_before.get(&person).is_some_and(|not_before| iat < *not_before)
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Revocations> {
        Revocations::read(Path::new("revoked.toml"), text)
    }

    #[test]
    fn a_token_is_revoked_by_its_id_or_by_when_it_was_issued() {
        let revocations = read(
            r#"
            jti = ["a", "b"]
            [[not_before]]
            tenant = "t1"
            user = "alice"
            time = "1970-01-01T00:01:40Z"
            [[not_before]]
            tenant = "t1"
            user = "alice"
            time = "1970-01-01T00:00:40.5+00:00"
            "#,
        )
        .unwrap();
        let is_revoked = |id, tenant: &str, user: &str, iat| {
            let (tenant, user) = (TenantId::parse(tenant).unwrap(), UserId::parse(user).unwrap());
            revocations.is_revoked(id, &tenant, &user, iat)
        };
        assert!(is_revoked(Some("a"), "t2", "bob", 500));
        assert!(is_revoked(None, "t1", "alice", 99));
        assert!(is_revoked(Some("c"), "t1", "alice", 99));
        assert!(!is_revoked(Some("c"), "t1", "alice", 100));
        assert!(!is_revoked(None, "t2", "alice", 99));
        assert!(!is_revoked(None, "t1", "bob", 99));
    }

    #[test]
    fn integers_stand_for_their_digits_and_an_empty_list_revokes_nothing() {
        let (tenant, user) = (TenantId::parse("1").unwrap(), UserId::parse("7").unwrap());
        let list =
            "jti = [12345]\n[[not_before]]\ntenant = 1\nuser = 7\ntime = \"1970-01-01T00:01:40Z\"";
        let revocations = read(list).unwrap();
        assert!(revocations.is_revoked(Some("12345"), &tenant, &user, 500));
        assert!(revocations.is_revoked(None, &tenant, &user, 99));
        let nothing = read("jti = []").unwrap();
        assert!(!nothing.is_revoked(Some("12345"), &tenant, &user, 99));
    }

    #[test]
    fn one_wrong_entry_refuses_the_list_in_one_line() {
        for wrong in [
            "",
            "# nothing is revoked",
            "jti = 7",
            "jti = [true]",
            "jti = [1.5]",
            "jti = [[\"a\"]]",
            "jti = [\"\"]",
            "jti = [\" a \"]",
            "jti = [\"a\\n\"]",
            "[[not_before]]\ntenant = true\nuser = \"u\"\ntime = \"2026-01-16T12:00:00Z\"",
            "jti = [",
            "ids = []",
            "[[not_before]]\ntenant = \"t\"\nuser = \"u\"\ntime = \"yesterday\"",
            "[[not_before]]\ntenant = \"t\"\ntime = \"2026-01-16T12:00:00Z\"",
            "[[not_before]]\ntenant = \"\"\nuser = \"u\"\ntime = \"2026-01-16T12:00:00Z\"",
        ] {
            let error = format!("{:#}", read(wrong).unwrap_err());
            assert!(error.contains("revoked.toml") && !error.contains('\n'), "{wrong}: {error}");
        }
    }
}
