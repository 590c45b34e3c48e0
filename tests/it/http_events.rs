//! One event explained through the API: what was used, which price was taken and why not the others, the sum.

use async_nats::HeaderMap;
use axum::Router;
use axum::http::StatusCode;
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::money::Amount;
use waybill::health::Health;
use waybill::ingest::Publisher;
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::{commit, customers, gateways};

use crate::harness::wait_until;
use crate::http_bed::{Answer, get, post};
use crate::world::{World, usage_event};

/// A world with its API, a key of finance and one of each of two customers.
pub struct Explained {
    pub world: World,
    pub router: Router,
    pub finance: String,
    pub acme: String,
    pub globex: String,
    gateway: String,
}

impl Explained {
    pub async fn start() -> Self {
        let world = World::idle().await;
        let mut tx = world.bed.database.begin().await.unwrap();
        let gateway = gateways::id_of(&mut tx, "gw-1").await.unwrap().unwrap();
        let acme = customers::by_external_id(&mut tx, "acme").await.unwrap().unwrap().id;
        let globex = customers::by_external_id(&mut tx, "globex").await.unwrap().unwrap().id;
        let mut key = async |holder| api_keys::create(&mut tx, holder, "test", None).await.unwrap().token;
        let finance = key(NewHolder::Finance).await;
        let gateway = key(NewHolder::Gateway(gateway)).await;
        let acme = key(NewHolder::Customer(acme)).await;
        let globex = key(NewHolder::Customer(globex)).await;
        commit(tx).await.unwrap();
        let publisher = Publisher::new(world.context().clone(), &world.names.prefix);
        let state = waybill::http::AppState::new(
            world.bed.database.clone(),
            Clock::System,
            publisher,
            Health::default(),
        );
        let router = waybill::http::router(state).0;
        Self { world, router, finance, acme, globex, gateway }
    }

    async fn get(&self, key: &str, path: &str) -> Answer {
        get(&self.router, key, path).await
    }

    /// POST of finance that must succeed.
    pub async fn made(&self, path: &str, body: &Value) -> Value {
        let answer = post(&self.router, &self.finance, path, body).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text);
        answer.json()
    }

    pub async fn event(&self, key: &str, path: &str) -> Value {
        let answer = self.get(key, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        answer.json()
    }
}

/// gpt-5 with a history, a long-context tier and a priority price.
fn history() -> Value {
    let price = |conditions: Value, from: &str, to: Value, input: &str| {
        json!({"provider": "openai", "model": "gpt-5", "aliases": ["gpt-5-2025-08-07"], "conditions": conditions,
            "per": 1_000_000, "rates": {"input": input, "cache_read": "0.125", "output": "10"},
            "fees": {"web_search": "0.01"}, "valid_from": from, "valid_to": to, "source": "https://example.com/prices"})
    };
    let long = json!({"context_above": 1000});
    json!([
        price(json!({}), "2025-01-01T00:00:00Z", json!("2025-08-07T00:00:00Z"), "2.5"),
        price(json!({}), "2025-08-07T00:00:00Z", Value::Null, "1.25"),
        price(long, "2025-08-07T00:00:00Z", Value::Null, "3"),
        price(json!({"service_tier": "priority"}), "2025-08-07T00:00:00Z", Value::Null, "2.5"),
    ])
}

/// A chat call as a gateway reports it that leaves prompt and answer in.
fn chat(id: &str) -> Value {
    let mut event = usage_event(id);
    event["source"] = json!("gw-1/pod-3");
    event["data"] = json!({"provider": "openai", "model": "gpt-5-2025-08-07", "task": {"id": "task-1"},
        "provider_usage": {"format": "openrouter.chat", "body": {
            "messages": [{"role": "user", "content": "PROMPT-TEXT"}],
            "choices": [{"message": {"content": "ANSWER-TEXT"}}],
            "usage": {"prompt_tokens": 400, "completion_tokens": 150, "total_tokens": 550, "cost": 0.001,
                "prompt_tokens_details": {"cached_tokens": 300},
                "completion_tokens_details": {"reasoning_tokens": 100}}}}});
    event
}

