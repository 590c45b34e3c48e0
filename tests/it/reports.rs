//! Reports on a small ledger, and that every kind of damage to a ledger is found.

use serde_json::json;
use waybill::domain::ids::CustomerId;
use waybill::domain::money::{Amount, Currency};
use waybill::reports::verify::{self, Check};
use waybill::reports::{CostPerTask, Dimension, UsageQuery, cost_per_task, usage};
use waybill::store::reports::TaskScope;
use waybill::store::usage::UsageFilter;
use waybill::store::{Scope, periods, tasks};

use crate::ledger::{Ledger, Row, call, ended, task_call, utc};

/// Tables that refuse changes by trigger.
const TRIGGERED: [&str; 9] = [
    "usage_events",
    "invoices",
    "invoice_line_items",
    "prices",
    "price_rates",
    "period_prices",
    "period_price_tiers",
    "task_charges",
    "audit_log",
];

async fn shown(ledger: &Ledger, scope: Scope, group_by: &[Dimension]) -> Vec<String> {
    let filter = UsageFilter {
        from: utc("2026-10-01T00:00:00Z"),
        to: utc("2026-11-01T00:00:00Z"),
        ..UsageFilter::default()
    };
    let query = UsageQuery { filter, group_by: group_by.to_vec() };
    let mut tx = ledger.database.read(scope).await.unwrap();
    let report = usage(&mut tx, scope, &query, utc("2026-11-01T00:00:00Z")).await.unwrap();
    let row = |row: waybill::reports::UsageRow| {
        let names = [
            row.customer,
            row.day.map(|day| day.to_string()),
            row.model,
            row.project,
            row.class.map(|class| class.name().to_owned()),
        ];
        let name = names.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let units: i64 = row.quantities.raw().iter().sum();
        let cost = row.figures.cost.map_or("-".to_owned(), |(cost, _)| cost.to_string());
        format!(
            "{name}: {units} units, {:?} calls, {} {} {cost}",
            row.events, row.figures.charge, row.figures.currency
        )
    };
    report.rows.into_iter().map(row).collect()
}

#[tokio::test]
async fn usage_is_summed_by_any_dimension_and_a_customer_sees_its_own_charge() {
    let mut ledger = Ledger::new().await;
    let (acme, other) =
        (ledger.customer("acme", "Asia/Kathmandu").await, ledger.customer("other", "UTC").await);
    let searching = Row {
        rare: Some(json!({"web_search": 2})),
        project: Some("support"),
        ..call(acme, "2026-10-02T20:00:00Z", "b", 10, 1)
    };
    ledger
        .record(&[
            call(acme, "2026-10-02T01:00:00Z", "a", 100, 0),
            searching,
            Row { model: "tiny", ..call(other, "2026-10-02T20:00:00Z", "c", 7, 0) },
            call(acme, "2026-11-02T20:00:00Z", "outside", 1_000, 0),
        ])
        .await;
    ledger.post().await;
    assert_eq!(
        shown(&ledger, Scope::Everything, &[]).await,
        [": 120 units, Some(3) calls, 0.040352000000007 USD 0.020176000000007"]
    );
    assert_eq!(
        shown(&ledger, Scope::Everything, &[Dimension::Customer, Dimension::Day]).await,
        [
            "acme 2026-10-02: 100 units, Some(1) calls, 0.0003 USD 0.00015",
            // After midnight in Kathmandu, and not yet in London.
            "acme 2026-10-03: 13 units, Some(1) calls, 0.040052 USD 0.020026",
            "other 2026-10-02: 7 units, Some(1) calls, 0.000000000000007 USD 0.000000000000007",
        ]
    );
    assert_eq!(
        shown(&ledger, Scope::Customer(acme), &[Dimension::Class]).await,
        [
            "input: 110 units, None calls, 0.00033 USD -",
            "output: 1 units, None calls, 0.000022 USD -",
            "web_search: 2 units, None calls, 0.04 USD -",
        ]
    );
    assert_eq!(
        shown(&ledger, Scope::Customer(other), &[Dimension::Customer, Dimension::Model, Dimension::Project])
            .await,
        ["other tiny : 7 units, Some(1) calls, 0.000000000000007 USD -"]
    );
}

