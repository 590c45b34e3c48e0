//! Totals depend on what was reported, not on the order, the packing or the number of copies that it came in.

use async_nats::HeaderMap;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use waybill::domain::period::BillingCalendar;
use waybill::invoicing::preview;
use waybill::store::{Scope, gateways};

use crate::harness::wait_until;
use crate::world::{CUSTOMERS, TIME_ZONE, World, now, usage_event};

/// Ways to send one set of events, each with a seed of its own.
const WAYS: u64 = 5;
/// Calls in the set, estimates and outcomes aside.
const CALLS: i64 = 60;
/// The model whose price is published last in every other way: its calls are rejections first.
const LATE_MODEL: &str = "gpt-late";

/// One after the other, and round again.
fn turn<'a>(all: &[&'a str], number: i64) -> &'a str {
    all[usize::try_from(number).unwrap() % all.len()]
}

/// The set: calls on both sides of a change of price and of a period's start, several models and tasks, rare classes,
/// estimates with their corrections (one of them to nothing), and outcomes (two of them at one instant).
fn events(start: DateTime<Utc>) -> Vec<Value> {
    let mut events = Vec::new();
    let mut add = |id: String, number: i64, change: &dyn Fn(&mut Value)| {
        let mut event = usage_event(&id);
        let task = format!("task-{}", number % 7);
        event["subject"] = json!(turn(&CUSTOMERS, number));
        event["time"] = json!((start + TimeDelta::hours(11 * number)).to_rfc3339());
        event["sequence"] = json!(events.len() + 1);
        event["data"]["task"] = json!({"id": task, "type": turn(&["refund", "lookup"], number)});
        change(&mut event);
        events.push(event);
    };
    for number in 0..CALLS {
        add(format!("call-{number}"), number, &|event| {
            event["data"]["model"] =
                json!(turn(&["gpt-5", "gpt-5-dated", LATE_MODEL, LATE_MODEL, "gpt-5"], number));
            event["data"]["usage"] =
                json!({"input": 1 + number * 7, "output": 3 * number, "web_search": number % 4});
            if number % 6 == 0 {
                event["data"].as_object_mut().unwrap().remove("task");
                event["data"]["attributes"] = json!({"project": format!("p-{}", number % 4)});
            }
        });
    }
    for number in 0..6 {
        add(format!("guess-{number}"), number, &|event| event["data"]["usage_source"] = json!("estimated"));
        add(format!("final-{number}"), number, &|event| {
            event["data"]["corrects"] = json!(format!("guess-{number}"));
            event["data"]["usage"] =
                if number == 0 { json!({"input": 0}) } else { json!({"input": 90, "output": 9}) };
        });
    }
    for number in 0..14 {
        add(format!("end-{number}"), number, &|event| {
            let task = event["data"]["task"].clone();
            event["type"] = json!("llm.task.v1");
            event["data"] = json!({"task": task, "outcome": turn(&["failure", "success"], number / 7)});
            // Both outcomes of a task at one instant.
            event["time"] = json!((start + TimeDelta::hours(number % 7)).to_rfc3339());
            event["subject"] = json!(CUSTOMERS[0]);
        });
    }
    events
}

fn prices(change: DateTime<Utc>, late: bool) -> Value {
    let price = |model: &str, from: DateTime<Utc>, input: &str| {
        json!({"provider": "openai", "model": model, "per": 1_000_000, "valid_from": from, "source": "test",
            "rates": {"input": input, "output": "10.000000001"}, "fees": {"web_search": "0.01"}})
    };
    let long_ago = change - TimeDelta::days(300);
    if late {
        return json!([price(LATE_MODEL, long_ago, "0.1")]);
    }
    let mut dated = price("gpt-5", long_ago, "0.2");
    dated["aliases"] = json!(["gpt-5-dated"]);
    json!([dated, price("gpt-5", change, "0.3")])
}

