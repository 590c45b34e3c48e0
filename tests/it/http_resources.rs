//! Customers, gateways, keys and rejections through the API.

use axum::http::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::harness::wait_until;
use crate::http_bed::Api;
use crate::ledger::Ledger;

const INVALID: (u16, &str) = (422, "invalid_value");

fn expect(answer: &crate::http_bed::Answer, (status, code): (u16, &str)) {
    assert_eq!(answer.problem(), (status, code.to_owned()), "{}", answer.text);
}

#[tokio::test]
async fn a_customer_is_made_read_listed_and_changed() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let version = api.catalog_version().await;
    let body =
        json!({"external_id": "hooli", "name": "=Hooli()", "time_zone": "Asia/Kathmandu", "anchor_day": 28});
    let made = api.post(admin, "/v1/customers", &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!(made.headers[header::LOCATION], "/v1/customers/hooli");
    assert!(api.catalog_version().await > version);
    expect(&api.post(admin, "/v1/customers", &body).await, (409, "already_exists"));

    let read = api.get(&api.keys.finance, "/v1/customers/hooli").await.json();
    assert_eq!(
        (&read["status"], &read["anchor_day"], &read["assignments"]),
        (&json!("active"), &json!(28), &json!([]))
    );

    let version = api.catalog_version().await;
    let changed = api.patch(admin, "/v1/customers/hooli", &json!({"status": "suspended"})).await.json();
    assert_eq!((&changed["status"], &changed["name"]), (&json!("suspended"), &json!("=Hooli()")));
    assert!(api.catalog_version().await > version);
    let listed = api.get(admin, "/v1/customers?status=suspended").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);

    let csv =
        api.send(Method::GET, admin, "/v1/customers?status=suspended", "", &[("accept", "text/csv")]).await;
    assert_eq!(csv.headers[header::CONTENT_DISPOSITION], "attachment; filename=\"customers.csv\"");
    assert!(csv.text.contains("\r\nhooli,'=Hooli(),suspended,Asia/Kathmandu,28,,"), "{}", csv.text);
    let audited = "SELECT count(*) FROM audit_log WHERE subject = 'hooli' AND actor ~ '^[A-Za-z0-9]{12}$'";
    assert_eq!(api.number(audited).await, 2);
}

/// Two changes at a time: the second waits for the first, and answers what both have made.
#[tokio::test]
async fn the_answer_to_a_change_is_what_the_customer_is_then() {
    let api = Api::start().await;
    let ledger = Ledger::beside(&api.bed).await;
    let mut first = ledger.pool.begin().await.unwrap();
    let renamed = "UPDATE customers SET name = 'Renamed' WHERE external_id = 'acme'";
    sqlx::query(renamed).execute(&mut *first).await.unwrap();
    let commit = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until("the second waits", async || (ledger.count(waiting).await == 1).then_some(())).await;
        first.commit().await.unwrap();
    };
    let suspended = json!({"status": "suspended"});
    let (second, ()) = tokio::join!(api.patch(&api.keys.admin, "/v1/customers/acme", &suspended), commit);
    let second = second.json();
    assert_eq!((&second["name"], &second["status"]), (&json!("Renamed"), &json!("suspended")));
}

#[tokio::test]
async fn a_wrong_customer_is_refused_with_the_field() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    for (body, field) in [
        (json!({"external_id": "a b", "name": "x"}), "external_id"),
        (json!({"external_id": "", "name": "x"}), "external_id"),
        (json!({"external_id": "ok", "name": ""}), "name"),
        (json!({"external_id": "ok", "name": "x", "time_zone": "Mars/Olympus"}), "time_zone"),
        (json!({"external_id": "ok", "name": "x", "anchor_day": 29}), "anchor_day"),
        (json!({"external_id": "ok", "name": "x", "anchor_day": 0}), "anchor_day"),
    ] {
        let answer = api.post(admin, "/v1/customers", &body).await;
        expect(&answer, INVALID);
        assert_eq!(answer.json()["errors"][0]["field"], field);
    }
    expect(
        &api.post(admin, "/v1/customers", &json!({"external_id": "ok", "name": "a\u{0}b"})).await,
        INVALID,
    );
    for field in ["id", "closed_through", "status", "created_at", "price"] {
        let mut body = json!({"external_id": "ok", "name": "x"});
        body[field] = json!(1);
        expect(&api.post(admin, "/v1/customers", &body).await, (400, "invalid_body"));
    }
    expect(&api.patch(admin, "/v1/customers/acme", &json!({})).await, INVALID);
    expect(
        &api.patch(admin, "/v1/customers/acme", &json!({"external_id": "x"})).await,
        (400, "invalid_body"),
    );
    expect(&api.patch(admin, "/v1/customers/nobody", &json!({"name": "x"})).await, (404, "not_found"));
    let text = api.send(Method::POST, admin, "/v1/customers", "{}", &[("content-type", "text/plain")]).await;
    expect(&text, (415, "unsupported_media_type"));
    let zipped = [("content-encoding", "gzip")];
    expect(
        &api.send(Method::POST, admin, "/v1/customers", "{}", &zipped).await,
        (415, "unsupported_media_type"),
    );
    let large = format!("{{\"external_id\":\"{}\"}}", "x".repeat(300_000));
    expect(&api.send(Method::POST, admin, "/v1/customers", &large, &[]).await, (413, "body_too_large"));
    assert_eq!(api.number("SELECT count(*) FROM customers").await, 2);
}

