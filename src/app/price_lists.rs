//! `waybill prices list` and `prices check`: what a book holds, and how two lists of prices differ.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::prices::published;
use super::{answered, ledger};
use crate::clock::Clock;
use crate::config::{PriceCheckArgs, PriceListArgs, PriceSource, Shown};
use crate::domain::ids::PriceId;
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::price::quotation::PriceDraft;
use crate::domain::tokens::TokenClass;
use crate::http::table::Format;
use crate::http::v1::price_list;
use crate::rating::import::{self, Defaults};
use crate::rating::{Comparison, PriceBook, PriceDifference, Sides, compare, starter};
use crate::store::prices::{self, PriceFilter, StoredPrice};
use crate::store::{Rights, Scope, Tx};

/// Prices read from the database together.
const PAGE: i64 = 1000;
/// How long before its end a price that none follows is named.
const ENDING_DAYS: i64 = 30;
/// What rates of tokens are shown for.
const PER_TOKENS: i64 = 1_000_000;

/// Prints prices of the ledger.
///
/// # Errors
/// Where the book does not exist or the database does not answer.
pub async fn list(args: &PriceListArgs) -> anyhow::Result<()> {
    let mut tx = snapshot(Some(&args.database.database_url)).await?;
    if let Some(book) = &args.book {
        let known = prices::find_book(&mut tx, book).await?;
        known.with_context(|| format!("there is no price book `{book}`"))?;
    }
    let filter = PriceFilter {
        book: args.book.clone(),
        provider: args.provider.as_deref().map(str::to_ascii_lowercase),
        at: args.at,
        ..PriceFilter::default()
    };
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = prices::list(&mut tx, &filter, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.cursor());
        found.extend(page.into_iter().filter(|price| named(price, args.model.as_deref())));
    }
    let now = Clock::System.now();
    let ending = prices::ending(&mut tx, now, now + TimeDelta::days(ENDING_DAYS)).await?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Shown::Table => out.write_all((table(&found) + &unfollowed(&found, &ending)).as_bytes())?,
        Shown::Csv => out.write_all(&written(found, Format::Csv)?)?,
        Shown::Json => out.write_all(&written(found, Format::Json)?)?,
    }
    Ok(())
}

fn written(prices: Vec<StoredPrice>, format: Format) -> anyhow::Result<Vec<u8>> {
    price_list(prices, format)
        .map_err(|problem| anyhow::anyhow!("the prices cannot be written: {}", problem.code()))
}

async fn snapshot(url: Option<&str>) -> anyhow::Result<Tx> {
    let url =
        url.context("a price book is in the database: set WAYBILL_DATABASE_URL, or use --database-url")?;
    Ok(ledger(url, Rights::Service).await?.read(Scope::Everything).await?)
}

/// Whether a price's model, or another name of it, is the one that is asked for.
fn named(price: &StoredPrice, pattern: Option<&str>) -> bool {
    let Some(pattern) = pattern else { return true };
    let mut names = std::iter::once(&price.draft.model).chain(&price.draft.aliases);
    match pattern.strip_suffix('*') {
        Some(beginning) => names.any(|name| name.starts_with(beginning)),
        None => names.any(|name| name == pattern),
    }
}

/// Money per unit of a class as it is shown: tokens for a million, fees for one.
fn quoted(class: TokenClass, rate: Rate) -> Option<Amount> {
    rate.times(if class.is_fee() { 1 } else { PER_TOKENS })
}

fn shown(class: TokenClass, rate: Rate) -> String {
    quoted(class, rate).map_or_else(|| rate.per_unit().to_string(), |amount| amount.to_string())
}

