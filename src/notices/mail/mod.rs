//! Tells people by mail. One conversation with the SMTP server takes all mails of a round; a person for
//! whom more than five notices are due gets one mail with all of them.
//!
//! A mail's `Message-ID` follows from its notices, so that a repeat after a crash is the same mail to
//! whoever drops repeats. Headers never hold a text of an agent but the action in the subject, which is
//! one line and encoded.

pub mod letter;
pub mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use lettre::Message;
use lettre::address::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use self::letter::Letter;
use self::server::{Conversation, Refused, Server};
use super::channel::{Channel, DueNotice, Lane, SendResult};
use super::notice::Notice;
use super::people::{Contact, Language, People};
use super::settings::MailSettings;
use crate::domain::ids::TenantId;

/// Most notices that a person gets one mail each of.
const MAX_SINGLE_MAILS: usize = 5;
/// Most notices in one mail.
const MAX_DIGEST: usize = 100;

/// How long one round may take: less than the leases of its notices.
const ROUND_TIMEOUT: Duration = Duration::from_secs(18);

/// Sends mails.
#[derive(Clone, Debug)]
pub struct MailChannel {
    server: Server,
    from: Mailbox,
    people: People,
}

/// One mail: its recipient, and the places of its notices among those that are due.
struct Post<'a> {
    address: Address,
    language: Language,
    target: &'a str,
    notices: Vec<usize>,
}

impl MailChannel {
    /// A channel with these settings, to these people.
    ///
    /// # Errors
    /// A sentence that names the setting, when one cannot be used.
    pub fn new(settings: &MailSettings, people: &People) -> anyhow::Result<Self> {
        let server = Server::new(settings).context("notices.mail cannot be used")?;
        let from = settings.from.parse().with_context(|| {
            let from = &settings.from;
            format!("notices.mail.from is {from:?}; it must be like \"Approvals <a@example.com>\"")
        })?;
        Ok(Self { server, from, people: people.clone() })
    }

    /// The mails to write, and the notices to nobody.
    fn posts<'a>(&'a self, due: &'a [DueNotice]) -> (Vec<Post<'a>>, Vec<(usize, String)>) {
        let mut by_person = BTreeMap::<&str, Vec<usize>>::new();
        for (place, one) in due.iter().enumerate() {
            by_person.entry(&one.target).or_default().push(place);
        }
        let (mut posts, mut strangers) = (Vec::new(), Vec::new());
        for (target, places) in by_person {
            let contact = self.people.contact_of_target(target);
            let (address, language) = match contact.map(address) {
                Some(Ok(found)) => found,
                missing => {
                    let why = missing.and_then(Result::err);
                    let why = why.unwrap_or_else(|| format!("the settings do not have {target}"));
                    strangers.extend(places.into_iter().map(|place| (place, why.clone())));
                    continue;
                }
            };
            let at_once = if places.len() > MAX_SINGLE_MAILS { MAX_DIGEST } else { 1 };
            posts.extend(places.chunks(at_once).map(|notices| Post {
                address: address.clone(),
                language,
                target,
                notices: notices.to_vec(),
            }));
        }
        (posts, strangers)
    }

    /// The conversation, begun anew if it is over.
    async fn speak<'a>(
        &self,
        conversation: &'a mut Option<Conversation>,
        deadline: Instant,
    ) -> Result<&'a mut Conversation, String> {
        let open = match conversation.take().filter(|conversation| !conversation.is_over()) {
            Some(open) => open,
            None => self.server.connect(deadline).await?,
        };
        Ok(conversation.insert(open))
    }

    async fn post(
        &self,
        conversation: &mut Conversation,
        post: &Post<'_>,
        due: &[DueNotice],
    ) -> SendResult {
        let notices = post.notices.iter().filter_map(|place| due.get(*place));
        let notices = notices.map(|due| &due.notice).collect::<Vec<_>>();
        let mail = match self.written(post, &notices) {
            Ok(mail) => mail.formatted(),
            Err(error) => {
                return SendResult::GivenUp { why: format!("the mail cannot be written: {error}") };
            }
        };
        match conversation.send(&self.from.email, &post.address, &mail).await {
            Ok(()) => SendResult::Sent,
            Err(Refused::ForGood(why)) => SendResult::GivenUp { why },
            Err(Refused::ForNow(why)) => later(&why),
        }
    }

    fn written(
        &self,
        post: &Post<'_>,
        notices: &[&Notice],
    ) -> Result<Message, lettre::error::Error> {
        let Post { address, language, .. } = post;
        let domain = self.from.email.domain();
        let ids = notices.iter().map(|notice| &*notice.id);
        let id = format!("<{}@{domain}>", digest([post.target].into_iter().chain(ids)));
        let mut message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, address.clone()))
            .message_id(Some(id))
            .raw_header(header("Auto-Submitted", "auto-generated"))
            .raw_header(header("X-Auto-Response-Suppress", "All"));
        let letter = match notices {
            [notice] => {
                // Mails about one request stand together.
                let request = digest([&*notice.tenant, &notice.request_id]);
                message = message.references(format!("<{request}@{domain}>"));
                Letter::of(notice, *language)
            }
            notices => Letter::digest(notices, *language),
        };
        let Letter { subject, text, html } = letter;
        message.subject(subject).multipart(MultiPart::alternative_plain_html(text, html))
    }
}

