//! `aura-hitl policy check` and `policy explain`: try a policy file before it is put in force. Neither
//! changes anything.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use chrono::TimeDelta;

use super::{load, with_wait_notice};
use crate::api::text::Language;
use crate::domain::ids::{RequestId, TenantId, UserId};
use crate::domain::json::{self, RawObject};
use crate::domain::printable::printable;
use crate::domain::request::{ApprovalRequest, Origin, shown_context};
use crate::policy::rule::Decides;
use crate::policy::{
    ADMIN, Approver, Binding, MAX_FILE_BYTES, Policy, Rule, Sentence, Subject, Verdict, Way,
};
use crate::server::stores;

/// Ids of a request that was written by hand without them.
const NO_ID: &str = "request";

/// Says whether a file can be put in force.
pub fn check(file: &Path) -> anyhow::Result<()> {
    let language = Language::of_terminal();
    let policy = read(file, language)?;
    let (count, version) = (policy.rules().len(), policy.version());
    let rules = if count == 1 { "rule" } else { "rules" };
    let summary = Sentence::new(
        format!("{count} {rules}, version {version}"),
        format!("규칙 {count}개, 버전 {version}"),
    );
    println!("{}: {}", file.display(), in_language(summary, language));
    for note in notes(&policy) {
        println!("{}", in_language(note, language));
    }
    Ok(())
}

/// Says which rules bind a request, why, and who may decide it.
pub async fn explain(
    config: Option<&Path>,
    file: &Path,
    request: &str,
    tenant: Option<&str>,
) -> anyhow::Result<()> {
    let language = Language::of_terminal();
    let policy = read(file, language)?;
    let asked = if request.trim_start().starts_with('{') {
        Asked::read(request)?
    } else {
        Asked::find(config, request, tenant).await?
    };
    let binding = policy.bind(&asked.subject());
    println!("{}", explanation(&policy, &binding, asked.tenant.as_ref(), language));
    Ok(())
}

/// Reads a policy file.
pub(super) fn read(file: &Path, language: Language) -> anyhow::Result<Policy> {
    let name = file.display();
    let size = fs::metadata(file).with_context(|| format!("cannot read {name}"))?.len();
    // A file that is too large is not read at all.
    let text = if size > MAX_FILE_BYTES as u64 {
        " ".repeat(MAX_FILE_BYTES + 1)
    } else {
        fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?
    };
    Policy::read(&text)
        .map_err(|mistake| anyhow!("{name}: {}", in_language(mistake.line(), language)))
}

/// The sentence in the language of the terminal.
pub(super) fn in_language(sentence: Sentence, language: Language) -> String {
    match language {
        Language::English => sentence.en,
        Language::Korean => sentence.ko,
    }
}

/// What is no mistake, but may not be what its author meant.
fn notes(policy: &Policy) -> Vec<Sentence> {
    let mut notes = Vec::new();
    let mut unknown = BTreeSet::new();
    for rule in policy.rules() {
        if let Decides::People(people) = &rule.decides {
            let escalated = people.escalate.iter().flat_map(|step| &step.approvers);
            for approver in people.approvers.iter().chain(escalated) {
                if let Approver::Group { name, members } = approver
                    && members.is_empty()
                {
                    unknown.insert(name);
                }
            }
        }
    }
    for name in unknown {
        notes.push(Sentence::new(
            format!("note: group {name} has no members in the file; only tokens can name it"),
            format!(
                "참고: 그룹 {name}의 구성원이 파일에 없습니다. 토큰만 이 그룹을 가리킬 수 있습니다"
            ),
        ));
    }
    let catches_all = |rule: &&std::sync::Arc<Rule>| rule.when.trim() == "true";
    if let Some(all) = policy.rules().iter().find(catches_all) {
        for rule in policy.rules().iter().skip_while(|rule| rule.name != all.name).skip(1) {
            notes.push(Sentence::new(
                format!(
                    "note: rule {:?} never matches, since rule {:?} matches before",
                    rule.name, all.name
                ),
                format!(
                    "참고: 규칙 {:?}은(는) 앞의 규칙 {:?} 때문에 맞을 수 없습니다",
                    rule.name, all.name
                ),
            ));
        }
    }
    notes
}

/// A request to be judged by a policy.
pub(super) struct Asked {
    request: ApprovalRequest,
    context: Box<serde_json::value::RawValue>,
    user: Option<UserId>,
    tenant: Option<TenantId>,
    origin: Origin,
}

impl Asked {
    /// Reads a request as agents write it. It needs no ids.
    fn read(text: &str) -> anyhow::Result<Self> {
        let what = "--request is not the JSON of a request";
        let mut object: RawObject = serde_json::from_str(text).context(what)?;
        let origin = match object
            .shift_remove("origin")
            .and_then(|origin| json::text_or_digits(&origin))
        {
            Some(origin) if origin == "redis" => Origin::Redis,
            None => Origin::Http,
            Some(origin) if origin == "http" => Origin::Http,
            Some(origin) => bail!("{what}: origin is {origin:?}; it must be \"redis\" or \"http\""),
        };
        for name in ["requestId", "sessionId"] {
            object.entry(name.to_owned()).or_insert_with(|| json::raw(NO_ID));
        }
        let id = json::present(&object, "requestId").and_then(json::text_or_digits);
        let id = RequestId::parse(id.unwrap_or_default()).context(what)?;
        let document = json::raw(&object).get().to_owned();
        let request = ApprovalRequest::read(&id, document)
            .map_err(|problem| anyhow!("{what}: it {problem}"))?;
        let (user, tenant) = (request.user.clone(), request.tenant.clone());
        let context = shown_context(&request.document);
        Ok(Self { request, context, user, tenant, origin })
    }

