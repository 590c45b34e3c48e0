//! Who may call what: keys, roles, and one customer's figures never reaching another.

use std::process::{Command, Output};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::http_bed::Api;

/// The id of no invoice.
const NO_INVOICE: &str = "00000000-0000-0000-0000-000000000000";

#[tokio::test]
async fn only_a_whole_valid_key_is_let_in() {
    let api = Api::start().await;
    let key = api.keys.admin.clone();
    assert_eq!(api.get(&key, "/v1/customers").await.status, StatusCode::OK);
    let (start, last) = key.split_at(key.len() - 1);
    let other_last = if last == "a" { "b" } else { "a" };
    let wrong_secret = format!("{start}{other_last}");
    let unknown_id = key.replacen(&key[3..15], "000000000000", 1);
    for bad in ["", &wrong_secret, &unknown_id, &key.to_lowercase(), &format!("{key} "), "x", "wb__"] {
        let answer = api.get(bad, "/v1/customers").await;
        assert_eq!(answer.problem(), (401, "unauthenticated".to_owned()), "{bad}");
        assert_eq!(answer.headers[header::WWW_AUTHENTICATE], "Bearer");
        assert!(!answer.text.contains(&key[16..]));
    }
    let in_query = api.get("", &format!("/v1/customers?api_key={key}")).await;
    assert_eq!(in_query.status, StatusCode::UNAUTHORIZED);
    let twice = Request::get("/v1/customers")
        .header(header::AUTHORIZATION, format!("Bearer {key}"))
        .header(header::AUTHORIZATION, format!("Bearer {key}"));
    assert_eq!(api.raw(twice.body(Body::empty()).unwrap()).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn revoked_and_expired_keys_stop_working() {
    let api = Api::start().await;
    let admin = &api.keys.admin;
    let expires = (api.clock.now() + TimeDelta::hours(1)).to_rfc3339();
    let made = api
        .post(admin, "/v1/api-keys", &json!({"role": "finance", "name": "short", "expires_at": expires}))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let token = made.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(api.get(&token, "/v1/customers").await.status, StatusCode::OK);
    api.clock.advance(TimeDelta::hours(1));
    assert_eq!(api.get(&token, "/v1/customers").await.status, StatusCode::UNAUTHORIZED);

    let made = api.post(admin, "/v1/api-keys", &json!({"role": "finance", "name": "long"})).await.json();
    let (token, id) = (made["token"].as_str().unwrap(), made["public_id"].as_str().unwrap());
    assert_eq!(api.get(token, "/v1/customers").await.status, StatusCode::OK);
    for _ in 0..2 {
        assert_eq!(api.delete(admin, &format!("/v1/api-keys/{id}")).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(api.get(token, "/v1/customers").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(api.delete(admin, "/v1/api-keys/nosuchkey000").await.problem(), (404, "not_found".to_owned()));
    let own = &admin[3..15];
    assert_eq!(
        api.delete(admin, &format!("/v1/api-keys/{own}")).await.problem(),
        (409, "conflict".to_owned())
    );
}

/// Texts and numbers that belong to one customer, and must show up for nobody else.
struct Canary {
    customer: &'static str,
    text: &'static str,
    /// A prime, so that sums and multiples of it are told apart from chance.
    tokens: i64,
}

const ACME: Canary = Canary { customer: "acme", text: "canary-acme-7f3a", tokens: 982_451_653 };
const GLOBEX: Canary = Canary { customer: "globex", text: "canary-globex-9c1e", tokens: 961_748_941 };

impl Canary {
    /// Rows of this customer in every table that holds figures of customers.
    fn sql(&self) -> String {
        let Self { customer, text, tokens } = self;
        let invoice = format!("{:x}", sha(text));
        format!(
            "INSERT INTO price_books (name, kind, currency) VALUES ('cost-{customer}', 'cost', 'USD'), ('{text}', 'sell', 'USD'),
                 ('{text}-own', 'sell', 'USD');
             INSERT INTO book_assignments (customer_id, sell_book_id, override_book_id, cost_book_id, valid_from)
                 SELECT c.id, s.id, o.id, k.id, '2026-01-01' FROM customers c, price_books s, price_books o, price_books k
                 WHERE c.external_id = '{customer}' AND s.name = '{text}' AND o.name = '{text}-own' AND k.name = 'cost-{customer}';
             INSERT INTO prices (book_id, provider, model, conditions_key, per, valid_from, source)
                 SELECT id, 'openai', '{text}', '', 1, '2026-01-01', '{text}' FROM price_books
                 WHERE name IN ('{text}', '{text}-own', 'cost-{customer}');
             INSERT INTO price_rates (price_id, class, rate, quoted) SELECT id, 'input', 1, 1 FROM prices WHERE model = '{text}';
             INSERT INTO tasks (customer_id, task_id, task_type, parent, first_event_at, last_event_at, calls, input, cache_read,
                     cache_write_5m, cache_write_1h, output, reasoning, cost, charge, models, first_batch, last_batch,
                     first_booked_on, last_booked_on)
                 SELECT id, '{text}', '{text}', '{text}', '2026-11-20', '2026-11-20', 1, {tokens}, 0, 0, 0, 0, 0, {tokens}, {tokens},
                     ARRAY['{text}'], 1, 1, '2026-11-20', '2026-11-20' FROM customers WHERE external_id = '{customer}';
             INSERT INTO usage_rollups (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                     task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, cost, charge)
                 SELECT c.id, '2026-11-01', '2026-11-01', '2026-11-20', k.id, s.id, '{text}', '{text}', 'usage', 1, {tokens}, 0, 0, 0, 0, 0,
                     {tokens}, {tokens}
                 FROM customers c,
                     (SELECT p.id FROM prices p JOIN price_books b ON b.id = p.book_id WHERE b.name = 'cost-{customer}') k,
                     (SELECT p.id FROM prices p JOIN price_books b ON b.id = p.book_id WHERE b.name = '{text}') s
                 WHERE c.external_id = '{customer}';
             INSERT INTO billing_periods (customer_id, start_at, end_at)
                 SELECT id, '2026-11-01', '2026-12-01' FROM customers WHERE external_id = '{customer}';
             INSERT INTO invoice_series (series, last_number) VALUES ('{text}', 1) ON CONFLICT DO NOTHING;
             INSERT INTO invoices (id, customer_id, series, number, period_start, period_end, currency, total_minor, exact_total,
                     status, finalized_at, customer_name, time_zone, manifest, content_hash)
                 SELECT '{invoice}', id, '{text}', 1, '2026-10-01', '2026-11-01', 'USD', {tokens}, {tokens}, 'finalized', '2026-11-02',
                     '{text}', 'UTC', '{{}}', '\\x00' FROM customers WHERE external_id = '{customer}';
             INSERT INTO invoice_line_items (invoice_id, line, customer_id, kind, service_start, service_end, provider, model, class,
                     quantity, rate, exact_amount, amount_minor)
                 SELECT '{invoice}', 1, id, 'usage', '2026-10-01', '2026-11-01', 'openai', '{text}', 'input', {tokens}, 1, {tokens}, {tokens}
                 FROM customers WHERE external_id = '{customer}';
             INSERT INTO ingest_batches (origin, incarnation, messages, events, recorded, duplicates, rejected, rows, booked_on)
                 VALUES ('stream', gen_random_uuid(), 1, 1, 0, 0, 1, 0, '2026-11-20');
             INSERT INTO rejections (batch_id, incarnation, stream_seq, event_index, subject, raw, reason, detail, customer, model,
                     catalog_version)
                 SELECT max(id), gen_random_uuid(), 1, 0, 'usage.v1.gw-1', '{text}', 'unpriced', '{text}', '{customer}', '{text}', 1
                 FROM ingest_batches;
             UPDATE customers SET name = '{text}' WHERE external_id = '{customer}';"
        )
    }

    /// Whether any of it is in a text.
    fn shows_in(&self, text: &str) -> bool {
        text.contains(self.text)
            || text.contains(&self.tokens.to_string())
            || text.contains(&invoice_id(self))
    }
}

/// An id that is made from a text: the tests name the same invoice by it.
fn sha(text: &str) -> u128 {
    text.bytes().fold(0x0190_0000_0000_7000_8000_0000_0000_0000_u128, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u128::from(byte))
    }) | 1 << 127
}

fn invoice_id(canary: &Canary) -> String {
    let hex = format!("{:x}", sha(canary.text));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `waybill keys create` on the API's database.
fn create_key(api: &Api, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command.args(["keys", "create", "--name", "test"]).args(args);
    command.env("WAYBILL_DATABASE_URL", &api.bed.database_url).env("WAYBILL_LOG", "off").output().unwrap()
}

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    parameters: Vec<Value>,
}

async fn operations(api: &Api) -> Vec<Operation> {
    let document = api.get("", "/openapi.json").await.json();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            operations.push(Operation { method, path: path.clone(), parameters });
        }
    }
    operations.retain(|operation| operation.path.starts_with("/v1/"));
    assert!(operations.len() > 10);
    operations
}

impl Operation {
    /// The path with every parameter replaced, with the query that a call needs.
    fn target(&self, id: &str, customer: Option<&str>) -> String {
        let mut path = self.path.clone();
        while let (Some(start), Some(end)) = (path.find('{'), path.find('}')) {
            path.replace_range(start..=end, id);
        }
        let mut query = Vec::new();
        for parameter in self.parameters.iter().filter(|parameter| parameter["in"] == "query") {
            match parameter["name"].as_str().unwrap() {
                "from" => query.push("from=2026-09-01T00:00:00Z".to_owned()),
                "to" => query.push("to=2026-12-01T00:00:00Z".to_owned()),
                "customer" => query.extend(customer.map(|customer| format!("customer={customer}"))),
                _ => {}
            }
        }
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }

    fn takes_id(&self) -> bool {
        self.path.contains('{')
    }
}

/// Every id that names something of a customer in some path.
fn ids(canary: &Canary) -> Vec<String> {
    vec![canary.customer.to_owned(), canary.text.to_owned(), invoice_id(canary)]
}

#[tokio::test]
async fn a_key_may_not_do_more_than_what_is_named_beside_its_role() {
    let api = Api::start().await;
    let keys = "SELECT count(*) FROM api_keys";
    let before = api.number(keys).await;
    let (gateway, customer) = (["--gateway", "gw-1"], ["--customer", "acme"]);
    for (role, named, says) in [
        ("finance", &customer[..], "neither a gateway nor a customer"),
        ("admin", &gateway, "neither a gateway nor a customer"),
        ("gateway", &[gateway, customer].concat(), "names a gateway and no customer"),
        ("gateway", &[], "names a gateway and no customer"),
        ("customer", &[customer, gateway].concat(), "names a customer and no gateway"),
        ("customer", &[], "names a customer and no gateway"),
        ("customer", &["--customer", "nobody"], "there is no customer `nobody`"),
    ] {
        let refused = create_key(&api, &[&["--role", role], named].concat());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && said.contains(says), "{role} {named:?}: {said}");
        assert!(refused.stdout.is_empty());

        let mut body = json!({"role": role, "name": "test"});
        for pair in named.chunks(2) {
            body[pair[0].trim_start_matches('-')] = pair[1].into();
        }
        let answer = api.post(&api.keys.admin, "/v1/api-keys", &body).await;
        assert_eq!(answer.problem(), (422, "invalid_value".to_owned()), "{body}");
        assert!(answer.text.contains(says), "{}", answer.text);
    }
    assert_eq!(api.number(keys).await, before);

    assert!(create_key(&api, &["--role", "customer", "--customer", "acme"]).status.success());
    let body = json!({"role": "customer", "customer": "acme", "name": "test"});
    assert_eq!(api.post(&api.keys.admin, "/v1/api-keys", &body).await.status, StatusCode::CREATED);
    let told = "SELECT count(*) FROM audit_log WHERE action = 'api_key.create' AND detail @> '{\"role\": \"customer\",
                \"customer\": \"acme\", \"gateway\": null, \"name\": \"test\", \"expires_at\": null}'";
    assert_eq!(api.number(told).await, 2);
}

