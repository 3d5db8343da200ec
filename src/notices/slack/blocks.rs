//! The messages and the dialog that Slack shows, in its Block Kit.
//!
//! Texts of agents and people are `plain_text`, in which Slack knows no links, mentions or formatting. The
//! field `text`, for notifications, knows them: there `&`, `<` and `>` are escaped. Every text is cut to what
//! Slack takes: see <https://docs.slack.dev/reference/block-kit/blocks>.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::visible::{shortened, visible, visible_line};
use crate::notices::notice::Notice;
use crate::notices::people::Language;

/// Slack's limit of a header, in units of UTF-16, of which an emoji has two.
const MAX_HEADER_UNITS: usize = 150;
/// See [`MAX_HEADER_UNITS`]; and some room for the label.
const MAX_SECTION_UNITS: usize = 2900;
/// The longest message or reason.
const MAX_SECTION_CHARS: usize = 2000;
/// The longest action in a headline.
const MAX_ACTION_CHARS: usize = 70;
/// Slack takes 2,000; a field is meant to be read at a glance.
const MAX_FIELD_CHARS: usize = 200;
/// The most fields of one section.
const MAX_FIELDS: usize = 10;
/// The most sections with fields.
const MAX_FIELD_SECTIONS: usize = 3;
/// The most bytes of a message's texts when a click sends them back: less than `api::slack` takes.
const MAX_CLICK_BYTES: usize = 48 * 1024;
/// What stands around a text in its block, in bytes of a click.
const AROUND_TEXT: usize = 150;
/// The longest reason, as for `POST …/reject/{requestId}`.
pub const MAX_REASON_CHARS: usize = 1000;

/// The ids of the buttons.
pub const APPROVE: &str = "hitl_approve";
/// See [`APPROVE`].
pub const REJECT: &str = "hitl_reject";
/// A link, of which Slack also tells us when it is clicked.
pub const OPEN: &str = "hitl_open";
/// The id of the dialog, and in it of the block and the field of the reason.
pub const REASON_DIALOG: &str = "hitl_reason";
/// See [`REASON_DIALOG`].
pub const REASON: &str = "reason";

/// What a button carries: which request with which content it showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The request.
    pub request: String,
    /// The entity tag of its content.
    pub etag: String,
}

/// What the dialog for a reason carries: where it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The channel of the message.
    pub channel: String,
    /// The message.
    pub ts: String,
    /// What its button carried.
    pub shown: Shown,
}

/// The parts of a message: `text`, for notifications, and `blocks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// One line.
    pub text: String,
    /// What is shown.
    pub blocks: Value,
}

fn plain(text: impl Into<String>) -> Value {
    json!({ "type": "plain_text", "text": text.into(), "emoji": false })
}

/// A text that has at most so many units of UTF-16.
fn cut(text: String, most: usize) -> String {
    let mut units = 0;
    let fits = text.chars().take_while(|letter| {
        units += letter.len_utf16();
        units <= most
    });
    let fits = fits.count();
    shortened(text, fits)
}

/// The characters that Slack's own markup begins with.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Message {
    /// The message about a notice. It has buttons if it asks for a decision.
    #[must_use]
    pub fn of(notice: &Notice, language: Language) -> Self {
        let action = visible_line(&notice.action, MAX_ACTION_CHARS);
        let headline = format!("{}: {action}", language.event(notice));
        let mut blocks = vec![
            json!({ "type": "header", "text": plain(cut(headline.clone(), MAX_HEADER_UNITS)) }),
        ];
        let mut texts = Vec::new();
        for (label, text) in [
            (language.pick("Message", "메시지"), &notice.message),
            (language.pick("Reason", "사유"), &notice.reason),
        ] {
            if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
                let text = cut(shortened(visible(text), MAX_SECTION_CHARS), MAX_SECTION_UNITS);
                texts.push(format!("{label}\n{text}"));
            }
        }
        let mut room = MAX_CLICK_BYTES;
        let mut fits = |text: &String| {
            let bytes = clicked_bytes(text) + AROUND_TEXT;
            let has_room = bytes <= room;
            room = room.saturating_sub(bytes);
            has_room
        };
        texts.retain(&mut fits);
        let all = fields(notice, language);
        let (count, most) = (all.len(), MAX_FIELDS * MAX_FIELD_SECTIONS - 1);
        let shown = all.into_iter().take(most).take_while(fits);
        let mut fields = shown.map(plain).collect::<Vec<_>>();
        if fields.len() < count {
            let more = language.pick("More\nOnly on the page", "추가 항목\n페이지에서 확인하세요");
            fields.push(plain(more));
        }
        for fields in fields.chunks(MAX_FIELDS) {
            blocks.push(json!({ "type": "section", "fields": fields }));
        }
        blocks.extend(
            texts.into_iter().map(|text| json!({ "type": "section", "text": plain(text) })),
        );
        let buttons = buttons(notice, language);
        if !buttons.is_empty() {
            blocks.push(json!({ "type": "actions", "elements": buttons }));
        }
        Self { text: escaped(&headline), blocks: blocks.into() }
    }

    /// The arguments of `chat.postMessage`, into a thread if one is named.
    #[must_use]
    pub fn to_post(&self, channel: &str, thread: Option<&str>) -> Value {
        let Self { text, blocks } = self;
        let mut post = json!({
            "channel": channel, "text": text, "blocks": blocks,
            "unfurl_links": false, "unfurl_media": false, "parse": "none", "link_names": false,
        });
        if let (Some(thread), Some(fields)) = (thread, post.as_object_mut()) {
            fields.insert("thread_ts".to_owned(), thread.into());
        }
        post
    }

    /// The arguments of `chat.update`.
    #[must_use]
    pub fn to_update(&self, channel: &str, ts: &str) -> Value {
        let Self { text, blocks } = self;
        json!({
            "channel": channel, "ts": ts, "text": text, "blocks": blocks,
            "parse": "none", "link_names": false,
        })
    }
}