    /// Finds a request in the ledger.
    async fn find(config: Option<&Path>, id: &str, tenant: Option<&str>) -> anyhow::Result<Self> {
        let id = RequestId::parse(id).context("--request is neither JSON nor an id")?;
        let tenant = tenant.map(TenantId::parse).transpose().context("--tenant")?;
        let config = load(config)?;
        let ledger = with_wait_notice(stores::open_existing_ledger(&config)).await?;
        let found = match &tenant {
            Some(tenant) => ledger.find_request(tenant, &id).await?,
            None => ledger.find_request_of_redis(&id).await?,
        };
        let Some(record) = found else {
            match tenant {
                Some(tenant) => bail!("the ledger has no request {id} of tenant {tenant}"),
                None => bail!(
                    "the ledger has no request {id} of Redis; of a registered one, name the tenant \
                     with --tenant"
                ),
            }
        };
        let request = ApprovalRequest::read(&id, record.document)
            .map_err(|problem| anyhow!("the request {id} in the ledger {problem}"))?;
        let context = shown_context(&request.document);
        Ok(Self {
            request,
            context,
            user: record.user,
            tenant: Some(record.tenant),
            origin: record.origin,
        })
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            action_type: &self.request.action_type,
            message: self.request.message.as_deref(),
            context: self.context.get(),
            user: self.user.as_ref(),
            tenant: self.tenant.as_ref(),
            session: &self.request.session,
            task: self.request.task.as_ref(),
            origin: self.origin,
        }
    }
}

/// What binds, why, and who may decide, a fact a line.
fn explanation(
    policy: &Policy,
    binding: &Binding,
    tenant: Option<&TenantId>,
    language: Language,
) -> String {
    let say = |en: &str, ko: &str| in_language(Sentence::new(en, ko), language);
    let mut text = format!("{}: {}", say("policy", "정책"), policy.version());
    // Writing to a string does not fail.
    let mut line = |name: String, value: &str| {
        let _ = write!(text, "\n{name}: {value}");
    };
    line(say("rule", "규칙"), binding.rule().unwrap_or("-"));
    line(say("why", "이유"), &in_language(binding.why(), language));
    line(say("risk", "위험도"), binding.risk().as_str());
    if let Some(automatic) = binding.automatic() {
        let verdict = match automatic.verdict {
            Verdict::Approve => say("approved at once, by rule", "바로 승인됨, 규칙"),
            Verdict::Reject => say("rejected at once, by rule", "바로 거절됨, 규칙"),
        };
        line(say("decision", "결정"), &format!("{verdict} {:?}", automatic.rule));
        return text;
    }
    line(say("approvals needed", "필요한 승인"), &binding.quorum().to_string());
    let ways = Way::ALL.into_iter().filter(|way| binding.allows(*way)).map(Way::as_str);
    line(say("decisions", "결정 방식"), &ways.collect::<Vec<_>>().join(", "));
    line(say("remember", "기억"), binding.remember().as_str());
    let time =
        |time: TimeDelta| humantime::format_duration(time.to_std().unwrap_or_default()).to_string();
    if let Some(after) = binding.expires_in() {
        line(say("expires in", "만료"), &time(after));
    }
    if let Some(after) = binding.remind_after() {
        line(say("reminder after", "알림"), &time(after));
    }
    for bound in binding.bound() {
        let Decides::People(people) = &bound.rule.decides else { continue };
        let mut may = approvers(&people.approvers, tenant);
        for step in &people.escalate {
            let added = approvers(&step.approvers, tenant);
            let _ = write!(may, "; {} {}: {added}", say("after", "경과"), time(step.after));
        }
        if !people.self_approval {
            let _ = write!(may, "; {}", say("not the requester", "요청자 제외"));
        }
        line(format!("{} {:?}", say("who may, rule", "결정할 사람, 규칙"), bound.rule.name), &may);
    }
    if binding.needs_admin() {
        line(say("who may", "결정할 사람"), &format!("role:{ADMIN}"));
    }
    text
}

/// The entries as in the file, groups with their members in the request's tenant.
fn approvers(approvers: &[Approver], tenant: Option<&TenantId>) -> String {
    let shown = approvers.iter().map(|approver| match (approver, tenant) {
        (Approver::Group { members, .. }, Some(tenant)) if !members.is_empty() => {
            let members = members.in_tenant(tenant);
            let members = members.into_iter().map(UserId::as_str).collect::<Vec<_>>().join(", ");
            printable(&format!("{approver} ({members})"))
        }
        _ => printable(&approver.to_string()),
    });
    shown.collect::<Vec<_>>().join(", ")
}
