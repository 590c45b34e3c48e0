//! Re-rating: nothing recorded changes by itself, and what a re-rate adds is exact, once, and on an invoice.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use chrono::{NaiveDate, TimeDelta};
use futures_util::future::join_all;
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::domain::money::Amount;
use waybill::domain::price::quotation::NewPrice;
use waybill::invoicing::rerate::{ROWS_MAX, Request, RerateError, Rerated, apply, apply_within, preview};
use waybill::invoicing::{self, Closed};
use waybill::reports::verify;
use waybill::store::rerate::RERATE_LOCK;
use waybill::store::{Scope, commit, customers, invoices, prices};

use crate::harness::{INGEST_CONNECTIONS, connected};
use crate::http_bed::Api;
use crate::http_events::Explained;
use crate::ledger::{Ledger, Row, call, task_call, utc};
use crate::recording::{correction, estimates_corrected_and_used_again, estimates_of_ids_used_again};
use crate::world::{self, World, estimate};

/// When re-rates of the small ledger are made.
const NOW: &str = "2026-11-24T00:00:00Z";

pub fn everything() -> Request {
    Request {
        from: utc("2020-01-01T00:00:00Z"),
        to: utc("2030-01-01T00:00:00Z"),
        customer: None,
        provider: None,
        model: None,
        reason: None,
    }
}

pub async fn publish(ledger: &Ledger, book: &str, new: Value) {
    let new: Vec<NewPrice> = serde_json::from_value(new).unwrap();
    let mut tx = ledger.database.begin().await.unwrap();
    prices::publish(&mut tx, book, &new, utc(NOW), "test").await.unwrap();
    commit(tx).await.unwrap();
}

/// A new price that has no fee for searches.
async fn publish_without_searches(ledger: &Ledger) {
    publish(
        ledger,
        "standard",
        json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "valid_from": "2026-11-02T00:00:00Z",
                "rates": {"input": "4", "output": "22"}}]),
    )
    .await;
}

/// A price of `gpt-5` from a time on.
pub fn gpt5(from: &str, input: &str, output: &str, web_search: &str) -> Value {
    json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "valid_from": from,
            "rates": {"input": input, "output": output}, "fees": {"web_search": web_search}}])
}

async fn dry_run(ledger: &Ledger, request: &Request) -> Rerated {
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    preview(&mut tx, request).await.unwrap()
}

async fn rerate(ledger: &Ledger, request: &Request) -> Rerated {
    apply(&ledger.database, &Clock::fixed(utc(NOW)), request, "test").await.unwrap()
}

/// Cost and charge of a customer, by the rollups.
async fn sums(ledger: &Ledger, customer: CustomerId) -> (Amount, Amount) {
    sqlx::query_as(
        "SELECT COALESCE(sum(cost), 0), COALESCE(sum(charge), 0) FROM usage_rollups WHERE customer_id = $1",
    )
    .bind(customer.0)
    .fetch_one(&ledger.pool)
    .await
    .unwrap()
}

async fn assert_proven(ledger: &Ledger) {
    let proof = verify::rebuild(&ledger.database, utc("2027-06-01T00:00:00Z"), |_| ()).await.unwrap();
    assert_eq!(proof.findings, [], "the ledger holds");
}

/// Differences of cost and charge over all groups.
fn differences(rerated: &Rerated) -> (Amount, Amount) {
    let sum = |side: fn(&invoicing::rerate::Figures) -> Amount| {
        Amount::checked_sum(rerated.groups.iter().map(|(_, figures)| side(figures))).unwrap()
    };
    (sum(|figures| figures.cost.difference().unwrap()), sum(|figures| figures.charge.difference().unwrap()))
}

async fn close(ledger: &Ledger, now: &str, customer: CustomerId, at: &str) -> Closed {
    let request =
        invoicing::Request { customer, at: utc(at), grace: TimeDelta::hours(1), actor: "test".to_owned() };
    invoicing::close_and_finalize(&ledger.database, &Clock::fixed(utc(now)), &request).await.unwrap()
}

async fn lines(ledger: &Ledger, closed: &Closed) -> Vec<String> {
    let [id] = closed.invoices.as_slice() else { panic!("one invoice, not {:?}", closed.invoices) };
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let stored = invoices::get(&mut tx, *id).await.unwrap().unwrap();
    let line = |line: &waybill::domain::invoice::InvoiceLine| {
        let (service, class) = (line.service.start.format("%m"), line.class.unwrap());
        format!("{} {service} {class} {} = {} {}", line.kind, line.quantity, line.exact, line.amount)
    };
    stored.invoice.lines.iter().map(line).collect()
}

async fn notes(ledger: &Ledger, closed: &Closed) -> Vec<Option<String>> {
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let stored = invoices::get(&mut tx, closed.invoices[0]).await.unwrap().unwrap();
    stored.invoice.lines.into_iter().map(|line| line.note).collect()
}

fn searching(customer: CustomerId, at: &str, id: &str) -> Row {
    Row { rare: Some(json!({"web_search": 3})), ..call(customer, at, id, 1_000_000, 7) }
}

