//! Makes text of unknown origin safe to show inside other text: in a database column that admins
//! read, or in a log line. Escaped text can neither start a new line nor hide or reorder the text
//! around it.

use std::fmt::Write as _;

/// The text with every invisible character escaped: line breaks, control characters, and zero-width
/// characters, including those that change the direction of writing.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if letter.is_control() || is_invisible(letter) => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out
}

/// Format characters and line separators: those of Unicode's `Default_Ignorable_Code_Point` and
/// `Bidi_Control` that occur in text. Variation selectors are left out, because emoji need them.
fn is_invisible(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' |
        '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' |
        '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_invisible_characters_are_escaped() {
        for plain in ["사용자 거절", "é €", "\u{2708}\u{fe0f} 100 %", "C:\\temp", "a \"b\""]
        {
            assert_eq!(printable(plain), plain);
        }
        assert_eq!(printable("no\r\nINFO approved"), "no\\r\\nINFO approved");
        assert_eq!(printable("\u{1b}[2K\u{9b}\u{7f}"), "\\u{1b}[2K\\u{9b}\\u{7f}");
        assert_eq!(
            printable("a\u{202e}b\u{2066}c\u{200b}d\u{feff}"),
            "a\\u{202e}b\\u{2066}c\\u{200b}d\\u{feff}"
        );
        assert_eq!(printable("a\u{2028}b\u{85}"), "a\\u{2028}b\\u{85}");
    }
}