#[tokio::test]
async fn a_zone_is_refused_that_the_database_does_not_have_or_has_with_other_clocks() {
    let api = Api::start().await;
    // As a server without the older names.
    api.sql(
        "CREATE OR REPLACE FUNCTION knows_time_zone(zone text) RETURNS boolean STABLE STRICT LANGUAGE sql AS
         $$ SELECT zone <> 'US/Eastern' $$",
    )
    .await;
    for (zone, says) in [("US/Eastern", "does not know"), ("CET", "other clocks")] {
        let body = json!({"external_id": "hooli", "name": "Hooli", "time_zone": zone});
        let answer = api.post(&api.keys.admin, "/v1/customers", &body).await;
        expect(&answer, INVALID);
        let error = &answer.json()["errors"][0];
        assert_eq!(error["field"], "time_zone");
        assert!(error["detail"].as_str().unwrap().contains(says), "{error}");
    }
    let body = json!({"external_id": "hooli", "name": "Hooli", "time_zone": "America/New_York"});
    assert_eq!(api.post(&api.keys.admin, "/v1/customers", &body).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn pages_cover_the_list_once() {
    let api = Api::start().await;
    for n in 0..5 {
        let body = json!({"external_id": format!("c-{n}"), "name": "x"});
        assert_eq!(api.post(&api.keys.admin, "/v1/customers", &body).await.status, StatusCode::CREATED);
    }
    let (mut seen, mut path) = (Vec::new(), "/v1/customers?limit=3".to_owned());
    loop {
        let page = api.get(&api.keys.finance, &path).await.json();
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["external_id"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(page["has_more"], false);
            break;
        };
        path = format!("/v1/customers?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ["acme", "c-0", "c-1", "c-2", "c-3", "c-4", "globex"]);
    expect(&api.get(&api.keys.admin, &path).await, (400, "invalid_cursor"));
}

async fn with_books(api: &Api) {
    api.sql(
        "INSERT INTO price_books (name, kind, currency) VALUES
             ('provider-cost', 'cost', 'USD'), ('other-cost', 'cost', 'USD'), ('euro-cost', 'cost', 'EUR'), ('plain', 'sell', 'USD');
         INSERT INTO price_books (name, kind, currency, base_book_id, markup)
             SELECT 'plus-20', 'sell', 'USD', id, 1.2 FROM price_books WHERE name = 'other-cost';",
    )
    .await;
}

#[tokio::test]
async fn books_are_assigned_one_after_another() {
    let api = Api::start().await;
    with_books(&api).await;
    let path = "/v1/customers/acme/assignments";
    let finance = &api.keys.finance;
    let version = api.catalog_version().await;
    let first =
        api.post(finance, path, &json!({"sell_book": "plain", "valid_from": "2026-01-01T00:00:00Z"})).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    assert!(api.catalog_version().await > version);
    let second = api
        .post(finance, path, &json!({"sell_book": "plus-20", "valid_from": "2026-02-01T01:00:00+01:00"}))
        .await;
    let expected = json!([
        {"sell_book": "plain", "override_book": null, "cost_book": "provider-cost", "currency": "USD",
            "valid_from": "2026-01-01T00:00:00Z", "valid_to": "2026-02-01T00:00:00Z"},
        {"sell_book": "plus-20", "override_book": null, "cost_book": "other-cost", "currency": "USD",
            "valid_from": "2026-02-01T00:00:00Z", "valid_to": null},
    ]);
    assert_eq!(second.json()["assignments"], expected);
    let own = api.get(&api.keys.acme, "/v1/customers/acme").await;
    assert_eq!(own.json()["assignments"][0]["sell_book"], "plain");
    assert!(!own.text.contains("cost"), "what we pay is not the customer's to know: {}", own.text);

    let overlap = json!({"sell_book": "plain", "valid_from": "2026-01-15T00:00:00Z", "valid_to": "2026-01-20T00:00:00Z"});
    expect(&api.post(finance, path, &overlap).await, (409, "conflict"));
    let same_start = json!({"sell_book": "plain", "valid_from": "2026-02-01T00:00:00Z"});
    expect(&api.post(finance, path, &same_start).await, (409, "conflict"));
}

#[tokio::test]
async fn a_customer_stays_with_its_currency() {
    let api = Api::start().await;
    with_books(&api).await;
    api.sql("INSERT INTO price_books (name, kind, currency) VALUES ('euros', 'sell', 'EUR')").await;
    let assign = async |customer: &str, body: Value| {
        api.post(&api.keys.finance, &format!("/v1/customers/{customer}/assignments"), &body).await
    };
    let (from, later) = ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
    let euros = |from: &str, to: Value| json!({"sell_book": "euros", "cost_book": "euro-cost", "valid_from": from, "valid_to": to});
    let first = assign("acme", json!({"sell_book": "plain", "valid_from": from})).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    for refused in [euros(later, Value::Null), euros("2025-01-01T00:00:00Z", json!(from))] {
        let refused = assign("acme", refused).await;
        expect(&refused, (409, "currency_change"));
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(
            detail,
            "`acme` is charged in USD by `plain`, and `euros` is in EUR; a customer stays with its currency. \
             Make a new customer for the other one."
        );
    }
    assert_eq!(api.number("SELECT count(*) FROM book_assignments WHERE valid_to IS NULL").await, 1);
    let same = assign("acme", json!({"sell_book": "plus-20", "valid_from": later})).await;
    assert_eq!(same.status, StatusCode::CREATED, "{}", same.text);
    let other = assign("globex", euros(from, Value::Null)).await;
    assert_eq!(other.status, StatusCode::CREATED, "{}", other.text);
}

#[tokio::test]
async fn an_assignment_that_cannot_rate_is_refused() {
    let api = Api::start().await;
    with_books(&api).await;
    let path = "/v1/customers/acme/assignments";
    let from = "2026-01-01T00:00:00Z";
    for (body, field) in [
        (json!({"sell_book": "plain", "cost_book": "euro-cost", "valid_from": from}), "cost_book"),
        (json!({"sell_book": "plain", "cost_book": "plus-20", "valid_from": from}), "cost_book"),
        (json!({"sell_book": "provider-cost", "valid_from": from}), "sell_book"),
        (json!({"sell_book": "none", "valid_from": from}), "sell_book"),
        (json!({"sell_book": "plain", "valid_from": from, "valid_to": from}), "valid_to"),
        (json!({"sell_book": "plain", "valid_from": "+262000-01-01T00:00:00Z"}), "valid_from"),
        (json!({"sell_book": "plain", "valid_from": from, "valid_to": "+10000-01-01T00:00:00Z"}), "valid_to"),
    ] {
        let answer = api.post(&api.keys.finance, path, &body).await;
        expect(&answer, INVALID);
        assert_eq!(answer.json()["errors"][0]["field"], field);
    }
    for time in ["2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "1767225600"] {
        let body = json!({"sell_book": "plain", "valid_from": time});
        expect(&api.post(&api.keys.finance, path, &body).await, (400, "invalid_body"));
    }
    let body = json!({"sell_book": "plain", "valid_from": from});
    expect(&api.post(&api.keys.finance, "/v1/customers/nobody/assignments", &body).await, (404, "not_found"));
    assert_eq!(api.number("SELECT count(*) FROM book_assignments").await, 0);
}

#[tokio::test]
async fn a_gateway_shows_what_never_arrived() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let made = api.post(admin, "/v1/gateways", &json!({"name": "gw-eu-1"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    expect(&api.post(admin, "/v1/gateways", &json!({"name": "gw-eu-1"})).await, (409, "already_exists"));
    for name in ["a.b", "a/b", "", "*", ">"] {
        expect(&api.post(admin, "/v1/gateways", &json!({"name": name})).await, INVALID);
    }
    api.sql(
        "INSERT INTO gateway_sequences (gateway_id, epoch, seen)
         SELECT id, 'e1', '{[3,5),[8,9),[10,11)}'::int8multirange FROM gateways WHERE name = 'gw-eu-1'",
    )
    .await;
    let gateway = api.get(&api.keys.finance, "/v1/gateways/gw-eu-1").await.json();
    assert_eq!(gateway["missing"], 6);
    let holes = json!([
        {"epoch": "e1", "first": 1, "last": 2}, {"epoch": "e1", "first": 5, "last": 7}, {"epoch": "e1", "first": 9, "last": 9},
    ]);
    assert_eq!(gateway["holes"], holes);
    let list = api.get(&api.keys.finance, "/v1/gateways").await.json();
    assert_eq!((&list["data"][0]["missing"], &list["data"][1]["holes"]), (&json!(0), &holes));

    let version = api.catalog_version().await;
    let path = "/v1/gateways/gw-eu-1";
    let wider = api.patch(admin, path, &json!({"backfill_from": "2025-01-01T00:00:00Z"})).await.json();
    assert_eq!(wider["backfill_from"], "2025-01-01T00:00:00Z");
    assert!(api.catalog_version().await > version);
    expect(&api.patch(admin, path, &json!({})).await, (400, "invalid_body"));
    expect(&api.patch(admin, path, &json!({"backfill_from": "2027-01-01T00:00:00Z"})).await, INVALID);
    assert_eq!(
        api.patch(admin, path, &json!({"backfill_from": null})).await.json()["backfill_from"],
        Value::Null
    );
    expect(&api.patch(admin, "/v1/gateways/none", &json!({"backfill_from": null})).await, (404, "not_found"));
}

#[tokio::test]
async fn a_key_is_shown_once_and_speaks_for_its_holder() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let body = json!({"role": "customer", "name": "portal", "customer": "acme"});
    let made = api.post_once(admin, "/v1/api-keys", &body, "k1").await.json();
    let token = made["token"].as_str().unwrap();
    assert_eq!(api.get(token, "/v1/customers").await.json()["data"][0]["external_id"], "acme");
    let again = api.post_once(admin, "/v1/api-keys", &body, "k1").await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!((&again.json()["public_id"], &again.json()["token"]), (&made["public_id"], &Value::Null));
    let secret = &token[16..];
    let stored = format!(
        "SELECT count(*) FROM (SELECT k::text AS row FROM api_keys k UNION ALL SELECT encode(body, 'escape') FROM idempotency_keys
         UNION ALL SELECT a::text FROM audit_log a) AS everything WHERE row LIKE '%{secret}%'"
    );
    assert_eq!(api.number(&stored).await, 0, "the secret is kept nowhere");
    assert!(!api.get(admin, "/v1/api-keys?role=customer").await.text.contains(secret));
    for (body, field) in [
        (json!({"role": "gateway", "name": "x"}), "gateway"),
        (json!({"role": "gateway", "name": "x", "gateway": "none"}), "gateway"),
        (json!({"role": "gateway", "name": "x", "gateway": "gw-1", "customer": "acme"}), "gateway"),
        (json!({"role": "customer", "name": "x", "gateway": "gw-1"}), "customer"),
        (json!({"role": "finance", "name": "x", "customer": "acme"}), "role"),
        (json!({"role": "admin", "name": ""}), "name"),
        (json!({"role": "admin", "name": "x", "expires_at": "2026-11-23T12:00:00Z"}), "expires_at"),
    ] {
        let answer = api.post(admin, "/v1/api-keys", &body).await;
        expect(&answer, INVALID);
        assert_eq!(answer.json()["errors"][0]["field"], field, "{body}");
    }
    expect(
        &api.post(admin, "/v1/api-keys", &json!({"role": "root", "name": "x"})).await,
        (400, "invalid_body"),
    );
}

async fn with_rejections(api: &Api) {
    api.sql(
        "INSERT INTO ingest_batches (origin, incarnation, messages, events, recorded, duplicates, rejected, rows, booked_on)
             VALUES ('stream', gen_random_uuid(), 1, 4, 0, 0, 4, 0, '2026-11-20');
         INSERT INTO rejections (batch_id, incarnation, stream_seq, event_index, subject, headers, raw, reason, detail, gateway, customer,
                 model, catalog_version)
         SELECT b.id, b.incarnation, 7, n, 'usage.v1.gw-1', '{\"X\": \"1\"}', raw, reason, 'why', 'gw-1', customer, '=model', 1
         FROM ingest_batches b, (VALUES (0, '{}'::bytea, 'unpriced', 'acme'), (1, '\\xff00', 'utf8', NULL),
             (2, '{}', 'unpriced', 'globex'), (3, '{}', 'too_old', 'acme')) AS v (n, raw, reason, customer);",
    )
    .await;
}

#[tokio::test]
async fn rejections_are_listed_and_shown_whole() {
    let api = Api::start().await;
    with_rejections(&api).await;
    let finance = &api.keys.finance;
    let count = async |query: &str| {
        api.get(finance, &format!("/v1/rejections?{query}")).await.json()["data"].as_array().unwrap().len()
    };
    assert_eq!(count("open=true").await, 4);
    assert_eq!(count("reason=unpriced").await, 2);
    assert_eq!(count("reason=unpriced&customer=globex&gateway=gw-1").await, 1);
    assert_eq!(count("open=false").await, 0);
    expect(&api.get(finance, "/v1/rejections?reason=unprised").await, (400, "invalid_request"));
    let list = api.get(finance, "/v1/rejections?limit=1").await.json();
    assert_eq!(list["data"][0]["reason"], "too_old");
    let id = api.get(finance, "/v1/rejections?reason=utf8").await.json()["data"][0]["id"].as_i64().unwrap();
    let one = api.get(finance, &format!("/v1/rejections/{id}")).await.json();
    assert_eq!(
        (&one["raw_encoding"], &one["raw"], &one["headers"]["X"]),
        (&json!("base64"), &json!("/wA="), &json!("1"))
    );
    let one = api.get(finance, &format!("/v1/rejections/{}", id + 1)).await.json();
    assert_eq!((&one["raw_encoding"], &one["raw"]), (&json!("utf8"), &json!("{}")));
    let csv = api.send(Method::GET, finance, "/v1/rejections", "", &[("accept", "text/csv")]).await;
    assert_eq!(csv.text.matches(",'=model,").count(), 4);
}

#[tokio::test]
async fn rejections_are_replayed_and_discarded() {
    let api = Api::start().await;
    with_rejections(&api).await;
    let finance = &api.keys.finance;
    let all =
        api.post(finance, "/v1/rejections/replay", &json!({"reason": "unpriced", "customer": "acme"})).await;
    assert_eq!((all.status, all.json()), (StatusCode::ACCEPTED, json!({"requested": 1, "left": 0})));
    let id =
        api.get(finance, "/v1/rejections?reason=too_old").await.json()["data"][0]["id"].as_i64().unwrap();
    let replay = format!("/v1/rejections/{id}/replay");
    let asked = api.send(Method::POST, finance, &replay, "", &[]).await.json();
    assert_eq!((&asked["replay_requested"], &asked["window_waived"]), (&json!(true), &json!(false)));
    let waived = api.post(finance, &replay, &json!({"waive_window": true})).await.json();
    assert_eq!(waived["window_waived"], true);

    let discard = format!("/v1/rejections/{id}/discard");
    expect(&api.post(finance, &discard, &json!({"note": " "})).await, INVALID);
    let done = api.post(finance, &discard, &json!({"note": "a test"})).await.json();
    assert_eq!((&done["resolution"], &done["resolution_note"]), (&json!("discarded"), &json!("a test")));
    expect(&api.post(finance, &discard, &json!({"note": "again"})).await, (409, "conflict"));
    expect(&api.post(finance, &replay, &json!({})).await, (409, "conflict"));
    expect(&api.post(finance, "/v1/rejections/999999/replay", &json!({})).await, (404, "not_found"));
    assert_eq!(
        api.get(finance, "/v1/rejections?open=false").await.json()["data"].as_array().unwrap().len(),
        1
    );
    assert_eq!(api.number("SELECT count(*) FROM audit_log WHERE action LIKE 'rejection.%'").await, 4);

    let many =
        json!({"reason": "unpriced", "gateway": "gw-1", "from": "2020-01-01T00:00:00Z", "note": "a test"});
    let mut nameless = many.clone();
    nameless["note"] = json!("");
    expect(&api.post(finance, "/v1/rejections/discard", &nameless).await, INVALID);
    let done = api.post(finance, "/v1/rejections/discard", &many).await;
    assert_eq!((done.status, done.json()), (StatusCode::OK, json!({"discarded": 2, "left": 0})));
    assert_eq!(api.post(finance, "/v1/rejections/discard", &many).await.json()["discarded"], 0);
    // What was discarded first is told by these times: they are of one clock.
    let of_another_clock =
        "SELECT count(*) FROM rejections WHERE resolved_at NOT BETWEEN rejected_at AND now()";
    assert_eq!(api.number(of_another_clock).await, 0);
    let open = api.get(finance, "/v1/rejections?open=true&from=2020-01-01T00:00:00Z").await.json();
    assert_eq!(open["data"].as_array().unwrap().len(), 1);
    let open = api.get(finance, "/v1/rejections?open=true&to=2020-01-01T00:00:00Z").await.json();
    assert_eq!(open["data"].as_array().unwrap().len(), 0);
}