#[tokio::test]
async fn a_back_dated_price_changes_nothing_until_it_is_applied_and_then_exactly_once() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger
        .record(&[
            task_call(acme, "2026-11-02T00:00:00Z", "t-1", "refund", 1_000_000),
            searching(acme, "2026-11-05T10:20:00Z", "a"),
            // Before the new price: it stays as it is.
            call(acme, "2026-11-01T00:00:00Z", "b", 1_000_000, 0),
        ])
        .await;
    ledger.post().await;
    let before = sums(&ledger, acme).await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "2", "22", "0.03")).await;
    ledger.post().await;
    assert_eq!(sums(&ledger, acme).await, before, "publishing rewrites nothing");
    assert_proven(&ledger).await;

    let shown = dry_run(&ledger, &everything()).await;
    let [(group, figures)] = shown.groups.as_slice() else { panic!("one group: {:?}", shown.groups) };
    assert_eq!(
        (group.customer.as_str(), group.provider.as_str(), group.model.as_str()),
        ("acme", "openai", "gpt-5")
    );
    assert_eq!(
        (group.period.start, group.period.end),
        (utc("2026-11-01T00:00:00Z"), utc("2026-12-01T00:00:00Z"))
    );
    assert_eq!((shown.examined, figures.events, figures.unpriced), (3, 2, 0));
    // Two million tokens are one dollar cheaper each, three searches a cent dearer each.
    assert_eq!(
        (figures.charge.before.to_string(), figures.charge.after.to_string()),
        ("6.060154".to_owned(), "4.090154".to_owned())
    );
    assert_eq!(figures.cost.difference(), Some(Amount::ZERO));
    assert_eq!(shown.batches, []);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 3, "a dry run writes nothing");

    let applied = rerate(&ledger, &everything()).await;
    assert_eq!(applied.groups, shown.groups);
    assert_proven(&ledger).await;
    ledger.post().await;
    let after = sums(&ledger, acme).await;
    let (cost, charge) = differences(&shown);
    assert_eq!(after, (before.0.checked_add(cost).unwrap(), before.1.checked_add(charge).unwrap()));
    assert_eq!(ledger.count("SELECT sum(events)::bigint FROM usage_rollups").await, 3, "calls do not change");
    assert_eq!(ledger.count("SELECT calls FROM tasks WHERE task_id = 't-1'").await, 1);
    assert_eq!(ledger.count("SELECT count(*) FROM audit_log WHERE action = 'rerate.apply'").await, 1);
    assert_proven(&ledger).await;

    let again = rerate(&ledger, &everything()).await;
    assert_eq!((again.groups, again.batches), (Vec::new(), Vec::new()));
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 7);
}

#[tokio::test]
async fn a_re_rated_event_is_re_rated_from_what_stands() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger
        .record(&[
            searching(acme, "2026-11-05T00:00:00Z", "a"),
            call(acme, "2026-11-06T00:00:00Z", "b", 3, 1),
        ])
        .await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "2", "22", "0.03")).await;
    publish(&ledger, "provider-cost", gpt5("2026-11-02T00:00:00Z", "1", "11", "0.01")).await;
    // Not posted yet: usage and adjustment are folded together.
    rerate(&ledger, &everything()).await;
    publish(&ledger, "standard", gpt5("2026-11-03T00:00:00Z", "7", "23", "0.04")).await;
    let shown = dry_run(&ledger, &everything()).await;
    let applied = rerate(&ledger, &everything()).await;
    assert_eq!(shown.groups, applied.groups);
    ledger.post().await;
    assert_eq!(differences(&shown).0, Amount::ZERO, "the cost stands as the first re-rate left it");
    // 1,000,003 x 0.000007 + 8 x 0.000023 + 3 x 0.04, and 1,000,003 x 0.000001 + 8 x 0.000011 + 3 x 0.01.
    let (cost, charge) = sums(&ledger, acme).await;
    assert_eq!((cost.to_string(), charge.to_string()), ("1.030091".to_owned(), "7.120205".to_owned()));
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_closed_period_is_adjusted_on_the_next_invoice() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-05T00:00:00Z", "a", 1_000_000, 100)]).await;
    ledger.post().await;
    let october = close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await;
    assert_eq!(
        lines(&ledger, &october).await,
        ["usage 10 input 1000000 = 3 3.00", "usage 10 output 100 = 0.0022 0.00"]
    );
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "b", 10_000, 0)]).await;
    publish(&ledger, "standard", gpt5("2026-10-01T00:00:00Z", "2.5", "22", "0.02")).await;
    // Only October's: November's call stands at the old price.
    let reason = Some("provider price corrected".to_owned());
    let request = Request { to: utc("2026-11-01T00:00:00Z"), reason, ..everything() };
    rerate(&ledger, &request).await;
    ledger.post().await;
    let sealed = lines(&ledger, &october).await;
    let november = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-11-01T00:00:00Z").await;
    assert_eq!(lines(&ledger, &october).await, sealed);
    assert_eq!(
        lines(&ledger, &november).await,
        [
            "usage 11 input 10000 = 0.03 0.03",
            // The output's rate did not change: no line.
            "adjustment 10 input 1000000 = 2.5 2.50",
            "adjustment 10 input -1000000 = -3 -3.00",
        ]
    );
    assert_eq!(
        notes(&ledger, &november).await,
        [
            None,
            Some("re-rate 2026-11-24: provider price corrected"),
            Some("re-rate 2026-11-24: provider price corrected")
        ]
        .map(|note| note.map(str::to_owned))
    );
    assert_proven(&ledger).await;
}

