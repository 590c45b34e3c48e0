//! The demo: customers, a sell book over the starter cost book, and traffic through the real stream.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::DevError;
use super::keys::DevEnv;
use super::packing::EVENTS_PER_MESSAGE;
use super::simulate::{Plan, Sent, simulate};
use super::traffic::{CUSTOMERS, GATEWAY};
use crate::domain::money::Currency;
use crate::domain::price::BookKind;
use crate::domain::price::quotation::Quote;
use crate::ingest::Publisher;
use crate::rating::starter;
use crate::store::customers::{self, NewAssignment, NewCustomer};
use crate::store::prices::{self, NewBook};
use crate::store::{Database, Scope, Tx, audit, catalog, commit, completeness, gateways};

/// Events of the demo.
const EVENTS: usize = 4_000;
/// Its seed: every demo shows the same tasks.
const SEED: u64 = 2026;
/// How far back the traffic goes: inside the acceptance window of 35 days, so that the last billing period holds some.
const DAYS_BACK: i64 = 33;
/// The sell book: cost plus a fifth.
const SELL_BOOK: &str = "standard";
/// Its markup.
const MARKUP: &str = "1.2";
/// Name and zone of each customer, in the order of [`CUSTOMERS`].
const DETAILS: [(&str, &str); 3] = [
    ("Acme GmbH", "Europe/Berlin"),
    ("Globex Corporation", "America/New_York"),
    ("Initech Pvt Ltd", "Asia/Kolkata"),
];
/// Who acts, for the audit log.
const ACTOR: &str = "waybill dev";
/// Variable of `dev.env`, there until the demo is loaded: up to when its traffic goes, in seconds since 1970, and behind an `@` the
/// ledger that it is loaded into ([`ledger_mark`]). With the same times the same events are made, and those that are there count once.
const BEGUN: &str = "WAYBILL_DEMO_BEGUN";
/// For how long a demo that was begun is gone on with: after that its first events come too late to be taken.
const RESUMED_FOR: TimeDelta = TimeDelta::days(1);
/// How often it is looked whether everything has arrived.
const ARRIVAL_POLL: Duration = Duration::from_millis(50);

/// Makes the starter cost book and publishes its prices; later, what a newer program adds and nobody has set otherwise.
///
/// # Errors
/// [`DevError`].
pub async fn starter_book(database: &Database, now: DateTime<Utc>) -> Result<(), DevError> {
    let prices = starter::prices().map_err(DevError::StarterBook)?;
    let mut tx = database.begin().await?;
    prices::open_cost_book(&mut tx, starter::BOOK, starter::CURRENCY, ACTOR).await?;
    let (_, refused) = prices::publish_fitting(&mut tx, starter::BOOK, &prices, now, ACTOR).await?;
    for fault in refused {
        tracing::info!(%fault, "starter price left out");
    }
    commit(tx).await?;
    Ok(())
}

/// Sets the demo up where there is none yet; up to when the traffic goes that is to be loaded now, by [`traffic`]. Of a demo that an
/// earlier run began and did not load it is that of this run; `None` where nothing is to be loaded.
///
/// # Errors
/// [`DevError`].
pub async fn begin(
    database: &Database,
    env: &mut DevEnv,
    now: DateTime<Utc>,
) -> Result<Option<DateTime<Utc>>, DevError> {
    let mut tx = database.read(Scope::Everything).await?;
    let there = gateways::id_of(&mut tx, GATEWAY).await?.is_some();
    let recorded = completeness::progress(&mut tx).await?.events > 0;
    let ledger = ledger_mark(&mut tx).await?;
    drop(tx);
    // The home may have been used with another database before, of which it says nothing.
    let begun = env.get(BEGUN).split_once('@').filter(|(_, of)| *of == ledger);
    let begun = begun.and_then(|(seconds, _)| DateTime::from_timestamp(seconds.parse().ok()?, 0));
    let until = match begun {
        // It was loaded, or the ledger is somebody's own.
        None if there || recorded => return Ok(None),
        None => now,
        Some(_) if !there && recorded => return Ok(None),
        Some(begun) if there && now - begun < RESUMED_FOR => begun,
        Some(_) if !recorded => now,
        Some(begun) => {
            tracing::warn!(
                %begun,
                "the demo was not loaded to its end, which cannot be done any more; for all of it start with an empty database and stream, in an empty WAYBILL_HOME"
            );
            return Ok(None);
        }
    };
    // Before anything is made: a run that ends early leaves it for the next.
    env.set(BEGUN, format!("{}@{ledger}", until.timestamp()));
    env.save()?;
    if !there {
        set_up(database).await?;
    }
    Ok(DateTime::from_timestamp(until.timestamp(), 0))
}