#[tokio::test]
async fn tasks_are_counted_once_alone_and_nested() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let at = "2026-10-02T01:00:00Z";
    let under = |parent: &'static str, row: Row| Row { parent: Some(parent), ..row };
    ledger
        .record(&[
            task_call(acme, at, "root", "refund", 1),
            under("root", task_call(acme, at, "child", "lookup", 10)),
            under("child", task_call(acme, at, "grandchild", "lookup", 100)),
            under("never seen", task_call(acme, at, "orphan", "refund", 1_000)),
            // Parents in a circle, and a task that hangs on it.
            under("b", task_call(acme, at, "a", "refund", 10_000)),
            under("a", task_call(acme, at, "b", "refund", 100_000)),
            under("b", task_call(acme, at, "on circle", "refund", 1_000_000)),
            call(acme, at, "no task", 5, 0),
        ])
        .await;
    ledger.record(&[ended(acme, "2026-10-02T02:00:00Z", "root", "refund", "success")]).await;
    ledger.post().await;
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let mut report = async |nested| {
        let scope = TaskScope {
            customer: Some(acme),
            from: utc("2026-10-01T00:00:00Z"),
            to: utc("2026-11-01T00:00:00Z"),
            task_type: None,
            nested,
        };
        cost_per_task(&mut tx, Scope::Everything, &scope, utc("2026-11-01T00:00:00Z")).await.unwrap()
    };
    let shown = |report: &CostPerTask| -> Vec<String> {
        let group = |group: &waybill::reports::TaskGroup| {
            let kind = group.task_type.as_deref().unwrap_or("-");
            let outcome = group.outcome.as_deref().unwrap_or("open");
            format!(
                "{kind} {outcome}: {} tasks, {} calls, {} max {}",
                group.tasks, group.calls, group.charge.total, group.charge.max
            )
        };
        report.groups.iter().map(group).collect()
    };
    let alone = report(false).await;
    assert_eq!(
        shown(&alone),
        [
            "lookup open: 2 tasks, 2 calls, 0.00033 max 0.0003",
            "refund success: 1 tasks, 1 calls, 0.000003 max 0.000003",
            "refund open: 4 tasks, 4 calls, 3.333 max 3",
        ]
    );
    let nested = report(true).await;
    assert_eq!(
        shown(&nested),
        [
            "refund success: 1 tasks, 3 calls, 0.000333 max 0.000333",
            "refund open: 4 tasks, 4 calls, 3.333 max 3",
        ]
    );
    let [refund] = nested.types.as_slice() else { panic!("one type, not {:?}", nested.types) };
    assert_eq!(refund.charge_per_success.unwrap().to_string(), "0.000333");
    assert_eq!(nested.unattributed[0].figures.charge.to_string(), "0.000015");
    let mut tx = ledger.database.read(Scope::Customer(acme)).await.unwrap();
    let totals = tasks::tree_totals(&mut tx, acme, "a").await.unwrap();
    assert_eq!((totals.tasks, totals.charge.to_string().as_str()), (3, "3.33"));
    let root = tasks::get(&mut tx, acme, "root").await.unwrap().unwrap();
    let calls = tasks::calls(&mut tx, acme, &root, None, 10).await.unwrap();
    let kinds: Vec<&str> = calls.iter().map(|call| call.kind.as_str()).collect();
    assert_eq!(kinds, ["usage", "outcome"]);
    let rest = tasks::calls(&mut tx, acme, &root, Some((calls[0].occurred_at, calls[0].event_key.0, 0)), 10)
        .await
        .unwrap();
    assert_eq!(rest, calls[1..]);
}