/// Why the lines are there, as the customer sees it before the period is closed, and everybody on the invoice.
#[tokio::test]
async fn every_re_rate_behind_an_adjustment_is_named() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "a", 1_000_000, 0)]).await;
    for (from, input, reason) in [
        ("2026-11-02T00:00:00Z", "2.5", Some("a contract from the second")),
        ("2026-11-03T00:00:00Z", "2.4", None),
    ] {
        publish(&ledger, "standard", gpt5(from, input, "22", "0.02")).await;
        rerate(&ledger, &Request { reason: reason.map(str::to_owned), ..everything() }).await;
    }
    ledger.post().await;
    let mut tx = ledger.database.read(Scope::Customer(acme)).await.unwrap();
    let at = utc("2026-11-05T00:00:00Z");
    let draft = invoicing::preview(&mut tx, acme, at, utc(NOW)).await.unwrap();
    let shown: Vec<String> = draft.documents[0]
        .lines
        .iter()
        .map(|line| format!("{} {} {}", line.kind, line.exact, line.note.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(
        shown,
        [
            "usage 3 -",
            "adjustment 2.4 re-rate 2026-11-24",
            // At 2.5 nothing is left: put on by the first, taken off by the second.
            "adjustment -3 re-rate 2026-11-24: a contract from the second",
        ]
    );
    drop(tx);
    let long = Request { reason: Some("x".repeat(201)), ..everything() };
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    assert!(matches!(preview(&mut tx, &long).await, Err(RerateError::Reason)));
}

#[tokio::test]
async fn usage_without_a_price_is_listed_and_stands() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger
        .record(&[
            call(acme, "2026-11-05T00:00:00Z", "a", 5, 0),
            searching(acme, "2026-11-06T00:00:00Z", "b"),
        ])
        .await;
    ledger.post().await;
    let before = sums(&ledger, acme).await;
    // The new price has no fee for searches.
    publish_without_searches(&ledger).await;
    let applied = rerate(&ledger, &everything()).await;
    let [unpriced] = applied.unpriced.as_slice() else { panic!("one: {:?}", applied.unpriced) };
    assert_eq!((unpriced.event.id.as_str(), unpriced.customer.as_str()), ("b", "acme"));
    assert!(unpriced.reason.contains("web_search"), "{}", unpriced.reason);
    assert_eq!((applied.groups[0].1.events, applied.groups[0].1.unpriced), (1, 1));
    ledger.post().await;
    let (_, charge) = sums(&ledger, acme).await;
    assert_eq!(charge.checked_sub(before.1).unwrap().to_string(), "0.000005");
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_scope_leaves_everything_else_alone() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let globex = ledger.customer("globex", "UTC").await;
    ledger
        .record(&[
            call(acme, "2026-11-05T00:00:00Z", "a", 5, 0),
            call(globex, "2026-11-05T00:00:00Z", "b", 5, 0),
            Row { model: "tiny", ..call(acme, "2026-11-05T00:00:00Z", "c", 5, 0) },
        ])
        .await;
    ledger.post().await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    let found = async |request: Request| {
        let shown = dry_run(&ledger, &request).await;
        let groups: Vec<String> = shown.groups.into_iter().map(|(group, _)| group.customer).collect();
        (shown.examined, groups.join(" "))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(found(everything()).await, (3, "acme globex".to_owned()));
    assert_eq!(found(Request { customer: Some(globex), ..everything() }).await, (1, "globex".to_owned()));
    assert_eq!(found(Request { provider: text("OpenAI"), ..everything() }).await.0, 3);
    assert_eq!(found(Request { provider: text("anthropic"), ..everything() }).await.0, 0);
    assert_eq!(found(Request { model: text("gpt-*"), ..everything() }).await.0, 2);
    assert_eq!(found(Request { model: text("tiny"), ..everything() }).await, (1, String::new()));
    assert_eq!(found(Request { model: text("gpt-"), ..everything() }).await.0, 0);
    assert_eq!(found(Request { to: utc("2026-11-05T00:00:00Z"), ..everything() }).await.0, 0);
    assert_eq!(found(Request { from: utc("2026-11-05T00:00:00Z"), ..everything() }).await.0, 3);
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let empty = Request { to: everything().from, ..everything() };
    assert!(matches!(preview(&mut tx, &empty).await, Err(RerateError::Interval)));
}

#[tokio::test]
async fn re_rates_at_the_same_time_adjust_an_event_once() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    for batch in 0..5 {
        let rows: Vec<Row> = (0..20)
            .map(|row| call(acme, "2026-11-05T00:00:00Z", &format!("{batch}-{row}"), 1000, 1))
            .collect();
        ledger.record(&rows).await;
    }
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    let all = everything();
    // As many as there are connections for.
    connected(&ledger.database).await;
    let applied = join_all((0..INGEST_CONNECTIONS).map(|_| rerate(&ledger, &all))).await;
    let restated: i64 = applied.iter().flat_map(|one| &one.groups).map(|(_, figures)| figures.events).sum();
    assert_eq!(restated, 100);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events WHERE kind = 'restatement'").await, 100);
    ledger.post().await;
    assert_eq!(sums(&ledger, acme).await.1.to_string(), "0.4022");
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn what_is_not_committed_is_not_there() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "a", 1000, 1)]).await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    let mut tx = ledger.database.begin().await.unwrap();
    let lost = apply_within(&mut tx, &ledger.database, utc(NOW), &everything(), "test").await.unwrap();
    drop(tx);
    ledger.post().await;
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 1);
    assert_proven(&ledger).await;
    let mut tx = ledger.database.begin().await.unwrap();
    let kept = apply_within(&mut tx, &ledger.database, utc(NOW), &everything(), "test").await.unwrap();
    commit(tx).await.unwrap();
    assert_eq!(lost.groups, kept.groups);
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 3);
}

