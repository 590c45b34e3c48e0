//! `waybill prices`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use clap::Args;

use super::DatabaseArgs;
use crate::rating::import::{Format, UnknownFormat};
use crate::rating::starter;

/// How the command line names the starter cost book.
const STARTER: &str = "starter";

/// A price list in a file.
#[derive(Debug, Clone, Args)]
pub struct PriceFileArgs {
    /// The file
    pub file: PathBuf,
    /// Its form: json, csv, litellm, genai-prices or openrouter
    #[arg(long)]
    pub format: Format,
    /// What it does not say.
    #[command(flatten)]
    pub unsaid: PriceDefaultsArgs,
}

/// What a price list does not say itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct PriceDefaultsArgs {
    /// Start of the prices that the file gives no date; without it now
    #[arg(long)]
    pub valid_from: Option<DateTime<Utc>>,
    /// Where the file is from, kept with each price; without it its name
    #[arg(long)]
    pub source: Option<String>,
}

/// A price list to be imported.
#[derive(Debug, Clone, Args)]
pub struct PriceImportArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The file, or `starter` for the prices that ship with the program
    pub list: PathBuf,
    /// The form of a file: json, csv, litellm, genai-prices or openrouter
    #[arg(long)]
    pub format: Option<Format>,
    /// What a file does not say.
    #[command(flatten)]
    pub unsaid: PriceDefaultsArgs,
    /// The price book; needed for a file. `starter` goes into provider-cost without it, and makes the book where it is missing
    #[arg(long)]
    pub book: Option<String>,
    /// Store it; without this only what would change is shown
    #[arg(long)]
    pub apply: bool,
}

/// What is imported, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PriceImport<'a> {
    /// The starter prices, into a book that is made where it is missing.
    Starter {
        /// The book.
        book: &'a str,
    },
    /// A file, into a book that is there.
    File {
        /// Its form.
        format: Format,
        /// The book.
        book: &'a str,
    },
}

impl PriceImportArgs {
    /// What the arguments say together.
    ///
    /// # Errors
    /// A sentence where they contradict each other or one is missing.
    pub fn import(&self) -> Result<PriceImport<'_>, &'static str> {
        let book = self.book.as_deref();
        if self.list.as_os_str() == STARTER {
            if self.format.is_some() || self.unsaid != PriceDefaultsArgs::default() {
                return Err(
                    "the starter prices have a form, dates and sources of their own: leave out --format, \
                            --valid-from and --source, or write a file of that name as ./starter",
                );
            }
            return Ok(PriceImport::Starter { book: book.unwrap_or(starter::BOOK) });
        }
        let format = self.format.ok_or("say the form of the file with --format")?;
        let book = book.ok_or("say with --book which price book the prices of the file are for")?;
        Ok(PriceImport::File { format, book })
    }
}

/// How a command writes what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// Lines for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// JSON.
    Json,
}

/// Prices to be listed.
#[derive(Debug, Clone, Args)]
pub struct PriceListArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// Only of this price book
    #[arg(long)]
    pub book: Option<String>,
    /// Only of this provider
    #[arg(long)]
    pub provider: Option<String>,
    /// Only of this model, by its name or an alias; with * at its end, of all whose names begin so
    #[arg(long)]
    pub model: Option<String>,
    /// Only prices that are valid at this time (RFC 3339); without it all that stand, past and future ones too
    #[arg(long)]
    pub at: Option<DateTime<Utc>>,
    /// Lines for people (token rates for 1,000,000 units, fees for one), or what the API answers
    #[arg(long, value_enum, default_value = "table")]
    pub format: Shown,
}

/// Two lists of prices to be compared.
#[derive(Debug, Clone, Args)]
pub struct PriceCheckArgs {
    /// PostgreSQL with the price books; needed where one is named
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// A price book's name, `starter` for the prices that ship with the program, or FORM:FILE with a form of `prices import`
    pub a: PriceSource,
    /// The other one
    pub b: PriceSource,
    /// The time whose prices are compared (RFC 3339); without it now
    #[arg(long)]
    pub at: Option<DateTime<Utc>>,
    /// How to write the differences; token rates are for 1,000,000 units, fees for one
    #[arg(long, value_enum, default_value = "table")]
    pub format: Shown,
}

/// Where a list of prices is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PriceSource {
    /// A price book in the database.
    Book(String),
    /// The starter cost book.
    Starter,
    /// A file.
    File {
        /// Its form.
        format: Format,
        /// Where it is.
        path: PathBuf,
    },
}

impl FromStr for PriceSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == STARTER {
            return Ok(Self::Starter);
        }
        if let Some((format, path)) = text.split_once(':') {
            let format = format.parse().map_err(|error: UnknownFormat| error.to_string())?;
            return Ok(Self::File { format, path: path.into() });
        }
        let named = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || !text.bytes().all(named) {
            return Err(
                "is no name of a price book; write a file as FORM:FILE, as in litellm:prices.json".to_owned()
            );
        }
        Ok(Self::Book(text.to_owned()))
    }
}

impl fmt::Display for PriceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Book(name) => f.write_str(name),
            Self::Starter => f.write_str(STARTER),
            Self::File { path, .. } => write!(f, "{}", path.display()),
        }
    }
}
