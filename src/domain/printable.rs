//! Strangers' text where people read it among other text: in a column that admins look at, in a line
//! of a log. It must not begin a line of its own, nor hide or reorder what stands around it.

use std::fmt::Write as _;

/// The text with everything escaped that is not seen: line breaks, escape and other control
/// characters, and letters of no width, among them those that change the direction of writing.
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

/// Format characters, and separators of lines: Unicode's `Default_Ignorable_Code_Point` and
/// `Bidi_Control`, as far as they are used in text, but for variation selectors, which emoji need.
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
    fn what_is_not_seen_is_escaped_and_nothing_else() {
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