/// Advisory locks that are held in the database, but for that of re-rates: of the journal, and of what stands.
async fn locks(ledger: &Ledger) -> i64 {
    ledger
        .count(&format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid <> {RERATE_LOCK}
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ))
        .await
}

/// As if each batch had recorded so many rows.
async fn batches_of(ledger: &Ledger, rows: i64) {
    ledger.run(&format!("UPDATE ingest_batches SET rows = {rows}")).await;
}

#[tokio::test]
async fn a_re_rate_keeps_nobody_waiting_to_find_out_what_differs() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-01T00:00:00Z", "a", 1_000_000, 0)]).await;
    ledger
        .record(&[
            call(acme, "2026-11-05T00:00:00Z", "b", 1_000_000, 0),
            searching(acme, "2026-11-06T00:00:00Z", "c"),
        ])
        .await;
    ledger.record(&[searching(acme, "2026-11-06T00:00:00Z", "d")]).await;
    ledger.record(&[call(acme, "2026-11-07T00:00:00Z", "e", 1_000_000, 0)]).await;
    ledger.post().await;
    // Each is looked at by itself.
    batches_of(&ledger, 5_000).await;
    let mut tx = ledger.database.begin().await.unwrap();
    let nothing = apply_within(&mut tx, &ledger.database, utc(NOW), &everything(), "test").await.unwrap();
    assert_eq!((nothing.examined, nothing.groups, locks(&ledger).await), (5, Vec::new(), 0));
    drop(tx);

    // Of the second and the fourth batch something differs; what has a search has no price any more.
    publish_without_searches(&ledger).await;
    let shown = dry_run(&ledger, &everything()).await;
    let mut tx = ledger.database.begin().await.unwrap();
    let applied = apply_within(&mut tx, &ledger.database, utc(NOW), &everything(), "test").await.unwrap();
    assert!(locks(&ledger).await > 0, "until it is committed");
    commit(tx).await.unwrap();
    assert_eq!((applied.examined, &applied.groups), (5, &shown.groups));
    let (figures, batches) = (shown.groups[0].1, applied.batches.len());
    assert_eq!((figures.events, figures.unpriced, applied.unpriced.len(), batches), (2, 2, 2, 2));
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events WHERE kind = 'restatement'").await, 2);
}

#[tokio::test]
async fn a_request_looks_at_so_many_rows_and_the_command_at_all() {
    let api = Api::start().await;
    let mut ledger = Ledger::beside(&api.bed).await;
    let acme = ledger.customer("acme", "UTC").await;
    for id in ["a", "b"] {
        ledger.record(&[call(acme, "2026-11-05T00:00:00Z", id, 1000, 1)]).await;
    }
    ledger.post().await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    let body = json!({"from": "2026-11-01T00:00:00Z", "to": "2026-11-06T00:00:00Z"});
    let ask = async |dry_run: bool| {
        api.post(&api.keys.finance, &format!("/v1/rerates?dry_run={dry_run}"), &body).await
    };
    batches_of(&ledger, ROWS_MAX / 2 + 1).await;
    for dry_run in [true, false] {
        let refused = ask(dry_run).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{}", refused.text);
        let error = refused.json()["errors"][0].clone();
        assert_eq!(error["field"], "from");
        assert!(error["detail"].as_str().unwrap().contains("200000 rows"), "{error}");
        assert!(error["detail"].as_str().unwrap().contains("`waybill rerate`"), "{error}");
    }
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 2);
    assert_eq!(dry_run(&ledger, &everything()).await.groups[0].1.events, 2);
    batches_of(&ledger, ROWS_MAX / 2).await;
    for dry_run in [true, false] {
        assert_eq!(ask(dry_run).await.json()["groups"][0]["events"], 2);
    }
    assert_eq!(rerate(&ledger, &everything()).await.groups, []);
}

