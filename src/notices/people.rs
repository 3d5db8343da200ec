//! How people are reached: the tables `[people.*]` and `[groups_people.*]` of the configuration.
//!
//! A key is a user id, like `kim`, for that user of every tenant, or `tenant2/kim` for one tenant's only. What
//! follows the first slash is the user. The keys of groups are alike.

use std::collections::BTreeMap;

use crate::domain::ids::{TenantId, UserId};

/// The language of a notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Korean.
    Korean,
}

/// How one person, or a group with a shared address, is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The mail address.
    pub mail: Option<String>,
    /// The id of a Slack user or channel.
    pub slack: Option<String>,
    /// The language of notices.
    pub language: Language,
}

/// Everybody who can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct People {
    people: BTreeMap<String, Contact>,
    groups: BTreeMap<String, Contact>,
}

/// Somebody to tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// The key of a table in `[people]`.
    Person(String),
    /// The key of a table in `[groups_people]`.
    Group(String),
}

impl Recipient {
    /// The column `target` of a message to this recipient: `user:kim`, `group:finance`.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Person(key) => format!("user:{key}"),
            Self::Group(key) => format!("group:{key}"),
        }
    }
}

impl People {
    /// People and groups by their keys.
    #[must_use]
    pub fn new(people: BTreeMap<String, Contact>, groups: BTreeMap<String, Contact>) -> Self {
        Self { people, groups }
    }

    /// Whether nobody can be told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.people.is_empty() && self.groups.is_empty()
    }

    /// The key of this user of this tenant. One tenant's own table comes first.
    #[must_use]
    pub fn person(&self, user: &UserId, tenant: &TenantId) -> Option<Recipient> {
        key_of(&self.people, user.as_str(), tenant).map(Recipient::Person)
    }

    /// The key of the shared address of a group or role, for requests of this tenant.
    #[must_use]
    pub fn group(&self, name: &str, tenant: &TenantId) -> Option<Recipient> {
        key_of(&self.groups, name, tenant).map(Recipient::Group)
    }

    /// How a recipient is reached; `None` once the configuration no longer has them.
    #[must_use]
    pub fn contact(&self, recipient: &Recipient) -> Option<&Contact> {
        match recipient {
            Recipient::Person(key) => self.people.get(key),
            Recipient::Group(key) => self.groups.get(key),
        }
    }

    /// How the recipient of a [`Recipient::target`] is reached.
    #[must_use]
    pub fn contact_of_target(&self, target: &str) -> Option<&Contact> {
        match target.split_once(':')? {
            ("user", key) => self.people.get(key),
            ("group", key) => self.groups.get(key),
            _ => None,
        }
    }

    /// How the recipient of a [`Recipient::target`] is reached, if a request of this tenant still may be told
    /// there: not by the table of another tenant, nor by that of all tenants once this one has its own.
    #[must_use]
    pub fn contact_for(&self, target: &str, tenant: &TenantId) -> Option<&Contact> {
        let (kind, key) = target.split_once(':')?;
        let table = match kind {
            "user" => &self.people,
            "group" => &self.groups,
            _ => return None,
        };
        is_for(table, key, tenant).then(|| table.get(key)).flatten()
    }

    /// Whether a person or group who may be told of requests of this tenant has this Slack id.
    #[must_use]
    pub fn has_slack(&self, slack: &str, tenant: &TenantId) -> bool {
        [&self.people, &self.groups].into_iter().any(|table| {
            table.iter().any(|(key, contact)| {
                contact.slack.as_deref() == Some(slack) && is_for(table, key, tenant)
            })
        })
    }

    /// The language of whoever has this Slack id, a person, a group or a channel.
    #[must_use]
    pub fn language_of_slack(&self, slack: &str) -> Language {
        let mut all = self.people.values().chain(self.groups.values());
        all.find(|contact| contact.slack.as_deref() == Some(slack))
            .map(|contact| contact.language)
            .unwrap_or_default()
    }

    /// The user of this tenant who has this Slack id. `None` also if several have it.
    #[must_use]
    pub fn user_of_slack(&self, slack: &str, tenant: &TenantId) -> Option<UserId> {
        let of_tenant = |key: &str| {
            let user = key
                .split_once('/')
                .map_or(Some(key), |(of, user)| (of == tenant.as_str()).then_some(user))?;
            let user = UserId::parse(user).ok()?;
            // A table of the tenant's own takes the place of the one for every tenant.
            (self.person(&user, tenant)? == Recipient::Person(key.to_owned())).then_some(user)
        };
        let with_id = self.people.iter().filter(|(_, it)| it.slack.as_deref() == Some(slack));
        let mut users = with_id.filter_map(|(key, _)| of_tenant(key));
        users.next().filter(|_first| users.next().is_none())
    }
}

