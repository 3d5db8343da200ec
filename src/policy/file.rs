//! Reads a policy file: TOML into rules, all or nothing.
//!
//! Everything that the file says must be understood. An unknown field, a word that is misspelt or a rule
//! that names nobody is a mistake, because a rule that is read otherwise than its author meant it lets
//! the wrong people decide.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use chrono::TimeDelta;
use toml::{Table, Value};

use super::expression::Expression;
use super::rule::{Approver, Decides, Escalation, Member, Members, People, Rule, Verdict};
use super::words::{Remember, Risk, Sentence, Way};
use crate::domain::printable::printable;

/// Largest policy file, in bytes.
pub const MAX_FILE_BYTES: usize = 512 * 1024;
/// Most rules.
pub const MAX_RULES: usize = 200;
/// Longest name of a rule or a group, in characters.
const MAX_NAME_CHARS: usize = 100;
/// Most entries of `approvers`, `show` and `escalate`.
const MAX_ENTRIES: usize = 200;
/// Most people that a rule may ask for.
const MAX_QUORUM: i64 = 100;
/// Longest time in a rule.
const MAX_TIME: TimeDelta = TimeDelta::days(30);
/// `show` of a rule that does not say otherwise.
pub const DEFAULT_SHOW: [&str; 2] = ["$message", "$reason"];

const FIELDS: [&str; 13] = [
    "name",
    "when",
    "risk",
    "auto",
    "approvers",
    "quorum",
    "self_approval",
    "decisions",
    "remember",
    "expires_in",
    "remind_after",
    "escalate",
    "show",
];
/// The fields that say how people decide; none of them stands beside `auto`.
const FIELDS_OF_PEOPLE: [&str; 8] = [
    "approvers",
    "quorum",
    "self_approval",
    "decisions",
    "remember",
    "expires_in",
    "remind_after",
    "escalate",
];

/// What is wrong with a policy file: one line that names the rule, the field and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyMistake {
    /// The rule's name, or `#2` for the second rule when it has no usable name. `None` when the mistake
    /// is outside of the rules.
    pub rule: Option<String>,
    /// The field, or the group.
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: Sentence,
}

impl PolicyMistake {
    /// The whole line in both languages.
    #[must_use]
    pub fn line(&self) -> Sentence {
        let mut line = self.reason.clone();
        if let Some(field) = &self.field {
            line = Sentence::new(format!("{field}: {}", line.en), format!("{field}: {}", line.ko));
        }
        if let Some(rule) = &self.rule {
            let rule = if rule.starts_with('#') { rule.clone() } else { format!("{rule:?}") };
            let (en, ko) = (&line.en, &line.ko);
            line = Sentence::new(format!("rule {rule}: {en}"), format!("규칙 {rule}: {ko}"));
        }
        Sentence::new(printable(&line.en), printable(&line.ko))
    }
}

impl fmt::Display for PolicyMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line().en)
    }
}

impl std::error::Error for PolicyMistake {}

type Groups = BTreeMap<String, Arc<Members>>;

/// Reads the rules of a policy file.
pub fn read(text: &str) -> Result<Vec<Arc<Rule>>, PolicyMistake> {
    let outside = |field: Option<&str>, reason| PolicyMistake {
        rule: None,
        field: field.map(ToOwned::to_owned),
        reason,
    };
    if text.len() > MAX_FILE_BYTES {
        return Err(outside(None, at_most("the file", MAX_FILE_BYTES, "bytes")));
    }
    let table: Table = text.parse().map_err(|error| outside(None, not_toml(text, &error)))?;
    if let Some(field) = table.keys().find(|field| !["groups", "rule"].contains(&field.as_str())) {
        return Err(outside(Some(field), unknown_field(field, &["groups", "rule"])));
    }
    let groups = table.get("groups").map(groups).transpose();
    let groups = groups.map_err(|(field, reason)| outside(Some(&field), reason))?;
    let groups = groups.unwrap_or_default();
    let rules = match table.get("rule") {
        Some(Value::Array(rules)) if !rules.is_empty() => rules,
        Some(Value::Array(_)) | None => {
            return Err(outside(
                Some("rule"),
                Sentence::new("the file has no rule", "파일에 규칙이 없습니다"),
            ));
        }
        Some(_) => return Err(outside(Some("rule"), expected("a list of tables: [[rule]]"))),
    };
    if rules.len() > MAX_RULES {
        return Err(outside(Some("rule"), at_most("the file", MAX_RULES, "rules")));
    }
    let mut names = BTreeSet::new();
    let mut all = Vec::with_capacity(rules.len());
    for (position, value) in rules.iter().enumerate() {
        let name = value.get("name").and_then(Value::as_str);
        let name = name.filter(|name| is_name(name));
        let of_rule = |(field, reason): Mistake| PolicyMistake {
            rule: Some(name.map_or_else(|| format!("#{}", position + 1), ToOwned::to_owned)),
            field: Some(field),
            reason,
        };
        let rule = rule(value, position, &groups).map_err(of_rule)?;
        if !names.insert(rule.name.clone()) {
            let reason = Sentence::new("another rule has this name", "같은 이름의 규칙이 있습니다");
            return Err(of_rule(("name".to_owned(), reason)));
        }
        all.push(Arc::new(rule));
    }
    Ok(all)
}