#[tokio::test]
async fn finance_re_rates_through_the_api() {
    let api = Api::start().await;
    let mut ledger = Ledger::beside(&api.bed).await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "a", 1000, 1)]).await;
    ledger.post().await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    let finance = &api.keys.finance;
    let body = json!({"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z", "customer": "acme",
        "reason": "provider price corrected"});
    let shown = api.post(finance, "/v1/rerates", &body).await;
    assert_eq!(shown.status, StatusCode::OK, "{}", shown.text);
    let shown = shown.json();
    assert_eq!(
        (&shown["dry_run"], &shown["examined"], &shown["batches"]),
        (&json!(true), &json!(1), &json!([]))
    );
    assert_eq!(
        shown["groups"][0]["charge"],
        json!({"before": "0.003022", "after": "0.004022", "difference": "0.001", "currency": "USD"})
    );
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 1);

    let apply = "/v1/rerates?dry_run=false";
    let first = api.post_once(finance, apply, &body, "key").await;
    let again = api.post_once(finance, apply, &body, "key").await;
    assert_eq!((first.status, &first.text), (StatusCode::OK, &again.text));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(first.json()["groups"], shown["groups"]);
    assert_eq!(api.post(finance, apply, &body).await.json()["groups"], json!([]));
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 3);
    let audited = "SELECT count(*) FROM audit_log WHERE action = 'rerate.apply' AND actor <> 'test'";
    assert_eq!(ledger.count(audited).await, 1);
    ledger.post().await;
    assert_proven(&ledger).await;

    let refused = async |body: Value| api.post(finance, apply, &body).await.problem();
    let nobody = json!({"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z", "customer": "nobody"});
    assert_eq!(refused(nobody).await, (404, "not_found".to_owned()));
    let empty = json!({"from": "2026-11-01T00:00:00Z", "to": "2026-11-01T00:00:00Z"});
    assert_eq!(refused(empty).await, (422, "invalid_value".to_owned()));
    let mute = json!({"from": "2026-11-01T00:00:00Z", "to": "2026-12-01T00:00:00Z", "reason": " "});
    assert_eq!(refused(mute).await, (422, "invalid_value".to_owned()));
    let kept = "SELECT count(*) FROM rerates WHERE reason = 'provider price corrected'";
    assert_eq!(ledger.count(kept).await, 1);
    assert_eq!(api.post(&api.keys.acme, apply, &body).await.problem(), (403, "forbidden".to_owned()));
}

#[tokio::test]
async fn verify_finds_a_retraction_that_is_not_what_stood() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-11-05T00:00:00Z", "a", 1000, 1)]).await;
    publish(&ledger, "standard", gpt5("2026-11-02T00:00:00Z", "4", "22", "0.02")).await;
    rerate(&ledger, &everything()).await;
    ledger.post().await;
    assert_proven(&ledger).await;
    // Twice as much taken back and restated: rates, rollups and tasks agree with it all the same.
    ledger
        .run(
            "ALTER TABLE usage_events DISABLE TRIGGER journal_append_only;
             UPDATE usage_events SET input = 2 * input, output = 2 * output, cost = 2 * cost, charge = 2 * charge
             WHERE restates IS NOT NULL;
             UPDATE usage_rollups SET input = 2 * input, output = 2 * output, cost = 2 * cost, charge = 2 * charge
             WHERE kind = 'adjustment'",
        )
        .await;
    let proof = verify::verify(&ledger.database, utc("2027-06-01T00:00:00Z")).await.unwrap();
    let checks: Vec<verify::Check> = proof.findings.iter().map(|finding| finding.check).collect();
    assert_eq!(checks, [verify::Check::Amounts], "{:?}", proof.findings);
}

/// An estimate, corrected before or after it is re-rated, by the recorder itself.
#[tokio::test]
async fn corrected_estimates_and_re_rates_meet_in_any_order() {
    let world = World::start().await;
    let correction = |id: &str, of: &str, output: i64| {
        let mut event = world::usage_event(id);
        event["data"]["corrects"] = json!(of);
        event["data"]["usage"] = json!({"input": 100, "cache_read": 300, "output": output});
        event
    };
    for event in [estimate("e-1"), estimate("e-2"), estimate("e-3"), correction("c-1", "e-1", 60)] {
        world.publish("gw-1", &event).await;
    }
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    // Every rate doubles, since before the calls.
    let twice = |rates: Value| {
        json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "rates": rates, "source": "test",
                "valid_from": "2025-09-01T00:00:00Z"}])
    };
    world.publish_prices(twice(json!({"input": "2.5", "cache_read": "0.25", "output": "20"}))).await;
    let apply = async || apply(&world.bed.database, &Clock::System, &everything(), "test").await.unwrap();
    let applied = apply().await;
    // The reversed estimate e-1 does not stand any more: c-1 does.
    assert_eq!(applied.groups[0].1.events, 3);
    // Corrected after the re-rate: what stands is taken back, at the new price.
    world.publish("gw-1", &correction("c-2", "e-2", 70)).await;
    world.publish("gw-1", &correction("c-3", "e-1", 80)).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_eq!(apply().await.groups, []);
    world.settled().await;
    // c-3, c-2 and e-3 stand, at twice the rates: 3 x (100 x 2.5 + 300 x 0.25) + (80 + 70 + 50) x 20, per million.
    let totals = world.totals().await;
    assert_eq!(
        (totals.events, totals.input, totals.output, totals.cost.to_string().as_str()),
        (3, 300, 200, "0.004975")
    );
    let task = world.task("acme", "task-1").await;
    assert_eq!((task.calls, task.cost, task.charge), (3, totals.cost, totals.cost));
    let proof = verify::rebuild(&world.bed.database, world::now(), |_| ()).await.unwrap();
    assert_eq!(proof.findings, []);
    let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
    let acme = customers::by_external_id(&mut tx, "acme").await.unwrap().unwrap().id;
    let only = preview(&mut tx, &Request { customer: Some(acme), ..everything() }).await.unwrap();
    assert_eq!((only.examined, only.groups), (3, Vec::new()));
}

