//! A customer's own prices before those of its sell book: from the stream to the ledger, through the API, and re-rated.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::invoicing::rerate::{Request, apply};

use crate::harness::wait_until;
use crate::http_bed::post;
use crate::http_events::Explained;
use crate::world::{gpt5_prices, now, usage_event};

/// What a call of every test comes to at cost: 100 x 1.25 + 300 x 0.125 + 50 x 10 dollars per million.
const AT_COST: &str = "0.0006625";
/// And at the customer's own prices: 100 x 1 + 300 x 0.1 + 50 x 8.
const OWN: &str = "0.00053";

const MICROSECOND: TimeDelta = TimeDelta::microseconds(1);

/// Prices of a customer's own.
fn own_price(model: &str, from: DateTime<Utc>, rates: &Value) -> Value {
    json!([{"provider": "openai", "model": model, "per": 1_000_000, "rates": rates, "valid_from": from}])
}

fn own_rates() -> Value {
    json!({"input": "1", "cache_read": "0.1", "output": "8"})
}

fn call(id: &str, customer: &str, model: &str, at: DateTime<Utc>) -> Value {
    let mut event = usage_event(id);
    event["subject"] = json!(customer);
    event["time"] = json!(at.to_rfc3339());
    event["data"]["model"] = json!(model);
    event
}

/// A world with gpt-5 at cost, and a book of acme's own without prices.
async fn world() -> Explained {
    let api = Explained::start().await;
    let mut prices = gpt5_prices();
    prices[0]["aliases"] = json!(["gpt-5-2025-08-07"]);
    api.world.publish_prices(prices).await;
    api.made("/v1/price-books", &json!({"name": "acme-prices", "kind": "sell", "currency": "USD"})).await;
    api
}

async fn assign(api: &Explained, from: DateTime<Utc>) {
    let body = json!({"sell_book": "at-cost", "override_book": "acme-prices", "cost_book": "provider-cost", "valid_from": from});
    let customer = api.made("/v1/customers/acme/assignments", &body).await;
    assert_eq!(customer["assignments"][1]["override_book"], "acme-prices");
    assert_eq!(customer["assignments"][0]["override_book"], Value::Null);
}

async fn publish(api: &Explained, prices: &Value) {
    api.made("/v1/price-books/acme-prices/prices", prices).await;
}

/// Cost and charge of an event.
async fn amounts(api: &Explained, id: &str) -> (String, String) {
    let event = api.event(&api.finance, &format!("/v1/events/gw-1/{id}")).await;
    let text = |field: &str| event[field].as_str().unwrap().to_owned();
    (text("cost"), text("amount"))
}

async fn assert_amounts(api: &Explained, id: &str, charge: &str) {
    assert_eq!(amounts(api, id).await, (AT_COST.to_owned(), charge.to_owned()), "{id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_charges_one_customer_from_the_microsecond_it_is_assigned() {
    let api = world().await;
    let start = (now() - TimeDelta::hours(1)).trunc_subsecs(6);
    publish(&api, &own_price("gpt-5", start - TimeDelta::hours(1), &own_rates())).await;
    assign(&api, start).await;
    // Its own price ends while the assignment goes on.
    let listed = api.event(&api.finance, "/v1/prices?book=acme-prices").await;
    let (price, end) = (listed["data"][0]["id"].as_i64().unwrap(), start + TimeDelta::minutes(10));
    let ended = json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "rates": own_rates(),
        "conditions": {"service_tier": "priority"}, "valid_from": end}]);
    publish(&api, &ended).await;
    let mut tx = api.world.bed.database.begin().await.unwrap();
    let id = waybill::domain::ids::PriceId(price);
    waybill::store::prices::close(&mut tx, id, end, now(), "test").await.unwrap();
    waybill::store::commit(tx).await.unwrap();
    api.world.start_consumer();
    for event in [
        call("before", "acme", "gpt-5", start - MICROSECOND),
        call("at", "acme", "gpt-5", start),
        call("dated", "acme", "gpt-5-2025-08-07", start),
        call("other", "globex", "gpt-5", start),
        call("last", "acme", "gpt-5", end - MICROSECOND),
        call("after", "acme", "gpt-5", end),
    ] {
        api.world.publish("gw-1", &event).await;
    }
    api.world.settled().await;
    assert_eq!(api.world.open_rejections().await, Vec::<String>::new());
    for (id, charge) in [
        ("before", AT_COST),
        ("at", OWN),
        ("dated", OWN),
        ("other", AT_COST),
        ("last", OWN),
        ("after", AT_COST),
    ] {
        assert_amounts(&api, id, charge).await;
    }
    api.world.verified().await;
    explained(&api).await;
}

