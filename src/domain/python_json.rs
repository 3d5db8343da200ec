//! JSON as Python writes it: it may contain the bare words `NaN`, `Infinity` and `-Infinity`, which
//! strict JSON parsers refuse.
//!
//! To read such a text, each bare word is replaced by a number of the same length, and the result is
//! parsed. Because the lengths agree, a value's position in the parsed text is also its position in the
//! original text, so the original spelling of every value is kept. Strings are never changed.

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::json::{MAX_DEPTH, raw, split_string};

/// An object's fields. Each value is the original JSON text.
pub type Fields<'a> = IndexMap<String, &'a str>;

/// Each bare word, with a number of the same length.
const BARE_WORDS: [(&str, &str); 3] =
    [("NaN", "111"), ("Infinity", "11111111"), ("-Infinity", "-11111111")];

/// The fields of an object; `None` when the text is not a JSON object. If a name occurs twice, the last
/// value counts.
#[must_use]
pub fn fields(text: &str) -> Option<Fields<'_>> {
    let plain = plain(text);
    let fields = Text { written: text, plain: &plain }.fields()?;
    Some(fields.into_iter().map(|(name, value)| (name, value.written)).collect())
}

/// The JSON text of an object with these fields, in this order.
#[must_use]
pub fn object<V: AsRef<str>>(fields: &IndexMap<String, V>) -> String {
    let mut out = String::new();
    write_list(&mut out, ('{', '}'), fields, |out, (name, value)| {
        out.push_str(raw(name).get());
        out.push(':');
        out.push_str(value.as_ref());
    });
    out
}

/// The text as strict JSON: bare words become strings.
#[must_use]
pub fn quoted(text: &str) -> Cow<'_, str> {
    replace_bare(text, |word, _number, out| {
        out.push('"');
        out.push_str(word);
        out.push('"');
    })
}

/// Whether an object anywhere in the text names a field twice. Parsers would disagree about its value.
/// `text` must be valid JSON, bare words aside.
#[must_use]
pub fn repeats_a_name(text: &str) -> bool {
    let mut objects: Vec<HashSet<String>> = Vec::new();
    let mut rest = text;
    while let Some((_, from)) = rest.find(['{', '}', '"']).and_then(|at| rest.split_at_checked(at))
    {
        if from.starts_with('"') {
            let (string, after) = split_string(from);
            if after.trim_start().starts_with(':') {
                // A name with a lone surrogate cannot become a `String`, so its raw text is compared.
                let name = serde_json::from_str(string).unwrap_or_else(|_| string.to_owned());
                if objects.last_mut().is_some_and(|names| !names.insert(name)) {
                    return true;
                }
            }
            rest = after;
            continue;
        }
        if from.starts_with('{') {
            objects.push(HashSet::new());
        } else {
            objects.pop();
        }
        rest = from.get(1..).unwrap_or_default();
    }
    false
}

/// The canonical form of a JSON text: names sorted by code point, no white space, only the necessary
/// escapes in strings, numbers as they were written. For JSON that Python wrote, it equals Python's
/// `json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`. Values nested deeper
/// than [`MAX_DEPTH`] keep their spelling.
#[must_use]
pub fn canonical(text: &str) -> String {
    let plain = plain(text);
    let mut out = String::with_capacity(text.len());
    Text { written: text.trim_ascii(), plain: plain.trim_ascii() }.write_canonical(0, &mut out);
    out
}

/// A JSON text as it was written, and its parsable form (see [`plain`]) of the same length.
#[derive(Clone, Copy)]
struct Text<'w, 'p> {
    written: &'w str,
    plain: &'p str,
}

