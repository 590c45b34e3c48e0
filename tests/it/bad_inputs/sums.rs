//! Sums of absurd quantities: exact while 64 bits hold them, and beyond that a named refusal to the one who asks, not a
//! wrong number and not a standstill.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use serde_json::{Value, json};
use sqlx::Row as _;
use waybill::clock::Clock;
use waybill::domain::money::Amount;
use waybill::domain::tokens::{MAIN_CLASS_COUNT, QUANTITY_MAX, TokenClass};
use waybill::invoicing::{DEFAULT_GRACE, InvoicingError, close_due, preview};
use waybill::reports::verify::verify;
use waybill::store::{Scope, tasks};

use crate::harness::wait_until;
use crate::http_bed::Api;
use crate::ledger::{Ledger, call, task_call, utc};
use crate::world::{World, now};

const EVENTS: i64 = 1_000_000;
const EVENTS_PER_MESSAGE: i64 = 500;
/// Messages that the consumer may be behind: what one transaction may find.
const MESSAGES_AHEAD: i64 = 20;

/// Rates per token, main classes in their order. The line of the first comes to 5 x 10^18 cents, near the most that an
/// invoice can hold; the last have the most places that a rate may have.
const RATES: [&str; MAIN_CLASS_COUNT] =
    ["0.05", "0.000000000000001", "0.000001234567891", "0.0000875", "0.0024", "0.000600000000001"];

fn classes() -> impl Iterator<Item = (TokenClass, Amount)> {
    TokenClass::ALL.into_iter().zip(RATES.map(|rate| rate.parse().unwrap()))
}

/// A message of as many events as one may hold, each of the largest size, and as few bytes as possible.
fn message(number: i64, time: &str) -> Vec<u8> {
    let usage: BTreeMap<&str, i64> = classes().map(|(class, _)| (class.name(), QUANTITY_MAX)).collect();
    let usage = serde_json::to_string(&usage).unwrap();
    let first = number * EVENTS_PER_MESSAGE;
    let events: Vec<String> = (first..first + EVENTS_PER_MESSAGE)
        .map(|id| {
            format!(
                r#"{{"specversion":"1.0","type":"llm.usage.v1","source":"gw-1","id":"e{id}","subject":"acme","time":"{time}","data":{{"provider":"p","model":"m","task":{{"id":"t"}},"usage":{usage}}}}}"#
            )
        })
        .collect();
    zstd::encode_all(format!("[{}]", events.join(",")).as_bytes(), 1).unwrap()
}

