//! Price books, prices and quotes through the API.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::harness::{API_CONNECTIONS, connected, wait_until};
use crate::http_bed::{Answer, Api};

fn expect(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.problem(), (status, code.to_owned()), "{}", answer.text);
}

fn made(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

/// gpt-5.6-sol with its long-context tier, and gpt-5 under two names.
fn published() -> Value {
    let sol = |above: Option<i64>, input: &str, output: &str| {
        json!({"provider": "openai", "model": "gpt-5.6-sol", "conditions": {"context_above": above}, "per": 1_000_000,
               "rates": {"input": input, "cache_read": "0.4", "output": output}, "fees": {"web_search": "0.01"},
               "valid_from": "2026-08-21T00:00:00Z", "source": "https://example.com/prices", "checked_at": "2026-11-01"})
    };
    json!([
        sol(None, "4", "20"),
        sol(Some(272_000), "8", "30"),
        {"provider": "openai", "model": "gpt-5", "aliases": ["gpt-5-2025-08-07"], "per": 1_000_000,
         "rates": {"input": "1.25", "cache_read": "0.125", "output": "10"}, "multiplier": "1.1",
         "valid_from": "2025-08-07T00:00:00Z"},
    ])
}

/// A cost book with prices, a sell book of cost plus 20 % that acme is assigned, and one that nobody is.
async fn books(api: &Api) {
    let finance = &api.keys.finance;
    let book = |body: Value| async move { made(&api.post(finance, "/v1/price-books", &body).await) };
    book(json!({"name": "list", "kind": "cost", "currency": "USD"})).await;
    let sell =
        book(json!({"name": "plus-20", "kind": "sell", "currency": "USD", "base": "list", "markup": "1.20"}))
            .await;
    assert_eq!(sell["markup"], "1.2");
    book(json!({"name": "secret", "kind": "sell", "currency": "USD", "base": "list", "markup": "3"})).await;
    let publication = made(&api.post(finance, "/v1/price-books/list/prices", &published()).await);
    assert_eq!((&publication["derived"], &publication["aliases"]), (&json!(6), &json!(1)));
    let assignment = json!({"sell_book": "plus-20", "valid_from": "2025-01-01T00:00:00Z"});
    made(&api.post(finance, "/v1/customers/acme/assignments", &assignment).await);
}

async fn quote(api: &Api, key: &str, book: &str, data: Value) -> Answer {
    let body = json!({"book": book, "at": "2026-11-23T10:00:00Z", "data": data});
    api.post(key, "/v1/prices/quote", &body).await
}

#[tokio::test]
async fn a_quote_shows_every_class_and_sums_up() {
    let api = Api::start().await;
    books(&api).await;
    let data = json!({"provider": "openai", "model": "gpt-5.6-sol",
        "usage": {"input": 200, "cache_read": 2000, "output": 380, "reasoning": 120, "web_search": 2}});
    let answer = quote(&api, &api.keys.finance, "list", data.clone()).await.json();
    assert_eq!((&answer["amount"], &answer["currency"]), (&json!("0.0316"), &json!("USD")));
    let part = &answer["parts"][0];
    assert_eq!((&part["model"], &part["tier_input"]), (&json!("gpt-5.6-sol"), &json!(2200)));
    assert_eq!(
        part["classes"][0],
        json!({"class": "input", "quantity": 200, "rate": "4", "per": 1_000_000,
        "amount": "0.0008", "currency": "USD", "inherited_from": null})
    );
    assert_eq!(part["classes"][3]["inherited_from"], "output");
    assert_eq!(part["fees"][0]["amount"], "0.02");
    let sold = quote(&api, &api.keys.acme, "plus-20", data.clone()).await.json();
    assert_eq!(sold["amount"], "0.03792");
    // Past the threshold the whole request is at the upper tier.
    let long = json!({"provider": "openai", "model": "gpt-5.6-sol",
        "usage": {"input": 72_001, "cache_read": 200_000, "output": 1000}});
    assert_eq!(quote(&api, &api.keys.finance, "list", long).await.json()["amount"], "0.686008");
    // A multiplier is in the rates, and an alias is the model.
    let dated = json!({"provider": "openai", "model": "gpt-5-2025-08-07", "usage": {"input": 1_000_000}});
    let dated = quote(&api, &api.keys.finance, "list", dated).await.json();
    assert_eq!((&dated["amount"], &dated["parts"][0]["model"]), (&json!("1.375"), &json!("gpt-5")));
    assert_eq!(dated["parts"][0]["multiplier"], "1.1");
}

#[tokio::test]
async fn a_tenth_and_two_tenths_are_three_tenths() {
    let api = Api::start().await;
    let finance = &api.keys.finance;
    let book = json!({"name": "tenths", "kind": "cost", "currency": "USD"});
    made(&api.post(finance, "/v1/price-books", &book).await);
    let prices = json!([{"provider": "p", "model": "m", "per": 1, "rates": {"input": "0.1", "output": "0.2"},
        "valid_from": "2026-01-01T00:00:00Z"}]);
    made(&api.post(finance, "/v1/price-books/tenths/prices", &prices).await);
    for (input, output, amount) in
        [(1, 1, "0.3"), (3, 0, "0.3"), (7, 1, "0.9"), (1_000_000_001, 1, "100000000.3")]
    {
        let data = json!({"provider": "p", "model": "m", "usage": {"input": input, "output": output}});
        let answer = quote(&api, finance, "tenths", data).await;
        assert_eq!(answer.json()["amount"], amount, "{}", answer.text);
    }
    // A rate that is a JSON number would have passed through a float on its way here.
    let mut numbers = prices.clone();
    numbers[0]["rates"]["input"] = json!(0.1);
    expect(&api.post(finance, "/v1/price-books/tenths/prices", &numbers).await, 400, "invalid_body");
}

#[tokio::test]
async fn bodies_that_do_not_come_keep_nobody_else_waiting() {
    let api = Api::start().await;
    connected(&api.bed.database).await;
    let awaited = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..API_CONNECTIONS)
        .map(|_| {
            let awaited = awaited.clone();
            let body = futures_util::stream::poll_fn(move |_| {
                awaited.fetch_add(1, Ordering::Relaxed);
                Poll::<Option<Result<String, Infallible>>>::Pending
            });
            let request = Request::post("/v1/prices/quote")
                .header(header::AUTHORIZATION, format!("Bearer {}", api.keys.finance))
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from_stream(body));
            tokio::spawn(api.router.clone().oneshot(request.unwrap()))
        })
        .collect();
    wait_until("the bodies are waited for", async || {
        (awaited.load(Ordering::Relaxed) >= API_CONNECTIONS).then_some(())
    })
    .await;
    assert_eq!(api.get(&api.keys.acme, "/v1/customers").await.status, StatusCode::OK);
    clients.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_cannot_be_quoted_says_why() {
    let api = Api::start().await;
    books(&api).await;
    let finance = &api.keys.finance;
    let call = |model: &str| json!({"provider": "openai", "model": model, "usage": {"input": 1}});
    let mut priority = call("gpt-5");
    priority["service_tier"] = json!("priority");
    let mut pages = call("gpt-5");
    pages["usage"] = json!({"page": 3});
    for (book, data, field) in [
        ("nowhere", call("gpt-5"), "book"),
        ("list", call("gpt-7"), "data (part 0)"),
        ("list", priority, "data (part 0)"),
        ("list", pages, "data (part 0)"),
        ("list", json!({"provider": "openai", "model": "gpt-5", "usage": {"input": -1}}), "data"),
    ] {
        let answer = quote(&api, finance, book, data).await;
        expect(&answer, 422, "invalid_value");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{}", answer.text);
    }
    expect(&quote(&api, &api.keys.gateway, "list", call("gpt-5")).await, 403, "forbidden");
    let late = json!({"book": "list", "at": "+12026-11-23T10:00:00Z", "data": call("gpt-5")});
    let late = api.post(finance, "/v1/prices/quote", &late).await;
    assert_eq!(late.status, StatusCode::OK, "a time is no fault of the data: {}", late.text);
}