/// Makes of every recorded event `a` the same identity, as if its id had been used again after copies are looked for no more.
async fn one_identity(ledger: &Ledger) {
    ledger
        .run(
            "ALTER TABLE usage_events DISABLE TRIGGER journal_append_only;
             UPDATE usage_events SET event_key = '00000000-0000-0000-0000-00000000000a' WHERE id = 'a';
             ALTER TABLE usage_events ENABLE TRIGGER journal_append_only",
        )
        .await;
}

/// That the ledger holds, but for ids that were used again.
async fn assert_proven_but_ids(ledger: &Ledger, ids: usize) {
    let proof = verify::rebuild(&ledger.database, utc("2027-06-01T00:00:00Z"), |_| ()).await.unwrap();
    assert_found_ids(&proof, ids);
}

fn assert_found_ids(proof: &verify::Verification, ids: usize) {
    let found: Vec<verify::Check> = proof.findings.iter().map(|finding| finding.check).collect();
    assert_eq!(found, vec![verify::Check::Identities; ids], "{:?}", proof.findings);
}

/// A first event `a` in September and one of the same id in November, with other quantities.
async fn used_again(second_at: &str) -> (Ledger, CustomerId) {
    let mut ledger = Ledger::new().await;
    ledger.run("SELECT open_booking_date(DATE '2026-09-01')").await;
    let acme = ledger.customer("acme", "UTC").await;
    let september = NaiveDate::from_ymd_opt(2026, 9, 1).unwrap();
    ledger.record_on(september, &[call(acme, "2026-09-01T10:00:00Z", "a", 1_000_000, 0)]).await;
    ledger.record(&[call(acme, second_at, "a", 10_000, 0)]).await;
    one_identity(&ledger).await;
    ledger.post().await;
    (ledger, acme)
}

#[tokio::test]
async fn of_an_id_used_again_each_event_is_restated_from_its_own() {
    let (ledger, acme) = used_again("2026-11-05T00:00:00Z").await;
    publish(&ledger, "standard", gpt5("2026-08-01T00:00:00Z", "4", "22", "0.02")).await;
    let first = Request { to: utc("2026-10-01T00:00:00Z"), ..everything() };
    let second = Request { from: first.to, ..everything() };
    for (request, before, after) in [(&first, "3", "4"), (&second, "0.03", "0.04")] {
        let shown = dry_run(&ledger, request).await;
        let applied = rerate(&ledger, request).await;
        assert_eq!((applied.examined, &applied.groups), (1, &shown.groups));
        let charge = applied.groups[0].1.charge;
        assert_eq!((charge.before.to_string().as_str(), charge.after.to_string().as_str()), (before, after));
        ledger.post().await;
        assert_proven_but_ids(&ledger, 1).await;
    }
    assert_eq!(rerate(&ledger, &everything()).await.groups, []);
    assert_eq!(sums(&ledger, acme).await.1.to_string(), "4.04");
    // Both at once, from what each was restated to.
    publish(&ledger, "standard", gpt5("2026-08-02T00:00:00Z", "5", "22", "0.02")).await;
    rerate(&ledger, &everything()).await;
    assert_eq!(rerate(&ledger, &everything()).await.groups, []);
    ledger.post().await;
    assert_eq!(sums(&ledger, acme).await.1.to_string(), "5.05");
    assert_eq!(ledger.count("SELECT count(*) FROM usage_events").await, 2 + 2 * 4);
    assert_proven_but_ids(&ledger, 1).await;
}

/// Sent again by a gateway that may send what is old, with other content.
#[tokio::test]
async fn of_an_id_used_again_for_the_same_instant_each_event_is_restated_from_its_own() {
    let (ledger, acme) = used_again("2026-09-01T10:00:00Z").await;
    for (from, input, charge) in
        [("2026-08-01T00:00:00Z", "4", "4.04"), ("2026-08-02T00:00:00Z", "5", "5.05")]
    {
        publish(&ledger, "standard", gpt5(from, input, "22", "0.02")).await;
        let applied = rerate(&ledger, &everything()).await;
        assert_eq!((applied.examined, applied.groups[0].1.events), (2, 2));
        assert_eq!(rerate(&ledger, &everything()).await.groups, []);
        ledger.post().await;
        assert_eq!(sums(&ledger, acme).await.1.to_string(), charge);
        assert_proven_but_ids(&ledger, 1).await;
    }
}