impl<'p> Text<'_, 'p> {
    fn fields(self) -> Option<IndexMap<String, Self>> {
        let fields: IndexMap<String, &'p RawValue> = serde_json::from_str(self.plain).ok()?;
        fields.into_iter().map(|(name, value)| Some((name, self.part(value)?))).collect()
    }

    fn items(self) -> Option<Vec<Self>> {
        let items: Vec<&'p RawValue> = serde_json::from_str(self.plain).ok()?;
        items.into_iter().map(|item| self.part(item)).collect()
    }

    /// The part of this text where `value` stands. `value` must borrow from `self.plain`.
    fn part(self, value: &'p RawValue) -> Option<Self> {
        let plain = value.get();
        let from = plain.as_ptr().addr().checked_sub(self.plain.as_ptr().addr())?;
        let written = self.written.get(from..from.checked_add(plain.len())?)?;
        Some(Self { written, plain })
    }

    fn write_canonical(self, depth: usize, out: &mut String) {
        let opening = if depth < MAX_DEPTH { self.plain.as_bytes().first() } else { None };
        match opening {
            Some(b'{') => {
                if let Some(mut fields) = self.fields() {
                    fields.sort_unstable_keys();
                    write_list(out, ('{', '}'), fields, |out, (name, field)| {
                        out.push_str(raw(&name).get());
                        out.push(':');
                        field.write_canonical(depth + 1, out);
                    });
                    return;
                }
            }
            Some(b'[') => {
                if let Some(items) = self.items() {
                    write_list(out, ('[', ']'), items, |out, item| {
                        item.write_canonical(depth + 1, out);
                    });
                    return;
                }
            }
            Some(b'"') => {
                if let Ok(string) = serde_json::from_str::<String>(self.plain) {
                    out.push_str(raw(&string).get());
                    return;
                }
            }
            _ => {}
        }
        out.push_str(self.written);
    }
}

fn write_list<T>(
    out: &mut String,
    brackets: (char, char),
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    out.push(brackets.0);
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(brackets.1);
}

/// The parsable form of a text: each bare word is replaced by a number of the same length.
fn plain(text: &str) -> Cow<'_, str> {
    replace_bare(text, |_word, number, out| out.push_str(number))
}