async fn publish_all(world: &World, time: &str) {
    let mut packed = HeaderMap::new();
    packed.insert("Content-Encoding", "zstd");
    for number in 0..EVENTS / EVENTS_PER_MESSAGE {
        world.publish_raw("gw-1", packed.clone(), message(number, time)).await;
        wait_until("the consumer keeps up", async || {
            (world.accounted_messages().await + MESSAGES_AHEAD > number).then_some(())
        })
        .await;
    }
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_events_of_the_largest_size_are_summed_exactly() {
    let world = World::idle().await;
    let rates: BTreeMap<&str, &str> = classes().map(|(class, _)| class.name()).zip(RATES).collect();
    world
        .publish_prices(json!([{"provider": "p", "model": "m", "per": 1, "rates": rates,
            "valid_from": "2025-01-01T00:00:00Z", "source": "test"}]))
        .await;
    world.start_consumer();
    // The same for all of them: they are in one period.
    let time = now();
    publish_all(&world, &time.to_rfc3339()).await;

    let units = i128::from(EVENTS) * i128::from(QUANTITY_MAX);
    let amount = |rate: Amount| Amount::from_femtos(rate.femtos().checked_mul(units).unwrap());
    let total = Amount::checked_sum(classes().map(|(_, rate)| amount(rate))).unwrap();
    assert!(total.femtos() > i128::from(i64::MAX), "the amounts leave 64 bits behind");
    for table in ["usage_events", "usage_rollups", "tasks"] {
        let calls = match table {
            "usage_events" => "count(*)",
            "tasks" => "sum(calls)",
            _ => "sum(events)",
        };
        let sums: Vec<String> =
            classes().map(|(class, _)| format!("sum({}) = {units}", class.name())).collect();
        let query = format!(
            "SELECT {calls}::bigint AS calls, {} AS exact, sum(cost) AS cost, sum(charge) AS charge FROM {table}",
            sums.join(" AND ")
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_one(&world.pool).await.unwrap();
        assert_eq!(row.get::<i64, _>("calls"), EVENTS, "{table}");
        assert!(row.get::<bool, _>("exact"), "{table}: {units} units of each class");
        assert_eq!(row.get::<Amount, _>("cost"), total, "{table}");
        assert_eq!(row.get::<Amount, _>("charge"), total, "{table}");
    }

    let acme = world.customer("acme").await;
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    let task = tasks::get(&mut tx, acme, "t").await.unwrap().unwrap();
    assert_eq!((task.calls, task.charge), (EVENTS, total));
    let documents = preview(&mut tx, acme, time, now()).await.unwrap().documents;
    let [document] = documents.as_slice() else { panic!("one currency: {documents:?}") };
    assert_eq!(document.exact_total, total);
    for (line, (class, rate)) in document.lines.iter().zip(classes()) {
        assert_eq!((line.class, i128::from(line.quantity)), (Some(class), units));
        assert_eq!(line.exact, amount(rate));
        assert_eq!(line.amount.to_string(), format!("{}.00", line.exact), "{class}: nothing to round");
    }
    drop(tx);
    world.verified().await;
}

/// The code of the problem, or the status of an answer that is none.
async fn answered(api: &Api, path: &str) -> String {
    let answer = api.get(&api.keys.finance, path).await;
    if answer.status.is_success() { answer.status.as_u16().to_string() } else { answer.code() }
}

#[tokio::test]
async fn sums_beyond_all_bounds_stop_nobody_and_are_named() {
    let api = Api::start().await;
    let mut ledger = Ledger::beside(&api.bed).await;
    let (acme, globex) = (ledger.customer("acme", "UTC").await, ledger.customer("globex", "UTC").await);
    let most = i64::MAX / 2;
    let at = "2026-10-02T01:00:00Z";
    // Nine million of the largest events in three rows of the journal; the same of a class without a column.
    for number in 0..3 {
        let mut absurd = task_call(acme, at, "t", "test", most);
        absurd.id = format!("absurd-{number}");
        absurd.rare = Some(json!({"web_search": most}));
        ledger.record(&[absurd, call(globex, at, &format!("sound-{number}"), 1_000_000, 0)]).await;
    }
    ledger.post().await;
    assert_eq!(ledger.count("SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL").await, 0);
    let exact = format!(
        "SELECT (input = 3 * {most}::numeric AND (rare->>'web_search')::numeric = 3 * {most}::numeric)::int::bigint FROM usage_rollups WHERE customer_id = {}",
        acme.0
    );
    assert_eq!(ledger.count(&exact).await, 1, "the sums themselves are exact");
    let proof = verify(&ledger.database, utc("2026-12-01T00:00:00Z")).await.unwrap();
    assert_eq!(proof.findings, []);

    let interval = "from=2026-10-01T00:00:00Z&to=2026-11-01T00:00:00Z";
    for path in ["/v1/usage?", "/v1/usage?group_by=class&", "/v1/reports/margin?", "/v1/tasks?"] {
        assert_eq!(
            answered(&api, &format!("{path}{interval}&customer=acme")).await,
            "sum_too_large",
            "{path}"
        );
        assert_eq!(answered(&api, &format!("{path}{interval}&customer=globex")).await, "200", "{path}");
    }
    for (path, acme) in [
        ("/v1/tasks/t?", "sum_too_large"),
        ("/v1/invoices/preview?period=2026-10&", "sum_too_large"),
        ("/v1/reports/cost-per-task?from=2026-10-01T00:00:00Z&", "200"),
    ] {
        assert_eq!(answered(&api, &format!("{path}customer=acme")).await, acme, "{path}");
    }
    assert_eq!(answered(&api, "/v1/invoices/preview?period=2026-10&customer=globex").await, "200");

    // The customer's period stays open, with the reason; the other's is closed.
    let clock = Clock::fixed(utc("2026-11-02T00:00:00Z"));
    let turns = close_due(&ledger.database, &clock, DEFAULT_GRACE, "test", |_| ()).await.unwrap();
    for turn in &turns {
        match &turn.outcome {
            Ok(closed) => assert_eq!((turn.customer, closed.invoices.len()), (globex, 1)),
            Err(InvoicingError::Store(error)) => {
                assert!(turn.customer == acme && error.too_large(), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(turns.len(), 2);
    assert_eq!(
        amounts_beyond_128_bits(&api, &mut ledger).await,
        json!(["sum_too_large", "sum_too_large", "200"])
    );
}

/// Amounts whose sum 128 bits cannot hold in units of 10^-15: no event comes near, so the journal is made to say so.
async fn amounts_beyond_128_bits(api: &Api, ledger: &mut Ledger) -> Value {
    let initech = ledger.customer("initech", "UTC").await;
    let rows: Vec<_> =
        (0..3).map(|n| call(initech, "2026-10-02T01:00:00Z", &format!("dear-{n}"), 1, 0)).collect();
    ledger.record(&rows).await;
    ledger
        .run(&format!(
            "ALTER TABLE usage_events DISABLE TRIGGER journal_append_only;
             UPDATE usage_events SET cost = 9e22, charge = 9e22 WHERE customer_id = {};
             ALTER TABLE usage_events ENABLE TRIGGER journal_append_only",
            initech.0
        ))
        .await;
    ledger.post().await;
    let interval = "from=2026-10-01T00:00:00Z&to=2026-11-01T00:00:00Z";
    json!([
        answered(api, &format!("/v1/usage?{interval}&customer=initech")).await,
        answered(api, "/v1/invoices/preview?period=2026-10&customer=initech").await,
        answered(api, &format!("/v1/usage?{interval}&customer=globex")).await,
    ])
}