#[tokio::test]
async fn no_route_shows_a_customer_anything_of_another() {
    let api = Api::start().await;
    api.sql(&ACME.sql()).await;
    api.sql(&GLOBEX.sql()).await;
    let (mut own, mut finance) = (0, 0);
    for operation in operations(&api).await {
        for (me, key, other) in [(&ACME, &api.keys.acme, &GLOBEX), (&GLOBEX, &api.keys.globex, &ACME)] {
            for id in ids(me).into_iter().chain(ids(other)).chain(["1".to_owned(), "2".to_owned()]) {
                for customer in [None, Some(me.customer), Some(other.customer)] {
                    for accept in ["application/json", "text/csv"] {
                        let target = operation.target(&id, customer);
                        let body = if operation.method == Method::GET { "" } else { "{}" };
                        let headers = [("accept", accept)];
                        let answer = api.send(operation.method.clone(), key, &target, body, &headers).await;
                        let called =
                            format!("{} {target} as {}: {}", operation.method, me.customer, answer.text);
                        assert!(!answer.status.is_server_error(), "{called}");
                        assert!(!other.shows_in(&without(&answer.text, &id)), "{called}");
                        own += usize::from(answer.status.is_success() && me.shows_in(&answer.text));
                    }
                }
            }
        }
        if operation.method == Method::GET {
            let answer = api.get(&api.keys.finance, &operation.target("acme", None)).await;
            finance += usize::from(ACME.shows_in(&answer.text));
        }
    }
    // Else the canaries could not be seen by anybody, and the test would prove nothing.
    assert!(own > 0, "customers see their own");
    assert!(finance > 1, "finance sees them");
}

