//! A fee per request: charged once for each call, on the side that has it, through the journal, sums, invoice and re-rates.

use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::price::quotation::NewPrice;
use waybill::invoicing;
use waybill::invoicing::rerate::apply;
use waybill::store::{Scope, commit, prices};

use crate::rerate::everything;
use crate::world::{self, SELL_BOOK, World, estimate};

/// What the tokens of a test event cost.
const TOKENS: &str = "0.0006625";

fn priced(from: &str, fees: &Value) -> Value {
    json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "fees": fees, "source": "test",
            "rates": {"input": "1.25", "cache_read": "0.125", "output": "10"}, "valid_from": from}])
}

async fn record(world: &World, event: &Value) {
    world.publish("gw-1", event).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
}

/// Cost, charge and requests by the rollups.
async fn sums(world: &World) -> (String, String, i64) {
    sqlx::query_as(
        "SELECT trim_scale(sum(cost))::text, trim_scale(sum(charge))::text,
                COALESCE(sum((rare->>'request')::numeric), 0)::bigint FROM usage_rollups",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap()
}

/// Rates everything again; nothing is unpriced, and a second time changes nothing.
async fn rerated(world: &World) -> (String, String, i64) {
    let apply = async || apply(&world.bed.database, &Clock::System, &everything(), "test").await.unwrap();
    assert_eq!(apply().await.unpriced, []);
    assert_eq!(apply().await.groups, []);
    world.settled().await;
    sums(world).await
}

fn of(cost: &str, charge: &str, requests: i64) -> (String, String, i64) {
    (cost.to_owned(), charge.to_owned(), requests)
}

#[tokio::test]
async fn a_fee_per_request_is_charged_once_a_call_and_comes_and_goes_with_a_re_rate() {
    let world = World::start().await;
    record(&world, &estimate("before")).await;
    assert_eq!(sums(&world).await, of(TOKENS, TOKENS, 0));

    world.publish_prices(priced("2025-09-01T00:00:00Z", &json!({"request": "0.001"}))).await;
    record(&world, &world::usage_event("after")).await;
    let rated = world.rated("after").await;
    assert_eq!((rated.cost.to_string().as_str(), rated.charge), ("0.0016625", rated.cost));
    assert_eq!(sums(&world).await, of("0.002325", "0.002325", 1));
    assert_eq!(rerated(&world).await, of("0.003325", "0.003325", 2));

    // What stands for the estimate is taken back, with the request that the re-rate counted.
    let mut correction = estimate("corrected");
    correction["data"]["corrects"] = json!("before");
    record(&world, &correction).await;
    assert_eq!(sums(&world).await, of("0.003325", "0.003325", 2));

    // A sell price without the fee charges nothing for it; the cost side still does.
    let free: Vec<NewPrice> = serde_json::from_value(priced("2025-10-01T00:00:00Z", &json!({}))).unwrap();
    let mut tx = world.bed.database.begin().await.unwrap();
    prices::publish(&mut tx, SELL_BOOK, &free, world::now(), "test").await.unwrap();
    commit(tx).await.unwrap();
    assert_eq!(rerated(&world).await, of("0.003325", "0.001325", 2));
    record(&world, &world::usage_event("one-sided")).await;
    let rated = world.rated("one-sided").await;
    assert_eq!((rated.cost.to_string().as_str(), rated.charge.to_string().as_str()), ("0.0016625", TOKENS));
    world.verified().await;

    // Without the fee nothing becomes unpriced.
    world.publish_prices(priced("2025-11-01T00:00:00Z", &json!({}))).await;
    assert_eq!(rerated(&world).await, of("0.0019875", "0.0019875", 3));
    world.verified().await;

    let acme = world.customer("acme").await;
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    let draft = invoicing::preview(&mut tx, acme, world::event_time(), world::now()).await.unwrap();
    let totals: Vec<String> =
        draft.documents.iter().map(|document| document.exact_total.to_string()).collect();
    assert_eq!(totals, ["0.0019875"]);
}