const OCTOBER: (&str, &str) = ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z");

/// A plan for any customer and any time, which PostgreSQL would take after five calls, reads everything for each.
#[tokio::test]
async fn reports_are_planned_for_what_they_ask_for() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[task_call(acme, "2026-10-02T01:00:00Z", "t", "refund", 1)]).await;
    ledger.post().await;
    let (from, now) = (utc(OCTOBER.0), utc(OCTOBER.1));
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    for customer in [None, Some(acme), Some(acme), Some(acme), Some(acme), Some(acme), Some(acme)] {
        let tasks = TaskScope { customer, from, to: now, ..TaskScope::default() };
        cost_per_task(&mut tx, Scope::Everything, &tasks, now).await.unwrap();
        let filter = UsageFilter { customer, from, to: now, ..UsageFilter::default() };
        let query = UsageQuery { filter, group_by: vec![Dimension::Day] };
        usage(&mut tx, Scope::Everything, &query, now).await.unwrap();
    }
    let plans = "SELECT COALESCE(sum(custom_plans), 0)::bigint, COALESCE(sum(generic_plans), 0)::bigint
                 FROM pg_prepared_statements
                 WHERE statement LIKE '%FROM usage_within(%' OR statement LIKE '%percentile_disc(%'";
    let (custom, generic): (i64, i64) = sqlx::query_as(plans).fetch_one(&mut *tx).await.unwrap();
    // This statement, which has a plan for anything, names both.
    assert_eq!((custom, generic), (3 * 7, 1));
}

/// What a report of October shows of all tasks, in a scope.
async fn october(ledger: &Ledger, scope: Scope, task_type: Option<&str>) -> CostPerTask {
    let tasks = TaskScope {
        from: utc(OCTOBER.0),
        to: utc(OCTOBER.1),
        task_type: task_type.map(str::to_owned),
        ..TaskScope::default()
    };
    let mut tx = ledger.database.read(scope).await.unwrap();
    cost_per_task(&mut tx, scope, &tasks, utc(OCTOBER.1)).await.unwrap()
}

/// The smallest total that so many of a hundred do not exceed.
fn nearest_rank(totals: &[i128], percent: usize) -> i128 {
    let covers =
        |limit: &i128| totals.iter().filter(|total| *total <= limit).count() * 100 >= percent * totals.len();
    *totals.iter().filter(|total| covers(total)).min().unwrap()
}

#[tokio::test]
async fn percentiles_are_totals_of_actual_tasks_by_nearest_rank() {
    let ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let sizes = [1_i64, 2, 3, 9, 10, 11, 50, 99, 100, 101, 200];
    let (cost, charge) =
        (|n: i64| n * 7_919 % 1_009 - 500, |n: i64| n * 104_729 % 97 * 1_000_000_000_000_000);
    for size in sizes {
        ledger
            .run(&format!(
                "INSERT INTO tasks (customer_id, task_id, task_type, first_event_at, last_event_at, calls, input, cache_read,
                     cache_write_5m, cache_write_1h, output, reasoning, cost, charge, models, first_batch, last_batch,
                     first_booked_on, last_booked_on)
                 SELECT {acme}, '{size}-' || n, '{size}', '2026-10-09Z', '2026-10-09Z', 2, 1, 0, 0, 0, 0, 0,
                     (n * 7919 % 1009 - 500) * 0.000000000000001, n * 104729 % 97, '{{}}', 1, 1, '2026-10-09', '2026-10-09'
                 FROM generate_series(1, {size}) n"
            ))
            .await;
    }
    let report = october(&ledger, Scope::Everything, None).await;
    assert_eq!(report.groups.len(), sizes.len());
    for group in report.groups {
        let size: i64 = group.task_type.as_deref().unwrap().parse().unwrap();
        assert_eq!((group.tasks, group.calls), (size, 2 * size));
        let (costs, _) = group.cost.unwrap();
        for (shown, of) in [(costs, &cost as &dyn Fn(i64) -> i64), (group.charge, &charge)] {
            let totals: Vec<i128> = (1..=size).map(|n| of(n).into()).collect();
            let percentiles = [50, 90, 99].map(|percent| nearest_rank(&totals, percent));
            assert_eq!([shown.p50, shown.p90, shown.p99].map(Amount::femtos), percentiles, "{size}");
            assert_eq!(shown.max.femtos(), *totals.iter().max().unwrap(), "{size}");
            assert_eq!(shown.total.femtos(), totals.iter().sum::<i128>(), "{size}");
            assert_eq!(shown.mean, shown.total.mean_of(size).unwrap(), "{size}");
        }
    }
}

