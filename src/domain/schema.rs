//! JSON Schemas (2020-12) of agents: for the arguments and the answers that a person may give.
//!
//! A schema is a stranger's program, so it is bounded before it is run: no reference leads out of it or
//! back to itself, what its references repeat is counted, and its patterns run in linear time.

use std::collections::{HashMap, HashSet};

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// The largest schema, in bytes.
pub const MAX_SCHEMA_BYTES: usize = 32 * 1024;
/// The most keywords and values that a schema may have, counted where each reference leads as if it stood
/// there. A value is compared with each of them at most once for each of its parts.
const MAX_EXPANDED_NODES: u64 = 5000;
/// The most regular expressions in a schema, counted once each.
const MAX_PATTERNS: usize = 64;
/// The largest compiled regular expression, in bytes.
const MAX_PATTERN_BYTES: usize = 256 * 1024;
/// The most problems of one value that are told.
const MAX_PROBLEMS: usize = 50;
/// The dialect that a schema may name.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Keywords that change what references mean.
const BARRED: [&str; 6] =
    ["$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef", "$vocabulary"];

/// Why a text is no schema that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaProblem {
    /// More than [`MAX_SCHEMA_BYTES`].
    TooLarge,
    /// Neither an object nor a boolean, or not valid by its dialect. Says why, in English.
    Invalid(String),
    /// Names another dialect than 2020-12.
    OtherDialect,
    /// Uses this keyword, which is not taken.
    Barred(&'static str),
    /// A reference leads out of the schema.
    Remote,
    /// A reference leads back to where it stands.
    Recursive,
    /// Its references repeat too much, or it has too many patterns.
    TooComplex,
}

/// One thing that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where, as a JSON Pointer; empty for the whole value.
    pub pointer: String,
    /// The keyword of the schema that is not met.
    pub keyword: String,
    /// What is wrong, in English, without the value.
    pub problem: String,
}

/// A schema that may be used.
#[derive(Debug)]
pub struct Schema(Validator);

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`SchemaProblem`].
    pub fn read(text: &str) -> Result<Self, SchemaProblem> {
        if text.len() > MAX_SCHEMA_BYTES {
            return Err(SchemaProblem::TooLarge);
        }
        let invalid = |problem: String| SchemaProblem::Invalid(problem);
        let schema: Value =
            serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if !(schema.is_object() || schema.is_boolean()) {
            return Err(invalid("it is neither an object nor a boolean".to_owned()));
        }
        if schema.get("$schema").is_some_and(|named| {
            named.as_str().is_none_or(|named| named.trim_end_matches('#') != DIALECT)
        }) {
            return Err(SchemaProblem::OtherDialect);
        }
        let mut size = Size { root: &schema, known: HashMap::new(), within: HashSet::new() };
        if size.of(&schema)? > MAX_EXPANDED_NODES || patterns(&schema) > MAX_PATTERNS {
            return Err(SchemaProblem::TooComplex);
        }
        let patterns =
            PatternOptions::regex().size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(patterns)
            .should_validate_formats(false)
            .offline()
            .build(&schema)
            .map_err(|error| invalid(error.masked().to_string()))?;
        Ok(Self(validator))
    }

    /// What is wrong with a value; nothing if it is valid.
    #[must_use]
    pub fn mismatches(&self, value: &Value) -> Vec<Mismatch> {
        let problems = self.0.iter_errors(value).take(MAX_PROBLEMS);
        let mismatch = |error: jsonschema::ValidationError<'_>| Mismatch {
            pointer: error.instance_path().as_str().to_owned(),
            keyword: error.kind().keyword().to_owned(),
            problem: error.masked().to_string(),
        };
        problems.map(mismatch).collect()
    }
}

/// Counts the nodes of a schema with its references expanded.
struct Size<'a> {
    root: &'a Value,
    /// The sizes of the targets of references.
    known: HashMap<&'a str, u64>,
    /// The references that are being expanded.
    within: HashSet<&'a str>,
}

impl<'a> Size<'a> {
    fn of(&mut self, node: &'a Value) -> Result<u64, SchemaProblem> {
        let mut size = 1_u64;
        match node {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if let Some(barred) = BARRED.into_iter().find(|barred| barred == name) {
                        return Err(SchemaProblem::Barred(barred));
                    }
                    size = size.saturating_add(self.of(value)?);
                    if name == "$ref"
                        && let Some(target) = value.as_str()
                    {
                        size = size.saturating_add(self.of_target(target)?);
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    size = size.saturating_add(self.of(item)?);
                }
            }
            _ => {}
        }
        Ok(size)
    }

    fn of_target(&mut self, target: &'a str) -> Result<u64, SchemaProblem> {
        if let Some(size) = self.known.get(target) {
            return Ok(*size);
        }
        let pointer = target.strip_prefix('#').ok_or(SchemaProblem::Remote)?;
        let pointer = percent_encoding::percent_decode_str(pointer).decode_utf8_lossy();
        let found = self.root.pointer(&pointer).ok_or_else(|| {
            SchemaProblem::Invalid("a $ref leads to nothing in this schema".to_owned())
        })?;
        if !self.within.insert(target) {
            return Err(SchemaProblem::Recursive);
        }
        let size = self.of(found)?;
        self.within.remove(target);
        self.known.insert(target, size);
        Ok(size)
    }
}