/// The most bytes of a text when a click sends it back, as JSON in a form.
fn clicked_bytes(text: &str) -> usize {
    let bytes = |letter: char| match letter {
        letter if letter.is_ascii_alphanumeric() => 1,
        letter if letter.is_ascii() => 6,
        // UTF-8 in percent signs, or an escape of JSON for each half.
        letter if letter.len_utf16() == 1 => 9,
        _ => 16,
    };
    text.chars().map(bytes).sum()
}

fn fields(notice: &Notice, language: Language) -> Vec<String> {
    let shown = |text: &str| visible_line(text, MAX_FIELD_CHARS);
    let mut fields = vec![(language.pick("Action", "작업").to_owned(), shown(&notice.action))];
    let mut add = |english: &str, korean: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            fields.push((language.pick(english, korean).to_owned(), value));
        }
    };
    add("Requested for", "요청자", notice.user.as_deref().map(shown));
    add("Risk", "위험도", notice.risk.as_deref().map(|risk| language.risk(risk).to_owned()));
    add("Rule", "규칙", notice.rule.as_deref().map(shown));
    if notice.event.asks() {
        add("Decide before", "결정 기한", Some(language.moment(notice.expires_at)));
        let needed = notice.approvals_needed.filter(|needed| *needed > 1);
        add("Approvals needed", "필요한 승인 수", needed.map(|needed| needed.to_string()));
    }
    let how = notice.decided_via.as_deref().and_then(|via| language.via(via));
    let by = notice.decided_by.as_deref().map(|by| match how {
        Some(how) => format!("{} ({how})", shown(by)),
        None => shown(by),
    });
    add("Decided by", "결정자", by);
    add("Request", "요청 ID", Some(shown(&notice.request_id)));
    for (name, value) in &notice.context {
        let value = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
        fields.push((format!("context.{}", visible_line(name, 60)), shown(&value)));
    }
    fields.into_iter().map(|(label, value)| format!("{label}\n{value}")).collect()
}

fn buttons(notice: &Notice, language: Language) -> Vec<Value> {
    let shown = Shown { request: notice.request_id.clone(), etag: notice.etag.clone() };
    let value = json!(shown).to_string();
    let button = |id: &str, english: &str, korean: &str, style: &str| {
        json!({
            "type": "button", "action_id": id, "text": plain(language.pick(english, korean)),
            "style": style, "value": value,
        })
    };
    let mut buttons = Vec::new();
    let may =
        |way: &str| notice.event.asks() && notice.decisions.iter().any(|allowed| allowed == way);
    if may("approve") {
        buttons.push(button(APPROVE, "Approve", "승인", "primary"));
    }
    if may("reject") {
        buttons.push(button(REJECT, "Reject", "거절", "danger"));
    }
    if let Some(url) = &notice.url {
        buttons.push(json!({
            "type": "button", "action_id": OPEN, "url": url,
            "text": plain(language.pick("Open the page", "페이지 열기")),
        }));
    }
    buttons
}

/// The arguments of `views.open`: a dialog that asks why a request is rejected.
#[must_use]
pub fn reason_dialog(trigger: &str, opened: &Opened, language: Language) -> Value {
    let request = visible_line(&opened.shown.request, MAX_FIELD_CHARS);
    json!({
        "trigger_id": trigger,
        "view": {
            "type": "modal",
            "callback_id": REASON_DIALOG,
            "private_metadata": json!(opened).to_string(),
            "title": plain(language.pick("Reject", "거절")),
            "submit": plain(language.pick("Reject", "거절")),
            "close": plain(language.pick("Cancel", "취소")),
            "blocks": [
                { "type": "section",
                  "text": plain(format!("{}\n{request}", language.pick("Request", "요청 ID"))) },
                { "type": "input", "block_id": REASON, "optional": true,
                  "label": plain(language.pick("Reason", "사유")),
                  "element": { "type": "plain_text_input", "action_id": REASON, "multiline": true,
                               "max_length": MAX_REASON_CHARS } },
            ],
        },
    })
}

/// The arguments of `chat.postEphemeral`: a message that one person alone sees.
#[must_use]
pub fn private(channel: &str, user: &str, text: &str) -> Value {
    let text = cut(shortened(visible(text), MAX_SECTION_CHARS), MAX_SECTION_UNITS);
    json!({
        "channel": channel, "user": user, "text": escaped(&text), "parse": "none", "link_names": false,
        "blocks": [{ "type": "section", "text": plain(text) }],
    })
}