#[tokio::test]
async fn usage_that_names_no_task_type_is_shown_beside_the_tasks() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let at = "2026-10-02T01:00:00Z";
    let untyped = Row { task: Some("untyped"), ..call(acme, at, "untyped", 100, 0) };
    ledger
        .record(&[task_call(acme, at, "typed", "refund", 1), untyped, call(acme, at, "no task", 1_000, 0)])
        .await;
    ledger.post().await;
    for scope in [Scope::Everything, Scope::Customer(acme)] {
        let report = october(&ledger, scope, None).await;
        let [beside] = report.unattributed.as_slice() else { panic!("one currency: {report:?}") };
        let charge = Amount::from_femtos(1_100 * 3_000_000_000);
        assert_eq!((beside.events, beside.figures.charge), (2, charge));
        assert_eq!(beside.figures.cost.is_some(), scope == Scope::Everything);
        assert_eq!(october(&ledger, scope, Some("refund")).await.unattributed, []);
    }
}

#[tokio::test]
async fn a_task_of_a_customer_without_books_is_counted() {
    let mut ledger = Ledger::new().await;
    ledger.run("INSERT INTO customers (external_id, name, time_zone, anchor_day) VALUES ('new', 'New', 'UTC', 1)").await;
    let new = CustomerId(ledger.count("SELECT id FROM customers WHERE external_id = 'new'").await);
    ledger.record(&[ended(new, "2026-10-02T01:00:00Z", "t", "refund", "success")]).await;
    ledger.post().await;
    for scope in [Scope::Everything, Scope::Customer(new)] {
        let report = october(&ledger, scope, None).await;
        let [refund] = report.types.as_slice() else { panic!("one type: {report:?}") };
        assert_eq!((refund.tasks, refund.successes, refund.figures.charge), (1, 1, Amount::ZERO));
        assert_eq!((refund.figures.currency, refund.figures.cost), (Currency::USD, None));
        assert_eq!(report.unattributed, []);
    }
}

/// Assigned by hand: the API keeps a customer in its currency.
#[tokio::test]
async fn an_assignment_to_come_does_not_rename_what_was_charged() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[task_call(acme, "2026-10-02T01:00:00Z", "t", "refund", 1)]).await;
    ledger.post().await;
    ledger
        .run(
            "INSERT INTO price_books (name, kind, currency) VALUES ('euro-cost', 'cost', 'EUR'), ('euros', 'sell', 'EUR');
             UPDATE book_assignments SET valid_to = '2027-01-01Z';
             INSERT INTO book_assignments (customer_id, sell_book_id, cost_book_id, valid_from)
             SELECT a.customer_id, s.id, c.id, a.valid_to FROM book_assignments a, price_books s, price_books c
             WHERE s.name = 'euros' AND c.name = 'euro-cost'",
        )
        .await;
    for scope in [Scope::Everything, Scope::Customer(acme)] {
        let mut tx = ledger.database.read(scope).await.unwrap();
        let history = tasks::currencies(&mut tx, acme).await.unwrap();
        let at = |time: &str| history.at(utc(time)).charge.to_string();
        let named = ["2019-12-31T00:00:00Z", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"].map(at);
        assert_eq!(named, ["USD", "USD", "EUR"]);
        let interval = TaskScope {
            customer: Some(acme),
            from: utc("2026-10-01T00:00:00Z"),
            to: utc("2028-01-01T00:00:00Z"),
            task_type: None,
            nested: false,
        };
        let report = cost_per_task(&mut tx, scope, &interval, utc("2026-11-01T00:00:00Z")).await.unwrap();
        let [refund] = report.groups.as_slice() else { panic!("one group, not {:?}", report.groups) };
        assert_eq!((refund.currency.as_str(), refund.charge.total.to_string().as_str()), ("USD", "0.000003"));
    }
}

