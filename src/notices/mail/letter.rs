//! The text of a mail: one notice, or a digest of several, in English or Korean, as plain text and as
//! HTML.
//!
//! Texts of agents and people are never markup: `maud` escapes them in HTML, `visible` shows hidden
//! characters, and in plain text each of their lines begins with `> ` or stands behind a label. The only
//! link leads to the page; nothing in a mail decides.

use maud::{DOCTYPE, Markup, html};

use crate::domain::visible::{shortened, visible, visible_line};
use crate::notices::notice::Notice;
use crate::notices::people::Language;

/// Most characters of an action in a subject.
const MAX_SUBJECT_ACTION_CHARS: usize = 60;
/// Most characters of a field of `context`, of a rule's name, of an id.
const MAX_FIELD_CHARS: usize = 300;
/// Most characters of a message or a reason.
const MAX_TEXT_CHARS: usize = 2000;

/// What a mail says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The subject, in one line.
    pub subject: String,
    /// The plain text.
    pub text: String,
    /// The same as HTML.
    pub html: String,
}

impl Letter {
    /// The mail about one notice.
    #[must_use]
    pub fn of(notice: &Notice, language: Language) -> Self {
        let headline = language.event(notice);
        let subject = line(notice, language, MAX_SUBJECT_ACTION_CHARS);
        let fields = fields(notice, language);
        let quotes = quotes(notice, language);
        let mut text = vec![headline.to_owned(), String::new()];
        text.extend(fields.iter().map(|(label, value)| format!("{label}: {value}")));
        for (label, quote) in &quotes {
            text.extend([String::new(), format!("{label}:")]);
            text.extend(quote.lines().map(|line| format!("> {line}")));
        }
        text.extend([String::new(), link_text(notice, language)]);
        let text = ended(text, language);
        let html = page(
            language,
            &subject,
            &html! {
                h1 style=(HEADLINE) { (headline) }
                table style="border-collapse:collapse" {
                    @for (label, value) in &fields {
                        tr {
                            th scope="row" style=(LABEL) { (label) }
                            td style="padding:2px 0" { bdi { (value) } }
                        }
                    }
                }
                @for (label, quote) in &quotes {
                    p style="margin:16px 0 4px" { (label) ":" }
                    blockquote style=(QUOTE) { bdi { (quote) } }
                }
                (link(notice, language))
            },
        );
        Self { subject, text, html }
    }

    /// One mail about several notices.
    #[must_use]
    pub fn digest(notices: &[&Notice], language: Language) -> Self {
        let number = notices.len();
        let subject = if notices.iter().all(|notice| notice.event.asks()) {
            language.pick(
                format!("{number} requests wait for approval"),
                format!("승인 대기 요청 {number}건"),
            )
        } else {
            language.pick(
                format!("{number} notices about approvals"),
                format!("승인 관련 알림 {number}건"),
            )
        };
        let mut text = vec![subject.clone()];
        for notice in notices {
            text.extend([String::new(), format!("* {}", line(notice, language, MAX_FIELD_CHARS))]);
            let fields = short_fields(notice, language).into_iter();
            text.extend(fields.map(|(label, value)| format!("  {label}: {value}")));
            text.push(format!("  {}", link_text(notice, language)));
        }
        let text = ended(text, language);
        let html = page(
            language,
            &subject,
            &html! {
                h1 style=(HEADLINE) { (subject) }
                ol {
                    @for notice in notices {
                        li style="margin:0 0 12px" {
                            strong { bdi { (line(notice, language, MAX_FIELD_CHARS)) } }
                            @for (label, value) in short_fields(notice, language) {
                                br; (label) ": " bdi { (value) }
                            }
                            (link(notice, language))
                        }
                    }
                }
            },
        );
        Self { subject, text, html }
    }
}

/// The lines, and what stands below every mail.
fn ended(mut lines: Vec<String>, language: Language) -> String {
    let footer = [String::new(), "-- ".to_owned(), footer(language).to_owned(), String::new()];
    lines.extend(footer);
    lines.join("\n")
}

const HEADLINE: &str = "font-size:20px;margin:0 0 12px";
const LABEL: &str = "text-align:left;vertical-align:top;padding:2px 16px 2px 0;font-weight:600";
const QUOTE: &str = "margin:0;padding:8px 12px;border-left:3px solid #999;white-space:pre-wrap;word-break:break-word";