/// A field and what is wrong with it.
type Mistake = (String, Sentence);

fn groups(value: &Value) -> Result<Groups, Mistake> {
    let Value::Table(table) = value else {
        return Err(("groups".to_owned(), expected("a table: [groups]")));
    };
    let mut groups = Groups::new();
    for (name, value) in table {
        let field = format!("groups.{name}");
        if !is_name(name) {
            return Err((field, no_name()));
        }
        let mut members = Vec::new();
        for entry in texts(value).map_err(|reason| (field.clone(), reason))? {
            let member = Member::parse(entry).ok_or_else(|| {
                let reason = Sentence::new(
                    format!("{entry:?} is not a user; write \"kim\" or \"tenant2/kim\""),
                    format!(
                        "{entry:?}은(는) 사용자가 아닙니다. \"kim\"이나 \"tenant2/kim\"처럼 쓰세요"
                    ),
                );
                (field.clone(), reason)
            })?;
            members.push(member);
        }
        groups.insert(name.clone(), Arc::new(Members::new(members)));
    }
    Ok(groups)
}

fn rule(value: &Value, position: usize, groups: &Groups) -> Result<Rule, Mistake> {
    let Value::Table(table) = value else {
        return Err(("rule".to_owned(), expected("a table: [[rule]]")));
    };
    let fields = Fields { table, groups };
    if let Some(field) = table.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err((field.clone(), unknown_field(field, &FIELDS)));
    }
    let name = fields.required("name", text)?;
    if !is_name(name) {
        return Err(("name".to_owned(), no_name()));
    }
    let when = fields.required("when", text)?;
    let condition = Expression::read(when).map_err(|reason| ("when".to_owned(), reason))?;
    let decides = match fields.optional("auto", |value| {
        word(value, &[("approve", Verdict::Approve), ("reject", Verdict::Reject)])
    })? {
        Some(verdict) => {
            if let Some(field) = FIELDS_OF_PEOPLE.into_iter().find(|name| table.contains_key(*name))
            {
                let reason = Sentence::new(
                    "a rule with auto leaves nothing to people; remove one of the two",
                    "auto가 있는 규칙은 사람에게 묻지 않습니다. 둘 중 하나를 지우세요",
                );
                return Err((field.to_owned(), reason));
            }
            Decides::Machine(verdict)
        }
        None => Decides::People(fields.people()?),
    };
    Ok(Rule {
        name: name.to_owned(),
        position,
        condition,
        when: when.to_owned(),
        risk: fields
            .optional("risk", |value| word(value, &Risk::ALL.map(|risk| (risk.as_str(), risk))))?
            .unwrap_or_default(),
        show: fields
            .optional("show", show)?
            .unwrap_or_else(|| DEFAULT_SHOW.map(ToOwned::to_owned).to_vec()),
        decides,
    })
}

/// The fields of one rule.
struct Fields<'a> {
    table: &'a Table,
    groups: &'a Groups,
}

