//! `waybill prices import` and `prices quote`: price lists of others into a book, and what calls would cost by them.

use std::io::{BufRead, Write};

use anyhow::{Context, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ledger;
use crate::clock::Clock;
use crate::config::{PriceFileArgs, PriceImportArgs};
use crate::domain::ids::{BookId, PriceId};
use crate::domain::money::{Amount, Currency, Rate};
use crate::domain::price::publication::plan;
use crate::domain::price::quotation::NewPrice;
use crate::domain::price::{BookInfo, BookKind, Price, resolve_parents};
use crate::metering;
use crate::rating::PriceBook;
use crate::rating::import::{self, Defaults, Import};
use crate::store::prices::{self, PublishedPrice, Status};
use crate::store::{Rights, commit};

/// Who acts, for the audit log.
const ACTOR: &str = "command line";

fn read(args: &PriceFileArgs) -> anyhow::Result<Import> {
    let file = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let today = Clock::System.now().date_naive();
    let source = args.source.clone().unwrap_or_else(|| args.file.display().to_string());
    let valid_from = args.valid_from.unwrap_or_else(|| Clock::System.now());
    Ok(import::read(args.format, &file, &Defaults { valid_from, source, checked_at: today })?)
}

/// Shows what importing a price list would change in a book, and does it where asked to.
///
/// # Errors
/// Where the file cannot be read, the book does not exist, or the database does not answer.
pub async fn import(args: &PriceImportArgs) -> anyhow::Result<()> {
    let Import { prices: new, ignored, cleaned } = read(&args.file)?;
    let database = ledger(&args.database.database_url, Rights::Service).await?;
    let mut tx = database.begin().await?;
    let (publication, faults) = prices::publish_fitting(&mut tx, &args.book, &new, ACTOR).await?;
    for price in publication.prices.iter().filter(|price| price.status != Status::Unchanged) {
        show(price);
    }
    for what in &cleaned {
        println!("cleaned  {}: {} is {}", what.what, what.written, what.taken);
    }
    for what in &ignored {
        println!("ignored  {}: {}", what.what, what.reason);
    }
    for fault in &faults {
        println!("refused  {fault}");
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

fn show(price: &PublishedPrice) {
    let draft = &price.draft;
    let word = if price.status == Status::Added { "added  " } else { "changed" };
    println!(
        "{word}  {} {} ({}) from {}",
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
    let (book, _) = published(read(args)?.prices, "the list")?;
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
        match plan(Vec::new(), Vec::new(), &fitting) {
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
    let rows = plan.rows.into_iter().zip(1..).map(|(draft, id)| Price {
        id: PriceId(id),
        book: info.id,
        rates: resolve_parents(&draft.own_rates()),
        provider: draft.provider,
        model: draft.model,
        conditions: draft.conditions,
        valid_from: draft.valid_from,
        valid_to: draft.valid_to,
        recorded_at: draft.valid_from,
        derived: false,
    });
    let book = PriceBook::new(info.clone(), rows.collect(), plan.aliases)?;
    Ok((book, given - fitting.len()))
}