/// Prices in columns, one line each.
fn table(prices: &[StoredPrice]) -> String {
    let mut rows =
        vec![["id", "book", "provider", "model", "conditions", "from", "to", "rates"].map(str::to_owned)];
    for price in prices {
        let draft = &price.draft;
        let rates: Vec<String> = draft
            .own_rates()
            .into_iter()
            .map(|(class, rate)| format!("{class} {}", shown(class, rate)))
            .collect();
        rows.push([
            price.id.to_string(),
            price.book.name.clone(),
            draft.provider.clone(),
            draft.model.clone(),
            draft.conditions_key.clone(),
            instant(draft.valid_from),
            draft.valid_to.map_or_else(|| "open".to_owned(), instant),
            format!("{} {}", price.book.currency, rates.join(", ")),
        ]);
    }
    let mut text = columns(&rows);
    let _ = writeln!(text, "{} prices; token rates are for {PER_TOKENS} units, fees for one.", prices.len());
    text
}

/// The listed prices that end soon with none to follow: from then on calls like that are unpriced, or rated by a less
/// specific price of the model where one matches.
fn unfollowed(listed: &[StoredPrice], ending: &[PriceId]) -> String {
    let mut text = String::new();
    for price in listed.iter().filter(|price| ending.contains(&price.id)) {
        let PriceDraft { provider, model, conditions_key, valid_to, .. } = &price.draft;
        let end = valid_to.map(instant).unwrap_or_default();
        let book = &price.book.name;
        let _ = writeln!(
            text,
            "ends     {provider} {model} ({conditions_key}) in {book} at {end}: no price follows"
        );
    }
    text
}

fn instant(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

/// Rows with every column but the last as wide as its longest cell.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Compares two lists of prices; the exit code is 0 where they agree, 1 where they differ and 2 where they cannot be
/// compared.
pub async fn check(args: &PriceCheckArgs) -> ExitCode {
    answered(compared(args).await)
}

/// Prints how the two differ; `true` where they do not.
async fn compared(args: &PriceCheckArgs) -> anyhow::Result<bool> {
    let at = args.at.unwrap_or_else(|| Clock::System.now());
    let a = load(args, &args.a, at).await?;
    let b = load(args, &args.b, at).await?;
    let stated = |source: &PriceSource, book: &PriceBook| {
        let stated = matches!(source, PriceSource::Book(_) | PriceSource::Starter);
        stated.then(|| book.info().currency)
    };
    let currencies = (stated(&args.a, &a), stated(&args.b, &b));
    if let (Some(left), Some(right)) = currencies {
        ensure!(
            left == right,
            "{} is in {left} and {} in {right}; rates of two currencies cannot be compared",
            args.a,
            args.b
        );
    }
    let currency = currencies.0.or(currencies.1).unwrap_or(Currency::USD);
    let report =
        Report { a: args.a.to_string(), b: args.b.to_string(), at, currency, found: compare(&a, &b, at) };
    let mut out = std::io::stdout().lock();
    match args.format {
        Shown::Table => out.write_all(report.text().as_bytes())?,
        Shown::Csv => out.write_all(&report.csv()?)?,
        Shown::Json => writeln!(out, "{}", report.json()?)?,
    }
    Ok(report.found.differences.is_empty())
}

async fn load(args: &PriceCheckArgs, source: &PriceSource, at: DateTime<Utc>) -> anyhow::Result<PriceBook> {
    let prices = match source {
        PriceSource::Book(name) => {
            let mut tx = snapshot(args.database_url.as_deref()).await?;
            let loaded = prices::load_book(&mut tx, name).await?;
            let (info, prices, aliases) =
                loaded.with_context(|| format!("there is no price book `{name}`"))?;
            return Ok(PriceBook::new(info, prices, aliases)?);
        }
        PriceSource::Starter => starter::prices()?,
        PriceSource::File { format, path } => {
            let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let defaults = Defaults {
                // A list without dates is what is valid at the time that is asked for.
                valid_from: at,
                source: path.display().to_string(),
                checked_at: at.date_naive(),
            };
            let import = import::read(*format, &file, &defaults)?;
            if !import.ignored.is_empty() {
                eprintln!(
                    "{source}: {} entries are not taken; `prices import` says why.",
                    import.ignored.len()
                );
            }
            import.prices
        }
    };
    let (book, left_out) = published(prices, &source.to_string())?;
    if left_out > 0 {
        eprintln!("{source}: {left_out} prices do not fit beside the others and are left out.");
    }
    Ok(book)
}

/// What was compared, and what was found.
struct Report {
    a: String,
    b: String,
    at: DateTime<Utc>,
    currency: Currency,
    found: Comparison,
}

/// A difference as a row of CSV or an object of JSON.
#[derive(Serialize)]
struct Row<'a> {
    provider: &'a str,
    model: &'a str,
    model_b: Option<&'a str>,
    conditions: &'a str,
    class: TokenClass,
    status: &'static str,
    a: Option<Amount>,
    b: Option<Amount>,
    currency: Currency,
    per: i64,
    percent: Option<String>,
}