impl<'a> Fields<'a> {
    fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Result<T, Sentence>,
    ) -> Result<Option<T>, Mistake> {
        let value = self.table.get(name).map(read).transpose();
        value.map_err(|reason| (name.to_owned(), reason))
    }

    fn required<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a Value) -> Result<T, Sentence>,
    ) -> Result<T, Mistake> {
        self.optional(name, read)?.ok_or_else(|| {
            let reason = match name {
                "when" => Sentence::new(
                    "is missing; write when = \"true\" for every request",
                    "없습니다. 모든 요청이라면 when = \"true\"라고 쓰세요",
                ),
                "approvers" => Sentence::new(
                    "is missing; a rule names who may decide, or decides itself with auto",
                    "없습니다. 규칙은 결정할 사람을 정하거나 auto로 직접 결정해야 합니다",
                ),
                _ => Sentence::new("is missing", "없습니다"),
            };
            (name.to_owned(), reason)
        })
    }

    fn people(&self) -> Result<People, Mistake> {
        let people = People {
            approvers: self.required("approvers", |value| self.approvers(value))?,
            quorum: self.optional("quorum", quorum)?.unwrap_or(1),
            self_approval: self.optional("self_approval", boolean)?.unwrap_or(true),
            decisions: self
                .optional("decisions", decisions)?
                .unwrap_or_else(|| vec![Way::Approve, Way::Reject]),
            remember: self
                .optional("remember", |value| {
                    word(value, &Remember::ALL.map(|remember| (remember.as_str(), remember)))
                })?
                .unwrap_or_default(),
            expires_in: self.optional("expires_in", time)?,
            remind_after: self.optional("remind_after", time)?,
            escalate: self.optional("escalate", |value| self.escalate(value))?.unwrap_or_default(),
        };
        let nobody =
            |field: &str, en: &str, ko: &str| Err((field.to_owned(), Sentence::new(en, ko)));
        let escalated = people.escalate.iter().flat_map(|step| &step.approvers);
        let all = people.approvers.iter().chain(escalated).collect::<Vec<_>>();
        if !people.self_approval && all.iter().all(|one| matches!(one, Approver::Requester)) {
            return nobody(
                "self_approval",
                "nobody may approve, since approvers names only the requester",
                "approvers에 요청자만 있으므로 아무도 승인할 수 없습니다",
            );
        }
        if most_people(&all).is_some_and(|most| most < people.quorum as usize) {
            return nobody(
                "quorum",
                "is more than the people whom approvers names",
                "approvers에 있는 사람 수보다 많습니다",
            );
        }
        Ok(people)
    }

    fn approvers(&self, value: &Value) -> Result<Vec<Approver>, Sentence> {
        let entries = texts(value)?;
        if entries.is_empty() {
            return Err(Sentence::new("names nobody", "아무도 없습니다"));
        }
        entries.into_iter().map(|entry| self.approver(entry)).collect()
    }

    fn approver(&self, entry: &str) -> Result<Approver, Sentence> {
        let named = |name: &str| is_name(name).then(|| name.to_owned());
        let approver = match entry.split_once(':') {
            None if entry == "tenant" => Some(Approver::Tenant),
            None if entry == "requester" => Some(Approver::Requester),
            Some(("user", user)) => Member::parse(user).map(Approver::User),
            Some(("role", role)) => named(role).map(Approver::Role),
            Some(("group", group)) => named(group).map(|name| {
                let members = self.groups.get(&name).map(Arc::clone).unwrap_or_default();
                Approver::Group { name, members }
            }),
            _ => None,
        };
        approver.ok_or_else(|| {
            let forms =
                "\"user:kim\", \"group:finance\", \"role:admin\", \"tenant\", \"requester\"";
            Sentence::new(
                format!("{entry:?} names nobody; write one of {forms}"),
                format!("{entry:?}은(는) 아무도 가리키지 않습니다. 쓸 수 있는 것: {forms}"),
            )
        })
    }

    fn escalate(&self, value: &Value) -> Result<Vec<Escalation>, Sentence> {
        let form = || expected("a list like [{ after = \"10m\", approvers = [\"group:heads\"] }]");
        let Value::Array(steps) = value else { return Err(form()) };
        if steps.len() > MAX_ENTRIES {
            return Err(at_most("it", MAX_ENTRIES, "entries"));
        }
        let mut all = Vec::with_capacity(steps.len());
        for step in steps {
            let Value::Table(step) = step else { return Err(form()) };
            let (Some(after), Some(approvers), 2) =
                (step.get("after"), step.get("approvers"), step.len())
            else {
                return Err(form());
            };
            all.push(Escalation { after: time(after)?, approvers: self.approvers(approvers)? });
        }
        Ok(all)
    }
}

/// How many people the entries can name at most; `None` when only tokens or the tenant know.
fn most_people(approvers: &[&Approver]) -> Option<usize> {
    let mut users = BTreeSet::new();
    let mut requester = 0;
    for approver in approvers {
        match approver {
            Approver::User(member) => {
                users.insert(&member.user);
            }
            Approver::Requester => requester = 1,
            Approver::Tenant | Approver::Group { .. } | Approver::Role(_) => return None,
        }
    }
    Some(users.len() + requester)
}

/// A name that people read: no white space at its ends, nothing invisible, not too long.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('#')
        && name.trim() == name
        && printable(name) == name
        && name.chars().count() <= MAX_NAME_CHARS
}

fn text(value: &Value) -> Result<&str, Sentence> {
    value.as_str().ok_or_else(|| expected("a text in quotes"))
}

fn boolean(value: &Value) -> Result<bool, Sentence> {
    value.as_bool().ok_or_else(|| expected("true or false"))
}