/// How many regular expressions a schema has.
fn patterns(node: &Value) -> usize {
    match node {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match (name.as_str(), value) {
                ("pattern", Value::String(_)) => 1,
                ("patternProperties", Value::Object(of)) => of.len() + patterns(value),
                _ => patterns(value),
            })
            .sum(),
        Value::Array(items) => items.iter().map(patterns).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn problem(schema: &Value) -> SchemaProblem {
        Schema::read(&schema.to_string()).unwrap_err()
    }

    #[test]
    fn a_value_is_compared_and_each_field_is_named() {
        let schema = json!({
            "$schema": DIALECT, "type": "object", "required": ["to"],
            "properties": {
                "to": { "$ref": "#/$defs/mail" }, "amount": { "type": "number", "maximum": 100 },
                "a/b": { "type": "string" },
            },
            "additionalProperties": false,
            "$defs": { "mail": { "type": "string", "pattern": "^[^@]+@[^@]+$" } },
        });
        let schema = Schema::read(&schema.to_string()).unwrap();
        assert_eq!(schema.mismatches(&json!({ "to": "a@b.c", "amount": 5 })), []);
        let wrong = schema.mismatches(&json!({ "to": "secret", "amount": 500, "a/b": 1 }));
        let mut pointers = wrong.iter().map(|one| one.pointer.as_str()).collect::<Vec<_>>();
        pointers.sort_unstable();
        assert_eq!(pointers, ["/amount", "/a~1b", "/to"]);
        assert!(wrong.iter().all(|one| !one.problem.contains("secret")), "{wrong:?}");
        let wrong = schema.mismatches(&json!({ "more": 1 }));
        assert_eq!(wrong.iter().map(|one| &*one.pointer).collect::<Vec<_>>(), ["", ""]);
    }

    #[test]
    fn hostile_schemas_are_refused() {
        let doubling = |depth: usize| {
            let mut defs = serde_json::Map::new();
            for level in 0..depth {
                let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
                defs.insert(format!("d{level}"), json!({ "allOf": [next, next] }));
            }
            defs.insert(format!("d{depth}"), json!({ "type": "string" }));
            json!({ "$ref": "#/$defs/d0", "$defs": defs })
        };
        for (schema, expected) in [
            (json!({ "$ref": "https://example.com/schema" }), SchemaProblem::Remote),
            (json!({ "$ref": "file:///etc/passwd" }), SchemaProblem::Remote),
            (json!({ "properties": { "a": { "$ref": "other.json#/a" } } }), SchemaProblem::Remote),
            (json!({ "$ref": "#" }), SchemaProblem::Recursive),
            (json!({ "properties": { "child": { "$ref": "#" } } }), SchemaProblem::Recursive),
            (
                json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
                SchemaProblem::Recursive,
            ),
            (json!({ "$id": "https://example.com/a" }), SchemaProblem::Barred("$id")),
            (json!({ "$dynamicRef": "#a" }), SchemaProblem::Barred("$dynamicRef")),
            (
                json!({ "$schema": "http://json-schema.org/draft-07/schema#" }),
                SchemaProblem::OtherDialect,
            ),
            (doubling(40), SchemaProblem::TooComplex),
            (
                json!({ "allOf": vec![json!({ "pattern": "a" }); MAX_PATTERNS + 1] }),
                SchemaProblem::TooComplex,
            ),
            (json!({ "description": "x".repeat(MAX_SCHEMA_BYTES) }), SchemaProblem::TooLarge),
        ] {
            assert_eq!(problem(&schema), expected, "{schema}");
        }
        for schema in [
            json!([]),
            json!("a"),
            json!({ "type": "text" }),
            json!({ "pattern": "(" }),
            // Linear engines take no look-around and no back-references.
            json!({ "pattern": "(?=a)" }),
            json!({ "pattern": r"(a)\1" }),
            json!({ "pattern": "((a{1000}){1000}){1000}" }),
            json!({ "$ref": "#/$defs/missing" }),
        ] {
            assert!(matches!(problem(&schema), SchemaProblem::Invalid(_)), "{schema}");
        }
        assert!(matches!(Schema::read("{"), Err(SchemaProblem::Invalid(_))));
        assert!(Schema::read(&doubling(5).to_string()).is_ok());
    }

    #[test]
    fn exponential_patterns_run_in_linear_time() {
        let began = Instant::now();
        let schema = json!({ "type": "string", "pattern": "^(a+)+$" });
        let schema = Schema::read(&schema.to_string()).unwrap();
        let value = format!("{}!", "a".repeat(50_000));
        assert_eq!(schema.mismatches(&json!(value)).len(), 1);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
