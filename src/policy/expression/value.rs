//! The values of expressions, and how JSON becomes values.
//!
//! JSON is read by hand because a number must keep all its digits. Copying a value costs the same
//! whatever its size. Text that is not JSON, and JSON that is too deep, too long or names a field twice,
//! becomes [`Value::Unreadable`], which fails every expression that touches it.

use std::ops::Deref;
use std::rc::Rc;

use super::number::Number;
use crate::domain::json::split_string;

/// Deepest nesting of a context, as in `serde_json`.
const MAX_DEPTH: usize = 128;
/// Most values in a context, the fields of objects and the elements of lists counted alike.
const MAX_VALUES: usize = 200_000;

/// A value during one evaluation.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Text<'a>),
    List(Rc<[Value<'a>]>),
    Map(Map<'a>),
    /// No type of expressions holds it.
    Unreadable,
}

impl<'a> Value<'a> {
    /// A text that lives longer than the evaluation.
    pub fn text(text: &'a str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    /// Reads JSON.
    pub fn read(json: &'a str) -> Self {
        let mut reader = Reader { rest: json, left: MAX_VALUES };
        let value = reader.value(0);
        value.filter(|_| reader.peek().is_none()).unwrap_or(Self::Unreadable)
    }
}

/// A text, borrowed or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Rc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// Names and values, sorted by name. No name occurs twice.
#[derive(Clone, Debug)]
pub struct Map<'a>(Rc<[(Text<'a>, Value<'a>)]>);

impl<'a> Map<'a> {
    /// A map of these entries; `None` when a name occurs twice.
    pub fn new(mut entries: Vec<(Text<'a>, Value<'a>)>) -> Option<Self> {
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        let repeats = entries.windows(2).any(|pair| match pair {
            [(one, _), (other, _)] => **one == **other,
            _ => false,
        });
        (!repeats).then(|| Self(entries.into()))
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let at = self.0.binary_search_by(|(entry, _)| (**entry).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// The entries, by name.
    pub fn entries(&self) -> &[(Text<'a>, Value<'a>)] {
        &self.0
    }
}

/// Reads JSON from the front of a text.
struct Reader<'a> {
    rest: &'a str,
    /// How many values may still come.
    left: usize,
}

impl<'a> Reader<'a> {
    /// The next letter that is not white space.
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.chars().next()
    }

    fn take(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        match self.peek()? {
            '{' | '[' if depth == MAX_DEPTH => None,
            '{' => self.object(depth),
            '[' => self.list(depth),
            '"' => self.string(),
            't' => self.take("true").map(|()| Value::Bool(true)),
            'f' => self.take("false").map(|()| Value::Bool(false)),
            'n' => self.take("null").map(|()| Value::Null),
            _ => self.number(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value<'a>> {
        self.take("{")?;
        let mut entries = Vec::new();
        if self.peek()? == '}' {
            self.take("}")?;
            return Map::new(entries).map(Value::Map);
        }
        loop {
            self.peek().filter(|next| *next == '"')?;
            let Value::Text(name) = self.string()? else { return None };
            self.peek();
            self.take(":")?;
            entries.push((name, self.value(depth + 1)?));
            if self.peek()? != ',' {
                self.take("}")?;
                return Map::new(entries).map(Value::Map);
            }
            self.take(",")?;
        }
    }

    fn list(&mut self, depth: usize) -> Option<Value<'a>> {
        self.take("[")?;
        let mut items = Vec::new();
        if self.peek()? == ']' {
            self.take("]")?;
            return Some(Value::List(items.into()));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.peek()? != ',' {
                self.take("]")?;
                return Some(Value::List(items.into()));
            }
            self.take(",")?;
        }
    }

    /// A string. One with a lone surrogate is no text: the value is there, but nothing can be said of it.
    fn string(&mut self) -> Option<Value<'a>> {
        let (string, rest) = split_string(self.rest);
        self.rest = rest;
        let inner = string.strip_prefix('"')?.strip_suffix('"')?;
        if !inner.contains('\\') {
            return Some(Value::text(inner));
        }
        let text = serde_json::from_str::<String>(string).ok();
        Some(text.map_or(Value::Unreadable, |text| Value::Text(Text::Shared(text.into()))))
    }

    /// A number, or one of the bare words that Python writes for what is no number. They are texts, as in
    /// the contexts that people see.
    fn number(&mut self) -> Option<Value<'a>> {
        for word in ["NaN", "Infinity", "-Infinity"] {
            if self.take(word).is_some() {
                return Some(Value::text(word));
            }
        }
        let is_over = |letter: char| !matches!(letter, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
        let end = self.rest.find(is_over).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        if number.is_empty() {
            return None;
        }
        Some(Number::parse(number).map_or(Value::Unreadable, Value::Number))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value as JSON in serde's form; numbers as texts.
    fn shown(value: &Value<'_>) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(is) => (*is).into(),
            Value::Number(number) => format!("#{number}").into(),
            Value::Text(text) => (**text).into(),
            Value::List(items) => items.iter().map(shown).collect(),
            Value::Map(map) => map
                .entries()
                .iter()
                .map(|(name, value)| (name.to_string(), shown(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Value::Unreadable => "unreadable".into(),
        }
    }

    /// The same from `serde_json`.
    fn expected(value: &serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Number(number) => {
                format!("#{}", Number::parse(&number.to_string()).unwrap()).into()
            }
            serde_json::Value::Array(items) => items.iter().map(expected).collect(),
            serde_json::Value::Object(fields) => fields
                .iter()
                .map(|(name, value)| (name.clone(), expected(value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            other => other.clone(),
        }
    }

    fn some_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-c\"\\\\é\n ]{0,5}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-c\"é]{0,2}", inner, 0..4).prop_map(|fields| {
                    fields.into_iter().collect::<serde_json::Map<_, _>>().into()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_read_as_serde_reads_it(value in some_json(), is_pretty in any::<bool>()) {
            let text = if is_pretty {
                serde_json::to_string_pretty(&value).unwrap()
            } else {
                value.to_string()
            };
            prop_assert_eq!(shown(&Value::read(&text)), expected(&value));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}:,\" \\\\0-9a-eNtrulfs.+-]{0,20}|\\PC{0,30}") {
            let value = Value::read(&text);
            if serde_json::from_str::<serde_json::Value>(&text).is_err() {
                let is_lenient = matches!(value, Value::Unreadable)
                    || text.contains(['N', 'I', 'e', '\\', '0', '.']) || text.contains(|c: char| c.is_control());
                prop_assert!(is_lenient, "{} {:?}", text, value);
            }
        }
    }

    #[test]
    fn numbers_keep_their_digits_and_broken_texts_are_unreadable() {
        let read = |text: &str| shown(&Value::read(text)).to_string();
        assert_eq!(read(r#"{"a":9007199254740993.0}"#), r##"{"a":"#9007199254740993"}"##);
        assert_eq!(
            read(r#"["\u0041é", NaN, -Infinity,Infinity]"#),
            r#"["Aé","NaN","-Infinity","Infinity"]"#
        );
        assert_eq!(
            read(r#"{"a":"\udcff","b":1e99999999999999999999}"#),
            r#"{"a":"unreadable","b":"unreadable"}"#
        );
        for text in [
            "",
            "{",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "1 2",
            "tru",
            "\"a",
            "\"a\\\"",
            "{\"\\udcff\":1}",
            "[1}",
            "{\"a\":1]",
            "-",
            "+1",
        ] {
            assert_eq!(read(text), "\"unreadable\"", "{text}");
        }
        assert_eq!(read(r#"{"a":1,"b":2,"\u0061":3}"#), "\"unreadable\"");
    }

    #[test]
    fn deep_and_long_texts_are_unreadable() {
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(matches!(Value::read(&deep(MAX_DEPTH)), Value::List(_)));
        assert!(matches!(Value::read(&deep(MAX_DEPTH + 1)), Value::Unreadable));
        assert!(matches!(Value::read(&deep(500_000)), Value::Unreadable));
        let long = |count| format!("[0{}]", ",0".repeat(count - 2));
        assert!(matches!(Value::read(&long(MAX_VALUES)), Value::List(_)));
        assert!(matches!(Value::read(&long(MAX_VALUES + 1)), Value::Unreadable));
    }

    #[test]
    fn a_map_finds_every_name() {
        let map = |names: &[&'static str]| {
            Map::new(names.iter().map(|name| (Text::Borrowed(name), Value::text(name))).collect())
        };
        let found = map(&["c", "a", "b"]).unwrap();
        for name in ["a", "b", "c"] {
            assert!(matches!(found.get(name), Some(Value::Text(text)) if **text == *name));
        }
        assert!(found.get("d").is_none() && map(&["b", "a", "b"]).is_none());
    }
}