#[tokio::test]
async fn a_customer_sees_its_own_sell_prices_and_nothing_of_cost() {
    let api = Api::start().await;
    books(&api).await;
    let acme = &api.keys.acme;
    let seen = api.get(acme, "/v1/prices").await.json();
    let seen = seen["data"].as_array().unwrap();
    assert_eq!(seen.len(), 3);
    for price in seen {
        assert_eq!(price["book"], "plus-20");
        for hidden in ["derived_from", "source", "checked_at"] {
            assert!(price.get(hidden).is_none(), "{price}");
        }
    }
    let gpt5 = api.get(acme, "/v1/prices?model=gpt-5-2025-08-07").await.json();
    assert_eq!(gpt5["data"][0]["rates"]["input"], "1.65");
    assert_eq!(gpt5["data"][0]["aliases"], json!(["gpt-5-2025-08-07"]));
    assert_eq!(api.get(&api.keys.globex, "/v1/prices").await.json()["data"], json!([]));
    let cost = api.get(&api.keys.finance, "/v1/prices?book=list").await.json();
    let cost = cost["data"][0]["id"].as_i64().unwrap();
    let (foreign, missing) =
        (api.get(acme, &format!("/v1/prices/{cost}")).await, api.get(acme, "/v1/prices/999999").await);
    expect(&foreign, 404, "not_found");
    assert_eq!(foreign.comparable(), missing.comparable());
    let call = json!({"provider": "openai", "model": "gpt-5", "usage": {"input": 1}});
    for book in ["list", "secret", "nowhere"] {
        expect(&quote(&api, acme, book, call.clone()).await, 422, "invalid_value");
    }
    expect(&api.get(acme, "/v1/price-books").await, 403, "forbidden");
    expect(&api.post(acme, "/v1/price-books/list/prices", &published()).await, 403, "forbidden");
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_stores_nothing() {
    let api = Api::start().await;
    books(&api).await;
    let finance = &api.keys.finance;
    let version = api.catalog_version().await;
    let cut = json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000,
        "rates": {"input": "1", "cache_read": "0.1375", "output": "11"}, "valid_from": "2026-12-01T00:00:00Z"}]);
    let dry = api.post(finance, "/v1/price-books/list/prices?dry_run=true", &cut).await;
    assert_eq!(dry.status, StatusCode::OK, "{}", dry.text);
    let dry = dry.json();
    assert_eq!((&dry["dry_run"], &dry["prices"][0]["id"]), (&json!(true), &Value::Null));
    assert_eq!(dry["prices"][0]["status"], "changed");
    let changes = dry["prices"][0]["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!((&changes[0]["old"]["rate"], &changes[0]["new"]["rate"]), (&json!("1.375"), &json!("1")));
    assert_eq!(api.catalog_version().await, version);
    let wet = made(&api.post(finance, "/v1/price-books/list/prices", &cut).await);
    assert_eq!(wet["continued"].as_array().unwrap().len(), 1);
    let again = api.post(finance, "/v1/price-books/list/prices", &cut).await;
    assert_eq!((again.status, &again.json()["prices"][0]["status"]), (StatusCode::OK, &json!("unchanged")));
}

