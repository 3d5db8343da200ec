//! The policy against a slow model written from its description, and the promise that what is unclear
//! never makes a decision easier.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// A condition over the fields `f0` to `f2` of the context.
#[derive(Clone, Debug)]
pub(super) enum When {
    Always,
    Never,
    Broken,
    /// `context.f == 1`
    Is(usize),
    /// `has(context.f) && context.f == 1`
    Has(usize),
    Both(usize, usize),
    Either(usize, usize),
    Not(usize),
}

/// A field of the context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field {
    Absent,
    One,
    Two,
    Text,
}

impl When {
    fn text(&self) -> String {
        match self {
            Self::Always => "true".to_owned(),
            Self::Never => "false".to_owned(),
            Self::Broken => "context.broken > 1".to_owned(),
            Self::Is(f) => format!("context.f{f} == 1"),
            Self::Has(f) => format!("has(context.f{f}) && context.f{f} == 1"),
            Self::Both(f, g) => format!("context.f{f} == 1 && context.f{g} == 1"),
            Self::Either(f, g) => format!("context.f{f} == 1 || context.f{g} == 1"),
            Self::Not(f) => format!("!(context.f{f} == 1)"),
        }
    }

    /// True, false, or neither.
    fn judge(&self, context: &[Field]) -> Option<bool> {
        let is = |f: &usize| match context[*f] {
            Field::One => Some(true),
            Field::Two => Some(false),
            Field::Absent | Field::Text => None,
        };
        match self {
            Self::Always => Some(true),
            Self::Never => Some(false),
            Self::Broken => None,
            Self::Has(f) if context[*f] == Field::Absent => Some(false),
            Self::Is(f) | Self::Has(f) => is(f),
            Self::Both(f, g) => match (is(f), is(g)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Self::Either(f, g) => match (is(f), is(g)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Self::Not(f) => is(f).map(|is| !is),
        }
    }

    /// Whether `has` or a short circuit can hide that a field is missing.
    fn tests_presence(&self) -> bool {
        matches!(self, Self::Has(_) | Self::Both(..) | Self::Either(..))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Spec {
    when: When,
    risk: Risk,
    auto: Option<Verdict>,
    approvers: BTreeSet<&'static str>,
    escalate: Option<(u32, &'static str)>,
    quorum: u32,
    self_approval: bool,
    decisions: BTreeSet<Way>,
    remember: Remember,
    expires_in: Option<u32>,
    show: BTreeSet<&'static str>,
}

impl Spec {
    /// The same rule, which lets approvals be remembered.
    pub(super) fn that_remembers(self) -> Self {
        let decisions = Way::ALL.into_iter().collect();
        Self { auto: None, quorum: 1, remember: Remember::Any, decisions, ..self }
    }
}

const APPROVERS: [&str; 8] = [
    "tenant",
    "requester",
    "user:kim",
    "user:tenant2/lee",
    "group:file",
    "group:token",
    "role:admin",
    "role:boss",
];

fn list(texts: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    format!("{:?}", texts.into_iter().map(|text| text.as_ref().to_owned()).collect::<Vec<_>>())
}

pub(super) fn file(rules: &[Spec]) -> String {
    let mut text = "[groups]\nfile = [\"lee\", \"tenant2/kim\"]\n".to_owned();
    for (at, rule) in rules.iter().enumerate() {
        let _ = write!(text, "\n[[rule]]\nname = \"rule {at}\"\nwhen = '{}'\n", rule.when.text());
        let _ = writeln!(text, "risk = \"{}\"\nshow = {}", rule.risk.as_str(), list(&rule.show));
        if let Some(verdict) = rule.auto {
            let _ = writeln!(text, "auto = \"{}\"", verdict.as_str());
            continue;
        }
        let ways = list(rule.decisions.iter().map(|way| way.as_str()));
        let _ = writeln!(text, "approvers = {}\nquorum = {}", list(&rule.approvers), rule.quorum);
        let _ = writeln!(text, "self_approval = {}\ndecisions = {ways}", rule.self_approval);
        let _ = writeln!(text, "remember = \"{}\"", rule.remember.as_str());
        if let Some(minutes) = rule.expires_in {
            let _ = writeln!(text, "expires_in = \"{minutes}m\"\nremind_after = \"{minutes}s\"");
        }
        if let Some((minutes, approver)) = rule.escalate {
            let _ = writeln!(
                text,
                "escalate = [{{ after = \"{minutes}m\", approvers = [\"{approver}\"] }}]"
            );
        }
    }
    text
}

pub(super) fn a_rule() -> impl Strategy<Value = Spec> {
    let field = || 0..3_usize;
    let when = prop_oneof![
        1 => Just(When::Always),
        2 => Just(When::Never),
        1 => Just(When::Broken),
        4 => field().prop_map(When::Is),
        2 => field().prop_map(When::Has),
        1 => (field(), field()).prop_map(|(f, g)| When::Both(f, g)),
        1 => (field(), field()).prop_map(|(f, g)| When::Either(f, g)),
        1 => field().prop_map(When::Not),
    ];
    let approver = || prop::sample::select(APPROVERS.to_vec());
    let people = (
        prop::collection::btree_set(approver(), 1..3),
        prop::option::of((1..5_u32, approver())),
        1..4_u32,
        prop::bool::weighted(0.6),
        prop::collection::btree_set(prop::sample::select(Way::ALL.to_vec()), 1..5),
        prop::sample::select(Remember::ALL.to_vec()),
        prop::option::of(1..60_u32),
    );
    let auto = prop_oneof![4 => Just(None), 1 => Just(Some(Verdict::Approve)), 1 => Just(Some(Verdict::Reject))];
    let show =
        prop::collection::btree_set(prop::sample::select(vec!["$message", "$reason", "f0"]), 0..3);
    (when, prop::sample::select(Risk::ALL.to_vec()), auto, people, show).prop_map(
        |(when, risk, auto, people, show)| {
            let (approvers, escalate, quorum, self_approval, decisions, remember, expires_in) =
                people;
            // What reading refuses is tested there.
            let all = approvers.iter().chain(escalate.as_ref().map(|(_, approver)| approver));
            let is_named =
                |approver: &&str| approver.starts_with("user:") || **approver == *"requester";
            let is_limited = all.clone().all(is_named);
            Spec {
                quorum: if is_limited { 1 } else { quorum },
                self_approval: self_approval
                    || all.clone().all(|approver| *approver == "requester"),
                when,
                risk,
                auto,
                approvers,
                escalate,
                decisions,
                remember,
                expires_in,
                show,
            }
        },
    )
}

pub(super) fn a_context() -> impl Strategy<Value = Vec<Field>> {
    let field =
        prop::sample::select(vec![Field::Absent, Field::One, Field::One, Field::Two, Field::Text]);
    prop::collection::vec(field, 3)
}

pub(super) fn json(context: &[Field]) -> String {
    let fields = context.iter().enumerate().filter_map(|(at, field)| match field {
        Field::Absent => None,
        Field::One => Some(format!("\"f{at}\":1.0")),
        Field::Two => Some(format!("\"f{at}\":2")),
        Field::Text => Some(format!("\"f{at}\":\"1\"")),
    });
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Everybody who differs for some rule.
pub(super) fn everybody() -> Vec<Somebody> {
    vec![
        Somebody::new("user"),
        Somebody::new("user")
            .with_role("admin")
            .with_role("boss")
            .with_group("token")
            .with_group("file"),
        Somebody::new("kim"),
        Somebody::of("tenant2", "kim"),
        Somebody::new("lee"),
        Somebody::of("tenant2", "lee"),
        Somebody::new("song"),
        Somebody::new("song").with_role("admin"),
        Somebody::new("song").with_role("boss"),
        Somebody::new("song").with_group("token"),
        Somebody::new("song").with_group("file"),
        Somebody::new("song").with_role("admin").with_role("boss").with_group("token"),
    ]
}

/// The answers to every question that a binding is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answers {
    rules: Vec<String>,
    pub(super) automatic: Option<(Verdict, String)>,
    pub(super) quorum: u32,
    risk: Risk,
    pub(super) remember: Remember,
    pub(super) expires_in_minutes: Option<i64>,
    remind_after_seconds: Option<i64>,
    show: BTreeSet<String>,
    ways: BTreeSet<Way>,
    /// Who may: the person's position, whether the requester is known, the way, the minute.
    pub(super) may: BTreeSet<(usize, bool, Way, i64)>,
}

pub(super) const MINUTES: [i64; 3] = [0, 2, 9];

fn answers(binding: &Binding) -> Answers {
    let user = UserId::parse("user").unwrap();
    let mut may = BTreeSet::new();
    for (at_person, who) in everybody().iter().enumerate() {
        for requester in [None, Some(&user)] {
            for way in Way::ALL {
                for minute in MINUTES {
                    if binding.may(&who.person(), requester, way, at(0), at(60 * minute)).is_ok() {
                        may.insert((at_person, requester.is_some(), way, minute));
                    }
                }
            }
        }
    }
    Answers {
        rules: binding.rules().map(ToOwned::to_owned).collect(),
        automatic: binding
            .automatic()
            .map(|automatic| (automatic.verdict, automatic.rule.to_owned())),
        quorum: binding.quorum(),
        risk: binding.risk(),
        remember: binding.remember(),
        expires_in_minutes: binding.expires_in().map(|time| time.num_minutes()),
        remind_after_seconds: binding.remind_after().map(|time| time.num_seconds()),
        show: binding.show().into_iter().map(ToOwned::to_owned).collect(),
        ways: Way::ALL.into_iter().filter(|way| binding.allows(*way)).collect(),
        may,
    }
}

/// The same, from the description: `contexts` are what was asked and, for an edit, what it becomes.
#[expect(clippy::too_many_lines, reason = "a slow and plain reading of the description")]
pub(super) fn model(rules: &[Spec], contexts: &[&[Field]]) -> Answers {
    // Position of each rule that binds, and whether it matched.
    let mut binds: BTreeMap<usize, bool> = BTreeMap::new();
    let mut is_without_match = false;
    for context in contexts {
        let first_true = rules.iter().position(|rule| rule.when.judge(context) == Some(true));
        for (at, rule) in rules.iter().enumerate().take(first_true.unwrap_or(rules.len())) {
            if rule.when.judge(context).is_none() && rule.auto != Some(Verdict::Approve) {
                binds.entry(at).or_insert(false);
            }
        }
        match first_true {
            Some(at) => {
                binds.insert(at, true);
            }
            None => is_without_match = true,
        }
    }
    let bound = binds.keys().map(|at| &rules[*at]).collect::<Vec<_>>();
    let people = bound.iter().filter(|rule| rule.auto.is_none()).collect::<Vec<_>>();
    let needs_admin = is_without_match || people.is_empty();
    let rejecting = binds.keys().find(|at| rules[**at].auto == Some(Verdict::Reject));
    let name = |at: &usize| format!("rule {at}");

    let automatic = if contexts.len() > 1 {
        None
    } else if let Some(at) = rejecting {
        Some((Verdict::Reject, name(at)))
    } else if bound.len() == 1 && !is_without_match && bound[0].auto == Some(Verdict::Approve) {
        binds.keys().next().map(|at| (Verdict::Approve, name(at)))
    } else {
        None
    };

    let mut ways = BTreeSet::new();
    for way in Way::ALL {
        let is_allowed = people.iter().all(|rule| rule.decisions.contains(&way));
        let is_plain = way == Way::Approve || way == Way::Reject;
        if is_allowed && (is_plain || !needs_admin) && (rejecting.is_none() || way == Way::Reject) {
            ways.insert(way);
        }
    }

    let mut may = BTreeSet::new();
    for (at_person, who) in everybody().iter().enumerate() {
        let is_user = |name: &str| who.user.as_str() == name;
        let is_of = |tenant: &str| who.tenant.as_str() == tenant;
        let has_role = |role: &str| who.roles.iter().any(|own| own == role);
        let has_group = |group: &str| who.groups.iter().any(|own| own == group);
        for knows_requester in [false, true] {
            let is_own = knows_requester && is_user("user");
            let is_named = |approver: &str| match approver {
                "tenant" => true,
                "requester" => is_own,
                "user:kim" => is_user("kim"),
                "user:tenant2/lee" => is_user("lee") && is_of("tenant2"),
                "group:file" => {
                    has_group("file") || is_user("lee") || (is_user("kim") && is_of("tenant2"))
                }
                "group:token" => has_group("token"),
                "role:admin" => has_role("admin"),
                "role:boss" => has_role("boss"),
                other => panic!("{other}"),
            };
            for way in Way::ALL {
                for minute in MINUTES {
                    let satisfies = |rule: &Spec| {
                        let is_approver = rule.approvers.iter().any(|approver| is_named(approver))
                            || rule.escalate.is_some_and(|(after, approver)| {
                                i64::from(after) <= minute && is_named(approver)
                            });
                        let is_selfish = is_own || !knows_requester;
                        is_approver && (rule.self_approval || way == Way::Reject || !is_selfish)
                    };
                    let is_allowed = ways.contains(&way)
                        && people.iter().all(|rule| satisfies(rule))
                        && (!needs_admin || has_role("admin"));
                    if is_allowed || (way == Way::Reject && is_own) {
                        may.insert((at_person, knows_requester, way, minute));
                    }
                }
            }
        }
    }

    let shown = ["$message", "$reason", "f0"].into_iter().filter(|entry| {
        (!is_without_match || *entry != "f0") && bound.iter().all(|rule| rule.show.contains(entry))
    });
    Answers {
        rules: binds.keys().map(name).collect(),
        automatic,
        quorum: people.iter().map(|rule| rule.quorum).max().unwrap_or(1),
        risk: {
            let highest = bound.iter().map(|rule| rule.risk).max().unwrap_or(Risk::Medium);
            if is_without_match { highest.max(Risk::Medium) } else { highest }
        },
        remember: if needs_admin || rejecting.is_some() {
            Remember::Never
        } else {
            people.iter().map(|rule| rule.remember).min().unwrap()
        },
        expires_in_minutes: people.iter().filter_map(|rule| rule.expires_in).min().map(i64::from),
        remind_after_seconds: people.iter().filter_map(|rule| rule.expires_in).min().map(i64::from),
        show: shown.map(ToOwned::to_owned).collect(),
        ways,
        may,
    }
}

/// What rules say about a request that has this context, or is edited from the first to the second.
fn ask(rules: &[Spec], contexts: &[&[Field]]) -> Answers {
    let policy =
        Policy::read(&file(rules)).unwrap_or_else(|error| panic!("{error}\n{}", file(rules)));
    let mut bindings = contexts.iter().map(|context| bind(&policy, "a", &json(context)));
    let first = bindings.next().unwrap();
    let binding = bindings.fold(first, Binding::and);
    let rebuilt = policy.from_key(&binding.key()).unwrap();
    assert_eq!((rebuilt.key(), answers(&rebuilt)), (binding.key(), answers(&binding)));
    assert_eq!(rebuilt.rule(), binding.rule());
    answers(&binding)
}

/// Whether nothing got easier. What the policy approves by itself could not be easier, and a rejection of
/// what it rejects by itself changes nothing.
fn is_no_easier(rules: &[Spec], before: &Answers, after: &Answers) -> Result<(), TestCaseError> {
    if matches!(before.automatic, Some((Verdict::Approve, _))) {
        return Ok(());
    }
    let rejects = matches!(before.automatic, Some((Verdict::Reject, _)));
    let more = after.may.difference(&before.may);
    let more = more.filter(|(_, _, way, _)| !(rejects && *way == Way::Reject)).collect::<Vec<_>>();
    prop_assert!(more.is_empty(), "{more:?}\n{before:?}\n{after:?}");
    prop_assert!(after.quorum >= before.quorum && after.remember <= before.remember);
    prop_assert!(after.ways.is_subset(&before.ways));
    prop_assert!(!matches!(after.automatic, Some((Verdict::Approve, _))));
    prop_assert!(!rejects || matches!(after.automatic, Some((Verdict::Reject, _))));
    let longest = |answers: &Answers| answers.expires_in_minutes.unwrap_or(i64::MAX);
    prop_assert!(longest(after) <= longest(before));
    // A rule that approves is passed over when it fails, with its risk and what it shows.
    if rules.iter().all(|rule| rule.auto != Some(Verdict::Approve)) {
        prop_assert!(after.risk >= before.risk && after.show.is_subset(&before.show));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_binding_answers_as_the_model(
        rules in prop::collection::vec(a_rule(), 1..5), asked in a_context(), becomes in a_context(),
    ) {
        prop_assert_eq!(ask(&rules, &[&asked]), model(&rules, &[&asked]));
        let edit = [asked.as_slice(), &becomes];
        prop_assert_eq!(ask(&rules, &edit), model(&rules, &edit));
    }

    #[test]
    fn an_expression_that_fails_makes_nothing_easier(
        rules in prop::collection::vec(a_rule(), 1..5), context in a_context(), which in 0..5_usize,
    ) {
        let before = ask(&rules, &[&context]);
        let mut broken = rules.clone();
        if let Some(rule) = broken.get_mut(which).filter(|rule| rule.auto.is_none()) {
            rule.when = When::Broken;
        }
        is_no_easier(&rules, &before, &ask(&broken, &[&context]))?;
    }

    #[test]
    fn a_failing_rule_in_front_makes_nothing_easier(
        rules in prop::collection::vec(a_rule(), 1..4), front in a_rule(), context in a_context(),
    ) {
        let before = ask(&rules, &[&context]);
        let front = Spec { when: When::Broken, ..front };
        let after = [std::slice::from_ref(&front), &rules].concat();
        let mut after = ask(&after, &[&context]);
        // The names count from the front.
        after.rules.retain(|rule| rule != "rule 0");
        is_no_easier(&rules, &before, &after)?;
    }

    #[test]
    fn a_field_left_out_makes_nothing_easier(
        rules in prop::collection::vec(a_rule(), 1..5), context in a_context(), which in 0..3_usize,
    ) {
        let mut rules = rules;
        for rule in &mut rules {
            if rule.when.tests_presence() {
                rule.when = When::Is(which);
            }
        }
        let before = ask(&rules, &[&context]);
        let mut shorter = context.clone();
        shorter[which] = Field::Absent;
        is_no_easier(&rules, &before, &ask(&rules, &[&shorter]))?;
    }

    #[test]
    fn an_edit_asks_at_least_what_each_side_asks(
        rules in prop::collection::vec(a_rule(), 1..5), asked in a_context(), becomes in a_context(),
    ) {
        let (one, other) = (ask(&rules, &[&asked]), ask(&rules, &[&becomes]));
        let edit = ask(&rules, &[&asked, &becomes]);
        prop_assert_eq!(edit.automatic, None);
        for side in [one, other] {
            if side.automatic.is_none() {
                prop_assert!(edit.may.is_subset(&side.may));
                prop_assert!(edit.quorum >= side.quorum && edit.ways.is_subset(&side.ways));
            }
        }
    }
}
