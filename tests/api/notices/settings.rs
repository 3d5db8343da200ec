//! Mistakes in the settings of notices: one sentence each, at the start.

use support::Program;
use tempfile::TempDir;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What the service says of these settings.
fn said(settings: &str) -> String {
    let folder = TempDir::new().unwrap();
    for (name, text) in [
        ("settings.toml", settings),
        ("good", SECRET),
        ("short", "whsec_AAAA"),
        ("empty", "\n"),
        ("lines", "xoxb-1\nxoxb-2"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let output = Program::new(&folder, &["--config", "settings.toml", "requests"]).output();
    assert_eq!(output.status.code(), Some(1), "{settings}: {output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let said = said.strip_prefix("aura-hitl: ").unwrap().strip_suffix('\n').unwrap().to_owned();
    assert!(!said.contains('\n') && !said.contains(SECRET), "{said}");
    said
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn each_mistake_is_one_sentence() {
    let hook =
        "[[notices.webhook]]\nname = 'ops'\nurl = 'https://ops.example/'\nsecret_file = 'good'\n";
    let mail = "public_url = 'https://dwp.example'\n[notices.mail]\nfrom = 'a <a@b.example>'\n";
    let slack = "public_url = 'https://dwp.example'\n[notices.slack]\nbot_token_file = 'good'\n\
                 signing_secret_file = 'good'\n";
    for (settings, sentence) in [
        (
            "public_url = 'dwp.example'",
            "public_url is \"dwp.example\"; it looks like https://dwp.example/api/aura/hitl",
        ),
        (
            "public_url = 'https://a@dwp.example'",
            "public_url is \"https://a@dwp.example\"; it looks like https://dwp.example/api/aura/hitl",
        ),
        ("[people.kim]\nmail = 'kim'", "people.kim.mail is \"kim\"; it looks like kim@example.com"),
        (
            "[people.kim]\nmail = \"kim@a.example\\nBcc: x@y.example\"",
            "people.kim.mail is \"kim@a.example\\nBcc: x@y.example\"; it looks like kim@example.com",
        ),
        (
            "[groups_people.finance]\nslack = 'kim'",
            "groups_people.finance.slack is \"kim\"; it is the id of a user or channel, like U012AB3CD",
        ),
        (
            "[people.Kim]\nlanguage = 'fr'",
            "people.Kim.language is \"fr\"; it must be \"en\" or \"ko\"",
        ),
        (
            "[people.'/kim']\nlanguage = 'ko'",
            "people./kim is not named like kim, or like \"tenant2/kim\" for one tenant's only",
        ),
        (
            &hook.replace("'ops'", "'o p s'"),
            "a webhook in notices.webhook is named \"o p s\"; a name has 1 to 64 letters, digits, -, _ and .",
        ),
        (&hook.repeat(2), "two webhooks in notices.webhook are named ops"),
        (
            &hook.replace("https", "http"),
            "the url of notices.webhook ops is not an address like https://ops.example/hooks/hitl; http:// is for this machine only",
        ),
        (
            &hook.replace("'good'", "'short'"),
            "the secret_file of notices.webhook ops short holds no secret of a webhook: whsec_ and then 24 to 64 bytes in base64",
        ),
        (
            &hook.replace("'good'", "'empty'"),
            "the secret_file of notices.webhook ops empty is empty",
        ),
        (
            &hook.replace("'good'", "'none'"),
            "cannot read the secret that the secret_file of notices.webhook ops names: none: No such file or directory (os error 2)",
        ),
        (
            &format!("{hook}previous_secret_file = 'short'"),
            "the previous_secret_file of notices.webhook ops short holds no secret of a webhook: whsec_ and then 24 to 64 bytes in base64",
        ),
        (
            &format!("{hook}events = ['request.lost']"),
            "the events of notices.webhook ops hold \"request.lost\"; there are request.pending, request.reminder, request.escalated, request.decided, request.expired, request.cancelled, request.commented",
        ),
        (
            &format!("{hook}events = []"),
            "the events of notices.webhook ops are empty; leave them out for all events",
        ),
        (
            &format!("{hook}tenants = []"),
            "the tenants of notices.webhook ops are empty; leave them out for all tenants",
        ),
        (
            &format!("{mail}smtp_url = 'mail.example'"),
            "notices.mail.smtp_url is not an address like smtps://user@mail.example or smtp://user@mail.example:587",
        ),
        (
            &format!("{mail}smtp_url = 'smtps://u:p@mail.example'"),
            "notices.mail.smtp_url holds a password; put it into a file, and name that in notices.mail.password_file",
        ),
        (
            &format!("{mail}smtp_url = 'smtps://u@mail.example'"),
            "notices.mail.smtp_url names a user without notices.mail.password_file, or the other way round; set both or neither",
        ),
        (
            &format!("{mail}smtp_url = 'smtp://mail.example?tls=none'"),
            "notices.mail.smtp_url says tls=none, which is for this machine only; leave it out",
        ),
        (
            &format!("{}smtp_url = 'smtps://mail.example'", mail.replace("a@b", "a b")),
            "notices.mail.from is \"a <a b.example>\"; it looks like Approvals <approvals@example.com>",
        ),
        (
            "[notices.mail]\nfrom = 'a@b.example'\nsmtp_url = 'smtps://mail.example'",
            "notices.mail is set without public_url, with which its links begin; set public_url to an address like https://dwp.example/api/aura/hitl",
        ),
        (
            &slack.replacen("'good'", "'lines'", 1),
            "notices.slack.bot_token_file lines holds no token: one line like xoxb-…",
        ),
        (
            &format!("{slack}team = 'acme'"),
            "notices.slack.team is \"acme\"; it is the id of a workspace, like T0123",
        ),
        (
            &format!("{slack}api_url = 'http://slack.example'"),
            "notices.slack.api_url is \"http://slack.example\"; it looks like https://slack.com/api; http:// is for this machine only",
        ),
        (
            &format!("{slack}channels = {{ tenant1 = '#general' }}"),
            "notices.slack.channels has \"#general\" for tenant1; it is the id of a channel, like C0123",
        ),
    ] {
        assert_eq!(said(settings), sentence, "{settings}");
    }
}

/// Users' ids keep their spelling, also such that look like paths.
#[test]
fn names_of_people_are_kept_as_they_are() {
    use aura_hitl::config::Config;
    use aura_hitl::domain::ids::{TenantId, UserId};

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("settings.toml");
    let text = "data_dir = 'data'\n[people.Kim]\nmail = 'Kim@example.com'\nlanguage = 'ko'\n\
                [people.'tenant2/kim.lee@corp']\nslack = 'U1'\n[groups_people.\"재무\"]\nmail = 'f@example.com'\n";
    std::fs::write(&file, text.replace("'data'", &format!("'{}'", folder.path().display())))
        .unwrap();
    let people = Config::load(Some(&file)).unwrap().notices.people;
    let [one, two] = ["tenant1", "tenant2"].map(|name| TenantId::parse(name).unwrap());
    let target = |user: &str, tenant| {
        people.person(&UserId::parse(user).unwrap(), tenant).map(|person| person.target())
    };
    assert_eq!(target("Kim", &one).as_deref(), Some("user:Kim"));
    assert_eq!(target("kim", &one), None);
    assert_eq!(target("kim.lee@corp", &two).as_deref(), Some("user:tenant2/kim.lee@corp"));
    assert_eq!(target("kim.lee@corp", &one), None);
    assert!(people.group("재무", &two).is_some());
}