/// What tells a ledger from others, wherever it is: when its starter book was made, in microseconds since 1970.
async fn ledger_mark(tx: &mut Tx) -> Result<String, DevError> {
    let book = prices::find_book(tx, starter::BOOK).await?;
    let book = book.ok_or_else(|| prices::PricesError::UnknownBook(starter::BOOK.to_owned()))?;
    Ok(book.created_at.timestamp_micros().to_string())
}

/// Makes gateway, customers and sell book.
async fn set_up(database: &Database) -> Result<(), DevError> {
    let mut tx = database.begin().await?;
    gateways::create(&mut tx, GATEWAY, None).await?;
    let sell = NewBook {
        name: SELL_BOOK.to_owned(),
        kind: BookKind::Sell,
        currency: Currency::USD,
        base: Some(starter::BOOK.to_owned()),
        markup: Some(Quote(MARKUP.to_owned())),
        markups: BTreeMap::new(),
    };
    let sell_book = prices::create_book(&mut tx, &sell, ACTOR).await?.info.id;
    let cost_book = prices::find_book(&mut tx, starter::BOOK)
        .await?
        .map(|book| book.info.id)
        .ok_or_else(|| prices::PricesError::UnknownBook(starter::BOOK.to_owned()))?;
    for (external_id, (name, time_zone)) in CUSTOMERS.into_iter().zip(DETAILS) {
        let new = NewCustomer { external_id, name, time_zone, anchor_day: 1 };
        let customer = customers::create(&mut tx, new).await?;
        let books = NewAssignment {
            sell_book,
            override_book: None,
            cost_book,
            valid_from: DateTime::UNIX_EPOCH,
            valid_to: None,
        };
        customers::assign(&mut tx, customer.id, books).await?;
        audit::record(&mut tx, ACTOR, "customer.create", external_id, None).await?;
    }
    catalog::bump(&mut tx).await?;
    commit(tx).await?;
    Ok(())
}

/// Publishes the demo's traffic, waits until all of it is recorded and posted, and notes that it is loaded.
///
/// # Errors
/// [`DevError`].
pub async fn traffic(
    database: &Database,
    publisher: &Publisher,
    env: &mut DevEnv,
    until: DateTime<Utc>,
) -> Result<Sent, DevError> {
    let plan = Plan {
        events: EVENTS,
        seed: SEED,
        from: until - TimeDelta::days(DAYS_BACK),
        // The longest task ends before now, so that nothing comes from the future.
        to: until - TimeDelta::hours(1),
        per_message: EVENTS_PER_MESSAGE,
        zstd: false,
        rate: None,
    };
    let mut tx = database.read(Scope::Everything).await?;
    // Copies of what an earlier run published are counted as well.
    let before = completeness::progress(&mut tx).await?.events;
    drop(tx);
    let sent = simulate(publisher, &plan).await?;
    let expected = before.saturating_add(i64::try_from(sent.events).unwrap_or(i64::MAX));
    loop {
        let mut tx = database.read(Scope::Everything).await?;
        let progress = completeness::progress(&mut tx).await?;
        drop(tx);
        if progress.unposted_batches == 0 && progress.events >= expected {
            env.unset(BEGUN);
            env.save()?;
            return Ok(sent);
        }
        tokio::time::sleep(ARRIVAL_POLL).await;
    }
}
