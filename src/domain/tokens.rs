//! Token classes and quantities.
//!
//! Classes are disjoint: a token (or a fee unit) is counted in exactly one of them, so a cost is a plain sum of
//! `quantity x rate` (design section 1 and 4; `usage-and-prices` 1.8).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The largest quantity of one class in one event: far above any real call, far below overflow.
pub const QUANTITY_MAX: i64 = 1_000_000_000_000;

macro_rules! token_classes {
    ($($(#[$doc:meta])* $variant:ident => $name:literal, parent $parent:expr;)+) => {
        /// One disjoint kind of quantity that a rate can be set for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum TokenClass { $($(#[$doc])* $variant,)+ }

        impl TokenClass {
            /// All classes, the six main ones first.
            pub const ALL: [Self; CLASS_COUNT] = [$(Self::$variant,)+];

            /// The name on the wire and in the database.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The class whose rate applies where this one has none of its own; `None` for the roots and for fees.
            pub const fn parent(self) -> Option<Self> {
                match self { $(Self::$variant => $parent,)+ }
            }
        }
    };
}

/// How many classes there are.
pub const CLASS_COUNT: usize = 22;
/// How many of them are the main ones, with a column of their own in the journal.
pub const MAIN_CLASS_COUNT: usize = 6;

token_classes! {
    /// Prompt tokens neither read from nor written to a cache.
    Input => "input", parent None;
    /// Prompt tokens read from a cache.
    CacheRead => "cache_read", parent Some(Self::Input);
    /// Prompt tokens written to a cache with a five-minute (or the only) lifetime.
    CacheWrite5m => "cache_write_5m", parent Some(Self::Input);
    /// Prompt tokens written to a cache with a one-hour lifetime.
    CacheWrite1h => "cache_write_1h", parent Some(Self::CacheWrite5m);
    /// Visible completion tokens.
    Output => "output", parent None;
    /// Reasoning (thinking) tokens.
    Reasoning => "reasoning", parent Some(Self::Output);
    /// Audio prompt tokens.
    InputAudio => "input_audio", parent Some(Self::Input);
    /// Image prompt tokens.
    InputImage => "input_image", parent Some(Self::Input);
    /// Video prompt tokens.
    InputVideo => "input_video", parent Some(Self::Input);
    /// Audio prompt tokens read from a cache.
    CacheReadAudio => "cache_read_audio", parent Some(Self::CacheRead);
    /// Image prompt tokens read from a cache.
    CacheReadImage => "cache_read_image", parent Some(Self::CacheRead);
    /// Video prompt tokens read from a cache.
    CacheReadVideo => "cache_read_video", parent Some(Self::CacheRead);
    /// Audio completion tokens.
    OutputAudio => "output_audio", parent Some(Self::Output);
    /// Image completion tokens.
    OutputImage => "output_image", parent Some(Self::Output);
    /// Video completion tokens.
    OutputVideo => "output_video", parent Some(Self::Output);
    /// Fee per request.
    Request => "request", parent None;
    /// Fee per web search.
    WebSearch => "web_search", parent None;
    /// Fee per code interpreter session.
    CodeSession => "code_session", parent None;
    /// Fee per generated or read image.
    Image => "image", parent None;
    /// Fee per page.
    Page => "page", parent None;
    /// Fee per second of audio or video.
    Second => "second", parent None;
    /// Fee per character.
    Character => "character", parent None;
}

impl TokenClass {
    /// The position in [`Quantities`] and in a price's rates.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether it counts tokens of the prompt, cached or not: what a context tier is compared with.
    pub const fn is_prompt(self) -> bool {
        matches!(
            self,
            Self::Input
                | Self::CacheRead
                | Self::CacheWrite5m
                | Self::CacheWrite1h
                | Self::InputAudio
                | Self::InputImage
                | Self::InputVideo
                | Self::CacheReadAudio
                | Self::CacheReadImage
                | Self::CacheReadVideo
        )
    }

    /// Whether it is a fee counted in units other than tokens.
    pub const fn is_fee(self) -> bool {
        self.index() >= Self::Request.index()
    }
}

impl fmt::Display for TokenClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no token class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a token class")]
pub struct UnknownClass(pub String);

impl FromStr for TokenClass {
    type Err = UnknownClass;

    fn from_str(name: &str) -> Result<Self, UnknownClass> {
        Self::ALL
            .into_iter()
            .find(|class| class.name() == name)
            .ok_or_else(|| UnknownClass(name.chars().take(40).collect()))
    }
}

impl Serialize for TokenClass {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TokenClass {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(de::Error::custom)
    }
}

/// A quantity outside `0..=10^12`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{class} is {value}; a quantity is between 0 and {QUANTITY_MAX}")]
pub struct QuantityOutOfRange {
    /// The class.
    pub class: TokenClass,
    /// What was given.
    pub value: i64,
}

/// How much of each class one usage part used; negative only in a reversal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quantities([i64; CLASS_COUNT]);

impl Quantities {
    /// Nothing of any class.
    pub const NONE: Self = Self([0; CLASS_COUNT]);

    /// Sets one class.
    ///
    /// # Errors
    /// [`QuantityOutOfRange`] outside `0..=`[`QUANTITY_MAX`].
    pub const fn set(&mut self, class: TokenClass, value: i64) -> Result<(), QuantityOutOfRange> {
        if value < 0 || value > QUANTITY_MAX {
            return Err(QuantityOutOfRange { class, value });
        }
        self.0[class.index()] = value;
        Ok(())
    }

    /// The quantity of one class.
    pub const fn get(&self, class: TokenClass) -> i64 {
        self.0[class.index()]
    }

    /// The classes with a quantity other than zero, in the order of [`TokenClass::ALL`].
    pub fn non_zero(&self) -> impl Iterator<Item = (TokenClass, i64)> + '_ {
        TokenClass::ALL
            .into_iter()
            .map(|class| (class, self.get(class)))
            .filter(|(_, quantity)| *quantity != 0)
    }

    /// The main classes, which have a column of their own.
    pub fn main(&self) -> [i64; MAIN_CLASS_COUNT] {
        std::array::from_fn(|class| self.0[class])
    }

    /// The other classes with a quantity other than zero.
    pub fn rare(&self) -> impl Iterator<Item = (TokenClass, i64)> + '_ {
        self.non_zero().filter(|(class, _)| class.index() >= MAIN_CLASS_COUNT)
    }

    /// All prompt tokens, cache reads and writes included.
    pub fn prompt_total(&self) -> i64 {
        self.non_zero().filter(|(class, _)| class.is_prompt()).map(|(_, quantity)| quantity).sum()
    }

    /// Whether every class is zero.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|quantity| *quantity == 0)
    }

    /// Whether it is usage of a call that counts no request: the call is one, for a price with a fee per request.
    pub fn lacks_request(&self) -> bool {
        self.get(TokenClass::Request) == 0 && !self.is_zero()
    }

    /// Whether its only request is the call itself, beside what else the call used: nothing is missing where a price has
    /// no fee for that. A call that is nothing but requests (search units, classifications) is charged by them alone.
    pub fn has_only_own_request(&self) -> bool {
        self.get(TokenClass::Request).abs() == 1
            && self.non_zero().any(|(class, _)| class != TokenClass::Request)
    }

    /// The same quantities with the call counted as one request.
    #[must_use]
    pub const fn with_own_request(mut self) -> Self {
        self.0[TokenClass::Request.index()] = 1;
        self
    }

    /// The same quantities with the opposite sign: a reversal.
    #[must_use]
    pub fn negated(&self) -> Self {
        Self(self.0.map(|quantity| -quantity))
    }

    /// Quantities as they stand in the journal, reversals included.
    pub const fn from_raw(raw: [i64; CLASS_COUNT]) -> Self {
        Self(raw)
    }

    /// All quantities in the order of [`TokenClass::ALL`].
    pub const fn raw(&self) -> &[i64; CLASS_COUNT] {
        &self.0
    }
}
