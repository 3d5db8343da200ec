//! Damage to JSON by chance, the same chance in every run.

use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::Value;

/// A seeded source of chance.
pub struct Dice(TestRng);

impl Dice {
    pub fn new(seed: u8) -> Self {
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
    }

    /// A number below another.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % u64::try_from(end).unwrap()).unwrap()
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// The text of an object, once in a while whole, mostly damaged: in its fields, in its bytes
    /// or in both.
    pub fn damaged(&mut self, object: &Value) -> Vec<u8> {
        let mut fields = fields_of(object);
        self.damage_fields(&mut fields);
        let mut text = written(&fields);
        self.damage_bytes(&mut text);
        text
    }

    fn damage_fields(&mut self, fields: &mut Vec<(String, String)>) {
        let place = self.below(fields.len());
        let odd = self.pick(&odd_values()).clone();
        match self.below(8) {
            0 | 1 => fields[place].1 = odd,
            // The same name once more, before or behind, perhaps spelled another way.
            2 => {
                let mut again = (fields[place].0.clone(), odd);
                if self.below(2) == 0 {
                    let first = again.0.as_bytes()[1];
                    again.0.replace_range(1..2, &format!("\\u{first:04x}"));
                }
                let before = self.below(fields.len() + 1);
                fields.insert(before, again);
            }
            3 => _ = fields.remove(place),
            4 => {
                let status = ["approved", "rejected", "expired", "PENDING", "pending ", "", "\0"];
                let status = Value::from(*self.pick(&status)).to_string();
                fields.extend([("\"status\"".to_owned(), status)]);
            }
            5 => fields.insert(place, (self.pick(&odd_values()).clone(), odd)),
            _ => {}
        }
    }

    fn damage_bytes(&mut self, text: &mut Vec<u8>) {
        let (one, other) = (self.below(text.len()), self.below(text.len()));
        let range = one.min(other)..one.max(other);
        match self.below(16) {
            0 => text.truncate(one),
            1 | 2 => {
                for _ in 0..=self.below(4) {
                    let byte = self.below(text.len());
                    text[byte] ^= 1 << self.below(8);
                }
            }
            3 => _ = text.splice(one..one, [0xff, 0xfe, 0xc0, 0x80]),
            4 => text.insert(one, *self.pick(b"\0\n\"\\{}[],:x")),
            5 => drop(text.drain(range)),
            6 => {
                let twice = text[range].to_vec();
                drop(text.splice(one..one, twice));
            }
            7 => {
                let more: [&[u8]; 5] = [b"x", b"{}", b"\0", b"  \n", b","];
                text.extend_from_slice(self.pick::<&[u8]>(&more));
            }
            8 => {
                let before: [&[u8]; 4] = [b"\xef\xbb\xbf", b"\0", b"[", b"\n "];
                drop(text.splice(0..0, self.pick::<&[u8]>(&before).iter().copied()));
            }
            9 => *text = self.pick(&odd_values()).clone().into_bytes(),
            _ => {}
        }
    }
}

/// An object's text with one of its fields replaced by another text, be it JSON or not.
pub fn with_field(object: &Value, name: &str, text: &str) -> Vec<u8> {
    let mut fields = fields_of(object);
    let name = Value::from(name).to_string();
    fields
        .iter_mut()
        .filter(|field| field.0 == name)
        .for_each(|field| text.clone_into(&mut field.1));
    written(&fields)
}

/// Names and values as they are spelled.
fn fields_of(object: &Value) -> Vec<(String, String)> {
    let fields = object.as_object().unwrap().iter();
    fields
        .map(|(name, value)| (Value::from(name.as_str()).to_string(), value.to_string()))
        .collect()
}

fn written(fields: &[(String, String)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| format!("{name}:{value}"));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(",")).into_bytes()
}

/// JSON, or nearly, that nobody expects where it stands.
pub fn odd_values() -> Vec<String> {
    let few = [
        "null",
        "true",
        "0",
        "-1",
        "7",
        "-0",
        "1.5",
        "1e3",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "0x10",
        "01",
        "\"\"",
        "\" \"",
        "\"\\u0000\"",
        "\"user123\\u0000\"",
        "\"\\ud800\"",
        "\"\\udc00x\"",
        "\"a\nb\"",
        "\"\\n\"",
        "\"\\x41\"",
        "\"req_another\"",
        "\"pending\"",
        "\"tenant2\"",
        "\"*\"",
        "\"a b\"",
        "\"../../x\"",
        "\"가\"",
        "\"\u{202e}\"",
        "[]",
        "{}",
        "[[]]",
        "[\"user123\"]",
        "{\"a\":{}}",
        "{\"a\":1,\"a\":2}",
        "[null,{\"x\":[1e999]}]",
        "\"[1]\"",
        "\"{\\\"id\\\":1}\"",
        "18446744073709551616",
        "'x'",
        "",
    ];
    let long = [
        "9".repeat(400),
        format!("1{}e9", "0".repeat(5_000)),
        format!("\"{}\"", "x".repeat(300)),
        format!("\"{}\"", "가".repeat(50_000)),
        format!("{}{}", "[".repeat(40), "]".repeat(40)),
        format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)),
        format!("{}1{}", "{\"a\":".repeat(5_000), "}".repeat(5_000)),
        "[".repeat(20_000),
    ];
    few.map(ToOwned::to_owned).into_iter().chain(long).collect()
}