/// Whether this key is the one that stands for its name in this tenant.
fn is_for(table: &BTreeMap<String, Contact>, key: &str, tenant: &TenantId) -> bool {
    let name = match key.split_once('/') {
        Some((of, _)) if of != tenant.as_str() => return false,
        Some((_, name)) => name,
        None => key,
    };
    key_of(table, name, tenant).as_deref() == Some(key)
}

fn key_of(table: &BTreeMap<String, Contact>, name: &str, tenant: &TenantId) -> Option<String> {
    let own = format!("{tenant}/{name}");
    if table.contains_key(&own) {
        return Some(own);
    }
    // A name with a slash would be read as another tenant's.
    (!name.contains('/') && table.contains_key(name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_reached_by_the_table_of_the_tenant_first_and_never_by_that_of_another() {
        let to = |slack: &str| Contact { slack: Some(slack.to_owned()), ..Contact::default() };
        let people = People::new(
            [("kim", "U1"), ("tenant2/kim", "U2"), ("tenant2/lee", "U3"), ("cho", "U2")]
                .map(|(key, slack)| (key.to_owned(), to(slack)))
                .into(),
            [("finance", "C1"), ("tenant2/finance", "C2")]
                .map(|(key, slack)| (key.to_owned(), to(slack)))
                .into(),
        );
        let user = |name: &str| UserId::parse(name).unwrap();
        let [one, two, three] =
            ["tenant1", "tenant2", "tenant3"].map(|name| TenantId::parse(name).unwrap());
        let reached = |name: &str, tenant| {
            let found = people.person(&user(name), tenant)?;
            assert_eq!(people.contact(&found), people.contact_of_target(&found.target()));
            people.contact(&found)?.slack.clone()
        };
        assert_eq!(reached("kim", &one).as_deref(), Some("U1"));
        assert_eq!(reached("kim", &two).as_deref(), Some("U2"));
        assert_eq!(reached("lee", &two).as_deref(), Some("U3"));
        assert_eq!(reached("lee", &one), None);
        // A user whose id looks like another tenant's key.
        assert_eq!(reached("tenant2/lee", &one), None);
        assert_eq!(people.group("finance", &three).unwrap().target(), "group:finance");
        assert_eq!(people.group("finance", &two).unwrap().target(), "group:tenant2/finance");

        // A row that was written before the settings changed.
        let still = |target: &str, tenant| {
            people.contact_for(target, tenant).and_then(|contact| contact.slack.as_deref())
        };
        assert_eq!(still("user:kim", &one), Some("U1"));
        assert_eq!(still("user:kim", &two), None, "the tenant has its own table");
        assert_eq!(still("user:tenant2/kim", &two), Some("U2"));
        assert_eq!(still("user:tenant2/kim", &one), None);
        assert_eq!(still("group:finance", &two), None);
        assert_eq!(still("group:finance", &three), Some("C1"));
        for target in ["user:park", "kim", "posted", "other:kim", ""] {
            assert_eq!(still(target, &one), None, "{target}");
        }
        let slacks = |tenant| ["U1", "U2", "U3", "C1", "C2"].map(|id| people.has_slack(id, tenant));
        assert_eq!(slacks(&one), [true, true, false, true, false]);
        assert_eq!(slacks(&two), [false, true, true, false, true]);

        assert_eq!(people.user_of_slack("U1", &one), Some(user("kim")));
        // The tenant's own table takes the place of the other.
        assert_eq!(people.user_of_slack("U1", &two), None);
        assert_eq!(people.user_of_slack("U2", &one), Some(user("cho")));
        assert_eq!(people.user_of_slack("U2", &two), None, "two people have it");
        assert_eq!(people.user_of_slack("U3", &one), None);
        assert_eq!(people.user_of_slack("U3", &two), Some(user("lee")));
    }
}
