//! How many requests a second one core judges by a policy file of ten rules: reading the context, trying
//! the rules, and asking whether the policy decides or a person may. The last rule matches most requests,
//! so nearly every expression is evaluated.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::ids::{SessionId, TenantId, UserId};
use aura_hitl::domain::request::Origin;
use aura_hitl::policy::{Person, Policy, Subject, Way};
use clap::Args;

/// What issue and contract ask for.
const TARGET_PER_SECOND: f64 = 10_000.0;

const RULES: &str = r#"
[groups]
finance = ["kim", "lee"]

[[rule]]
name = "no exports abroad"
when = 'actionType == "export_data" && !context.country.matches("^(KR|JP)$")'
auto = "reject"

[[rule]]
name = "large payments"
when = 'actionType == "send_payment" && context.amount >= 1000.0'
approvers = ["group:finance"]
quorum = 2

[[rule]]
name = "production"
when = 'has(context.environment) && context.environment == "production"'
approvers = ["role:admin"]

[[rule]]
name = "outside"
when = 'has(context.recipients) && context.recipients.exists(r, !r.endsWith("@example.com"))'
approvers = ["tenant"]

[[rule]]
name = "many"
when = 'has(context.recipients) && size(context.recipients) > 50'
approvers = ["tenant"]

[[rule]]
name = "words"
when = 'message != null && message.contains("confidential")'
approvers = ["role:admin"]

[[rule]]
name = "totals"
when = 'has(context.items) && context.items.exists(i, i.price * i.count > 500)'
approvers = ["group:finance"]

[[rule]]
name = "tenant2"
when = 'tenantId == "tenant2" && !(userId in ["a", "b", "c"])'
approvers = ["tenant"]

[[rule]]
name = "reads"
when = 'actionType.startsWith("read_")'
auto = "approve"

[[rule]]
name = "rest"
when = 'true'
approvers = ["tenant"]
"#;

/// How long.
#[derive(Args)]
pub struct Options {
    /// Seconds to measure.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

pub fn run(options: &Options) -> ExitCode {
    let policy = Policy::read(RULES).unwrap();
    assert_eq!(policy.rules().len(), 10);
    let requests = (0..100).map(|number| {
        let action = ["send_payment", "send_email", "read_mail", "deploy", "export_data"][number % 5];
        let items = format!(r#"[{{"price":{number}.5,"count":2}},{{"price":3,"count":{number}}}]"#);
        let context = format!(
            r#"{{"amount":{number}.25,"country":"KR","recipients":["a@example.com","b{number}@example.com"],"items":{items},"note":"{}"}}"#,
            "x".repeat(200)
        );
        (action, context)
    });
    let requests = requests.collect::<Vec<_>>();
    let (user, tenant) = (UserId::parse("user").unwrap(), TenantId::parse("tenant1").unwrap());
    let kim = UserId::parse("kim").unwrap();
    let session = SessionId::parse("session_user_1").unwrap();
    let person = Person { user: &kim, tenant: &tenant, roles: &[], groups: &[] };
    let now = Clock::System.now();
    let (mut judged, mut automatic, mut allowed) = (0_u64, 0_u64, 0_u64);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(options.seconds) {
        for (action, context) in &requests {
            let binding = policy.bind(black_box(&Subject {
                action_type: action,
                message: Some("please"),
                context,
                user: Some(&user),
                tenant: Some(&tenant),
                session: &session,
                task: None,
                origin: Origin::Http,
            }));
            automatic += u64::from(binding.automatic().is_some());
            allowed += u64::from(binding.may(&person, Some(&user), Way::Approve, now, now).is_ok());
            judged += 1;
        }
    }
    let per_second = judged as f64 / began.elapsed().as_secs_f64();
    assert!(automatic > 0 && allowed > 0, "{automatic} {allowed}");
    println!(
        "| judged by ten rules, one core | {per_second:.0}/s | target {TARGET_PER_SECOND:.0}/s |"
    );
    if per_second < TARGET_PER_SECOND { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
