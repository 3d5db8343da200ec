//! JSON whose spelling is preserved.
//!
//! The JSON in a request belongs to its agent: numbers, unknown fields and their order must be written
//! back exactly as they were read. So an object is a map from name to raw text, and its values are not
//! parsed into Rust numbers and strings.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

/// A JSON object whose values are kept as raw text. If a name occurs twice, the last value counts, as
/// in the parsers of Python and of browsers.
pub type RawObject = IndexMap<String, Box<RawValue>>;

/// The deepest nesting that [`canonical`](super::python_json::canonical) rewrites. Each level is parsed
/// once more, so this bounds the work for one document.
pub const MAX_DEPTH: usize = 32;

/// Raw JSON of a value whose serialisation cannot fail (strings, integers, our own structs).
#[must_use]
pub fn raw<T: serde::Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// A text of JSON as a value; `null` when it is not valid JSON.
#[must_use]
pub fn raw_or_null(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_invalid| raw(&()))
}

/// The value of a field; `None` when the field is absent or `null`.
#[must_use]
pub fn present<'a>(object: &'a RawObject, name: &str) -> Option<&'a RawValue> {
    object.get(name).map(AsRef::as_ref).filter(|value| value.get() != "null")
}

/// A string, or an integer as its decimal digits: other programs write ids in either form.
#[must_use]
pub fn text_or_digits(value: &RawValue) -> Option<String> {
    read_name(value.get())
}

/// As [`text_or_digits`], for the value's JSON text.
#[must_use]
pub fn read_name(value: &str) -> Option<String> {
    if let Ok(string) = serde_json::from_str::<String>(value) {
        return Some(string);
    }
    let digits = value.strip_prefix('-').unwrap_or(value);
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| value.to_owned())
}

/// Most digits of a Postgres `numeric` before its decimal point.
const MAX_WHOLE_DIGITS: i64 = 131_072;
/// Most digits of a Postgres `numeric` after its decimal point.
const MAX_FRACTION_DIGITS: i64 = 16_383;

/// The JSON in a form that Postgres can cast to `jsonb`: escapes of NUL and of lone surrogates become
/// `\ufffd`, and numbers outside the range of `numeric` become strings. `text` must be valid JSON.
#[must_use]
pub fn storable(text: &str) -> String {
    let mut storable = String::with_capacity(text.len());
    let mut rest = text;
    let starts = |letter: char| matches!(letter, '"' | '-' | '0'..='9');
    while let Some((before, from)) = rest.find(starts).and_then(|at| rest.split_at_checked(at)) {
        storable.push_str(before);
        rest = if from.starts_with('"') {
            let (string, after) = split_string(from);
            push_storable_string(&mut storable, string);
            after
        } else {
            let is_over = |letter: char| !matches!(letter, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
            let end = from.find(is_over).unwrap_or(from.len());
            let (number, after) = from.split_at_checked(end).unwrap_or((from, ""));
            let quote = if is_numeric(number) { "" } else { "\"" };
            storable.extend([quote, number, quote]);
            after
        };
    }
    storable.push_str(rest);
    storable
}

/// Whether a JSON number fits Postgres' `numeric`.
fn is_numeric(number: &str) -> bool {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let count = |digits: &str| i64::try_from(digits.trim_start_matches('-').len()).ok();
    let fits = || {
        let exponent = exponent.trim_start_matches('+').parse::<i32>().ok()?;
        let exponent = i64::from(exponent);
        Some(
            count(whole)? + exponent <= MAX_WHOLE_DIGITS
                && count(fraction)? - exponent <= MAX_FRACTION_DIGITS,
        )
    };
    fits().unwrap_or(false)
}

/// Splits a text that begins with a JSON string: the string with its quotes, and the rest. If the
/// string has no closing quote, the rest is empty.
pub(crate) fn split_string(text: &str) -> (&str, &str) {
    let mut is_escaped = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return text.split_at_checked(at + 1).unwrap_or((text, "")),
            _ => {}
        }
    }
    (text, "")
}

