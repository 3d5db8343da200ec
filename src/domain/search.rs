//! The text of a request in which words are searched, and the words of a query. Both are brought into one
//! form: lower case, and one spelling of each letter (Unicode's NFKC), so that Korean that a Mac has taken
//! apart is found like any other.

use std::cmp::Reverse;

use unicode_normalization::UnicodeNormalization as _;

use super::json::split_string;
use super::request::ApprovalRequest;

/// The longest text of a request, in bytes. What is beyond is not found.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;
/// The shortest word that an index finds, in characters.
pub const INDEXED_CHARS: usize = 3;
/// The most words of a query.
pub const MAX_WORDS: usize = 10;

/// The text of a request: its ids and action, its message, then the names and values of its context.
#[must_use]
pub fn text(request: &ApprovalRequest) -> String {
    let mut text = String::new();
    let ids = [
        Some(request.id.as_str()),
        Some(request.session.as_str()),
        request.user.as_ref().map(super::ids::UserId::as_str),
        request.task.as_ref().map(super::ids::TaskId::as_str),
        Some(request.action_type.as_str()),
        request.message.as_deref(),
    ];
    let mut has_room = ids.into_iter().flatten().all(|part| push(&mut text, part));
    let mut rest = request.context.as_str();
    while !rest.is_empty() && has_room {
        if rest.starts_with('"') {
            let (string, after) = split_string(rest);
            let value = serde_json::from_str::<String>(string);
            has_room = push(&mut text, value.as_deref().unwrap_or(string));
            rest = after;
        } else {
            let end = rest.find(['"', ',', ':', '[', ']', '{', '}']).unwrap_or(rest.len());
            let (value, after) = rest.split_at_checked(end.max(1)).unwrap_or((rest, ""));
            if end > 0 && !value.trim().is_empty() {
                has_room = push(&mut text, value.trim());
            }
            rest = after;
        }
    }
    text
}

/// Adds a part, and a space behind it, as far as there is room. Returns whether all of it had room.
fn push(text: &mut String, part: &str) -> bool {
    for letter in normal(part) {
        if text.len() + letter.len_utf8() >= MAX_TEXT_BYTES {
            return false;
        }
        text.push(letter);
    }
    text.push(' ');
    true
}

/// The words of a query, the longest first; `None` if there are none, or too many.
#[must_use]
pub fn words(query: &str) -> Option<Vec<String>> {
    let query = normal(query).collect::<String>();
    let mut words = query.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    words.sort_by_cached_key(|word| (Reverse(word.chars().count()), word.clone()));
    words.dedup();
    (1..=MAX_WORDS).contains(&words.len()).then_some(words)
}

fn normal(text: &str) -> impl Iterator<Item = char> {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.nfkc().flat_map(char::to_lowercase).nfc().map(plain)
}

#[cfg(test)]
mod tests {
    use super::super::ids::RequestId;
    use super::*;

    fn text_of(context: &str) -> String {
        let document = format!(
            r#"{{"sessionId":"S_1","userId":"Kim","actionType":"Send_Mail","message":"결재\n요청","context":{context}}}"#
        );
        let request = ApprovalRequest::read(&RequestId::parse("Req_1").unwrap(), document).unwrap();
        text(&request)
    }

    #[test]
    fn a_text_has_ids_action_message_and_context() {
        assert_eq!(
            text_of(
                r#"{"To":"A@B.c","amount":1000.50,"deep":[{"한글":"\ud55c\uae00 \"Q\""},true,null]}"#
            ),
            "req_1 s_1 kim send_mail 결재 요청 to a@b.c amount 1000.50 deep 한글 한글 \"q\" true null "
        );
        assert_eq!(text_of("null"), "req_1 s_1 kim send_mail 결재 요청 null ");
    }

    #[test]
    fn letters_have_one_spelling() {
        let apart = "보고서".nfd().collect::<String>();
        assert_ne!(apart, "보고서");
        assert!(text_of(&format!("[\"{apart}\"]")).contains("보고서"));
        assert_eq!(words(&format!("  ＡＢＣ {apart}\u{0}x ")).unwrap(), ["abc", "보고서", "x"]);
    }

    #[test]
    fn a_long_text_is_cut() {
        let long = text_of(&format!("[\"{}\",\"last\"]", "가".repeat(10_000)));
        assert!(long.len() <= MAX_TEXT_BYTES && long.len() > MAX_TEXT_BYTES - 8, "{}", long.len());
        assert!(!long.contains("last"));
    }

    #[test]
    fn a_query_has_one_to_ten_words() {
        assert_eq!(words("b aaa B cc").unwrap(), ["aaa", "cc", "b"]);
        assert_eq!(words(" \u{3000} "), None);
        assert_eq!(words(&"a ".repeat(11)).unwrap(), ["a"]);
        let many = (0..11).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(words(&many), None);
    }
}