/// Estimates whose ids are used again; of each, the first or the second is corrected, before re-rates or between them.
#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_stands_whatever_corrected_another_of_its_id() {
    let world = estimates_of_ids_used_again().await;
    let all = everything();
    let re_rated = async |from: &str, input: &str| {
        world.publish_prices(gpt5_since(from, input, "0.25", "20")).await;
        let applied = apply(&world.bed.database, &Clock::System, &all, "test").await.unwrap();
        assert_eq!(apply(&world.bed.database, &Clock::System, &all, "test").await.unwrap().groups, []);
        world.settled().await;
        assert_proven_in(&world, 2).await;
        (applied.examined, applied.groups[0].1.events)
    };
    // All but the first one that is corrected: its correction does.
    assert_eq!(re_rated("2025-09-01T00:00:00Z", "2").await, (4, 4));
    let totals = world.totals().await;
    // (7 + 100 + 2 x 1000) x 2 + 300 x 0.25 + 50 x 20, per million.
    assert_eq!((totals.events, totals.input, totals.cost.to_string().as_str()), (4, 2107, "0.005289"));
    for (id, of) in [("b", "corrected"), ("c", "final")] {
        world.publish("gw-1", &correction(id, of, json!({"input": 90, "output": 0}))).await;
    }
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_proven_in(&world, 2).await;
    assert_eq!(re_rated("2025-10-01T00:00:00Z", "3").await, (4, 4));
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input, totals.cost.to_string().as_str()), (4, 287, "0.001936"));
}

/// So that between the estimates and the second use of the id there are less days than copies are looked for in.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_correction_is_of_the_estimate_that_it_was_recorded_for() {
    let world = estimates_corrected_and_used_again(TimeDelta::days(25)).await;
    assert_proven_in(&world, 2).await;
    world.publish("gw-1", &correction("b", "corrected", json!({"input": 90, "output": 0}))).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_eq!(world.totals().await.input, 7 + 100 + 90 + 1000);
    assert_proven_in(&world, 2).await;
}

async fn assert_proven_in(world: &World, ids: usize) {
    let proof = verify::rebuild(&world.bed.database, world::now(), |_| ()).await.unwrap();
    assert_found_ids(&proof, ids);
}

/// What the parts, what is taken back and what re-rates changed come to, by currency; a side is `charge` or `cost`.
fn shown(event: &Value, side: &str, own: &str) -> BTreeMap<String, Amount> {
    let mut sums: BTreeMap<String, Amount> = BTreeMap::new();
    let rows = |list: &str| event[list].as_array().unwrap().clone();
    let sides = rows("parts").into_iter().chain(rows("restated")).map(|row| row[side].clone());
    let taken_back = rows("taken_back").into_iter().map(|row| match side {
        "charge" => json!({"amount": row["amount"], "currency": row["currency"]}),
        _ => json!({"amount": row["cost"], "currency": row["cost_currency"]}),
    });
    for row in sides.chain(taken_back) {
        let sum = sums.entry(row["currency"].as_str().unwrap().to_owned()).or_default();
        *sum = sum.checked_add(row["amount"].as_str().unwrap().parse().unwrap()).unwrap();
    }
    sums.retain(|currency, amount| currency == own || *amount != Amount::ZERO);
    sums
}

