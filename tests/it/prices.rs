//! Price books over a real database.

use chrono::{DateTime, Utc};
use waybill::domain::event::{CallConditions, UsagePart};
use waybill::domain::ids::PriceId;
use waybill::domain::price::quotation::NewPrice;
use waybill::domain::tokens::{Quantities, TokenClass};
use waybill::rating::{PriceBook, Unpriced};
use waybill::store::prices::{
    self, Book, Closed, NewBook, PriceCursor, PriceFilter, PricesError, Publication, Status,
};
use waybill::store::{self, Database, Scope, StoreError, catalog};

use crate::harness::TestBed;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

fn now() -> DateTime<Utc> {
    at("2026-11-23T12:00:00Z")
}

/// A price of gpt-5: the rate of input, and more fields.
fn price(input: &str, valid_from: &str, rest: &str) -> NewPrice {
    let json = format!(
        r#"{{"provider":"openai","model":"gpt-5","per":1000000,"rates":{{"input":"{input}","output":"10"}},
            "valid_from":"{valid_from}T00:00:00Z"{rest}}}"#
    );
    serde_json::from_str(&json).expect("a price")
}

async fn publish(database: &Database, book: &str, new: &[NewPrice]) -> Result<Publication, PricesError> {
    let mut tx = database.begin().await?;
    let publication = prices::publish(&mut tx, book, new, now(), "test").await?;
    store::commit(tx).await?;
    Ok(publication)
}

async fn close(database: &Database, id: PriceId, end: &str) -> Result<Closed, PricesError> {
    let mut tx = database.begin().await?;
    let closed = prices::close(&mut tx, id, at(end), now(), "test").await?;
    store::commit(tx).await?;
    Ok(closed)
}

async fn create(database: &Database, json: &str) -> Result<Book, PricesError> {
    let new: NewBook = serde_json::from_str(json).expect("a book");
    let mut tx = database.begin().await?;
    let book = prices::create_book(&mut tx, &new, "test").await?;
    store::commit(tx).await?;
    Ok(book)
}

