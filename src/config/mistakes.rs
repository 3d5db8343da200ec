//! Error sentences for wrong settings: misspelt names, values of the wrong type, files that are not TOML.
//! They never repeat the value of a secret.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use config::ConfigError;

use super::names::{PLAIN_NAMES, PREFIX, SECRETS};

/// Most edits between a misspelt name and the setting that is suggested.
const MAX_EDITS: usize = 2;

/// The source of each key, as error sentences show it: `from PORT`, `in settings.toml`.
pub type Places = BTreeMap<String, String>;

/// Warnings about environment variables whose names are one edit away from a setting, like `DATABSE_URL`.
pub fn misspelt_variables() -> Vec<String> {
    let files = SECRETS.iter().map(|name| format!("{name}_FILE"));
    let known = PLAIN_NAMES.iter().map(|&name| name.to_owned()).chain(files).collect::<Vec<_>>();
    let prefixed = known.iter().map(|name| format!("{PREFIX}{name}")).collect::<Vec<_>>();
    let known = [known, prefixed].concat();
    let mut warnings = std::env::vars_os()
        .filter_map(|(variable, value)| {
            let variable = variable.into_string().ok().filter(|_| !value.is_empty())?;
            // An unknown name with our prefix is an error, not a warning: see `unknown`.
            if known.contains(&variable) || variable.starts_with(PREFIX) {
                return None;
            }
            let meant = known.iter().find(|name| strsim::osa_distance(name, &variable) == 1)?;
            Some(format!("{variable} is not a setting; did you mean {meant}?"))
        })
        .collect::<Vec<_>>();
    warnings.sort_unstable();
    warnings
}

/// The error for a file that is not TOML, with the place. Uses only the first and the last line of the
/// library's message, because the lines between repeat the file with its secrets.
pub fn broken_file(file: &Path, error: &ConfigError) -> anyhow::Error {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let place = first.strip_prefix("TOML parse error at ").unwrap_or(first);
    let reason = lines.next_back().map(|reason| format!(": {reason}")).unwrap_or_default();
    anyhow::anyhow!(
        "cannot read {}: {place}{reason}; in TOML a text needs quotes, and a name may be there once",
        file.display()
    )
}

/// The error for an invalid setting, with its source.
pub fn wrong_setting(error: &ConfigError, places: &Places) -> anyhow::Error {
    let place = |key: &str| places.get(key).map(|at| format!(" ({at})")).unwrap_or_default();
    match error {
        ConfigError::At { error: cause, key: Some(key), .. } => match &**cause {
            ConfigError::Type { unexpected, expected, .. } => {
                wrong_type(key, &place(key), unexpected, expected)
            }
            cause => {
                let text = cause.to_string();
                // Serde's wording.
                let kinds = text.strip_prefix("invalid type: ");
                match kinds.and_then(|kinds| kinds.rsplit_once(", expected ")) {
                    Some((found, expected)) => wrong_type(key, &place(key), &found, expected),
                    None => anyhow::anyhow!("{key} is not valid{}: {text}", place(key)),
                }
            }
        },
        ConfigError::Type { unexpected, expected, key: Some(key), .. } => {
            wrong_type(key, &place(key), unexpected, expected)
        }
        // Serde's wording: "unknown field `colour`, expected one of `host`, `port`, …".
        error => {
            let text = error.to_string();
            let mut quoted = text.split('`').skip(1).step_by(2);
            match quoted.next().filter(|_| text.starts_with("unknown field ")) {
                Some(key) => unknown(key, &place(key), quoted),
                None => anyhow::anyhow!("the settings are not valid: {text}"),
            }
        }
    }
}

fn unknown<'a>(key: &str, place: &str, known: impl Iterator<Item = &'a str>) -> anyhow::Error {
    let meant = known
        .map(|name| (strsim::osa_distance(name, key), name))
        .filter(|(edits, _)| *edits <= MAX_EDITS)
        .min();
    match meant {
        Some((_, meant)) => anyhow::anyhow!("{key} is not a setting{place}; did you mean {meant}?"),
        None => anyhow::anyhow!(
            "{key} is not a setting{place}; config/default.toml and docs/configuration.md have them all"
        ),
    }
}

fn wrong_type(key: &str, place: &str, found: &impl Display, expected: &str) -> anyhow::Error {
    let is_secret = SECRETS.iter().any(|secret| secret.eq_ignore_ascii_case(key));
    // The library's wording: a string "eighty", an integer `65536`, a sequence.
    let found = found.to_string();
    let quoted = found.split('`').nth(1).or_else(|| found.strip_prefix("string "));
    let found = match (found.as_str(), quoted) {
        _ if is_secret => "of another kind",
        (_, Some(value)) => value,
        ("sequence", None) => "a list",
        ("map", None) => "a table",
        (other, None) => other,
    };
    let expected = match expected {
        "an unsigned 16 bit integer" => "a whole number from 0 to 65535",
        "an unsigned 32 bit integer" => "a whole number from 0 to 4294967295",
        integer if integer.ends_with("integer") => "a whole number, 0 or more",
        "a boolean" => "true or false",
        "a sequence" | "an array" => "a list, like [\"https://app.example\"]",
        text if is_secret || text.contains("string") => "a text in quotes",
        other => other,
    };
    anyhow::anyhow!("{key} is {found}{place}; it must be {expected}")
}

/// The choice that a setting's word stands for.
///
/// # Errors
/// A sentence that lists the valid words, when `given` is not one of them.
pub fn choice<T: Copy>(
    key: &str,
    given: &str,
    place: Option<&String>,
    choices: &[(&str, T)],
) -> anyhow::Result<T> {
    let chosen = choices.iter().find(|(word, _)| *word == given);
    chosen.map(|(_, choice)| *choice).ok_or_else(|| {
        let words = choices.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>();
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        anyhow::anyhow!("{key} is {given:?}{place}; it must be {}", words.join(" or "))
    })
}
