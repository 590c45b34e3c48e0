//! `waybill prices import` and `prices quote`: price lists of others into a book, and what calls would cost by them.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ledger;
use crate::clock::Clock;
use crate::config::{PriceDefaultsArgs, PriceFileArgs, PriceImport, PriceImportArgs};
use crate::domain::ids::BookId;
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::price::publication::{Known, plan};
use crate::domain::price::quotation::{NewPrice, PriceFault};
use crate::domain::price::{BookInfo, BookKind, ModelAlias};
use crate::metering;
use crate::rating::import::{self, Defaults, Format, Import};
use crate::rating::{PriceBook, starter};
use crate::store::prices::{self, PublishedPrice, Status};
use crate::store::{Rights, Tx, commit};

/// Who acts, for the audit log.
const ACTOR: &str = "command line";

fn read(path: &Path, format: Format, unsaid: &PriceDefaultsArgs) -> anyhow::Result<Import> {
    let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let today = Clock::System.now().date_naive();
    let source = unsaid.source.clone().unwrap_or_else(|| path.display().to_string());
    let valid_from = unsaid.valid_from.unwrap_or_else(|| Clock::System.now());
    Ok(import::read(format, &file, &Defaults { valid_from, source, checked_at: today })?)
}

/// Shows what importing a price list would change in a book, and does it where asked to.
///
/// # Errors
/// Where the file cannot be read, the book does not exist, or the database does not answer.
pub async fn import(args: &PriceImportArgs) -> anyhow::Result<()> {
    let what = args.import().map_err(anyhow::Error::msg)?;
    let (Import { prices: new, ignored, cleaned }, book) = match what {
        PriceImport::Starter { book } => (Import { prices: starter::prices()?, ..Import::default() }, book),
        PriceImport::File { format, book } => (read(&args.list, format, &args.unsaid)?, book),
    };
    let database = ledger(&args.database.database_url, Rights::Service).await?;
    let mut tx = database.begin().await?;
    if matches!(what, PriceImport::Starter { .. }) {
        open_starter_book(&mut tx, book).await?;
    }
    let (publication, faults) =
        prices::publish_fitting(&mut tx, book, &new, Clock::System.now(), ACTOR).await?;
    for price in publication.prices.iter().filter(|price| price.status != Status::Unchanged) {
        show(price);
    }
    for alias in &publication.ended_aliases {
        let ModelAlias { provider, alias, model, valid_to, .. } = alias;
        let end = valid_to.map(|end| end.to_string()).unwrap_or_default();
        println!("moved    {provider} {alias} means {model} up to {end}");
    }
    for what in &cleaned {
        println!("cleaned  {}: {} is {}", what.what, what.written, what.taken);
    }
    for what in &ignored {
        println!("ignored  {}: {}", what.what, what.reason);
    }
    for PriceFault { index, path, detail, .. } in &faults {
        let price = new.get(*index).map(NewPrice::title).unwrap_or_default();
        println!("refused  {price}: {path}: {detail}");
    }
    let count = |status| publication.prices.iter().filter(|price| price.status == status).count();
    println!(
        "{} added, {} changed, {} unchanged, {} ignored, {} refused.",
        count(Status::Added),
        count(Status::Changed),
        count(Status::Unchanged),
        ignored.len(),
        faults.len()
    );
    if args.apply {
        commit(tx).await?;
    } else {
        println!("Nothing was stored; --apply does it.");
    }
    Ok(())
}

/// Makes the book of the starter prices where it is missing, as a cost book in their currency.
async fn open_starter_book(tx: &mut Tx, name: &str) -> anyhow::Result<()> {
    let (book, made) = prices::open_cost_book(tx, name, starter::CURRENCY, ACTOR).await?;
    let currency = book.info.currency;
    ensure!(
        currency == starter::CURRENCY,
        "`{name}` is in {currency}, and the starter prices are in {}; name another book with --book",
        starter::CURRENCY
    );
    if made {
        println!("book     {name}, a cost book in {currency}");
    }
    Ok(())
}

fn show(price: &PublishedPrice) {
    let draft = &price.draft;
    let word = if price.status == Status::Added { "added  " } else { "changed" };
    let end = draft.valid_to.map(|end| format!(" to {end}")).unwrap_or_default();
    println!(
        "{word}  {} {} ({}) from {}{end}",
        draft.provider, draft.model, draft.conditions_key, draft.valid_from
    );
    let quoted = |rate: Option<Rate>, per| {
        rate.and_then(|rate| rate.times(per)).map_or_else(|| "none".to_owned(), |amount| amount.to_string())
    };
    for change in &price.changes {
        let per = if change.class.is_fee() { 1 } else { draft.per };
        println!("         {}: {} -> {}", change.class, quoted(change.old, per), quoted(change.new, per));
    }
}

/// One call to be quoted: a line of standard input.
#[derive(Deserialize)]
struct Call<'a> {
    at: DateTime<Utc>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Its amount, or why it has none.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Amount(Amount),
    Error(String),
}

/// What calls cost by a price list, without a ledger: JSON lines from standard input to standard output.
///
/// # Errors
/// Where the list or a line cannot be read.
pub fn quote(args: &PriceFileArgs) -> anyhow::Result<()> {
    let import = read(&args.file, args.format, &args.unsaid)?;
    let (book, _) = published(import.prices, "the list")?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let call: Call<'_> = serde_json::from_str(&line)
            .context("each line is {\"at\": a time, \"data\": an event's data}")?;
        let answer = match amount(&book, &call) {
            Ok(amount) => Answer::Amount(amount),
            Err(error) => Answer::Error(error.to_string()),
        };
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn amount(book: &PriceBook, call: &Call<'_>) -> anyhow::Result<Amount> {
    let usage = metering::parse_usage(call.data.get().as_bytes())
        .map_err(|rejected| anyhow::anyhow!("{}: {}", rejected.reason.as_str(), rejected.detail))?;
    let mut sum = Amount::ZERO;
    for part in &usage.parts {
        sum = sum.checked_add(book.rate(part, call.at)?.amount).context("the amount is out of range")?;
    }
    Ok(sum)
}

/// A book of what of a list can be published beside each other, in US dollars, and how many prices cannot.
pub(super) fn published(mut fitting: Vec<NewPrice>, name: &str) -> anyhow::Result<(PriceBook, usize)> {
    let given = fitting.len();
    let plan = loop {
        match plan(Known::default(), &fitting, Clock::System.now()) {
            Ok(plan) => break plan,
            Err(faults) => {
                ensure!(!faults.is_empty(), "the prices of the list do not fit beside each other");
                let mut index = 0;
                fitting.retain(|_| {
                    let kept = faults.iter().all(|fault| fault.index != index);
                    index += 1;
                    kept
                });
            }
        }
    };
    let currency = Currency::USD;
    let info = BookInfo { id: BookId(0), name: name.to_owned(), kind: BookKind::Cost, currency };
    Ok((PriceBook::planned(info, plan)?, given - fitting.len()))
}