/// Replaces each bare word that stands in the position of a value.
fn replace_bare(
    text: &str,
    replace: impl Fn(&'static str, &'static str, &mut String),
) -> Cow<'_, str> {
    if !BARE_WORDS.iter().any(|(word, _)| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut may_be_value = true;
    while let Some(next) = rest.chars().next() {
        let is_word = |(word, _): &&(&str, &str)| {
            let after = rest.strip_prefix(*word).map(str::as_bytes);
            after.is_some_and(|after| after.first().is_none_or(|byte| b",]} \t\r\n".contains(byte)))
        };
        let length = if next == '"' {
            let (string, _) = split_string(rest);
            out.push_str(string);
            may_be_value = false;
            string.len()
        } else if let Some((word, number)) =
            BARE_WORDS.iter().filter(|_| may_be_value).find(is_word)
        {
            replace(word, number, &mut out);
            may_be_value = false;
            word.len()
        } else {
            out.push(next);
            may_be_value =
                matches!(next, '[' | ':' | ',') || (may_be_value && next.is_ascii_whitespace());
            next.len_utf8()
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// JSON with bare words, spelled with some white space.
    fn some_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            prop::sample::select(vec![
                "NaN",
                "Infinity",
                "-Infinity",
                "null",
                "true",
                "1",
                "1.10",
                "-0",
                "1e400",
                r#""NaN""#,
                r#""\",NaN,\"""#,
                r#""\\""#,
                r#"" : Infinity""#,
                r#""\udcff""#,
                r#""é\u0000""#,
            ])
            .prop_map(str::to_owned),
            "[a-z:,\\[\\]{} ]{0,6}".prop_map(|text| raw(&text).get().to_owned()),
        ];
        let pad = prop::sample::select(vec!["", " ", "\n\t"]);
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let names = prop::collection::btree_set(
                prop::sample::select(vec!["a", "NaN", "b c", "é", "\\\"", "Infinity"]),
                0..4,
            );
            let list = (prop::collection::vec(inner.clone(), 0..4), pad.clone());
            prop_oneof![
                list.prop_map(|(items, pad)| format!(
                    "[{pad}{}{pad}]",
                    items.join(&format!("{pad},{pad}"))
                )),
                (names, prop::collection::vec(inner, 4), pad.clone()).prop_map(
                    |(names, values, pad)| {
                        let fields = names.iter().zip(values);
                        let fields =
                            fields.map(|(name, value)| format!("\"{name}\"{pad}:{pad}{value}"));
                        format!("{{{}}}", fields.collect::<Vec<_>>().join(&format!("{pad},{pad}")))
                    }
                ),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_field_is_kept_as_it_was_written(values in prop::collection::vec(some_json(), 1..5)) {
            let written = values.iter().enumerate().map(|(at, value)| (format!("f{at}"), value.clone()));
            let written = written.collect::<IndexMap<_, _>>();
            let text = object(&written);
            let read = fields(&text).unwrap();
            prop_assert_eq!(read.len(), written.len());
            for (name, value) in &written {
                prop_assert_eq!(read[name.as_str()], value.as_str());
            }
            prop_assert_eq!(object(&read), text);
        }

        #[test]
        fn spelling_does_not_matter_and_bare_words_stay_bare(value in some_json()) {
            let once = canonical(&value);
            prop_assert_eq!(&canonical(&once), &once);
            prop_assert_eq!(canonical(&format!(" {value}\n")), once);
            let quoted = quoted(&value);
            prop_assert!(serde_json::from_str::<&RawValue>(&quoted).is_ok(), "{}", quoted);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}|[NaInfity\\-\\[\\]{}:,\" \\\\0-9]{0,20}") {
            let _ = (fields(&text), canonical(&text), repeats_a_name(&text));
            prop_assert_eq!(plain(&text).len(), text.len());
            if serde_json::from_str::<&RawValue>(&text).is_ok() {
                prop_assert_eq!(quoted(&text), text.as_str());
            }
        }

        #[test]
        fn a_repeated_name_is_found_exactly_where_a_strict_parser_finds_it(
            names in prop::collection::vec(prop::sample::select(vec!["a", "\\u0061", "b", "{", "\\\"", ":"]), 0..5),
            depth in 0_usize..60,
        ) {
            let fields = names.iter().map(|name| format!("\"{name}\":[\"a\",{{}}]")).collect::<Vec<_>>();
            let inner = format!("{{{}}}", fields.join(" , "));
            let text = format!("{}{inner}{}", "[{\"a\" :".repeat(depth), "}]".repeat(depth));
            let distinct = serde_json::from_str::<serde_json::Map<String, Value>>(&inner).unwrap().len();
            prop_assert_eq!(repeats_a_name(&text), distinct < names.len());
        }
    }

    #[test]
    fn only_bare_words_where_a_value_stands_are_replaced() {
        for refused in [
            "{\"a\":nan}",
            "{\"a\":-NaN}",
            "{\"a\":+Infinity}",
            "{\"a\":1NaN}",
            "{\"a\":NaN1}",
            "{NaN:1}",
            "{\"a\":NaNInfinity}",
            "{\"a\":- Infinity}",
            "{\"a\":Infinity\u{a0}}",
        ] {
            assert_eq!(fields(refused), None, "{refused}");
        }
        let read = fields("{\"NaN\": NaN ,\"b\":[-Infinity,Infinity],\"c\":\"\\\"NaN\"}").unwrap();
        let read = read.into_iter().collect::<Vec<_>>();
        let expected = [("NaN", "NaN"), ("b", "[-Infinity,Infinity]"), ("c", "\"\\\"NaN\"")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(quoted("[NaN,\"NaN\",-Infinity]"), "[\"NaN\",\"NaN\",\"-Infinity\"]");
    }

    #[test]
    fn spelling_does_not_matter_but_numbers_do() {
        assert_eq!(canonical(r#"{ "b":1, "a":[ "\u0061", null ] }"#), r#"{"a":["a",null],"b":1}"#);
        assert_eq!(canonical("100000000000000000001"), "100000000000000000001");
        assert_ne!(canonical("1"), canonical("1.0"));
        assert_eq!(canonical("{\"b\": NaN, \"a\": -Infinity}"), "{\"a\":-Infinity,\"b\":NaN}");
    }

    #[test]
    fn text_that_cannot_be_parsed_stays_as_it_is() {
        assert_eq!(canonical(r#"["\udcff"]"#), r#"["\udcff"]"#);
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(canonical(&deep), deep);
    }
}