impl Channel for MailChannel {
    const WORKER: &'static str = "mail";
    /// Many, so that a person's notices come together in one mail.
    const BATCH_SIZE: usize = 64;

    fn lane(&self) -> Lane {
        Lane::Mail
    }

    fn allows(&self, due: &DueNotice) -> Result<(), String> {
        let tenant = TenantId::parse(&*due.notice.tenant).ok();
        let contact = tenant.and_then(|tenant| self.people.contact_for(&due.target, &tenant));
        contact.map(|_| ()).ok_or_else(|| {
            format!("the settings no longer have {} for tenant {}", due.target, due.notice.tenant)
        })
    }

    async fn send(&self, due: &[DueNotice]) -> Vec<SendResult> {
        let deadline = Instant::now() + ROUND_TIMEOUT;
        let mut results = vec![None; due.len()];
        let mut note = |places: &[usize], result: &SendResult| {
            for place in places {
                if let Some(slot) = results.get_mut(*place) {
                    *slot = Some(result.clone());
                }
            }
        };
        let (posts, strangers) = self.posts(due);
        for (place, why) in strangers {
            note(&[place], &SendResult::GivenUp { why });
        }
        let mut conversation = None;
        let mut unreachable = None::<String>;
        for post in posts {
            let result = match &unreachable {
                Some(why) => later(why),
                None => match self.speak(&mut conversation, deadline).await {
                    Ok(conversation) => self.post(conversation, &post, due).await,
                    Err(why) => {
                        let result = later(&why);
                        unreachable = Some(why);
                        result
                    }
                },
            };
            note(&post.notices, &result);
        }
        if let Some(conversation) = conversation {
            conversation.end().await;
        }
        let unsaid = || later("the mail was not written");
        results.into_iter().map(|result| result.unwrap_or_else(unsaid)).collect()
    }
}

/// Where a contact gets mail, and in which language.
fn address(contact: &Contact) -> Result<(Address, Language), String> {
    let mail = contact.mail.as_deref().ok_or("the settings have no mail address for it")?;
    let address = mail.parse().map_err(|_invalid| format!("{mail:?} is not a mail address"))?;
    Ok((address, contact.language))
}

fn later(why: &str) -> SendResult {
    SendResult::Later { why: why.to_owned(), not_before: None }
}

fn header(name: &'static str, value: &str) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned())
}

/// An id that follows from these texts alone.
fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.len().to_be_bytes());
        hash.update(text);
    }
    let mut id = format!("{:x}", hash.finalize());
    id.truncate(40);
    id
}