/// That what is shown of an event adds up to what it says it adds, in every currency.
fn assert_adds_up(event: &Value, with_cost: bool) {
    let sides =
        [("charge", "amount", "currency", "other_amounts"), ("cost", "cost", "cost_currency", "other_costs")];
    for (side, amount, currency, others) in sides.into_iter().take(if with_cost { 2 } else { 1 }) {
        let own = json!({"amount": event[amount], "currency": event[currency]});
        let others = event.get(others).map(|others| others.as_array().unwrap().clone()).unwrap_or_default();
        let said: BTreeMap<String, Amount> = [own]
            .into_iter()
            .chain(others)
            .map(|sum| {
                (
                    sum["currency"].as_str().unwrap().to_owned(),
                    sum["amount"].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect();
        assert_eq!(shown(event, side, event[currency].as_str().unwrap()), said, "{side}: {event}");
    }
}

fn amounts(rows: &Value) -> Vec<(&str, &str)> {
    rows.as_array()
        .unwrap()
        .iter()
        .map(|row| (row["charge"]["amount"].as_str().unwrap(), row["charge"]["currency"].as_str().unwrap()))
        .collect()
}

async fn re_rated(api: &Explained, reason: Option<&str>) {
    let body = json!({"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z", "reason": reason});
    api.made("/v1/rerates?dry_run=false", &body).await;
    api.world.settled().await;
}

/// A price of `gpt-5` for a call of 100 input, 300 cached and 50 output tokens.
fn gpt5_since(from: &str, input: &str, cache_read: &str, output: &str) -> Value {
    json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "valid_from": from, "source": "test",
            "rates": {"input": input, "cache_read": cache_read, "output": output}}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_re_rated_event_shows_what_changed_and_adds_up() {
    let api = Explained::start().await;
    api.world.publish_prices(world::gpt5_prices()).await;
    api.world.start_consumer();
    api.world.publish("gw-1", &world::usage_event("a")).await;
    api.world.settled().await;
    api.world.publish_prices(gpt5_since("2025-09-01T00:00:00Z", "2.5", "0.25", "20")).await;
    re_rated(&api, Some("provider price corrected")).await;
    api.world.publish_prices(gpt5_since("2025-10-01T00:00:00Z", "1", "0.1", "8")).await;
    re_rated(&api, None).await;
    // Another one than the event's where it is past midnight meanwhile.
    let booked_on: NaiveDate = sqlx::query_scalar("SELECT max(booked_on) FROM usage_events")
        .fetch_one(&api.world.pool)
        .await
        .unwrap();
    for (key, sees_cost) in [(&api.finance, true), (&api.acme, false)] {
        let event = api.event(key, "/v1/events/gw-1/a").await;
        assert_eq!((&event["amount"], &event["currency"]), (&json!("0.00053"), &json!("USD")));
        assert_eq!(event["parts"][0]["charge"]["amount"], "0.0006625", "as it was recorded");
        let restated = &event["restated"];
        assert_eq!(
            amounts(restated),
            [("-0.0006625", "USD"), ("0.001325", "USD"), ("-0.001325", "USD"), ("0.00053", "USD")]
        );
        let kinds: Vec<(&Value, &Value, &Value)> = restated
            .as_array()
            .unwrap()
            .iter()
            .map(|row| (&row["part"], &row["kind"], &row["reason"]))
            .collect();
        let (why, zero) = (json!("provider price corrected"), json!(0));
        let (retraction, restatement) = (json!("retraction"), json!("restatement"));
        assert_eq!(
            kinds,
            [
                (&zero, &retraction, &why),
                (&zero, &restatement, &why),
                (&zero, &retraction, &Value::Null),
                (&zero, &restatement, &Value::Null)
            ]
        );
        let price = |row: usize| &restated[row]["charge"]["price"]["id"];
        assert_eq!(price(0), &event["parts"][0]["charge"]["price"]["id"]);
        assert_eq!(price(1), price(2));
        assert_ne!(price(2), price(3));
        assert_eq!(restated[3]["charge"]["classes"][0]["rate"], "1");
        assert_eq!(restated[3]["booked_on"], json!(booked_on));
        assert_adds_up(&event, sees_cost);
        let shows_cost = event.to_string().contains("\"cost\"");
        assert_eq!((event.get("other_amounts"), shows_cost), (None, sees_cost));
    }
}

/// Assigned by hand: the API keeps a customer in its currency.
#[tokio::test(flavor = "multi_thread")]
async fn amounts_of_two_currencies_are_never_one_sum() {
    let api = Explained::start().await;
    api.world.publish_prices(world::gpt5_prices()).await;
    api.world.start_consumer();
    let mut guess = world::usage_event("guess");
    guess["data"]["usage_source"] = json!("estimated");
    for event in [&world::usage_event("a"), &guess] {
        api.world.publish("gw-1", event).await;
    }
    api.world.settled().await;
    api.made("/v1/price-books", &json!({"name": "euro-cost", "kind": "cost", "currency": "EUR"})).await;
    let sell =
        json!({"name": "euros", "kind": "sell", "currency": "EUR", "base": "euro-cost", "markup": "2"});
    api.made("/v1/price-books", &sell).await;
    let prices = gpt5_since("2025-08-07T00:00:00Z", "1", "0.1", "8");
    api.made("/v1/price-books/euro-cost/prices", &prices).await;
    api.world
        .bed
        .run(
            "UPDATE book_assignments SET valid_to = now() - interval '1 day'
             WHERE customer_id = (SELECT id FROM customers WHERE external_id = 'acme');
             INSERT INTO book_assignments (customer_id, sell_book_id, cost_book_id, valid_from)
             SELECT a.customer_id, s.id, c.id, a.valid_to FROM book_assignments a, price_books s, price_books c
             WHERE a.valid_to IS NOT NULL AND s.name = 'euros' AND c.name = 'euro-cost';
             UPDATE catalog_version SET version = version + 1",
        )
        .await;
    let mut last = world::usage_event("final");
    last["data"]["corrects"] = json!("guess");
    last["data"]["usage"] = json!({"output": 60});
    api.world.publish("gw-1", &last).await;
    api.world.settled().await;
    assert_eq!(api.world.open_rejections().await, Vec::<String>::new());
    re_rated(&api, None).await;
    for (key, sees_cost) in [(&api.finance, true), (&api.acme, false)] {
        let last = api.event(key, "/v1/events/gw-1/final").await;
        // 60 x 16 euros per million; the estimate was in dollars.
        assert_eq!((&last["amount"], &last["currency"]), (&json!("0.00096"), &json!("EUR")));
        let back = &last["taken_back"][0];
        assert_eq!((&back["amount"], &back["currency"]), (&json!("-0.0006625"), &json!("USD")));
        assert_eq!(last["other_amounts"], json!([{"amount": "-0.0006625", "currency": "USD"}]));
        assert_adds_up(&last, sees_cost);
        let event = api.event(key, "/v1/events/gw-1/a").await;
        assert_eq!((&event["amount"], &event["currency"]), (&json!("0.00106"), &json!("EUR")));
        assert_eq!(amounts(&event["restated"]), [("-0.0006625", "USD"), ("0.00106", "EUR")]);
        assert_eq!(event.get("other_amounts"), None);
        assert_adds_up(&event, sees_cost);
    }
}