/// Writes a JSON string, with `\ufffd` for escapes of NUL and of lone surrogates.
fn push_storable_string(storable: &mut String, string: &str) {
    let mut rest = string;
    while let Some((before, escape)) = rest.split_once('\\') {
        storable.push_str(before);
        let code = |escape: &str| {
            let digits = escape.strip_prefix('u')?.get(..4)?;
            u32::from_str_radix(digits, 16).ok()
        };
        let low = || escape.get(5..)?.strip_prefix('\\').and_then(code);
        let (kept, length) = match code(escape) {
            Some(0xd800..0xdc00) if matches!(low(), Some(0xdc00..0xe000)) => (escape.get(..11), 11),
            Some(0 | 0xd800..0xe000) => (Some("ufffd"), 5),
            Some(_) => (escape.get(..5), 5),
            None => {
                let length = escape.chars().next().map_or(0, char::len_utf8);
                (escape.get(..length), length)
            }
        };
        storable.push('\\');
        storable.push_str(kept.unwrap_or_default());
        rest = escape.get(length..).unwrap_or_default();
    }
    storable.push_str(rest);
}

/// Checks JSON that all parsers read alike and every store can keep: no object names a field twice,
/// and no text contains a NUL character. `serde_json` itself refuses deep nesting, lone surrogates and
/// numbers that no type can hold.
#[derive(Debug)]
pub struct StrictJson;

/// As [`StrictJson`], with the parsed value.
#[derive(Debug)]
pub struct StrictJsonValue(pub Value);

impl<'de> Deserialize<'de> for StrictJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StrictJsonVisitor { keeps: false }.deserialize(deserializer).map(|_nothing| Self)
    }
}

impl<'de> Deserialize<'de> for StrictJsonValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StrictJsonVisitor { keeps: true }.deserialize(deserializer).map(Self)
    }
}

/// Reads strict JSON. Builds the value only if `keeps`: a parsed list of a million zeros takes 30 times
/// the memory of its text.
#[derive(Clone, Copy)]
struct StrictJsonVisitor {
    keeps: bool,
}

impl<'de> DeserializeSeed<'de> for StrictJsonVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictJsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        if text.contains('\0') {
            return Err(E::custom("holds a NUL character"));
        }
        Ok(if self.keeps { text.into() } else { Value::Null })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            if self.keeps {
                array.push(item);
            }
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.visit_str::<A::Error>(&name)?;
            let value = fields.next_value_seed(self)?;
            if object.contains_key(&name) {
                return Err(de::Error::custom(format_args!("duplicate field `{name}`")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_postgres_cannot_cast_are_replaced() {
        for (text, kept) in [
            (r#"["a\u0000b"]"#, r#"["a\ufffdb"]"#),
            (r#"["\\u0000"]"#, r#"["\\u0000"]"#),
            (r#"["\ud83d\ude00"]"#, r#"["\ud83d\ude00"]"#),
            (r#"["\ud83d", "\ude00", "\ud83d\u0041"]"#, r#"["\ufffd", "\ufffd", "\ufffd\u0041"]"#),
            (r#"["\n\u0041é\"", 1]"#, r#"["\n\u0041é\"", 1]"#),
            (r#"{"\u0000":1,"\ud800":2}"#, r#"{"\ufffd":1,"\ufffd":2}"#),
            (r#"{"a\\":-1.50,"1e-99999":[0,1E5]}"#, r#"{"a\\":-1.50,"1e-99999":[0,1E5]}"#),
            ("[1e-99999,-1E+140000 , 1e400]", r#"["1e-99999","-1E+140000" , 1e400]"#),
            ("1e99999999999", r#""1e99999999999""#),
            ("[1e-16383,1e-16384,0.0e-16383]", r#"[1e-16383,"1e-16384","0.0e-16383"]"#),
            ("[1e131071,1e131072,-1e131071]", r#"[1e131071,"1e131072",-1e131071]"#),
        ] {
            assert_eq!(storable(text), kept);
        }
    }

    #[test]
    fn ids_may_be_integers_but_no_other_numbers() {
        let read =
            |text: &str| text_or_digits(&serde_json::from_str::<Box<RawValue>>(text).unwrap());
        assert_eq!(read("\"t1\"").as_deref(), Some("t1"));
        assert_eq!(read("42").as_deref(), Some("42"));
        assert_eq!(read("1e3"), None);
        assert_eq!(read("1.5"), None);
        assert_eq!(read("true"), None);
        assert_eq!(read("{}"), None);
    }
}