/// A cost book, and a sell book of cost plus 20 %.
async fn books(database: &Database) {
    create(database, r#"{"name":"cost","kind":"cost","currency":"USD"}"#).await.expect("a cost book");
    let sell = r#"{"name":"sell","kind":"sell","currency":"USD","base":"cost","markup":"1.2"}"#;
    create(database, sell).await.expect("a sell book");
}

async fn loaded(database: &Database, name: &str) -> PriceBook {
    let mut tx = database.read(Scope::Everything).await.expect("a snapshot");
    let books = prices::load_books(&mut tx).await.expect("the books");
    let (info, prices, aliases) = books.into_iter().find(|(info, ..)| info.name == name).expect("the book");
    PriceBook::new(info, prices, aliases).expect("it is unambiguous")
}

fn call(model: &str, input: i64) -> UsagePart {
    let mut quantities = Quantities::NONE;
    quantities.set(TokenClass::Input, input).expect("in range");
    UsagePart {
        provider: "openai".into(),
        model: model.into(),
        conditions: CallConditions::default(),
        quantities,
        tier_input: input,
        stated_cost: None,
    }
}

/// What a million input tokens of gpt-5 cost at a time, or the name of the state.
async fn cost(database: &Database, book: &str, time: &str) -> String {
    match loaded(database, book).await.rate(&call("gpt-5", 1_000_000), at(time)) {
        Ok(rated) => rated.amount.to_string(),
        Err(Unpriced::NoPriceAt { .. }) => "no price".to_owned(),
        Err(Unpriced::UnknownModel { .. }) => "unknown".to_owned(),
        Err(other) => other.to_string(),
    }
}

async fn version(database: &Database) -> i64 {
    let mut tx = database.read(Scope::Everything).await.expect("a snapshot");
    catalog::version(&mut tx).await.expect("a version")
}

async fn listed(database: &Database, filter: &PriceFilter) -> Vec<prices::StoredPrice> {
    let mut tx = database.read(Scope::Everything).await.expect("a snapshot");
    prices::list(&mut tx, filter, None, 100).await.expect("a list")
}

#[tokio::test]
async fn a_cut_is_dated_and_reaches_the_books_that_mark_it_up() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("2.5", "2025-08-07", r#","aliases":["gpt-5-2025-08-07"]"#)])
        .await
        .expect("a price");
    let cut = publish(database, "cost", &[price("1.25", "2026-07-30", "")]).await.expect("a successor");
    assert_eq!(cut.prices[0].status, Status::Changed);
    let input = &cut.prices[0].changes[..];
    assert_eq!(input.len(), 1, "output stays: {input:?}");
    assert_eq!((cut.continued.len(), cut.derived), (1, 2));

    assert_eq!(cost(database, "cost", "2026-07-29T23:59:59Z").await, "2.5");
    assert_eq!(cost(database, "cost", "2026-07-30T00:00:00Z").await, "1.25");
    assert_eq!(cost(database, "sell", "2026-07-29T23:59:59Z").await, "3");
    assert_eq!(cost(database, "sell", "2026-07-30T00:00:00Z").await, "1.5");
    assert_eq!(cost(database, "sell", "2025-08-06T23:59:59Z").await, "no price");
    let by_alias = loaded(database, "sell").await.rate(&call("gpt-5-2025-08-07", 1), now());
    assert!(by_alias.is_ok(), "a markup book knows the aliases of its base: {by_alias:?}");

    // An explicit price of the sell book goes before the derived one, and leaves it in place.
    publish(database, "sell", &[price("9", "2026-11-01", "")]).await.expect("an override");
    assert_eq!(cost(database, "sell", "2026-11-01T00:00:00Z").await, "9");
    assert_eq!(cost(database, "cost", "2026-11-01T00:00:00Z").await, "1.25");

    // A book made later derives what stands, and may have other factors for some models.
    let late = r#"{"name":"late","kind":"sell","currency":"USD","base":"cost","markup":"9","markups":{"gpt-*":"2"}}"#;
    create(database, late).await.expect("another sell book");
    assert_eq!(cost(database, "late", "2026-01-01T00:00:00Z").await, "5");
    assert_eq!(cost(database, "late", "2026-11-01T00:00:00Z").await, "2.5");
}

#[tokio::test]
async fn publishing_the_same_again_changes_nothing() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let with_tiers = [
        price("1.25", "2025-08-07", r#","aliases":["latest"]"#),
        price("2.5", "2025-08-07", r#","conditions":{"service_tier":"priority"}"#),
        price(
            "1.4",
            "2025-08-07",
            r#","multiplier":"1.1","conditions":{"region":"us","hours_utc":["22:00-02:00"],"weekdays":[1,5]}"#,
        ),
    ];
    publish(database, "cost", &with_tiers).await.expect("prices");
    let before = version(database).await;
    let again = publish(database, "cost", &with_tiers).await.expect("the same");
    assert!(again.prices.iter().all(|price| price.status == Status::Unchanged), "{again:?}");
    assert!(!again.changed());
    assert_eq!(version(database).await, before);

    // What is read back is what was published.
    let read =
        listed(database, &PriceFilter { book: Some("cost".to_owned()), ..PriceFilter::default() }).await;
    let us = read.iter().find(|price| price.draft.conditions.region.is_some()).expect("the price for the US");
    assert_eq!(us.draft.conditions, with_tiers[2].conditions);
    assert_eq!(us.draft.multiplier.to_string(), "1.1");
    assert_eq!(us.draft.rates[&TokenClass::Input].quoted.to_string(), "1.4");
    assert_eq!(us.draft.rates[&TokenClass::Input].rate.per_unit().to_string(), "0.00000154");
    assert_eq!(us.draft.aliases, ["latest"]);
}

#[tokio::test]
async fn what_is_refused_stores_nothing_and_says_why() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let first =
        publish(database, "cost", &[price("1.25", "2025-08-07", "")]).await.expect("a price").prices[0].id;
    let before = version(database).await;
    let new = [
        price("7", "2026-01-01", ""),
        price("2", "2025-08-07", ""),
        price("-1", "2026-01-01", r#","conditions":{"speed":"fast"}"#),
    ];
    let faults = |result| match result {
        Err(PricesError::Refused(faults)) => faults,
        other => panic!("it was not refused: {other:?}"),
    };
    let invalid = faults(publish(database, "cost", &new).await);
    assert_eq!((invalid[0].index, invalid[0].path.as_str()), (2, "rates.input"));
    let conflict = faults(publish(database, "cost", &new[1..2]).await);
    assert_eq!(conflict[0].conflicts_with, Some(first), "{conflict:?}");
    assert_eq!(cost(database, "cost", "2026-06-01T00:00:00Z").await, "1.25");
    assert_eq!(version(database).await, before);
    let unknown = publish(database, "nowhere", &new).await;
    assert!(matches!(unknown, Err(PricesError::UnknownBook(_))), "{unknown:?}");

    let book = |json| create(database, json);
    let taken = book(r#"{"name":"cost","kind":"cost","currency":"USD"}"#).await;
    assert!(matches!(taken, Err(PricesError::BookExists(_))), "{taken:?}");
    for (json, named) in [
        (r#"{"name":"Big","kind":"cost","currency":"USD"}"#, "name"),
        (r#"{"name":"x","kind":"sell","currency":"USD","base":"cost"}"#, "markup"),
        (r#"{"name":"x","kind":"sell","currency":"EUR","base":"cost","markup":"1"}"#, "currency"),
        (r#"{"name":"x","kind":"cost","currency":"USD","base":"cost","markup":"1"}"#, "base"),
        (r#"{"name":"x","kind":"sell","currency":"USD","base":"sell","markup":"1"}"#, "base"),
        (r#"{"name":"x","kind":"sell","currency":"USD","base":"cost","markup":"-1"}"#, "markup"),
        (r#"{"name":"x","kind":"sell","currency":"USD","markups":{"gpt-5":"2"}}"#, "base"),
        (
            r#"{"name":"x","kind":"sell","currency":"USD","base":"cost","markup":"1","markups":{"*":"2"}}"#,
            "markups",
        ),
    ] {
        let refused = book(json).await;
        assert!(matches!(refused, Err(PricesError::Field { field, .. }) if field == named), "{refused:?}");
    }
}

#[tokio::test]
async fn of_a_list_what_fits_is_published_and_the_rest_named() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("2", "2026-01-01", "")]).await.expect("a price");
    let list = [
        price("3", "2026-01-01", ""),
        price("-1", "2026-02-01", r#","conditions":{"speed":"fast"}"#),
        price("4", "2026-01-01", r#","conditions":{"service_tier":"flex"}"#),
    ];
    let mut tx = database.begin().await.expect("a transaction");
    let (published, refused) =
        prices::publish_fitting(&mut tx, "cost", &list, now(), "test").await.expect("some fit");
    store::commit(tx).await.expect("committed");
    assert_eq!(published.prices.iter().map(|price| price.status).collect::<Vec<_>>(), [Status::Added]);
    let mut named: Vec<usize> = refused.iter().map(|fault| fault.index).collect();
    named.sort_unstable();
    assert_eq!(named, [0, 1]);
    assert_eq!(cost(database, "cost", "2026-06-01T00:00:00Z").await, "2");
}

#[tokio::test]
async fn the_same_list_again_changes_nothing_and_a_corrected_one_is_refused() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let list =
        [price("2", "2026-01-01", r#","valid_to":"2026-06-01T00:00:00Z""#), price("3", "2026-06-01", "")];
    let promotion = price("1", "2026-03-01", r#","valid_to":"2026-06-01T00:00:00Z""#);
    publish(database, "cost", &list).await.expect("prices");
    publish(database, "cost", std::slice::from_ref(&promotion)).await.expect("a place for it");
    let again = publish(database, "cost", &list).await.expect("the same");
    assert!(!again.changed(), "{again:?}");

    // Who never published that price means something else by it.
    create(database, r#"{"name":"other","kind":"cost","currency":"USD"}"#).await.expect("a cost book");
    let wrong =
        [price("2", "2026-01-01", r#","valid_to":"2026-03-01T00:00:00Z""#), promotion, list[1].clone()];
    publish(database, "other", &wrong).await.expect("prices");
    let Err(PricesError::Refused(faults)) = publish(database, "other", &list).await else {
        panic!("it says nothing of the price of spring");
    };
    let [fault] = &faults[..] else { panic!("one fault: {faults:?}") };
    assert_eq!((fault.index, fault.path.as_str()), (0, "valid_from"));
}

#[tokio::test]
async fn a_back_dated_lasting_price_is_refused_and_lasts_as_the_refusal_says() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("2", "2025-01-01", ""), price("1.5", "2026-06-01", "")])
        .await
        .expect("prices");
    let Err(PricesError::Refused(faults)) =
        publish(database, "cost", &[price("1.8", "2026-05-01", "")]).await
    else {
        panic!("it would be the price of May only");
    };
    let advice = "give this one a valid_to of 2026-06-01 00:00:00 UTC at the latest; where it is to last, publish this \
                  from 2026-06-01 00:00:00.000001 UTC on too";
    assert!(faults[0].detail.ends_with(advice), "{}", faults[0]);
    let lasting =
        NewPrice { valid_from: at("2026-06-01T00:00:00.000001Z"), ..price("1.8", "2026-06-01", "") };
    let may = price("1.8", "2026-05-01", r#","valid_to":"2026-06-01T00:00:00Z""#);
    publish(database, "cost", &[may, lasting]).await.expect("as it said");
    for (time, rate) in
        [("2026-04-30", "2"), ("2026-05-01", "1.8"), ("2026-06-02", "1.8"), ("2027-01-01", "1.8")]
    {
        assert_eq!(cost(database, "cost", &format!("{time}T00:00:00Z")).await, rate, "{time}");
    }
}

#[tokio::test]
async fn a_dry_run_is_the_same_publication_rolled_back() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let mut tx = database.begin().await.expect("a transaction");
    let dry = prices::publish(&mut tx, "cost", &[price("1", "2026-01-01", "")], now(), "test")
        .await
        .expect("a price");
    drop(tx);
    assert_eq!(cost(database, "cost", "2026-06-01T00:00:00Z").await, "unknown");
    let wet = publish(database, "cost", &[price("1", "2026-01-01", "")]).await.expect("a price");
    assert_eq!(dry.prices[0].draft, wet.prices[0].draft);
    assert_eq!(dry.prices[0].status, wet.prices[0].status);
}

#[tokio::test]
async fn an_announced_price_can_be_withdrawn_and_one_in_force_be_closed() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("2", "2026-01-01", "")]).await.expect("a price");
    let rise =
        publish(database, "cost", &[price("3", "2027-01-01", "")]).await.expect("announced").prices[0].id;
    assert_eq!(cost(database, "sell", "2027-01-01T00:00:00Z").await, "3.6");

    let withdrawn = Closed { copy: None, no_price_from: Some(at("2027-01-01T00:00:00Z")) };
    assert_eq!(close(database, rise, "2027-01-01T00:00:00Z").await.expect("withdrawn"), withdrawn);
    assert_eq!(cost(database, "cost", "2027-01-01T00:00:00Z").await, "no price");
    assert_eq!(cost(database, "sell", "2027-01-01T00:00:00Z").await, "no price");
    assert_eq!(cost(database, "sell", "2026-12-31T23:59:59Z").await, "2.4");

    let standing =
        listed(database, &PriceFilter { book: Some("cost".to_owned()), ..PriceFilter::default() }).await;
    let in_force = standing[0].id;
    let refused = close(database, in_force, "2026-01-01T00:00:00Z").await;
    assert!(matches!(refused, Err(PricesError::NotClosable { .. })), "{refused:?}");
    let closed = close(database, in_force, "2026-12-01T00:00:00Z").await.expect("closed");
    assert_eq!(closed.no_price_from, Some(at("2026-12-01T00:00:00Z")));
    let copy = closed.copy.expect("a copy");
    assert_eq!(cost(database, "sell", "2026-11-30T23:59:59Z").await, "2.4");
    assert_eq!(cost(database, "sell", "2026-12-01T00:00:00Z").await, "no price");
    for (id, what) in [(rise, "withdrawn"), (in_force, "superseded"), (PriceId(0), "unknown")] {
        let refused = close(database, id, "2026-12-01T00:00:00Z").await;
        let expected =
            matches!(refused, Err(PricesError::NotClosable { .. } | PricesError::UnknownPrice(PriceId(0))));
        assert!(expected, "{what}: {refused:?}");
    }
    let derived =
        listed(database, &PriceFilter { book: Some("sell".to_owned()), ..PriceFilter::default() }).await;
    assert_eq!(derived[0].derived_from, Some(copy));
    let refused = close(database, derived[0].id, "2026-11-30T00:00:00Z").await;
    assert!(matches!(refused, Err(PricesError::NotClosable { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_announced_rise_is_cancelled_by_publishing_the_old_price_again() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[latest("gpt-5", "2026-01-01")]).await.expect("a price");
    let announced = publish(database, "cost", &[price("3", "2027-01-01", "")]).await.expect("announced");
    // A nearer cut is valid up to the announced rise, and the answer says so.
    let nearer = publish(database, "cost", &[price("1", "2026-12-10", "")]).await.expect("a place for it");
    assert_eq!(nearer.prices[0].draft.valid_to, Some(at("2027-01-01T00:00:00Z")));
    for time in ["2026-12-10", "2026-12-20"] {
        let again = publish(database, "cost", &[price("1", time, "")]).await.expect("the same");
        let (stands, again) = (&nearer.prices[0], &again.prices[0]);
        assert_eq!((again.id, again.status), (stands.id, Status::Unchanged), "{time}");
        let validity = (again.draft.valid_from, again.draft.valid_to);
        assert_eq!(validity, (stands.draft.valid_from, stands.draft.valid_to), "{time}");
    }
    for (time, rate) in [("2026-12-09", "2.4"), ("2026-12-10", "1.2"), ("2027-01-01", "3.6")] {
        assert_eq!(cost(database, "sell", &format!("{time}T00:00:00Z")).await, rate, "{time}");
    }
    let rise = announced.prices[0].id;
    let withdrawn = close(database, rise, "2027-01-01T00:00:00Z").await.expect("withdrawn");
    assert_eq!(withdrawn, Closed { copy: None, no_price_from: Some(at("2027-01-01T00:00:00Z")) });
    let again = price("1", "2027-01-01", r#","aliases":["latest"]"#);
    publish(database, "cost", &[again]).await.expect("it goes on");
    assert_eq!(meaning(database, "sell", "2027-01-01T00:00:00Z").await, "gpt-5");
    assert_eq!(cost(database, "sell", "2027-01-01T00:00:00Z").await, "1.2");
    // Beneath an explicit price of a markup book the derived one goes on.
    let explicit = publish(database, "sell", &[price("9", "2027-01-01", "")]).await.expect("announced");
    let withdrawn = close(database, explicit.prices[0].id, "2027-01-01T00:00:00Z").await.expect("withdrawn");
    assert_eq!(withdrawn, Closed { copy: None, no_price_from: None });
}

/// A price of a model that is also called `latest`.
fn latest(model: &str, valid_from: &str) -> NewPrice {
    NewPrice { model: model.to_owned(), ..price("2", valid_from, r#","aliases":["latest"]"#) }
}

/// Which model `latest` means at a time in a book, or the name of the state.
async fn meaning(database: &Database, book: &str, time: &str) -> String {
    let book = loaded(database, book).await;
    match book.choose(&call("latest", 1), at(time)) {
        Ok(price) => price.model.clone(),
        Err(Unpriced::NoPriceAt { .. }) => "no price".to_owned(),
        Err(Unpriced::UnknownModel { .. }) => "unknown".to_owned(),
        Err(other) => other.to_string(),
    }
}

#[tokio::test]
async fn a_name_moves_to_another_model_and_ends_with_the_prices_of_its_own() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let history = [latest("gpt-4", "2026-01-01"), latest("gpt-5", "2026-06-01")];
    publish(database, "cost", &history[..1]).await.expect("a price");
    let believed = at("2026-07-01T00:00:00Z");
    assert_eq!(meaning(database, "sell", "2026-07-01T00:00:00Z").await, "gpt-4");
    let moved = publish(database, "cost", &history[1..]).await.expect("the name moves");
    let ended: Vec<_> =
        moved.ended_aliases.iter().map(|alias| (alias.model.as_str(), alias.valid_to)).collect();
    assert_eq!((moved.aliases, ended), (1, vec![("gpt-4", Some(at("2026-06-01T00:00:00Z")))]));
    for book in ["cost", "sell"] {
        assert_eq!(meaning(database, book, "2026-05-31T23:59:59Z").await, "gpt-4");
        assert_eq!(meaning(database, book, "2026-06-01T00:00:00Z").await, "gpt-5");
    }
    let before = version(database).await;
    let again = publish(database, "cost", &history).await.expect("the same");
    assert!(!again.changed() && version(database).await == before, "{again:?}");
    let named = PriceFilter { model: Some("latest".to_owned()), ..PriceFilter::default() };
    assert_eq!(listed(database, &named).await.len(), 4, "both models, in both books");

    // An announced model is withdrawn with its name, and what the name meant before does not come back by itself.
    let announced = publish(database, "cost", &[latest("gpt-6", "2027-01-01")]).await.expect("announced");
    assert_eq!(meaning(database, "sell", "2027-01-01T00:00:00Z").await, "gpt-6");
    let of_then = PriceFilter { model: Some("gpt-6".to_owned()), ..PriceFilter::default() };
    let as_announced = listed(database, &of_then).await;
    close(database, announced.prices[0].id, "2027-01-01T00:00:00Z").await.expect("withdrawn");
    assert_eq!(meaning(database, "sell", "2027-01-01T00:00:00Z").await, "no price");
    // What was called what on a date stays as answerable as the prices.
    let back_then = PriceFilter { as_of: Some(as_announced[0].recorded_at), ..of_then.clone() };
    let called = |found: &[prices::StoredPrice]| {
        found.iter().map(|price| price.draft.aliases.join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(called(&as_announced), ["latest", "latest"]);
    assert_eq!(called(&listed(database, &back_then).await), ["latest", "latest"]);
    assert_eq!(listed(database, &of_then).await, []);
    publish(database, "cost", &[latest("gpt-5", "2027-01-01")]).await.expect("it means gpt-5 again");
    assert_eq!(meaning(database, "sell", "2027-01-01T00:00:00Z").await, "gpt-5");

    // It ends with the last price of its model.
    let of_gpt_5 = PriceFilter {
        model: Some("gpt-5".to_owned()),
        book: Some("cost".to_owned()),
        ..PriceFilter::default()
    };
    let standing = listed(database, &of_gpt_5).await;
    let [standing] = &standing[..] else { panic!("one price: {standing:?}") };
    close(database, standing.id, "2026-12-01T00:00:00Z").await.expect("closed");
    assert_eq!(meaning(database, "cost", "2026-11-30T23:59:59Z").await, "gpt-5");
    let other = publish(database, "cost", &[latest("gpt-7", "2026-12-01")]).await.expect("the name is free");
    assert_eq!((other.aliases, other.ended_aliases.len()), (1, 0));
    // What the database keeps is what was believed when.
    let rows: Vec<(String, bool)> = sqlx::query_as(
        "SELECT model, superseded_at IS NOT NULL FROM model_aliases WHERE valid_from <= $1 ORDER BY id",
    )
    .bind(believed)
    .fetch_all(&mut *database.begin().await.expect("a transaction"))
    .await
    .expect("rows");
    assert_eq!(rows[0], ("gpt-4".to_owned(), true), "nothing is edited: {rows:?}");
}

#[tokio::test]
async fn a_mistyped_name_is_ended_without_its_price() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let published = publish(database, "cost", &[latest("gpt-5", "2026-01-01")]).await.expect("a price");
    let id = published.prices[0].id;
    let end = async |alias: &str, time: &str| {
        let mut tx = database.begin().await.expect("a transaction");
        let ended = prices::close_alias(&mut tx, id, alias, at(time), now(), "test").await;
        store::commit(tx).await.expect("committed");
        ended
    };
    let refused = |result| matches!(result, Err(PricesError::Field { .. }));
    assert!(refused(end("lates", "2026-12-01T00:00:00Z").await), "there is no such name");
    assert!(refused(end("latest", "2026-01-01T00:00:00Z").await), "it is in force");
    let before = version(database).await;
    end("latest", "2026-12-01T00:00:00Z").await.expect("ended");
    assert!(version(database).await > before);
    assert_eq!(meaning(database, "sell", "2026-11-30T23:59:59Z").await, "gpt-5");
    assert_eq!(meaning(database, "sell", "2026-12-01T00:00:00Z").await, "no price");
    assert_eq!(cost(database, "cost", "2026-12-01T00:00:00Z").await, "2");
    assert!(refused(end("latest", "2026-12-01T00:00:00Z").await), "it ends then already");
}

#[tokio::test]
async fn what_was_believed_on_a_date_stays_answerable() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("2", "2026-01-01", "")]).await.expect("a price");
    let cost_book = || PriceFilter { book: Some("cost".to_owned()), ..PriceFilter::default() };
    let believed_at = listed(database, &cost_book()).await[0].recorded_at;
    publish(database, "cost", &[price("3", "2026-06-01", "")]).await.expect("a successor");

    let before = listed(database, &PriceFilter { as_of: Some(believed_at), ..cost_book() }).await;
    assert_eq!(before.iter().map(|price| price.draft.valid_to).collect::<Vec<_>>(), [None]);
    assert_eq!(listed(database, &cost_book()).await.len(), 2);
    assert_eq!(listed(database, &PriceFilter { superseded: true, ..cost_book() }).await.len(), 3);
    let of_may = PriceFilter { at: Some(at("2026-05-31T23:59:59Z")), ..cost_book() };
    assert_eq!(listed(database, &of_may).await.len(), 1);
    let old = prices::get(&mut database.begin().await.expect("a transaction"), before[0].id).await;
    let old = old.expect("an answer").expect("it is still there");
    assert!(old.superseded_at.is_some() && old.superseded_by.is_some());
}

#[tokio::test]
async fn a_list_is_paged_without_holes_or_repeats() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let tiers = ["priority", "flex", "scale"]
        .map(|tier| price("2", "2026-01-01", &format!(r#","conditions":{{"service_tier":"{tier}"}}"#)));
    publish(database, "cost", &tiers).await.expect("prices");
    let mut seen: Vec<PriceId> = Vec::new();
    let mut cursor: Option<PriceCursor> = None;
    loop {
        let mut tx = database.read(Scope::Everything).await.expect("a snapshot");
        let page = prices::list(&mut tx, &PriceFilter::default(), cursor.as_ref(), 2).await.expect("a page");
        let Some(last) = page.last() else { break };
        cursor = Some(last.cursor());
        seen.extend(page.iter().map(|price| price.id));
    }
    assert_eq!(seen.len(), 6, "three cost prices and three derived ones");
    let all = listed(database, &PriceFilter::default()).await;
    assert_eq!(seen, all.iter().map(|price| price.id).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_published_is_told_from_what_goes_on_and_from_what_ended() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let until = |end: &str| format!(r#","valid_to":"{end}T00:00:00Z""#);
    let year = price("2", "2024-01-01", &until("2024-12-01"));
    publish(database, "cost", std::slice::from_ref(&year)).await.expect("a price");
    let promotion = price("1", "2024-03-01", &until("2024-04-01"));
    publish(database, "cost", std::slice::from_ref(&promotion)).await.expect("a promotion");
    let rise = price("3", "2024-06-01", &until("2024-07-01"));
    publish(database, "cost", &[rise]).await.expect("a rise");
    // What went on after the promotion was never published.
    let rest = publish(database, "cost", &[price("2", "2024-04-01", &until("2024-12-01"))]).await;
    assert!(matches!(rest, Err(PricesError::Refused(_))), "{rest:?}");
    // The promotion had its end from the first, as nothing was announced.
    let lasting = publish(database, "cost", &[price("1", "2024-03-01", "")]).await;
    assert!(matches!(lasting, Err(PricesError::Refused(_))), "{lasting:?}");
    for again in [year, promotion] {
        let again = publish(database, "cost", &[again]).await.expect("the same");
        assert_eq!(again.prices[0].status, Status::Unchanged);
    }
    let model = |new: NewPrice| NewPrice { model: "gpt-4".to_owned(), ..new };
    publish(database, "cost", &[model(price("1.5", "2024-06-01", ""))]).await.expect("a price");
    let before = model(price("1.8", "2024-05-01", &until("2024-06-01")));
    publish(database, "cost", &[before]).await.expect("one before it");
    let lasting = publish(database, "cost", &[model(price("1.8", "2024-05-01", ""))]).await;
    assert!(matches!(lasting, Err(PricesError::Refused(_))), "{lasting:?}");
}

#[tokio::test]
async fn two_who_publish_at_once_do_not_both_win() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    let (one, two) = (price("1", "2026-01-01", ""), price("2", "2026-01-01", ""));
    let (one, two) = tokio::join!(
        publish(database, "cost", std::slice::from_ref(&one)),
        publish(database, "cost", std::slice::from_ref(&two))
    );
    assert_eq!(u8::from(one.is_ok()) + u8::from(two.is_ok()), 1, "{one:?} {two:?}");
    let loser = one.err().or(two.err());
    assert!(matches!(loser, Some(PricesError::Refused(_))), "{loser:?}");
}

#[tokio::test]
async fn the_database_itself_refuses_two_prices_at_one_instant() {
    let bed = TestBed::new().await;
    let database = &bed.database;
    books(database).await;
    publish(database, "cost", &[price("1", "2026-01-01", "")]).await.expect("a price");
    let mut tx = database.begin().await.expect("a transaction");
    let copied = sqlx::query(
        "INSERT INTO prices (book_id, provider, model, conditions_key, per, valid_from)
         SELECT book_id, provider, model, conditions_key, per, '2026-05-01' FROM prices WHERE derived_from IS NULL",
    )
    .execute(&mut *tx)
    .await;
    let error = StoreError::from(copied.expect_err("it overlaps"));
    assert_eq!(error.constraint(), Some("prices_no_overlap"));
}