/// Sends the set in a way of its own: shuffled, some of it twice or more, packed by chance, with pauses by chance.
async fn sent(seed: u64, start: DateTime<Utc>) -> World {
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::idle().await;
    let change = start + TimeDelta::days(12);
    world.publish_prices(prices(change, false)).await;
    let late = seed % 2 == 1;
    if !late {
        world.publish_prices(prices(change, true)).await;
    }
    world.start_consumer();
    let mut set = events(start);
    // The first way is the plain one: in order, each once.
    if seed > 0 {
        let copies: Vec<Value> = set.iter().filter(|_| random.random_bool(0.4)).cloned().collect();
        set.extend(copies);
        set.shuffle(&mut random);
    }
    let mut rest = set.as_slice();
    while !rest.is_empty() {
        let (message, others) = rest.split_at(random.random_range(1..=rest.len().min(25)));
        rest = others;
        let body = if message.len() == 1 { message[0].to_string() } else { json!(message).to_string() };
        let mut headers = HeaderMap::new();
        let mut body = body.into_bytes();
        if random.random_bool(0.5) {
            headers.insert("Content-Encoding", "zstd");
            body = zstd::encode_all(&body[..], 1).unwrap();
        }
        for _ in 0..random.random_range(1..=2) {
            world.publish_raw("gw-1", headers.clone(), body.clone()).await;
        }
        if random.random_bool(0.2) {
            world.settled().await;
        }
    }
    world.settled().await;
    if late {
        let waiting = world.open_rejections().await;
        assert!(waiting.iter().any(|reason| reason == "unpriced"), "{waiting:?}");
        world.publish_prices(prices(change, true)).await;
    }
    wait_until("every rejection is resolved", async || {
        world.open_rejections().await.is_empty().then_some(())
    })
    .await;
    world.settled().await;
    world.verified().await;
    world
}

/// Everything that is reported of a world, in lines; keys that depend on the order of arrival left out.
async fn totals(world: &World, start: DateTime<Utc>) -> Vec<String> {
    let mut lines: Vec<String> = sqlx::query_scalar(
        "SELECT 'rollup ' || x::text FROM (
             SELECT c.external_id, r.hour, s.model, s.valid_from, r.project, r.task_type, r.kind, sum(r.events), sum(r.input),
                    sum(r.cache_read), sum(r.output), rare_sum(r.rare), trim_scale(sum(r.cost)), trim_scale(sum(r.charge))
             FROM usage_rollups r JOIN customers c ON c.id = r.customer_id JOIN prices s ON s.id = r.sell_price_id
             GROUP BY 1, 2, 3, 4, 5, 6, 7) AS x
         UNION ALL
         SELECT 'task ' || x::text FROM (
             SELECT c.external_id, t.task_id, t.task_type, t.parent, t.first_event_at, t.last_event_at, t.calls, t.input,
                    t.cache_read, t.output, t.rare, trim_scale(t.cost), trim_scale(t.charge), t.models, t.outcome, t.ended_at
             FROM tasks t JOIN customers c ON c.id = t.customer_id) AS x
         ORDER BY 1",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    let calendar = BillingCalendar::new(TIME_ZONE, 1).unwrap();
    for customer in CUSTOMERS {
        let id = world.customer(customer).await;
        let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
        let mut at = start;
        while at < now() {
            let draft = preview(&mut tx, id, at, now()).await.unwrap();
            lines.extend(draft.documents.iter().flat_map(|document| {
                document.lines.iter().map(|line| {
                    format!(
                        "line {customer} {} {:?} {:?} {} {}",
                        line.service.start, line.model, line.class, line.quantity, line.exact
                    )
                })
            }));
            at = calendar.period_at(at).unwrap().end;
        }
    }
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    let gateway = gateways::list(&mut tx, Some("gw-1"), None, 1).await.unwrap().remove(0);
    lines.push(format!("gateway {} missing, {} repeated", gateway.missing, gateway.repeated));
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn order_packing_copies_and_replay_do_not_change_totals() {
    let start = now() - TimeDelta::days(30);
    let ways = join_all((0..WAYS).map(|seed| sent(seed, start))).await;
    let plain = totals(&ways[0], start).await;
    for kind in ["rollup ", "task ", "line "] {
        assert!(plain.iter().filter(|line| line.starts_with(kind)).count() > 10, "{plain:#?}");
    }
    assert_eq!(plain.last().unwrap(), "gateway 0 missing, 0 repeated");
    for (seed, world) in ways.iter().enumerate().skip(1) {
        let other = totals(world, start).await;
        let differences: Vec<_> = plain
            .iter()
            .filter(|line| !other.contains(line))
            .chain(other.iter().filter(|line| !plain.contains(line)))
            .collect();
        assert!(differences.is_empty() && other.len() == plain.len(), "way {seed}: {differences:#?}");
    }
}