#[tokio::test]
async fn figures_are_of_no_time_that_the_database_has_not_reached() {
    let ledger = Ledger::new().await;
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    // A program whose clock is ahead.
    let through = periods::posted_through(&mut tx, utc("2999-01-01T00:00:00Z")).await.unwrap();
    assert!(through <= periods::database_time(&mut tx).await.unwrap(), "{through}");
}

/// A ledger with a bit of everything, one batch of it not posted.
async fn sound() -> Ledger {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let period_prices = json!([
        {"name": "input", "kind": "graduated", "model": "gpt-5", "classes": ["input"], "per": 1,
         "tiers": [{"up_to": "5", "rate": "1"}, {"rate": "0.5"}], "valid_from": "2026-01-01T00:00:00Z"},
        {"name": "refund", "kind": "task", "task_type": "refund", "outcome": "success", "amount": "0.50",
         "usage": "billed", "valid_from": "2026-01-01T00:00:00Z"},
    ]);
    let period_prices: Vec<_> = serde_json::from_value(period_prices).unwrap();
    let mut tx = ledger.database.begin().await.unwrap();
    let now = utc("2026-11-01T00:00:00Z");
    waybill::store::period_prices::publish(&mut tx, "standard", &period_prices, now, "test").await.unwrap();
    waybill::store::commit(tx).await.unwrap();
    let searching = Row {
        rare: Some(json!({"web_search": 2})),
        ..task_call(acme, "2026-10-02T01:00:00Z", "t", "refund", 9)
    };
    ledger.record(&[searching, ended(acme, "2026-10-02T02:00:00Z", "t", "refund", "success")]).await;
    ledger.record(&[Row { model: "tiny", ..call(acme, "2026-10-03T01:00:00Z", "x", 3, 0) }]).await;
    ledger.post().await;
    let request = waybill::invoicing::Request {
        customer: acme,
        at: utc("2026-10-03T01:00:00Z"),
        grace: waybill::invoicing::DEFAULT_GRACE,
        actor: "test".to_owned(),
    };
    let clock = waybill::clock::Clock::fixed(utc("2026-11-02T00:00:00Z"));
    waybill::invoicing::close_and_finalize(&ledger.database, &clock, &request).await.unwrap();
    ledger.record(&[call(acme, "2026-11-03T01:00:00Z", "unposted", 4, 4)]).await;
    ledger
}

async fn found(ledger: &Ledger) -> Vec<Check> {
    let proof = verify::verify(&ledger.database, utc("2027-01-01T00:00:00Z")).await.unwrap();
    let mut checks: Vec<Check> = proof.findings.iter().map(|finding| finding.check).collect();
    checks.dedup();
    checks
}