fn sum(lines: &Value) -> Amount {
    let amounts =
        lines.as_array().unwrap().iter().map(|line| line["amount"].as_str().unwrap().parse().unwrap());
    Amount::checked_sum(amounts).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_amount_is_explained_down_to_its_rates_and_its_bytes() {
    let api = Explained::start().await;
    api.world.publish_prices(history()).await;
    api.world.start_consumer();
    let message = json!([usage_event("other"), {"not": "an event"}, chat("e-1")]);
    api.world.publish("gw-1", &message).await;
    api.world.settled().await;
    // 100 x 1.25 + 300 x 0.125 + 150 x 10 dollars per million.
    let path = "/v1/events/gw-1%2Fpod-3/e-1";
    let event = api.event(&api.finance, path).await;
    assert_eq!((&event["source"], &event["id"]), (&json!("gw-1/pod-3"), &json!("e-1")));
    assert_eq!((&event["amount"], &event["cost"]), (&json!("0.0016625"), &json!("0.0016625")));
    let part = &event["parts"][0];
    assert_eq!((&part["model"], &part["tier_input"]), (&json!("gpt-5-2025-08-07"), &json!(400)));
    let stated = json!({"amount": "0.001", "currency": "USD", "difference": "0.0006625"});
    assert_eq!(part["stated_cost"], stated);
    for side in ["cost", "charge"] {
        let side = &part[side];
        assert_eq!((&side["amount"], &side["price"]["model"]), (&json!("0.0016625"), &json!("gpt-5")));
        assert_eq!(sum(&side["classes"]).to_string(), "0.0016625");
        let reasoning = &side["classes"][3];
        assert_eq!(
            (&reasoning["class"], &reasoning["quantity"], &reasoning["rate"], &reasoning["inherited_from"]),
            (&json!("reasoning"), &json!(100), &json!("10"), &json!("output"))
        );
        let mut reasons: Vec<&str> = side["not_taken"]
            .as_array()
            .unwrap()
            .iter()
            .map(|other| other["reason"].as_str().unwrap())
            .collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["conditions", "conditions", "no_longer_valid"]);
        assert!(
            side.to_string().contains("service_tier: it is for priority, the call had standard"),
            "{side}"
        );
        assert!(
            side.to_string().contains("it is for more than 1000 prompt tokens, the call had 400"),
            "{side}"
        );
    }
    assert_eq!(part["cost"]["price"]["source"], "https://example.com/prices");
    let raw: Value = serde_json::from_str(event["received"]["raw"].as_str().unwrap()).unwrap();
    assert_eq!(raw["data"]["provider_usage"]["body"]["usage"]["prompt_tokens"], 400);
    assert!(!raw.to_string().contains("-TEXT"), "{raw}");
    assert_eq!(api.world.bytes_with(b"-TEXT").await, 0, "texts are nowhere in the database");

    let own = api.event(&api.acme, path).await;
    assert_eq!(
        (&own["amount"], &own["parts"][0]["charge"]["amount"]),
        (&json!("0.0016625"), &json!("0.0016625"))
    );
    for hidden in ["cost", "cost_currency", "received"] {
        assert!(own.get(hidden).is_none(), "{own}");
    }
    for hidden in ["cost", "stated_cost"] {
        assert!(own["parts"][0].get(hidden).is_none(), "{own}");
    }
    for hidden in ["source", "derived_from", "checked_at"] {
        assert!(own["parts"][0]["charge"]["price"].get(hidden).is_none(), "{own}");
    }
    let foreign = api.get(&api.globex, path).await;
    assert_eq!(foreign.problem(), (404, "not_found".to_owned()));
    let missing = api.get(&api.globex, "/v1/events/gw-1/nothing").await;
    assert_eq!(foreign.comparable(), missing.comparable());
    assert_eq!(api.get(&api.gateway, path).await.problem(), (403, "forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn later_prices_do_not_change_an_explanation_and_corrections_show_what_stands() {
    let api = Explained::start().await;
    api.world.publish_prices(history()).await;
    api.world.start_consumer();
    let mut guess = usage_event("guess");
    guess["data"]["usage_source"] = json!("estimated");
    api.world.publish("gw-1", &guess).await;
    api.world.settled().await;
    let before = api.event(&api.finance, "/v1/events/gw-1/guess").await;
    let cut = json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000,
        "rates": {"input": "1", "output": "8"}, "valid_from": "2026-01-01T00:00:00Z"}]);
    api.world.publish_prices(cut).await;
    let after = api.event(&api.finance, "/v1/events/gw-1/guess").await;
    assert_eq!(after, before);
    assert_eq!(before["correction"]["stands"], true);

    for (id, output) in [("final", 60), ("final-2", 70)] {
        let mut event = usage_event(id);
        event["data"]["corrects"] = json!("guess");
        event["data"]["usage"] = json!({"output": output});
        api.world.publish("gw-1", &event).await;
        api.world.settled().await;
    }
    let guess = api.event(&api.acme, "/v1/events/gw-1/guess").await;
    let identity = |id: &str| json!({"source": "gw-1", "id": id});
    let corrected_by = json!([identity("final"), identity("final-2")]);
    assert_eq!(guess["correction"]["corrected_by"], corrected_by);
    assert_eq!(
        (&guess["correction"]["standing"], &guess["correction"]["stands"]),
        (&identity("final-2"), &json!(false))
    );
    // 70 x 8 dollars per million, less the 60 x 8 of the correction before.
    let last = api.event(&api.acme, "/v1/events/gw-1/final-2").await;
    assert_eq!(
        (&last["correction"]["estimate"], &last["correction"]["stands"]),
        (&identity("guess"), &json!(true))
    );
    assert_eq!((&last["taken_back"][0]["amount"], &last["amount"]), (&json!("-0.00048"), &json!("0.00008")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_a_rejection_first_shows_what_was_received() {
    let api = Explained::start().await;
    api.world.start_consumer();
    api.world.publish_raw("gw-1", HeaderMap::new(), json!([chat("late")]).to_string().into_bytes()).await;
    api.world.settled().await;
    assert_eq!(api.world.open_rejections().await, ["unpriced"]);
    api.world.publish_prices(history()).await;
    wait_until("it is recorded", async || (api.world.recorded_events().await == 1).then_some(())).await;
    let event = api.event(&api.finance, "/v1/events/gw-1%2Fpod-3/late").await;
    let raw: Value = serde_json::from_str(event["received"]["raw"].as_str().unwrap()).unwrap();
    assert_eq!(raw["id"], "late");
    assert_eq!(event["amount"], "0.0016625");
    assert_eq!(api.world.bytes_with(b"-TEXT").await, 0, "texts are nowhere in the database");
}