/// The explanation says for each side which book decided.
async fn explained(api: &Explained) {
    let side = async |key: &str, id: &str| {
        let event = api.event(key, &format!("/v1/events/gw-1/{id}")).await;
        event["parts"][0]["charge"].clone()
    };
    let reasons = |side: &Value| -> Vec<(String, String)> {
        let others = side["not_taken"].as_array().unwrap().iter();
        let text = |other: &Value, field: &str| other[field].as_str().unwrap().to_owned();
        others.map(|other| (text(other, "book"), text(other, "reason"))).collect()
    };
    let named = |book: &str, reason: &str| (book.to_owned(), reason.to_owned());
    for key in [&api.finance, &api.acme] {
        for id in ["at", "dated"] {
            let taken = side(key, id).await;
            assert_eq!(
                (&taken["price"]["book"], &taken["override_book"]["applied"]),
                (&json!("acme-prices"), &json!(true))
            );
            assert_eq!(
                reasons(&taken),
                [named("acme-prices", "not_yet_valid"), named("at-cost", "overridden")],
                "{id}: {taken}"
            );
        }
        let missed = side(key, "after").await;
        assert_eq!(
            (&missed["price"]["book"], &missed["override_book"]["applied"]),
            (&json!("at-cost"), &json!(false))
        );
        assert_eq!(
            reasons(&missed),
            [named("acme-prices", "no_longer_valid"), named("acme-prices", "conditions")],
            "{missed}"
        );
    }
    let none = side(&api.globex, "other").await;
    assert_eq!((&none["override_book"], reasons(&none)), (&Value::Null, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_dated_override_price_is_re_rated_and_nothing_else_moves() {
    let api = world().await;
    let start = (now() - TimeDelta::hours(1)).trunc_subsecs(6);
    assign(&api, start - TimeDelta::hours(1)).await;
    api.world.start_consumer();
    for event in [
        call("early", "acme", "gpt-5", start - MICROSECOND),
        call("late", "acme", "gpt-5", start),
        call("other", "globex", "gpt-5", start),
    ] {
        api.world.publish("gw-1", &event).await;
    }
    api.world.settled().await;
    publish(&api, &own_price("gpt-5", start, &own_rates())).await;
    for id in ["early", "late", "other"] {
        assert_amounts(&api, id, AT_COST).await;
    }
    api.world.verified().await;
    let request = Request {
        from: start - TimeDelta::hours(2),
        to: now(),
        customer: None,
        provider: None,
        model: None,
        reason: None,
    };
    let rerated = apply(&api.world.bed.database, &Clock::System, &request, "test").await.unwrap();
    api.world.settled().await;
    let [(group, figures)] = rerated.groups.as_slice() else { panic!("one: {:?}", rerated.groups) };
    assert_eq!((group.customer.as_str(), figures.events), ("acme", 1));
    assert_eq!(
        (figures.charge.before.to_string(), figures.charge.after.to_string()),
        (AT_COST.to_owned(), OWN.to_owned())
    );
    assert_amounts(&api, "late", OWN).await;
    assert_amounts(&api, "early", AT_COST).await;
    let charged = api.world.task("acme", "task-1").await;
    assert_eq!(
        (charged.cost.to_string(), charged.charge.to_string()),
        ("0.001325".to_owned(), "0.0011925".to_owned())
    );
    api.world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_only_the_override_prices_is_recorded_once_it_does() {
    let api = world().await;
    // What it costs is known, what the customer pays is not: the markup book would derive it.
    let mut cost = gpt5_prices();
    cost[0]["model"] = json!("own-model");
    api.made("/v1/price-books", &json!({"name": "explicit", "kind": "sell", "currency": "USD"})).await;
    api.world.publish_prices(cost).await;
    let start = (now() - TimeDelta::hours(1)).trunc_subsecs(6);
    let body = json!({"sell_book": "explicit", "override_book": "acme-prices", "cost_book": "provider-cost", "valid_from": start});
    api.made("/v1/customers/acme/assignments", &body).await;
    api.world.start_consumer();
    api.world.publish("gw-1", &call("e-1", "acme", "own-model", start)).await;
    api.world.settled().await;
    assert_eq!(api.world.open_rejections().await, ["unpriced"]);
    // Without a rate for what was used it stays unpriced: the price applies, and is not taken by halves.
    publish(&api, &own_price("own-model", start, &json!({"output": "8"}))).await;
    wait_until("it was tried again", async || {
        let tried: Option<i32> =
            sqlx::query_scalar("SELECT attempts FROM rejections WHERE detail LIKE '%no rate%'")
                .fetch_optional(&api.world.pool)
                .await
                .unwrap();
        tried.filter(|attempts| *attempts > 1)
    })
    .await;
    assert_eq!(api.world.recorded_events().await, 0);
    publish(&api, &own_price("own-model", start + MICROSECOND, &own_rates())).await;
    let mut tx = api.world.bed.database.begin().await.unwrap();
    let standing = waybill::store::prices::PriceFilter {
        book: Some("acme-prices".to_owned()),
        at: Some(start),
        ..Default::default()
    };
    let half = waybill::store::prices::list(&mut tx, &standing, None, 2).await.unwrap();
    assert_eq!(half.len(), 1);
    drop(tx);
    api.world.publish("gw-1", &call("e-2", "acme", "own-model", start + MICROSECOND)).await;
    api.world.settled().await;
    assert_amounts(&api, "e-2", OWN).await;
    assert_eq!(
        api.world.open_rejections().await,
        ["unpriced"],
        "the first has no whole price at its own time"
    );
    api.world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotes_and_prices_of_an_override_are_its_customers_alone() {
    let api = world().await;
    let start = (now() - TimeDelta::hours(1)).trunc_subsecs(6);
    publish(&api, &own_price("gpt-5", start, &own_rates())).await;
    assign(&api, start).await;
    let data = usage_event("x")["data"].clone();
    let quote = async |key: &str, who: Value, at: DateTime<Utc>| {
        let mut body = json!({"at": at, "data": data});
        body.as_object_mut().unwrap().extend(who.as_object().unwrap().clone());
        post(&api.router, key, "/v1/prices/quote", &body).await
    };
    for key in [&api.finance, &api.acme] {
        let own = quote(key, json!({"customer": "acme"}), start).await.json();
        assert_eq!((&own["amount"], &own["parts"][0]["book"]), (&json!(OWN), &json!("acme-prices")));
        let before = quote(key, json!({"customer": "acme"}), start - MICROSECOND).await.json();
        assert_eq!((&before["amount"], &before["parts"][0]["book"]), (&json!(AT_COST), &json!("at-cost")));
        assert_eq!(quote(key, json!({"book": "acme-prices"}), start).await.json()["amount"], OWN);
    }
    let globex = quote(&api.globex, json!({"customer": "globex"}), start).await.json();
    assert_eq!(globex["amount"], AT_COST);
    for (who, field) in [
        (json!({"customer": "acme"}), "customer"),
        (json!({"customer": "nobody"}), "customer"),
        (json!({"book": "acme-prices"}), "book"),
        (json!({"book": "at-cost", "customer": "globex"}), "book"),
        (json!({}), "book"),
    ] {
        let refused = quote(&api.globex, who, start).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{}", refused.text);
        assert_eq!(refused.json()["errors"][0]["field"], field, "{}", refused.text);
    }
    let books = async |key: &str| -> Vec<String> {
        let listed = api.event(key, "/v1/prices").await;
        let rows = listed["data"].as_array().unwrap().iter();
        rows.map(|row| row["book"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(books(&api.acme).await, ["acme-prices", "at-cost"]);
    assert_eq!(books(&api.globex).await, ["at-cost"]);
    let customer = api.event(&api.acme, "/v1/customers/acme").await;
    assert_eq!(customer["assignments"][1]["override_book"], "acme-prices");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_cannot_be_is_refused_and_nothing_is_assigned() {
    let api = world().await;
    for (name, kind, currency) in [("euros", "sell", "EUR"), ("costs", "cost", "USD")] {
        api.made("/v1/price-books", &json!({"name": name, "kind": kind, "currency": currency})).await;
    }
    let assignments = async || {
        let customer = api.event(&api.finance, "/v1/customers/acme").await;
        customer["assignments"].clone()
    };
    let before = assignments().await;
    for (book, says) in [
        ("euros", "must have the same currency"),
        ("costs", "is a cost book"),
        ("nowhere", "there is no price book"),
        ("at-cost", "is the sell book already"),
    ] {
        let body = json!({"sell_book": "at-cost", "override_book": book, "cost_book": "provider-cost", "valid_from": now()});
        let refused = post(&api.router, &api.finance, "/v1/customers/acme/assignments", &body).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{}", refused.text);
        let error = &refused.json()["errors"][0];
        assert_eq!(error["field"], "override_book", "{error}");
        assert!(error["detail"].as_str().unwrap().contains(says), "{error}");
    }
    let number = json!({"sell_book": "at-cost", "override_book": 7, "valid_from": now()});
    let refused = post(&api.router, &api.finance, "/v1/customers/acme/assignments", &number).await;
    assert_eq!(refused.problem(), (400, "invalid_body".to_owned()));
    assert_eq!(assignments().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_was_assigned_later_is_said_to_be_and_re_rated() {
    let api = world().await;
    let start = (now() - TimeDelta::hours(1)).trunc_subsecs(6);
    publish(&api, &own_price("gpt-5", start, &own_rates())).await;
    api.world.start_consumer();
    api.world.publish("gw-1", &call("e-1", "acme", "gpt-5", start)).await;
    api.world.settled().await;
    assign(&api, start).await;
    assert_amounts(&api, "e-1", AT_COST).await;
    let charge = api.event(&api.acme, "/v1/events/gw-1/e-1").await["parts"][0]["charge"].clone();
    assert_eq!(
        (&charge["price"]["book"], &charge["override_book"]["applied"]),
        (&json!("at-cost"), &json!(false))
    );
    assert_eq!(charge["not_taken"][0]["reason"], "not_assigned_yet");
    assert!(charge["override_book"]["detail"].as_str().unwrap().contains("re-rate"), "{charge}");
    let request =
        Request { from: start, to: now(), customer: None, provider: None, model: None, reason: None };
    apply(&api.world.bed.database, &Clock::System, &request, "test").await.unwrap();
    api.world.settled().await;
    assert_amounts(&api, "e-1", OWN).await;
    api.world.verified().await;
}