/// The proof of the proof: each damage is found by the check that is there for it.
#[tokio::test]
async fn every_damage_is_found() {
    let ledger = sound().await;
    assert_eq!(found(&ledger).await, []);
    let anew = "INSERT INTO usage_events (booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id, gateway_id, occurred_at,
        source, id, content_hash, model, input, cost_price_id, sell_price_id, cost, charge)
        SELECT booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id, gateway_id, occurred_at, source, id, content_hash,
        model, input, cost_price_id, sell_price_id, cost, charge FROM gone";
    let replaced = |change: &str| {
        format!(
            "CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT * FROM usage_events WHERE id = 'x'; DELETE FROM usage_events WHERE id = 'x'; UPDATE gone SET {change}; {anew}"
        )
    };
    for (damage, expected) in [
        ("UPDATE usage_rollups SET input = input + 1 WHERE sell_price_id = 4".to_owned(), vec![Check::InvoiceLines, Check::Rollups]),
        ("UPDATE usage_rollups SET charge = charge + 0.000000000000001 WHERE sell_price_id = 4".to_owned(), vec![Check::Rollups]),
        ("UPDATE usage_rollups SET rare = '{\"web_search\": 3}' WHERE rare IS NOT NULL".to_owned(), vec![Check::InvoiceLines, Check::Rollups]),
        ("DELETE FROM usage_rollups WHERE sell_price_id = 4".to_owned(), vec![Check::InvoiceLines, Check::Rollups]),
        ("UPDATE usage_rollups SET hour = '2026-11-01Z' WHERE sell_price_id = 4".to_owned(), vec![Check::Periods]),
        ("UPDATE usage_rollups SET booked_period = '2026-11-01Z' WHERE sell_price_id = 4".to_owned(), vec![Check::InvoiceLines]),
        ("UPDATE tasks SET cost = cost + 0.000000000000001".to_owned(), vec![Check::Tasks]),
        ("UPDATE tasks SET rare = NULL".to_owned(), vec![Check::Tasks]),
        ("UPDATE tasks SET outcome = 'failure'".to_owned(), vec![Check::Tasks, Check::TaskCharges]),
        ("UPDATE tasks SET outcome_period = '2026-09-01Z'".to_owned(), vec![Check::Tasks]),
        ("DELETE FROM tasks".to_owned(), vec![Check::Tasks]),
        (replaced("charge = charge + 0.000000000000001"), vec![Check::Amounts, Check::Rollups]),
        (replaced("occurred_at = '2019-12-31Z'"), vec![Check::Validity]),
        (replaced("cost_price_id = 4"), vec![Check::Validity, Check::Rollups]),
        (replaced("stream_seq = 77"), vec![Check::Bookings]),
        ("DELETE FROM usage_events WHERE id = 'x'".to_owned(), vec![Check::Batches, Check::Rollups]),
        (
            // A copy in another partition, in a batch that claims it.
            format!("SELECT open_booking_date(DATE '2026-12-01');
                CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT * FROM usage_events WHERE id = 'unposted';
                INSERT INTO ingest_batches (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows, booked_on)
                SELECT 'stream', incarnation, '{{[4,5)}}', 1, 1, 1, 0, 0, 1, '2026-12-01' FROM ingest_batches LIMIT 1;
                UPDATE gone SET booked_on = '2026-12-01', stream_seq = 4, batch_id = (SELECT max(id) FROM ingest_batches),
                    cost = input * 0.0000015, charge = input * 0.000003; {anew}"),
            vec![Check::Identities],
        ),
        ("UPDATE ingest_batches SET recorded = 0, duplicates = events WHERE posted_at IS NULL".to_owned(), vec![Check::Batches]),
        ("UPDATE ingest_batches SET events = events + 1, rejected = 1 WHERE posted_at IS NULL".to_owned(), vec![Check::Rejections]),
        (
            "INSERT INTO ingest_batches (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows, booked_on)
             SELECT 'stream', incarnation, '{[9,10)}', 1, 0, 0, 0, 0, 0, booked_on FROM ingest_batches LIMIT 1".to_owned(),
            vec![Check::Sequences],
        ),
        ("UPDATE customers SET closed_through = NULL".to_owned(), vec![Check::Periods]),
        ("UPDATE invoice_line_items SET quantity = quantity + 1, exact_amount = rate * (quantity + 1) WHERE class = 'input' AND kind = 'usage'".to_owned(),
            vec![Check::InvoiceLines, Check::InvoiceTotals, Check::InvoiceChain]),
        ("UPDATE invoice_line_items SET quantity = quantity + 1, exact_amount = rate * (quantity + 1) WHERE kind = 'tier'".to_owned(),
            vec![Check::InvoiceTotals, Check::InvoiceChain, Check::Settlement]),
        ("UPDATE invoice_line_items SET note = note || '.' WHERE kind = 'tier'".to_owned(), vec![Check::InvoiceChain, Check::Settlement]),
        ("DELETE FROM invoice_line_items WHERE kind = 'tier'".to_owned(), vec![Check::InvoiceTotals, Check::InvoiceChain, Check::Settlement]),
        ("UPDATE period_price_tiers SET rate = 0.7 WHERE tier = 2".to_owned(), vec![Check::Settlement]),
        ("UPDATE invoices SET manifest = jsonb_set(manifest, '{period_prices}', '[]')".to_owned(), vec![Check::InvoiceChain, Check::Settlement]),
        ("UPDATE invoice_line_items SET period_price_id = (SELECT min(id) FROM period_prices) WHERE kind = 'task'".to_owned(),
            vec![Check::InvoiceChain, Check::TaskCharges]),
        ("UPDATE invoice_line_items SET quantity = 2, exact_amount = 2 * rate WHERE kind = 'task'".to_owned(),
            vec![Check::InvoiceTotals, Check::InvoiceChain, Check::TaskCharges]),
        ("DELETE FROM task_charges".to_owned(), vec![Check::TaskCharges]),
        ("UPDATE task_charges SET amount = amount + 0.000000000000001".to_owned(), vec![Check::TaskCharges]),
        ("UPDATE task_charges SET task_id = 'x'".to_owned(), vec![Check::TaskCharges]),
        ("UPDATE task_charges SET number = 3".to_owned(), vec![Check::TaskCharges]),
        ("UPDATE task_charges SET outcome = 'failure'".to_owned(), vec![Check::TaskCharges]),
        ("INSERT INTO task_charges SELECT customer_id, task_id, 2, invoice_id, period_price_id, -1, amount + 1, outcome, ended_at,
            service_period FROM task_charges".to_owned(), vec![Check::TaskCharges]),
        ("UPDATE invoice_line_items SET amount_minor = amount_minor + 1 WHERE class = 'input'".to_owned(), vec![Check::InvoiceTotals, Check::InvoiceChain]),
        ("UPDATE invoices SET total_minor = total_minor + 1".to_owned(), vec![Check::InvoiceTotals, Check::InvoiceChain]),
        ("UPDATE invoices SET customer_name = 'Other'".to_owned(), vec![Check::InvoiceChain]),
        // Nothing is left out because of it.
        ("UPDATE invoices SET status = 'void'".to_owned(), vec![Check::InvoiceChain]),
        ("UPDATE invoices SET status = 'void';
          UPDATE invoice_line_items SET quantity = quantity + 1, exact_amount = rate * (quantity + 1) WHERE kind IN ('usage', 'tier')".to_owned(),
            vec![Check::InvoiceLines, Check::InvoiceTotals, Check::InvoiceChain, Check::Settlement]),
        ("UPDATE invoices SET number = 2".to_owned(), vec![Check::InvoiceChain]),
        ("UPDATE invoice_series SET last_number = 2".to_owned(), vec![Check::InvoiceChain]),
        ("DELETE FROM task_charges; DELETE FROM invoice_line_items; DELETE FROM invoices".to_owned(), vec![Check::InvoiceLines, Check::InvoiceChain]),
    ] {
        // The triggers refuse such things; here they are off, on a copy of the ledger that is thrown away.
        let ledger = sound().await;
        let off = TRIGGERED.map(|table| format!("ALTER TABLE {table} DISABLE TRIGGER USER"));
        ledger.run(&format!("BEGIN; {}; {damage}; COMMIT", off.join("; "))).await;
        assert_eq!(found(&ledger).await, expected, "{damage}");
    }
}