/// A problem may repeat the id that was asked for.
fn without(text: &str, id: &str) -> String {
    if id.len() < 4 { text.to_owned() } else { text.replace(id, "") }
}

#[tokio::test]
async fn a_foreign_object_is_answered_like_one_that_does_not_exist() {
    let api = Api::start().await;
    api.sql(&ACME.sql()).await;
    api.sql(&GLOBEX.sql()).await;
    let mut compared = 0;
    for operation in operations(&api).await.iter().filter(|operation| operation.takes_id()) {
        for foreign in ids(&GLOBEX) {
            let unknown = foreign.chars().rev().collect::<String>();
            let unknown =
                if foreign.len() == 36 { "0190aaaa-0000-7000-8000-00000000aaaa".to_owned() } else { unknown };
            let call = async |id: &str| {
                let body = if operation.method == Method::GET { "" } else { "{}" };
                api.send(operation.method.clone(), &api.keys.acme, &operation.target(id, None), body, &[])
                    .await
            };
            let (foreign, unknown) = (call(&foreign).await, call(&unknown).await);
            assert!(
                foreign.status.is_client_error(),
                "{} {}: {}",
                operation.method,
                operation.path,
                foreign.text
            );
            assert_eq!(foreign.status, unknown.status, "{} {}", operation.method, operation.path);
            assert_eq!(foreign.comparable(), unknown.comparable(), "{} {}", operation.method, operation.path);
            compared += usize::from(foreign.status == StatusCode::NOT_FOUND);
        }
    }
    assert!(compared > 0, "some operation must admit customers and find nothing");
}

