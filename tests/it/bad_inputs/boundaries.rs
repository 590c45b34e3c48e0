//! Times on a boundary: of a price, of a billing period, of a period that is closed already.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::invoice::LineKind;
use waybill::domain::period::{BillingCalendar, Period};
use waybill::invoicing::{DEFAULT_GRACE, Document, Request, close_and_finalize, preview};
use waybill::store::{Scope, invoices};

use crate::world::{TIME_ZONE, World, now, usage_event};

/// An event that happens at a time and uses so much input.
fn event_at(id: &str, at: DateTime<Utc>, input: i64) -> Value {
    let mut event = usage_event(id);
    event["time"] = json!(at.to_rfc3339());
    event["data"]["usage"] = json!({"input": input});
    event
}

/// The period of the customers of a world that holds an instant.
fn period(at: DateTime<Utc>) -> Period {
    BillingCalendar::new(TIME_ZONE, 1).unwrap().period_at(at).unwrap()
}

/// The one document of a customer's period, as it would be invoiced now.
async fn drafted(world: &World, customer: &str, at: DateTime<Utc>) -> Option<Document> {
    let customer = world.customer(customer).await;
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    let mut documents = preview(&mut tx, customer, at, now()).await.unwrap().documents;
    assert!(documents.len() <= 1, "one currency: {documents:?}");
    documents.pop()
}

/// Kind, start of service and quantity of each line.
fn lines(document: &Document) -> Vec<(LineKind, DateTime<Utc>, i64)> {
    document.lines.iter().map(|line| (line.kind, line.service.start, line.quantity)).collect()
}

const MICROSECOND: TimeDelta = TimeDelta::microseconds(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_price_applies_from_its_first_microsecond() {
    let world = World::idle().await;
    let change = (now() - TimeDelta::days(2)).trunc_subsecs(0);
    let price = |rate: &str, from: DateTime<Utc>| {
        json!({"provider": "openai", "model": "gpt-5", "per": 1, "rates": {"input": rate}, "valid_from": from,
            "source": "test"})
    };
    let first = change - TimeDelta::days(2);
    world.publish_prices(json!([price("1", first), price("2", change)])).await;
    world.start_consumer();
    for (id, at) in [
        ("before", first - MICROSECOND),
        ("first", first),
        ("last", change - MICROSECOND),
        // Cut to the microsecond, never rounded up into the next price.
        ("nanosecond", change - TimeDelta::nanoseconds(1)),
        ("change", change),
        ("after", change + MICROSECOND),
    ] {
        world.publish("gw-1", &event_at(id, at, 1)).await;
    }
    world.settled().await;
    for (id, charge) in [("first", "1"), ("last", "1"), ("nanosecond", "1"), ("change", "2"), ("after", "2")]
    {
        assert_eq!(world.rated(id).await.charge.to_string(), charge, "{id}");
    }
    assert_eq!(world.open_rejections().await, ["unpriced"], "there is no price before the first");
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_holds_its_first_microsecond_and_not_its_last() {
    let world = World::start().await;
    let this = period(now());
    let previous = period(this.start - MICROSECOND);
    assert_eq!(previous.end, this.start);
    for (id, at, input) in [
        ("last", this.start - MICROSECOND, 1),
        ("nanosecond", this.start - TimeDelta::nanoseconds(1), 10),
        ("first", this.start, 100),
        ("second", this.start + MICROSECOND, 1_000),
    ] {
        world.publish("gw-1", &event_at(id, at, input)).await;
    }
    world.settled().await;
    let before = drafted(&world, "acme", previous.start).await.unwrap();
    assert_eq!(lines(&before), [(LineKind::Usage, previous.start, 11)]);
    let after = drafted(&world, "acme", this.start).await.unwrap();
    assert_eq!(lines(&after), [(LineKind::Usage, this.start, 1_100)]);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_a_closed_period_is_late_and_billed_with_the_next() {
    let world = World::start().await;
    // Inside the acceptance window of 35 days; the period that holds it may have ended or not.
    let at = now() - TimeDelta::days(20);
    let service = period(at);
    world.publish("gw-1", &event_at("in-time", at, 1)).await;
    world.publish("gw-1", &event_at("of-the-next", service.end.min(now()), 10)).await;
    world.settled().await;
    let customer = world.customer("acme").await;
    let request = Request { customer, at, grace: DEFAULT_GRACE, actor: "test".to_owned() };
    let after_it = Clock::fixed(service.end + DEFAULT_GRACE);
    let closed = close_and_finalize(&world.bed.database, &after_it, &request).await.unwrap();
    assert_eq!(closed.period, service);

    let invoiced = async || {
        let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
        invoices::get(&mut tx, closed.invoices[0]).await.unwrap().unwrap()
    };
    let sealed = invoiced().await;
    // The first and the last microsecond of the closed period, and the first that is not of it.
    let mut late = 0;
    for (id, at, input) in [
        ("late", at, 100),
        ("late-first", service.start, 1_000),
        ("late-last", service.end - MICROSECOND, 10_000),
    ] {
        // Outside the acceptance window, or not yet: that is another entry of the matrix.
        if at > now() - TimeDelta::days(34) && at < now() {
            world.publish("gw-1", &event_at(id, at, input)).await;
            late += input;
        }
    }
    world.settled().await;
    let next = drafted(&world, "acme", service.end).await.unwrap();
    let shown: Vec<_> = lines(&next).into_iter().filter(|(kind, ..)| *kind == LineKind::LateUsage).collect();
    assert_eq!(shown, [(LineKind::LateUsage, service.start, late)]);
    assert!(late >= 100);
    assert_eq!(invoiced().await, sealed, "the invoice is final");
    // Another customer's same period is open still.
    let mut other = event_at("open", at, 7);
    other["subject"] = json!("globex");
    world.publish("gw-1", &other).await;
    world.settled().await;
    let open = drafted(&world, "globex", at).await.unwrap();
    assert_eq!(lines(&open), [(LineKind::Usage, service.start, 7)]);
    world.verified().await;
}
