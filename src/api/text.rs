//! Sentences that people read, in English and Korean. `Accept-Language` chooses.

use std::borrow::Cow;

/// One sentence in both languages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// English, the default.
    pub en: Cow<'static, str>,
    /// Korean.
    pub ko: Cow<'static, str>,
}

impl Text {
    /// A sentence.
    pub fn new(en: impl Into<Cow<'static, str>>, ko: impl Into<Cow<'static, str>>) -> Self {
        Self { en: en.into(), ko: ko.into() }
    }

    /// The English sentence.
    #[must_use]
    pub fn english(&self) -> &str {
        &self.en
    }

    /// The sentence in the caller's language.
    #[must_use]
    pub fn in_language(self, language: Language) -> String {
        match language {
            Language::English => self.en,
            Language::Korean => self.ko,
        }
        .into_owned()
    }
}

/// A language of the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Korean.
    Korean,
}

impl Language {
    /// The language of the terminal's locale.
    #[must_use]
    pub fn of_terminal() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale =
            variable("LC_ALL").or_else(|| variable("LC_MESSAGES")).or_else(|| variable("LANG"));
        if locale.is_some_and(|locale| locale.starts_with("ko")) {
            Self::Korean
        } else {
            Self::English
        }
    }
}
