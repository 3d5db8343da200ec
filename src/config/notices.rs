//! The settings of notices: `public_url`, `[people.*]`, `[groups_people.*]` and `[notices]`. Secrets come
//! from files, whose contents count as the setting's value, so that a reload notices a change of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::Url;

use crate::domain::ids::TenantId;
use crate::domain::notice::Event;
use crate::notices::mail::MailChannel;
use crate::notices::{
    Contact, Language, MailSecurity, MailSettings, NoticeSettings, People, SlackSettings,
    WebhookSettings,
};

/// Shortest and longest key of a webhook's secret, in bytes, as Standard Webhooks demands.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Longest name of a webhook, in characters.
const MAX_NAME_CHARS: usize = 64;

/// A table of `[people]` or `[groups_people]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContact {
    mail: Option<String>,
    slack: Option<String>,
    language: Option<String>,
}

/// The table `[notices]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNotices {
    #[serde(default)]
    webhook: Vec<RawWebhook>,
    mail: Option<RawMail>,
    slack: Option<RawSlack>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    name: String,
    url: String,
    secret_file: PathBuf,
    previous_secret_file: Option<PathBuf>,
    events: Option<Vec<String>>,
    tenants: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMail {
    smtp_url: String,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    from: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlack {
    bot_token_file: PathBuf,
    signing_secret_file: PathBuf,
    team: Option<String>,
    #[serde(default)]
    channels: BTreeMap<String, String>,
    #[serde(default = "slack_api")]
    api_url: String,
}

fn slack_api() -> String {
    "https://slack.com/api".to_owned()
}

/// Checks the settings of notices. Adds the contents of the files with secrets to `given`.
///
/// # Errors
/// A sentence that names the wrong setting and a valid value.
pub(super) fn notices(
    public_url: Option<&str>,
    people: &BTreeMap<String, RawContact>,
    groups: &BTreeMap<String, RawContact>,
    raw: &RawNotices,
    given: &mut BTreeMap<String, SecretString>,
) -> anyhow::Result<NoticeSettings> {
    let mut files = Files(String::new());
    let settings = NoticeSettings {
        public_url: public_url.map(checked_public_url).transpose()?,
        people: People::new(contacts("people", people)?, contacts("groups_people", groups)?),
        webhooks: webhooks(&raw.webhook, &mut files)?,
        mail: raw.mail.as_ref().map(|raw| mail(raw, &mut files)).transpose()?,
        slack: raw.slack.as_ref().map(|raw| slack(raw, &mut files)).transpose()?,
    };
    if let Some(mail) = &settings.mail {
        MailChannel::new(mail, &settings.people)?;
    }
    for (name, is_set) in
        [("notices.mail", settings.mail.is_some()), ("notices.slack", settings.slack.is_some())]
    {
        ensure!(
            !is_set || settings.public_url.is_some(),
            "{name} is set without public_url, with which its links begin; set public_url to an \
             address like https://dwp.example/api/aura/hitl"
        );
    }
    if let Some(value) = given.get_mut("notices") {
        *value = SecretString::from(format!("{}\n{}", value.expose_secret(), files.0));
    }
    Ok(settings)
}

/// The contents of all files that were read.
struct Files(String);

impl Files {
    /// The secret in a file, without white space around it.
    fn secret(&mut self, setting: &str, file: &PathBuf) -> anyhow::Result<SecretString> {
        let context = || format!("cannot read the secret that {setting} names: {}", file.display());
        // Reading a pipe or a device might never end.
        let is_file = fs::metadata(file).with_context(context)?.is_file();
        ensure!(is_file, "{setting} {} is not a file", file.display());
        let text = fs::read_to_string(file).with_context(context)?;
        let secret = text.trim();
        ensure!(!secret.is_empty(), "{setting} {} is empty", file.display());
        self.0.push_str(secret);
        self.0.push('\n');
        Ok(SecretString::from(secret))
    }
}

fn checked_public_url(text: &str) -> anyhow::Result<String> {
    let url = plain_url(text).filter(|url| ["http", "https"].contains(&url.scheme()));
    let url = url.with_context(|| {
        format!("public_url is {text:?}; it looks like https://dwp.example/api/aura/hitl")
    })?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// An address without user, password, query and fragment.
fn plain_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| {
        url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback_name)
}

fn is_loopback_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn contacts(
    table: &str,
    raw: &BTreeMap<String, RawContact>,
) -> anyhow::Result<BTreeMap<String, Contact>> {
    let contact = |(key, raw): (&String, &RawContact)| {
        let at = format!("{table}.{key}");
        ensure!(
            !key.trim().is_empty()
                && key.split_once('/').is_none_or(|(tenant, name)| {
                    TenantId::parse(tenant).is_ok() && !name.is_empty()
                }),
            "{at} is not named like kim, or like \"tenant2/kim\" for one tenant's only"
        );
        if let Some(mail) = &raw.mail {
            ensure!(is_mail_address(mail), "{at}.mail is {mail:?}; it looks like kim@example.com");
        }
        if let Some(slack) = &raw.slack {
            ensure!(
                is_slack_id(slack),
                "{at}.slack is {slack:?}; it is the id of a user or channel, like U012AB3CD"
            );
        }
        let language = match raw.language.as_deref() {
            None | Some("en") => Language::English,
            Some("ko") => Language::Korean,
            Some(other) => bail!("{at}.language is {other:?}; it must be \"en\" or \"ko\""),
        };
        Ok((key.clone(), Contact { mail: raw.mail.clone(), slack: raw.slack.clone(), language }))
    };
    raw.iter().map(contact).collect()
}

/// Whether a mail can be sent there, as far as that can be seen.
fn is_mail_address(text: &str) -> bool {
    text.len() <= 254
        && text.parse::<lettre::Address>().is_ok()
        && !text.chars().any(|letter| {
            letter.is_whitespace() || letter.is_control() || "<>(),;:\\\"[]".contains(letter)
        })
        && text.split_once('@').is_some_and(|(user, domain)| {
            !user.is_empty() && !domain.is_empty() && !domain.contains('@')
        })
}

fn is_slack_id(text: &str) -> bool {
    (2..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

fn webhooks(raw: &[RawWebhook], files: &mut Files) -> anyhow::Result<Vec<WebhookSettings>> {
    let mut names = BTreeSet::new();
    let mut webhooks = Vec::with_capacity(raw.len());
    for raw in raw {
        let name = &raw.name;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        ensure!(
            (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_plain),
            "a webhook in notices.webhook is named {name:?}; a name has 1 to {MAX_NAME_CHARS} \
             letters, digits, -, _ and ."
        );
        ensure!(names.insert(name), "two webhooks in notices.webhook are named {name}");
        let at = format!("notices.webhook {name}");
        let url = Url::parse(&raw.url).ok().filter(|url| {
            url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.fragment().is_none()
                && (url.scheme() == "https" || url.scheme() == "http" && is_loopback(url))
        });
        // The address may hold a secret, so it is not repeated.
        let url = url.with_context(|| {
            format!(
                "the url of {at} is not an address like https://ops.example/hooks/hitl; http:// is \
                 for this machine only"
            )
        })?;
        let secret = webhook_secret(files, &format!("the secret_file of {at}"), &raw.secret_file)?;
        let previous = raw.previous_secret_file.as_ref();
        let previous_at = format!("the previous_secret_file of {at}");
        let previous_secret =
            previous.map(|file| webhook_secret(files, &previous_at, file)).transpose()?;
        let events: BTreeSet<Event> = match &raw.events {
            None => Event::ALL.into(),
            Some(given) => given.iter().map(|given| event(&at, given)).collect::<Result<_, _>>()?,
        };
        ensure!(!events.is_empty(), "the events of {at} are empty; leave them out for all events");
        let tenant = |given: &String| {
            TenantId::parse(given.as_str()).ok().with_context(|| {
                format!("the tenants of {at} hold {given:?}, which is no tenant id")
            })
        };
        let tenants = raw.tenants.as_ref();
        let tenants =
            tenants.map(|given| given.iter().map(tenant).collect::<Result<BTreeSet<_>, _>>());
        let tenants = tenants.transpose()?;
        ensure!(
            tenants.as_ref().is_none_or(|tenants| !tenants.is_empty()),
            "the tenants of {at} are empty; leave them out for all tenants"
        );
        let name = name.clone();
        webhooks.push(WebhookSettings { name, url, secret, previous_secret, events, tenants });
    }
    Ok(webhooks)
}

fn event(at: &str, given: &str) -> anyhow::Result<Event> {
    Event::parse(given).with_context(|| {
        let known = Event::ALL.map(Event::as_str).join(", ");
        format!("the events of {at} hold {given:?}; there are {known}")
    })
}

fn webhook_secret(
    files: &mut Files,
    setting: &str,
    file: &PathBuf,
) -> anyhow::Result<SecretString> {
    let secret = files.secret(setting, file)?;
    let key = secret.expose_secret().strip_prefix("whsec_");
    let key = key.and_then(|key| STANDARD.decode(key).ok());
    ensure!(
        key.is_some_and(|key| KEY_BYTES.contains(&key.len())),
        "{setting} {} holds no secret of a webhook: whsec_ and then {} to {} bytes in base64",
        file.display(),
        KEY_BYTES.start(),
        KEY_BYTES.end()
    );
    Ok(secret)
}

fn mail(raw: &RawMail, files: &mut Files) -> anyhow::Result<MailSettings> {
    // The address may hold a password, so it is not repeated.
    let wrong = "notices.mail.smtp_url is not an address like smtps://user@mail.example or \
                 smtp://user@mail.example:587";
    let url = Url::parse(&raw.smtp_url).ok().context(wrong)?;
    ensure!(
        url.password().is_none(),
        "notices.mail.smtp_url holds a password; put it into a file, and name that in \
         notices.mail.password_file"
    );
    let is_alone = ["", "/"].contains(&url.path()) && url.fragment().is_none();
    let host = url.host_str().filter(|host| is_alone && !host.is_empty()).context(wrong)?;
    let security = match (url.scheme(), url.query()) {
        ("smtps", None) => MailSecurity::Tls,
        ("smtp", None) => MailSecurity::StartTls,
        ("smtp", Some("tls=none")) => {
            // The scheme is not special, so the host is not parsed as an address.
            ensure!(
                is_loopback_name(host),
                "notices.mail.smtp_url says tls=none, which is for this machine only; leave it out"
            );
            MailSecurity::None
        }
        _ => bail!(wrong),
    };
    let user = percent_encoding::percent_decode_str(url.username());
    let user = user.decode_utf8().context(wrong)?.into_owned();
    let user = Some(user).filter(|user| !user.is_empty());
    ensure!(
        user.is_some() == raw.password_file.is_some(),
        "notices.mail.smtp_url names a user without notices.mail.password_file, or the other way \
         round; set both or neither"
    );
    let address = raw
        .from
        .rsplit_once('<')
        .map_or(Some(raw.from.as_str()), |(_name, rest)| rest.strip_suffix('>'));
    ensure!(
        address.is_some_and(is_mail_address) && !raw.from.chars().any(char::is_control),
        "notices.mail.from is {:?}; it looks like Approvals <approvals@example.com>",
        raw.from
    );
    let password = raw.password_file.as_ref();
    let password = password.map(|file| files.secret("notices.mail.password_file", file));
    let authority = raw.ca_file.as_ref();
    let authority = authority.map(|file| files.secret("notices.mail.ca_file", file)).transpose()?;
    let authority = authority.map(|authority| authority.expose_secret().to_owned());
    Ok(MailSettings {
        security,
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: url.port(),
        user,
        password: password.transpose()?,
        authority,
        from: raw.from.clone(),
    })
}

fn slack(raw: &RawSlack, files: &mut Files) -> anyhow::Result<SlackSettings> {
    let api_url = plain_url(raw.api_url.trim_end_matches('/'))
        .filter(|url| url.scheme() == "https" || url.scheme() == "http" && is_loopback(url));
    let api_url = api_url.with_context(|| {
        format!(
            "notices.slack.api_url is {:?}; it looks like https://slack.com/api; http:// is for this \
             machine only",
            raw.api_url
        )
    })?;
    let channel = |(tenant, channel): (&String, &String)| {
        let tenant = TenantId::parse(tenant.as_str()).ok().with_context(|| {
            format!("notices.slack.channels names {tenant:?}, which is no tenant id")
        })?;
        ensure!(
            is_slack_id(channel),
            "notices.slack.channels has {channel:?} for {tenant}; it is the id of a channel, like \
             C0123"
        );
        Ok((tenant, channel.clone()))
    };
    if let Some(team) = &raw.team {
        ensure!(
            is_slack_id(team) && team.starts_with('T'),
            "notices.slack.team is {team:?}; it is the id of a workspace, like T0123"
        );
    }
    let bot_token = files.secret("notices.slack.bot_token_file", &raw.bot_token_file)?;
    // Anything else is no header, and no token.
    ensure!(
        bot_token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()),
        "notices.slack.bot_token_file {} holds no token: one line like xoxb-…",
        raw.bot_token_file.display()
    );
    Ok(SlackSettings {
        bot_token,
        team: raw.team.clone(),
        signing_secret: files
            .secret("notices.slack.signing_secret_file", &raw.signing_secret_file)?,
        channels: raw.channels.iter().map(channel).collect::<anyhow::Result<_>>()?,
        api_url,
    })
}