fn page(language: Language, subject: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang=(language.tag()) {
            head { meta charset="utf-8"; title { (subject) } }
            body style="font-family:sans-serif;font-size:15px;line-height:1.5" {
                (body)
                p style="color:#666;font-size:13px" { (footer(language)) }
            }
        }
    };
    page.into_string()
}

/// What has happened to which action.
fn line(notice: &Notice, language: Language, most: usize) -> String {
    format!("{}: {}", language.event(notice), visible_line(&notice.action, most))
}

/// What happened when, of whom: each within one line.
fn fields(notice: &Notice, language: Language) -> Vec<(String, String)> {
    let shown = |text: &str| visible_line(text, MAX_FIELD_CHARS);
    let mut fields = vec![(language.pick("Action", "작업"), shown(&notice.action))];
    if let Some(user) = &notice.user {
        fields.push((language.pick("Requested for", "요청자"), shown(user)));
    }
    if let Some(risk) = &notice.risk {
        fields.push((language.pick("Risk", "위험도"), language.risk(risk).to_owned()));
    }
    if let Some(rule) = &notice.rule {
        fields.push((language.pick("Rule", "규칙"), shown(rule)));
    }
    if notice.event.asks() {
        let until = language.moment(notice.expires_at);
        fields.push((language.pick("Decide before", "결정 기한"), until));
        if let Some(needed) = notice.approvals_needed.filter(|needed| *needed > 1) {
            fields.push((language.pick("Approvals needed", "필요한 승인 수"), needed.to_string()));
        }
    }
    if let Some(by) = &notice.decided_by {
        let by = match notice.decided_via.as_deref().and_then(|via| language.via(via)) {
            Some(how) => format!("{} ({how})", shown(by)),
            None => shown(by),
        };
        fields.push((language.pick("Decided by", "결정자"), by));
    }
    if let Some(by) = &notice.by
        && notice.decided_by.is_none()
    {
        fields.push((language.pick("By", "작성자"), shown(by)));
    }
    fields.push((language.pick("Request", "요청 ID"), shown(&notice.request_id)));
    let mut fields =
        fields.into_iter().map(|(label, value)| (label.to_owned(), value)).collect::<Vec<_>>();
    for (name, value) in &notice.context {
        // A text without its quotes; numbers as they were written.
        let value = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
        // A field of `context` may be called as one of ours.
        fields.push((format!("context.{}", shown(name)), shown(&value)));
    }
    fields
}

/// What a line of a digest says of its notice.
fn short_fields(notice: &Notice, language: Language) -> Vec<(String, String)> {
    let mut fields = fields(notice, language);
    // The action stands above it.
    fields.remove(0);
    fields
}

/// What an agent or a person has written.
fn quotes(notice: &Notice, language: Language) -> Vec<(&'static str, String)> {
    let shown = |text: &String| shortened(visible(text), MAX_TEXT_CHARS);
    let message = notice.message.as_ref().map(|it| (language.pick("Message", "메시지"), shown(it)));
    let reason = notice.reason.as_ref().map(|it| (language.pick("Reason", "사유"), shown(it)));
    message.into_iter().chain(reason).collect()
}

fn link_text(notice: &Notice, language: Language) -> String {
    match &notice.url {
        Some(url) => format!("{}: {url}", open(notice, language)),
        None => language
            .pick("It is on the page of approvals.", "승인 페이지에서 확인할 수 있습니다.")
            .to_owned(),
    }
}

fn link(notice: &Notice, language: Language) -> Markup {
    html! {
        p {
            @match &notice.url {
                Some(url) => { a href=(url) { (open(notice, language)) } }
                None => { (link_text(notice, language)) }
            }
        }
    }
}

fn open(notice: &Notice, language: Language) -> &'static str {
    if notice.event.asks() {
        language.pick("Look at it and decide", "확인하고 결정하기")
    } else {
        language.pick("Look at it", "확인하기")
    }
}

fn footer(language: Language) -> &'static str {
    language.pick(
        "This mail decides nothing: the link opens the page of approvals, where you log in.",
        "이 메일로는 결정되지 않습니다. 링크를 열면 로그인이 필요한 승인 페이지로 이동합니다.",
    )
}