fn texts(value: &Value) -> Result<Vec<&str>, Sentence> {
    let form = || expected("a list of texts");
    let Value::Array(items) = value else { return Err(form()) };
    if items.len() > 100 * MAX_ENTRIES {
        return Err(at_most("it", 100 * MAX_ENTRIES, "entries"));
    }
    let items =
        items.iter().map(|item| item.as_str().ok_or_else(form)).collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    if let Some(twice) = items.iter().find(|item| !seen.insert(**item)) {
        return Err(Sentence::new(
            format!("{twice:?} is there twice"),
            format!("{twice:?}이(가) 두 번 있습니다"),
        ));
    }
    Ok(items)
}

fn word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, Sentence> {
    let found = words.iter().find(|(word, _)| value.as_str() == Some(word));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let words = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>();
        expected(&words.join(", "))
    })
}

fn quorum(value: &Value) -> Result<u32, Sentence> {
    let quorum = value.as_integer().filter(|quorum| (1..=MAX_QUORUM).contains(quorum));
    quorum
        .and_then(|quorum| u32::try_from(quorum).ok())
        .ok_or_else(|| expected(&format!("a whole number from 1 to {MAX_QUORUM}")))
}

fn decisions(value: &Value) -> Result<Vec<Way>, Sentence> {
    let mut ways = Vec::new();
    for entry in texts(value)? {
        ways.push(Way::parse(entry).ok_or_else(|| {
            let words = Way::ALL.map(|way| format!("{:?}", way.as_str())).join(", ");
            Sentence::new(
                format!("{entry:?} is no way to decide; there are {words}"),
                format!("{entry:?}은(는) 결정 방식이 아닙니다. 쓸 수 있는 것: {words}"),
            )
        })?);
    }
    if ways.is_empty() {
        return Err(Sentence::new("names no way to decide", "결정 방식이 없습니다"));
    }
    ways.sort_unstable();
    Ok(ways)
}

fn show(value: &Value) -> Result<Vec<String>, Sentence> {
    let entries = texts(value)?;
    if entries.len() > MAX_ENTRIES {
        return Err(at_most("it", MAX_ENTRIES, "entries"));
    }
    let is_wrong = |entry: &&&str| {
        entry.is_empty() || (entry.starts_with('$') && !DEFAULT_SHOW.contains(*entry))
    };
    if let Some(wrong) = entries.iter().find(is_wrong) {
        return Err(Sentence::new(
            format!("{wrong:?} is neither $message, $reason nor a field of context"),
            format!("{wrong:?}은(는) $message도 $reason도 context의 필드도 아닙니다"),
        ));
    }
    Ok(entries.into_iter().map(ToOwned::to_owned).collect())
}

fn time(value: &Value) -> Result<TimeDelta, Sentence> {
    let parsed = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    let time = parsed.and_then(|time| TimeDelta::from_std(time).ok());
    time.filter(|time| (TimeDelta::seconds(1)..=MAX_TIME).contains(time))
        .ok_or_else(|| expected("a time from \"1s\" to \"30d\", like \"10m\""))
}

fn expected(form: &str) -> Sentence {
    Sentence::new(format!("must be {form}"), format!("올바른 형식이 아닙니다: {form}"))
}

fn at_most(what: &str, most: usize, unit: &str) -> Sentence {
    Sentence::new(
        format!("{what} may have at most {most} {unit}"),
        format!("너무 많습니다. 최대 {most} ({unit})"),
    )
}

fn no_name() -> Sentence {
    Sentence::new(
        format!(
            "must be a visible text of at most {MAX_NAME_CHARS} characters, without white space at its \
             ends and without # in front"
        ),
        format!(
            "앞뒤 공백과 맨 앞의 #이 없는 {MAX_NAME_CHARS}자 이하의 보이는 문자열이어야 합니다"
        ),
    )
}

fn unknown_field(field: &str, known: &[&str]) -> Sentence {
    let nearest = known.iter().min_by_key(|known| strsim::osa_distance(known, field));
    match nearest.filter(|known| strsim::osa_distance(known, field) <= 2) {
        Some(meant) => Sentence::new(
            format!("is not a field; did you mean {meant}?"),
            format!("없는 필드입니다. {meant}을(를) 뜻했나요?"),
        ),
        None => Sentence::new(
            format!("is not a field; there are {}", known.join(", ")),
            format!("없는 필드입니다. 쓸 수 있는 것: {}", known.join(", ")),
        ),
    }
}

fn not_toml(text: &str, error: &toml::de::Error) -> Sentence {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let message = error.message().lines().next().unwrap_or_default();
    Sentence::new(
        format!("the file is not TOML: line {line}: {message}"),
        format!("파일이 TOML이 아닙니다: {line}번째 줄: {message}"),
    )
}