/// Everything that is stored about prices, and what tells consumers of a change.
async fn stored(api: &Api) -> (Value, i64, i64) {
    let prices =
        api.get(&api.keys.finance, "/v1/prices?superseded=true&limit=200").await.json()["data"].clone();
    let aliases = api.number("SELECT count(*) FROM model_aliases").await;
    (prices, aliases, api.catalog_version().await)
}

#[tokio::test]
async fn a_bad_price_is_refused_with_its_path_and_nothing_is_stored() {
    let api = Api::start().await;
    books(&api).await;
    let before = stored(&api).await;
    let (path, finance) = ("/v1/price-books/list/prices", &api.keys.finance);
    let with = |field: &str, value: Value| {
        // The others are new as well: they must not be stored either.
        let mut prices = published();
        for price in prices.as_array_mut().unwrap() {
            price["provider"] = json!("another");
        }
        prices[2][field] = value;
        prices
    };
    for (field, value, path_of_error) in [
        ("rates", json!({"inptu": "1"}), "[2].rates.inptu"),
        ("rates", json!({"web_search": "1"}), "[2].rates.web_search"),
        ("fees", json!({"input": "1"}), "[2].fees.input"),
        ("rates", json!({"input": "-1"}), "[2].rates.input"),
        ("rates", json!({"input": "NaN"}), "[2].rates.input"),
        ("rates", json!({"input": "Infinity"}), "[2].rates.input"),
        ("rates", json!({"input": "1e-6"}), "[2].rates.input"),
        ("rates", json!({"input": ""}), "[2].rates.input"),
        ("rates", json!({"input": "1,25"}), "[2].rates.input"),
        ("rates", json!({"input": "123456789012345678901234567890"}), "[2].rates.input"),
        ("rates", json!({"input": "1.00000000000000000000000000001"}), "[2].rates.input"),
        ("fees", json!({"web_search": "-0.01"}), "[2].fees.web_search"),
        ("rates", json!({}), "[2].rates"),
        ("per", Value::Null, "[2].per"),
        ("per", json!(0), "[2].per"),
        ("multiplier", json!("NaN"), "[2].multiplier"),
        ("multiplier", json!("-1.1"), "[2].multiplier"),
        ("conditions", json!({"hours_utc": ["25:00-26:00"]}), "[2].conditions.hours_utc[0]"),
        ("conditions", json!({"weekdays": [0]}), "[2].conditions.weekdays[0]"),
        ("conditions", json!({"context_above": -1}), "[2].conditions.context_above"),
        ("conditions", json!({"context_inclusive": true}), "[2].conditions.context_inclusive"),
        ("valid_from", json!("1999-12-31T23:59:59Z"), "[2].valid_from"),
        ("valid_to", json!("2025-08-07T00:00:00Z"), "[2].valid_to"),
        ("model", json!(""), "[2].model"),
        ("aliases", json!(["gpt-5"]), "[2].aliases[0]"),
    ] {
        let answer = api.post(finance, path, &with(field, value.clone())).await;
        expect(&answer, 422, "invalid_value");
        assert_eq!(answer.json()["errors"][0]["field"], path_of_error, "{value}: {}", answer.text);
    }
    for (field, value) in [
        ("rates", json!({"input": 1.25})),
        ("rates", json!({"input": null})),
        ("per", json!(-1)),
        ("per", json!("1000000")),
        ("conditions", json!({"tier": "priority"})),
        ("valid_from", json!("soon")),
        ("valid_from", json!("2026-01-01T00:00:00")),
        ("vendor", json!("x")),
    ] {
        expect(&api.post(finance, path, &with(field, value)).await, 400, "invalid_body");
    }
    let twice = with("model", json!("x")).to_string().replacen("\"input\":", "\"input\":\"9\",\"input\":", 1);
    expect(&api.send(Method::POST, finance, path, &twice, &[]).await, 400, "invalid_body");
    expect(&api.post(finance, path, &json!([])).await, 422, "invalid_value");
    expect(&api.post(finance, "/v1/price-books/nowhere/prices", &published()).await, 404, "not_found");
    assert_eq!(stored(&api).await, before);
}

