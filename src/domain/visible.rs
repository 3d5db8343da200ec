//! Shows texts of strangers to people, in mails and chats, as the inbox page shows them
//! (`src/web/visible.js`): characters that nobody sees, or that turn the direction of writing, appear
//! as escapes like `\u202E`. Emoji, tabs and line ends stay.

use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;

use super::printable::printable;

/// The first alternatives are emoji, in which joiners and variation selectors are in their place.
const PIECES: &str = concat!(
    r"\p{Extended_Pictographic}(?:\x{FE0F}|\p{Emoji_Modifier})?",
    r"(?:\x{200D}\p{Extended_Pictographic}(?:\x{FE0F}|\p{Emoji_Modifier})?)*",
    r"|[0-9#*]\x{FE0F}\x{20E3}|\r\n|[\n\t]",
    r"|([\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\x{2800}])",
);

/// `None` never happens: a test reads the pattern.
static PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(PIECES).ok());

/// The text with each hidden character as an escape.
#[must_use]
pub fn visible(text: &str) -> String {
    let Some(pattern) = &*PATTERN else { return printable(text) };
    let mut shown = String::with_capacity(text.len());
    let mut from = 0;
    for found in pattern.captures_iter(text) {
        let Some(hidden) = found.get(1) else { continue };
        shown.push_str(text.get(from..hidden.start()).unwrap_or_default());
        for letter in hidden.as_str().chars() {
            let code = u32::from(letter);
            // Writing to a string does not fail.
            let _ = if code > 0xFFFF {
                write!(shown, "\\u{{{code:X}}}")
            } else {
                write!(shown, "\\u{code:04X}")
            };
        }
        from = hidden.end();
    }
    shown.push_str(text.get(from..).unwrap_or_default());
    shown
}

/// The text within one line, of at most so many characters: a longer text ends with `…`.
#[must_use]
pub fn visible_line(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for letter in visible(text).chars() {
        match letter {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            letter => shown.push(letter),
        }
    }
    shortened(shown, most)
}

/// The text, cut to so many characters: a longer text ends with `…`.
#[must_use]
pub fn shortened(text: String, most: usize) -> String {
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped_and_emoji_stay() {
        for plain in [
            "사용자 거절",
            "é €\t1",
            "\u{2708}\u{fe0f} 100 %",
            "👩‍👩‍👧 a\r\nb\nc",
            "3\u{fe0f}\u{20e3}",
            "👍🏽",
            "",
        ] {
            assert_eq!(visible(plain), plain);
        }
        for (hidden, shown) in [
            ("pay\u{202e}001", "pay\\u202E001"),
            ("a\u{200b}b\u{200d}c", "a\\u200Bb\\u200Dc"),
            ("a\rb", "a\\u000Db"),
            ("\u{1b}[2K\u{9b}", "\\u001B[2K\\u009B"),
            ("a\u{2028}b\u{2800}", "a\\u2028b\\u2800"),
            ("\u{e0041}", "\\u{E0041}"),
            ("\u{3164}x\u{fe0f}", "\\u3164x\\uFE0F"),
        ] {
            assert_eq!(visible(hidden), shown);
        }
    }

    #[test]
    fn a_line_has_no_line_ends_and_is_cut() {
        assert_eq!(visible_line("a\nb\r\nc\td", 99), "a\\nb\\r\\nc\\td");
        assert_eq!(visible_line("가나다라마", 5), "가나다라마");
        assert_eq!(visible_line("가나다라마바", 5), "가나다라…");
    }
}
