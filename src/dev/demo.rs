//! The demo: customers, a sell book over the starter cost book, and traffic through the real stream.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::DevError;
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
use crate::store::{Database, Scope, audit, catalog, commit, completeness, gateways};

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
/// How often it is looked whether everything has arrived.
const ARRIVAL_POLL: Duration = Duration::from_millis(50);

/// Makes the starter cost book and publishes its prices; later, what a newer program adds and nobody has set otherwise.
///
/// # Errors
/// [`DevError`].
pub async fn starter_book(database: &Database) -> Result<(), DevError> {
    let prices = starter::prices().map_err(DevError::StarterBook)?;
    let mut tx = database.begin().await?;
    prices::open_cost_book(&mut tx, starter::BOOK, starter::CURRENCY, ACTOR).await?;
    let (_, refused) = prices::publish_fitting(&mut tx, starter::BOOK, &prices, ACTOR).await?;
    for fault in refused {
        tracing::info!(%fault, "starter price left out");
    }
    commit(tx).await?;
    Ok(())
}

/// Makes gateway, customers and sell book; `false` where they are there already.
///
/// # Errors
/// [`DevError`].
pub async fn set_up(database: &Database) -> Result<bool, DevError> {
    let mut tx = database.begin().await?;
    if gateways::id_of(&mut tx, GATEWAY).await?.is_some() {
        return Ok(false);
    }
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
    Ok(true)
}

/// Publishes the demo's traffic and waits until all of it is recorded and posted.
///
/// # Errors
/// [`DevError`].
pub async fn traffic(
    database: &Database,
    publisher: &Publisher,
    now: DateTime<Utc>,
) -> Result<Sent, DevError> {
    let plan = Plan {
        events: EVENTS,
        seed: SEED,
        from: now - TimeDelta::days(DAYS_BACK),
        // The longest task ends before now, so that nothing comes from the future.
        to: now - TimeDelta::hours(1),
        per_message: EVENTS_PER_MESSAGE,
        zstd: false,
        rate: None,
    };
    let sent = simulate(publisher, &plan).await?;
    loop {
        let mut tx = database.read(Scope::Everything).await?;
        let progress = completeness::progress(&mut tx).await?;
        drop(tx);
        if progress.unposted_batches == 0 && progress.events >= i64::try_from(sent.events).unwrap_or(i64::MAX)
        {
            return Ok(sent);
        }
        tokio::time::sleep(ARRIVAL_POLL).await;
    }
}