#[derive(Serialize)]
struct Whole<'a> {
    a: &'a str,
    b: &'a str,
    at: DateTime<Utc>,
    currency: Currency,
    equal: usize,
    differences: Vec<Row<'a>>,
}

impl Report {
    fn rows(&self) -> Vec<Row<'_>> {
        self.found.differences.iter().map(|found| self.row(found)).collect()
    }

    fn row<'a>(&self, found: &'a PriceDifference) -> Row<'a> {
        let PriceDifference { provider, model, right_model, conditions, class, rates } = found;
        let amount = |rate: Option<Rate>| rate.and_then(|rate| quoted(*class, rate));
        Row {
            provider,
            model,
            model_b: right_model.as_deref(),
            conditions,
            class: *class,
            status: status(*rates),
            a: amount(rates.left()),
            b: amount(rates.right()),
            currency: self.currency,
            per: if class.is_fee() { 1 } else { PER_TOKENS },
            percent: rates.percent(),
        }
    }

    fn json(&self) -> anyhow::Result<String> {
        let Self { a, b, at, currency, found } = self;
        let whole =
            Whole { a, b, at: *at, currency: *currency, equal: found.equal, differences: self.rows() };
        Ok(serde_json::to_string_pretty(&whole)?)
    }

    fn csv(&self) -> anyhow::Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in self.rows() {
            writer.serialize(row)?;
        }
        Ok(writer.into_inner()?)
    }

    /// One line for each rate that differs, under a heading for each price.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut heading = String::new();
        for found in &self.found.differences {
            let PriceDifference { provider, model, right_model, conditions, class, rates } = found;
            let other = right_model.as_ref().map(|name| format!(", {name} in B")).unwrap_or_default();
            let of = format!("{provider} {model}{other} ({conditions})");
            if of != heading {
                let _ = writeln!(text, "{of}");
                heading = of;
            }
            let line = match *rates {
                Sides::Left(rate) => format!("{} only in A", shown(*class, rate)),
                Sides::Right(rate) => format!("{} only in B", shown(*class, rate)),
                Sides::Both(left, right) => {
                    let percent = rates.percent().map(|percent| format!("  {percent} %")).unwrap_or_default();
                    format!("{} -> {}{percent}", shown(*class, left), shown(*class, right))
                }
            };
            let _ = writeln!(text, "    {:<16} {line}", class.name());
        }
        let count = |status: &str| {
            self.found.differences.iter().filter(|row| self::status(row.rates) == status).count()
        };
        let _ = writeln!(
            text,
            "A is {}, B is {}, at {}, in {}; token rates for {PER_TOKENS} units, fees for one.",
            self.a,
            self.b,
            self.at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
            self.currency
        );
        let _ = writeln!(
            text,
            "{} rates are equal, {} differ, {} are only in A, {} only in B.",
            self.found.equal,
            count("differs"),
            count("only_a"),
            count("only_b")
        );
        text
    }
}

const fn status(rates: Sides) -> &'static str {
    match rates {
        Sides::Left(_) => "only_a",
        Sides::Right(_) => "only_b",
        Sides::Both(..) => "differs",
    }
}