#[tokio::test]
async fn a_price_that_collides_names_the_other_and_nothing_is_stored() {
    let api = Api::start().await;
    books(&api).await;
    let (path, finance) = ("/v1/price-books/list/prices", &api.keys.finance);
    let peak = json!([{"provider": "openai", "model": "peak", "per": 1_000_000, "rates": {"input": "2"},
        "conditions": {"hours_utc": ["08:00-12:00"]}, "valid_from": "2026-01-01T00:00:00Z", "valid_to": "2026-06-01T00:00:00Z"}]);
    made(&api.post(finance, path, &peak).await);
    let id_of = async |model: &str| {
        let listed = api.get(finance, &format!("/v1/prices?book=list&model={model}")).await.json();
        listed["data"][0]["id"].as_i64().unwrap()
    };
    let (gpt5, peak_id, before) = (id_of("gpt-5").await, id_of("peak").await, stored(&api).await);
    let changed = |from: &Value, field: &str, value: Value| {
        let mut price = from.clone();
        price[field] = value;
        price
    };
    let (standard, peak) = (&published()[2], &peak[0]);
    let overlapping =
        |field: &str, value: Value| changed(&changed(peak, "rates", json!({"input": "3"})), field, value);
    for (prices, field, id) in [
        // The same model and conditions at the same time, with another rate.
        (json!([changed(standard, "rates", json!({"input": "2"}))]), "[0].valid_from", gpt5),
        (json!([overlapping("valid_to", json!("2026-06-01T00:00:00.000001Z"))]), "[0].valid_from", peak_id),
        (json!([overlapping("valid_from", json!("2025-06-01T00:00:00Z"))]), "[0].valid_from", peak_id),
        // Other hours that share some minutes: neither is more specific.
        (
            json!([overlapping("conditions", json!({"hours_utc": ["11:59-13:00"]}))]),
            "[0].conditions",
            peak_id,
        ),
    ] {
        let conflict = api.post(finance, path, &prices).await;
        expect(&conflict, 409, "conflict");
        let error = &conflict.json()["errors"][0];
        assert_eq!(error["field"], field, "{error}");
        assert!(error["detail"].as_str().unwrap().contains(&format!("price {id}")), "{error}");
    }
    // Two of one request, and a name that means another model from later on.
    let other = overlapping("model", json!("new"));
    let both = json!([other, changed(&other, "rates", json!({"input": "9"}))]);
    let answer = api.post(finance, path, &both).await;
    expect(&answer, 422, "invalid_value");
    let error = &answer.json()["errors"][0];
    assert!(error["detail"].as_str().unwrap().contains("prices[0]"), "{error}");
    let earlier = overlapping("valid_from", json!("2025-01-01T00:00:00Z"));
    let renamed = json!([changed(&earlier, "aliases", json!(["gpt-5-2025-08-07"]))]);
    let answer = api.post(finance, path, &renamed).await;
    expect(&answer, 422, "invalid_value");
    let error = &answer.json()["errors"][0];
    assert_eq!(error["field"], "[0].aliases[0]");
    assert!(error["detail"].as_str().unwrap().contains("means `gpt-5`"), "{error}");
    assert_eq!(stored(&api).await, before);
    // Just after it ends, and beside its hours, there is room.
    let fitting = json!([
        overlapping("valid_from", json!("2026-06-01T00:00:00Z")),
        overlapping("conditions", json!({"hours_utc": ["12:00-13:00"]})),
    ]);
    let mut fitting = fitting;
    fitting[0]["valid_to"] = Value::Null;
    made(&api.post(finance, path, &fitting).await);
    let taken = json!({"name": "list", "kind": "cost", "currency": "USD"});
    expect(&api.post(finance, "/v1/price-books", &taken).await, 409, "already_exists");
}