#[tokio::test]
async fn no_operation_is_open_to_everybody() {
    let api = Api::start().await;
    for operation in operations(&api).await {
        let body = if operation.method == Method::GET { "" } else { "{}" };
        // What cannot be an id at all is not found, whoever asks.
        let id = if operation.path.starts_with("/v1/invoices/{id}") { NO_INVOICE } else { "1" };
        let target = operation.target(id, None);
        let call = async |key: &str| api.send(operation.method.clone(), key, &target, body, &[]).await;
        let named = format!("{} {}", operation.method, operation.path);
        assert_eq!(call("").await.problem(), (401, "unauthenticated".to_owned()), "{named}");
        if operation.path == "/v1/events" && operation.method == Method::POST {
            for key in [&api.keys.admin, &api.keys.finance, &api.keys.acme] {
                assert_eq!(call(key).await.problem(), (403, "forbidden".to_owned()), "{named}");
            }
        } else if operation.path == "/v1/gateways/{name}/watermark" {
            // A gateway may call it, and finds no other gateway there.
            assert_eq!(call(&api.keys.gateway).await.problem(), (404, "not_found".to_owned()), "{named}");
            assert_eq!(call(&api.keys.acme).await.problem(), (403, "forbidden".to_owned()), "{named}");
        } else {
            assert_eq!(call(&api.keys.gateway).await.problem(), (403, "forbidden".to_owned()), "{named}");
            assert_ne!(call(&api.keys.admin).await.status, StatusCode::FORBIDDEN, "{named}");
        }
    }
    let reserved = [
        (Method::POST, "/v1/customers"),
        (Method::PATCH, "/v1/customers/acme"),
        (Method::POST, "/v1/gateways"),
        (Method::PATCH, "/v1/gateways/gw-1"),
        (Method::GET, "/v1/api-keys"),
        (Method::POST, "/v1/api-keys"),
        (Method::DELETE, "/v1/api-keys/x"),
    ];
    for (method, path) in reserved {
        let answer = api.send(method, &api.keys.finance, path, "", &[]).await;
        assert_eq!(answer.problem(), (403, "forbidden".to_owned()), "{path}");
    }
    let finance_only = ["/v1/gateways", "/v1/gateways/gw-1", "/v1/rejections", "/v1/rejections/1"];
    for path in finance_only {
        assert_eq!(api.get(&api.keys.acme, path).await.problem(), (403, "forbidden".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn nonsense_ids_paths_and_methods_are_problems() {
    let api = Api::start().await;
    let key = &api.keys.finance;
    let long = "x".repeat(7000);
    for id in ["%00", "a%0ab", "..%2f..%2fetc", "1%20OR%201=1", "%ff", &long, "ACME"] {
        assert_eq!(
            api.get(key, &format!("/v1/customers/{id}")).await.problem(),
            (404, "not_found".to_owned()),
            "{id}"
        );
        assert_eq!(
            api.get(key, &format!("/v1/rejections/{id}")).await.problem(),
            (404, "not_found".to_owned()),
            "{id}"
        );
    }
    for id in ["0", "-1", "9223372036854775807", "9223372036854775808"] {
        assert_eq!(
            api.get(key, &format!("/v1/rejections/{id}")).await.problem(),
            (404, "not_found".to_owned()),
            "{id}"
        );
    }
    assert_eq!(api.get(key, "/v1/nothing").await.problem(), (404, "no_route".to_owned()));
    assert_eq!(api.get(key, "/metrics").await.problem(), (404, "no_route".to_owned()));
    let answer = api.send(Method::PUT, key, "/v1/customers", "", &[]).await;
    assert_eq!(answer.problem(), (405, "method_not_allowed".to_owned()));
    assert!(answer.headers[header::ALLOW].to_str().unwrap().contains("GET"));
    let overridden = [("x-http-method-override", "DELETE"), ("x-customer-id", "globex")];
    let answer = api.send(Method::GET, &api.keys.acme, "/v1/customers", "", &overridden).await;
    assert_eq!(answer.json()["data"][0]["external_id"], "acme");
    assert_eq!(api.get(&api.keys.acme, "/v1/customers?customer_id=globex").await.code(), "invalid_request");
}

#[tokio::test]
async fn probes_need_no_key_and_ask_the_database_nothing() {
    let api = Api::start().await;
    assert_eq!(api.get("", "/livez").await.text, "ok");
    let ready = api.get("", "/readyz").await;
    assert_eq!(
        (ready.status, ready.json()),
        (StatusCode::OK, json!({"ready": true, "parts": {"stream": "ok"}}))
    );
    api.bed.database.close().await;
    // Whoever watches the database says how it is.
    assert_eq!(api.get("", "/readyz").await.status, StatusCode::OK);
    assert_eq!(api.get("", "/livez").await.text, "ok");
    let answer = api.get(&api.keys.admin, "/v1/customers").await;
    assert_eq!(answer.problem(), (503, "unavailable".to_owned()));
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
}
