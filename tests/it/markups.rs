//! Factors of markup books that change with time: exact, bitemporal, and never moving what is recorded.

use axum::http::{Method, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::invoicing::rerate::{Request, apply};

use crate::http_bed::Api;
use crate::http_events::Explained;
use crate::world::{gpt5_prices, now, usage_event};

fn cost(model: &str, input: &str, from: &str) -> Value {
    json!([{"provider": "openai", "model": model, "per": 1_000_000, "rates": {"input": input},
            "fees": {"web_search": "0.01"}, "valid_from": from}])
}

/// A cost book with two models since January, and a sell book of cost plus 20 %.
async fn books(api: &Api) {
    for book in [
        json!({"name": "list", "kind": "cost", "currency": "USD"}),
        json!({"name": "retail", "kind": "sell", "currency": "USD", "base": "list", "markup": "1.2"}),
    ] {
        assert_eq!(api.post(&api.keys.finance, "/v1/price-books", &book).await.status, StatusCode::CREATED);
    }
    publish(api, &cost("a", "10", "2026-01-01T00:00:00Z")).await;
    publish(api, &cost("b", "1", "2026-01-01T00:00:00Z")).await;
}

async fn publish(api: &Api, prices: &Value) {
    let answer = api.post(&api.keys.finance, "/v1/price-books/list/prices", prices).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
}

async fn change(api: &Api, body: &Value) -> Value {
    let answer = api.post(&api.keys.finance, "/v1/price-books/retail/markups", body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

/// What a million input tokens of a model are sold at.
async fn sold(api: &Api, model: &str, at: &str) -> String {
    let data = json!({"provider": "openai", "model": model, "usage": {"input": 1_000_000}});
    let body = json!({"book": "retail", "at": at, "data": data});
    let answer = api.post(&api.keys.finance, "/v1/prices/quote", &body).await;
    answer.json()["amount"].as_str().unwrap_or("none").to_owned()
}

/// Start, end and input rate of what stands in the sell book of a model.
async fn standing(api: &Api, model: &str, query: &str) -> Vec<String> {
    let path = format!("/v1/prices?book=retail&model={model}{query}");
    let listed = api.get(&api.keys.finance, &path).await.json();
    let day = |value: &Value| value.as_str().map_or("open".to_owned(), |time| time[..10].to_owned());
    let rows = listed["data"].as_array().unwrap().iter();
    rows.map(|row| {
        format!(
            "{} {} {}",
            day(&row["valid_from"]),
            day(&row["valid_to"]),
            row["rates"]["input"].as_str().unwrap()
        )
    })
    .collect()
}

#[tokio::test]
async fn from_its_start_on_the_new_factors_apply_and_before_it_the_old_ones() {
    let api = Api::start().await;
    books(&api).await;
    let body = json!({"markup": "1.25", "markups_by_model": {"b*": "2"}, "valid_from": "2026-06-01T00:00:00.000001Z"});
    let dry = api.post(&api.keys.finance, "/v1/price-books/retail/markups?dry_run=true", &body).await;
    assert_eq!(dry.status, StatusCode::OK, "{}", dry.text);
    let dry = dry.json();
    assert_eq!(
        (&dry["changed"], &dry["dry_run"], &dry["prices"][0]["id"]),
        (&json!(2), &json!(true), &Value::Null)
    );
    let first = &dry["prices"][0];
    assert_eq!(
        (&first["model"], &first["valid_from"], &first["valid_to"]),
        (&json!("a"), &body["valid_from"], &Value::Null)
    );
    let rates = |change: &Value| {
        (change["class"].clone(), change["old"]["rate"].clone(), change["new"]["rate"].clone())
    };
    assert_eq!(rates(&first["changes"][0]), (json!("input"), json!("12"), json!("12.5")));
    assert_eq!(rates(&first["changes"][1]), (json!("web_search"), json!("0.012"), json!("0.0125")));
    assert_eq!(standing(&api, "a", "").await, ["2026-01-01 open 12"], "a dry run stores nothing");

    let version = api.catalog_version().await;
    let set = change(&api, &body).await;
    assert_eq!((&set["changed"], &set["valid_to"]), (&json!(2), &Value::Null));
    assert!(api.catalog_version().await > version, "consumers learn of it");
    assert_eq!(standing(&api, "a", "").await, ["2026-01-01 2026-06-01 12", "2026-06-01 open 12.5"]);
    for (model, at, amount) in [
        ("a", "2026-06-01T00:00:00Z", "12"),
        ("a", "2026-06-01T00:00:00.000001Z", "12.5"),
        ("b", "2026-06-01T00:00:00Z", "1.2"),
        ("b", "2026-06-01T00:00:00.000001Z", "2"),
    ] {
        assert_eq!(sold(&api, model, at).await, amount, "{model} at {at}");
    }
    // What was believed before is still there to be read.
    let superseded = set["prices"][0]["superseded"].as_i64().unwrap();
    let old = api.get(&api.keys.finance, &format!("/v1/prices/{superseded}")).await.json();
    assert_eq!((&old["valid_to"], &old["rates"]["input"]), (&Value::Null, &json!("12")));
    let copy = old["superseded_by"].as_i64().unwrap();
    let copy = api.get(&api.keys.finance, &format!("/v1/prices/{copy}")).await.json();
    assert_eq!((&copy["valid_to"], &copy["rates"]["input"]), (&body["valid_from"], &json!("12")));
}

#[tokio::test]
async fn cost_prices_published_later_are_derived_with_the_factor_of_each_part_of_their_validity() {
    let api = Api::start().await;
    books(&api).await;
    change(&api, &json!({"markup": "2", "valid_from": "2026-06-01T00:00:00Z"})).await;
    // Inserted before one that is announced already: it ends there.
    let inserted = change(&api, &json!({"markup": "1.5", "valid_from": "2026-04-01T00:00:00Z"})).await;
    assert_eq!(inserted["valid_to"], "2026-06-01T00:00:00Z");
    publish(&api, &cost("c", "100", "2026-03-01T00:00:00Z")).await;
    assert_eq!(
        standing(&api, "c", "").await,
        ["2026-03-01 2026-04-01 120", "2026-04-01 2026-06-01 150", "2026-06-01 open 200"]
    );
    // A cost price that follows another cuts every derived price where it starts.
    publish(&api, &cost("a", "8", "2026-05-01T00:00:00Z")).await;
    assert_eq!(
        standing(&api, "a", "").await,
        [
            "2026-01-01 2026-04-01 12",
            "2026-04-01 2026-05-01 15",
            "2026-05-01 2026-06-01 12",
            "2026-06-01 open 16"
        ]
    );
    // Ending a cost price ends what it derived, and an announced one that is withdrawn leaves nothing behind.
    let listed = api.get(&api.keys.finance, "/v1/prices?book=list&model=c").await.json();
    let path = format!("/v1/prices/{}", listed["data"][0]["id"]);
    let ended = api.patch(&api.keys.finance, &path, &json!({"valid_to": "2026-05-15T00:00:00Z"})).await;
    assert_eq!(ended.status, StatusCode::OK, "{}", ended.text);
    assert_eq!(standing(&api, "c", "").await, ["2026-03-01 2026-04-01 120", "2026-04-01 2026-05-15 150"]);
    // An explicit price of the book itself is nobody's to derive again.
    let explicit = cost("b", "7", "2026-02-01T00:00:00Z");
    let answer = api.post(&api.keys.finance, "/v1/price-books/retail/prices", &explicit).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    change(&api, &json!({"markup": "9", "valid_from": "2026-03-01T00:00:00Z"})).await;
    assert_eq!(sold(&api, "b", "2026-03-02T00:00:00Z").await, "7");
    assert_eq!(sold(&api, "b", "2026-01-15T00:00:00Z").await, "1.2");

    let history = api.get(&api.keys.finance, "/v1/price-books/retail/markups").await.json();
    let rows: Vec<(Value, Value, Value)> = history["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["markup"].clone(), row["valid_from"].clone(), row["valid_to"].clone()))
        .collect();
    let date = |month: u8| json!(format!("2026-{month:02}-01T00:00:00Z"));
    let expected = [
        (json!("1.2"), Value::Null, date(3)),
        (json!("9"), date(3), date(4)),
        (json!("1.5"), date(4), date(6)),
        (json!("2"), date(6), Value::Null),
    ];
    assert_eq!(rows, expected);
    let page = api.get(&api.keys.finance, "/v1/price-books/retail/markups?limit=1").await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let next =
        api.get(&api.keys.finance, &format!("/v1/price-books/retail/markups?limit=1&cursor={cursor}")).await;
    assert_eq!(next.json()["data"][0]["markup"], "9");
    let csv = api
        .send(Method::GET, &api.keys.finance, "/v1/price-books/retail/markups", "", &[("accept", "text/csv")])
        .await;
    assert_eq!(csv.text.lines().count(), 5, "{}", csv.text);
    // The book shows what applies now, at noon of 2026-11-23.
    assert_eq!(api.get(&api.keys.finance, "/v1/price-books/retail").await.json()["markup"], "2");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let api = Api::start().await;
    books(&api).await;
    change(&api, &json!({"markup": "1.3", "valid_from": "2026-06-01T00:00:00Z"})).await;
    let (before, version) = (standing(&api, "a", "&superseded=true").await, api.catalog_version().await);
    let path = "/v1/price-books/retail/markups";
    let later = "2026-07-01T00:00:00Z";
    for (body, status, code, field) in [
        (json!({"markup": "-1", "valid_from": later}), 422, "invalid_value", "markup"),
        (json!({"markup": "1000", "valid_from": later}), 422, "invalid_value", "markup"),
        (json!({"markup": "NaN", "valid_from": later}), 422, "invalid_value", "markup"),
        (json!({"markup": "1.0000001", "valid_from": later}), 422, "invalid_value", "markup"),
        (
            json!({"markup": "1.000000000000000000000000000001", "valid_from": later}),
            422,
            "invalid_value",
            "markup",
        ),
        (
            json!({"markup": "1", "markups_by_model": {"*": "2"}, "valid_from": later}),
            422,
            "invalid_value",
            "markups_by_model",
        ),
        (
            json!({"markup": "1", "markups_by_model": {"a": "x"}, "valid_from": later}),
            422,
            "invalid_value",
            "markups_by_model",
        ),
        (json!({"markup": "1", "valid_from": "1999-12-31T23:59:59Z"}), 422, "invalid_value", "valid_from"),
        (json!({"markup": "1", "valid_from": "2026-06-01T00:00:00.0000001Z"}), 409, "conflict", "valid_from"),
        (json!({"markup": "1", "valid_from": "2026-06-01T00:00:00Z"}), 409, "conflict", "valid_from"),
    ] {
        let refused = api.post(&api.keys.finance, path, &body).await;
        assert_eq!(refused.problem(), (status, code.to_owned()), "{body}: {}", refused.text);
        assert_eq!(refused.json()["errors"][0]["field"], field, "{body}: {}", refused.text);
    }
    for body in [
        json!({"markup": 1.3, "valid_from": later}),
        json!({"markup": "1.3"}),
        json!({"markup": "1", "valid_from": later, "valid_to": later}),
    ] {
        assert_eq!(
            api.post(&api.keys.finance, path, &body).await.problem(),
            (400, "invalid_body".to_owned()),
            "{body}"
        );
    }
    let good = json!({"markup": "2", "valid_from": later});
    for (book, expected) in [("list", (409, "conflict")), ("nowhere", (404, "not_found"))] {
        let path = format!("/v1/price-books/{book}/markups");
        let expected = (expected.0, expected.1.to_owned());
        assert_eq!(api.post(&api.keys.finance, &path, &good).await.problem(), expected, "{book}");
        assert_eq!(api.get(&api.keys.finance, &path).await.problem(), expected, "{book}");
    }
    assert_eq!(api.post(&api.keys.acme, path, &good).await.problem(), (403, "forbidden".to_owned()));
    assert_eq!(api.get(&api.keys.acme, path).await.problem(), (403, "forbidden".to_owned()));
    assert_eq!(standing(&api, "a", "&superseded=true").await, before);
    assert_eq!(api.catalog_version().await, version);
    assert_eq!(api.get(&api.keys.finance, path).await.json()["data"].as_array().unwrap().len(), 2);
}

/// Recorded calls keep their amounts whatever factors are set for their time, until they are re-rated.
#[tokio::test(flavor = "multi_thread")]
async fn a_back_dated_change_moves_nothing_recorded_until_it_is_re_rated() {
    let api = Explained::start().await;
    api.world.publish_prices(gpt5_prices()).await;
    api.world.start_consumer();
    let start = now() - TimeDelta::hours(1);
    let start = DateTime::<Utc>::from_timestamp(start.timestamp(), 0).unwrap();
    let call = |id: &str, at: DateTime<Utc>| {
        let mut event = usage_event(id);
        event["time"] = json!(at.to_rfc3339());
        event
    };
    api.world.publish("gw-1", &call("early", start - TimeDelta::microseconds(1))).await;
    api.world.publish("gw-1", &call("late", start)).await;
    api.world.settled().await;
    let body = json!({"markup": "1.2", "valid_from": start});
    let changed = api.made("/v1/price-books/at-cost/markups", &body).await;
    assert_eq!(changed["changed"], 1);
    // The consumer rates with the new factor; the earlier calls stand.
    api.world.publish("gw-1", &call("next", start)).await;
    api.world.settled().await;
    let charge = async |id: &str| {
        let event = api.event(&api.finance, &format!("/v1/events/gw-1/{id}")).await;
        event["amount"].as_str().unwrap().to_owned()
    };
    let charges = async || [charge("early").await, charge("late").await, charge("next").await];
    assert_eq!(charges().await, ["0.0006625", "0.0006625", "0.000795"]);
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
    let [(_, figures)] = rerated.groups.as_slice() else { panic!("one: {:?}", rerated.groups) };
    assert_eq!(
        (figures.events, figures.charge.difference().unwrap().to_string()),
        (1, "0.0001325".to_owned())
    );
    assert_eq!(charges().await, ["0.0006625", "0.000795", "0.000795"]);
    api.world.verified().await;
}