#[tokio::test]
async fn prices_are_listed_read_and_ended() {
    let api = Api::start().await;
    books(&api).await;
    let finance = &api.keys.finance;
    let first = api.get(finance, "/v1/prices?book=list&limit=2").await.json();
    assert_eq!(first["data"].as_array().unwrap().len(), 2);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = api.get(finance, &format!("/v1/prices?book=list&limit=2&cursor={cursor}")).await.json();
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
    let gpt5 = &first["data"][0];
    assert_eq!((&gpt5["multiplier"], &gpt5["rates"]["input"]), (&json!("1.1"), &json!("1.25")));
    let reasoning =
        gpt5["effective_rates"].as_array().unwrap().iter().find(|rate| rate["class"] == "reasoning").unwrap();
    assert_eq!((&reasoning["rate"], &reasoning["inherited_from"]), (&json!("11"), &json!("output")));

    let csv = api.send(Method::GET, finance, "/v1/prices?book=list", "", &[("accept", "text/csv")]).await;
    assert_eq!(csv.text.lines().count(), 4, "{}", csv.text);

    let id = gpt5["id"].as_i64().unwrap();
    let path = format!("/v1/prices/{id}");
    let ended = api.patch(finance, &path, &json!({"valid_to": "2026-12-01T00:00:00Z"})).await;
    assert_eq!(ended.status, StatusCode::OK, "{}", ended.text);
    assert_eq!(ended.json()["valid_to"], "2026-12-01T00:00:00Z");
    assert_eq!(ended.json()["no_price_from"], "2026-12-01T00:00:00Z");
    let old = api.get(finance, &path).await.json();
    assert_eq!(old["superseded_by"], ended.json()["id"]);
    expect(&api.patch(finance, &path, &json!({"valid_to": "2026-12-01T00:00:00Z"})).await, 409, "conflict");
    expect(
        &api.patch(finance, "/v1/prices/999999", &json!({"valid_to": "2026-12-01T00:00:00Z"})).await,
        404,
        "not_found",
    );
    let then = api.get(finance, "/v1/prices?book=list&model=gpt-5&at=2026-12-01T00:00:00Z").await.json();
    assert_eq!(then["data"], json!([]));
}
