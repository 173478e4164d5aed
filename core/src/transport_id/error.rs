//! What can be wrong with a transport identifier, and where.

use std::fmt;

use crate::nqn::NqnError;

/// How much of a hostile input an error message repeats, in characters.
const EXCERPT: usize = 160;

/// Where in the parsed text something is wrong. Values that came through the builder have no place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place(Option<(usize, String)>);

impl Place {
    /// Byte `position` of `input`.
    pub(super) fn at(position: usize, input: &str) -> Self {
        // Of a long input show the stretch that holds the position.
        let mut start =
            if position > EXCERPT / 2 && input.len() > EXCERPT { position - EXCERPT / 2 } else { 0 };
        while !input.is_char_boundary(start) {
            start -= 1;
        }
        let ahead = if start > 0 { "…" } else { "" };
        Self(Some((position, format!("{ahead}{}", excerpt(&input[start..])))))
    }

    /// The position in bytes from the start of the text, if the error is about a text.
    #[must_use]
    pub fn position(&self) -> Option<usize> {
        self.0.as_ref().map(|(position, _)| *position)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((position, input)) => write!(f, " at byte {position} of {input:?}"),
            None => Ok(()),
        }
    }
}

/// The first characters of `text`, for a message.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The "did you mean" part of a message.
struct Hint<'a>(&'a Option<&'static str>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(key) => write!(f, " (did you mean {key:?}?)"),
            None => write!(
                f,
                " (known: trtype adrfam traddr trsvcid subnqn priority hostaddr hostsvcid hostiface hostnqn ns)"
            ),
        }
    }
}

/// Why a text or a set of values is not a transport identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportIdError {
    /// A word without `:` or `=`.
    #[error("{word:?}{place} is neither key:value nor key=value")]
    NotAPair {
        /// The word.
        word: String,
        /// Where it starts.
        place: Place,
    },
    /// A key this grammar does not have.
    #[error("unknown key {key:?}{place}{}", Hint(suggestion))]
    UnknownKey {
        /// The key as given.
        key: String,
        /// Where it starts.
        place: Place,
        /// The key that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// A key given twice.
    #[error("key {key:?}{place} was given before, at byte {first}")]
    Duplicate {
        /// The key.
        key: &'static str,
        /// Where the second one starts.
        place: Place,
        /// Where the first one starts, in bytes.
        first: usize,
    },
    /// A key that must be there is not.
    #[error("{key:?} is missing: {reason}{place}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Why it must be there.
        reason: &'static str,
        /// The text it is missing from.
        place: Place,
    },
    /// A value, or the whole text, is too long.
    #[error("{key} has {length} bytes, at most {max} are allowed{place}")]
    TooLong {
        /// The key, or "the transport identifier".
        key: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The longest allowed.
        max: usize,
        /// Where the value starts.
        place: Place,
    },
    /// A value the key does not take.
    #[error("{key} can not be {value:?}{place}: allowed is {allowed}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// The value as given, shortened if long.
        value: String,
        /// What would be a value.
        allowed: &'static str,
        /// Where the value starts.
        place: Place,
    },
    /// A value that is no NQN.
    #[error("{key}{place}: {source}")]
    Nqn {
        /// The key.
        key: &'static str,
        /// Where the value starts.
        place: Place,
        /// What is wrong with it.
        source: NqnError,
    },
    /// Two values that exclude each other, e.g. `adrfam:IPv4` and an IPv6 address.
    #[error("{key} {value:?}{place} contradicts {other}")]
    Contradiction {
        /// The key.
        key: &'static str,
        /// Its value, shortened if long.
        value: String,
        /// Where the value starts.
        place: Place,
        /// What it contradicts.
        other: String,
    },
    /// The URI form has a part that is wrong or not supported.
    #[error("malformed transport URI{place}: {reason}")]
    Uri {
        /// Where it goes wrong.
        place: Place,
        /// What is wrong.
        reason: &'static str,
    },
}

impl TransportIdError {
    /// The same error, saying where in a parsed text the value stands.
    pub(super) fn located(mut self, at: Place) -> Self {
        match &mut self {
            Self::NotAPair { place, .. }
            | Self::UnknownKey { place, .. }
            | Self::Duplicate { place, .. }
            | Self::Missing { place, .. }
            | Self::TooLong { place, .. }
            | Self::InvalidValue { place, .. }
            | Self::Nqn { place, .. }
            | Self::Contradiction { place, .. }
            | Self::Uri { place, .. } => *place = at,
        }
        self
    }

    pub(super) fn invalid(key: &'static str, value: &str, allowed: &'static str) -> Self {
        Self::InvalidValue { key, value: excerpt(value), allowed, place: Place::default() }
    }

    pub(super) fn contradiction(key: &'static str, value: &str, other: String) -> Self {
        Self::Contradiction { key, value: excerpt(value), place: Place::default(), other }
    }
}
