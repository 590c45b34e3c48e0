//! Every bad input ends as a rejection with a reason and its raw bytes, over a real stream, and touches nobody else.
//!
//! The cases are B01 to B46 of the bad-input matrix (`reliability` c.1); where the design differs (ids are free texts,
//! zstd is allowed), the design holds.

use async_nats::HeaderMap;
use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::world::{Outcome, World, now, usage_event};

/// One case: the message as published, and how each of its events must end.
struct Case {
    name: &'static str,
    body: Vec<u8>,
    headers: Option<(&'static str, &'static str)>,
    expected: Vec<Outcome>,
}

fn case(name: &'static str, body: impl Into<Vec<u8>>, expected: Outcome) -> Case {
    Case { name, body: body.into(), headers: None, expected: vec![expected] }
}

fn rejected(reason: &'static str) -> Outcome {
    Outcome::Rejected(reason)
}

/// A valid event with one thing changed.
fn with(id: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut event = usage_event(id);
    change(&mut event);
    event.to_string().into_bytes()
}

/// A valid event whose text has one thing replaced: for what no JSON value can express.
fn text(id: &str, from: &str, to: &str) -> Vec<u8> {
    let event = usage_event(id).to_string();
    assert!(event.contains(from), "the event has no {from}");
    event.replace(from, to).into_bytes()
}

fn envelope_cases() -> Vec<Case> {
    let mut truncated = usage_event("b02a").to_string().into_bytes();
    truncated.truncate(80);
    let mut garbage = usage_event("b02b").to_string().into_bytes();
    garbage.extend_from_slice(b" trailing");
    let mut bom = b"\xef\xbb\xbf".to_vec();
    bom.extend_from_slice(usage_event("b02c").to_string().as_bytes());
    let utf16: Vec<u8> = usage_event("b02d").to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bytes = usage_event("b03").to_string().into_bytes();
    let at = bytes.windows(3).position(|three| three == b"b03").unwrap();
    bytes[at] = 0xff;
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let nested = with("b04", |e| e["data"]["extra"] = serde_json::from_str(&deep(100)).unwrap());
    let too_deep = text("b04b", "\"specversion\"", &format!("\"extra\":{},\"specversion\"", deep(200)));
    let many = format!("[{}]", vec!["0"; 30_000].join(","));
    let mut neighbours: Vec<Value> = (0..100).map(|n| usage_event(&format!("b07-{n}"))).collect();
    neighbours[50]["data"]["usage"]["input"] = json!(-1);
    let mut expected = vec![Outcome::Recorded; 100];
    expected[50] = rejected("negative");
    vec![
        case("B01 empty", "", rejected("empty")),
        case("B01 blank", " \n\t ", rejected("empty")),
        case("B01 empty array", "[]", rejected("empty")),
        case("B02 not JSON", "usage!", rejected("json")),
        case("B02 truncated", truncated, rejected("json")),
        case("B02 trailing garbage", garbage, rejected("json")),
        case("B02 byte order mark", bom, rejected("json")),
        case("B02 UTF-16", utf16, rejected("json")),
        case("B03 invalid UTF-8", bytes, rejected("utf8")),
        case("B04 nested but allowed", nested, Outcome::Recorded),
        case("B04 too deep", too_deep, rejected("json")),
        case("B04 brackets only", "[".repeat(10_000), rejected("json")),
        case("B06 too many events", many, rejected("too_many")),
        Case {
            name: "B07 one bad of 100",
            body: json!(neighbours).to_string().into_bytes(),
            headers: None,
            expected,
        },
        case(
            "B08 duplicate key",
            text("b08", "\"input\":100", "\"input\":1,\"input\":999"),
            rejected("duplicate_key"),
        ),
        case(
            "B08 duplicate id",
            text("b08b", "\"id\":\"b08b\"", "\"id\":\"b08b\",\"id\":\"other\""),
            rejected("duplicate_key"),
        ),
        case("B09 unknown fields", with("b09", |e| e["data"]["mood"] = json!("fine")), Outcome::Recorded),
        case("B09 unknown version", with("b09b", |e| e["type"] = json!("llm.usage.v2")), rejected("version")),
        Case {
            name: "B45 gzip",
            body: vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            headers: Some(("Content-Encoding", "gzip")),
            expected: vec![rejected("encoding")],
        },
        Case {
            name: "B45 no zstd",
            body: usage_event("b45").to_string().into_bytes(),
            headers: Some(("Content-Encoding", "zstd")),
            expected: vec![rejected("encoding")],
        },
        case("B45 gzip without a header", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], rejected("encoding")),
    ]
}

fn number_cases() -> Vec<Case> {
    let input = |id: &str, number: &str| text(id, "\"input\":100", &format!("\"input\":{number}"));
    vec![
        case("B10 text", input("b10a", "\"12\""), rejected("type")),
        case("B10 boolean", input("b10b", "true"), rejected("type")),
        case("B10 null", input("b10c", "null"), rejected("type")),
        case("B10 array", input("b10d", "[1]"), rejected("type")),
        case("B11 negative", input("b11a", "-1"), rejected("negative")),
        case("B11 minus zero is zero", input("b11b", "-0"), Outcome::Recorded),
        case("B12 2^63", input("b12a", "9223372036854775808"), rejected("range")),
        case("B12 2^64 - 1", input("b12b", "18446744073709551615"), rejected("range")),
        case("B12 2^64", input("b12c", "18446744073709551616"), rejected("range")),
        case("B12 400 digits", input("b12d", &"9".repeat(400)), rejected("range")),
        case("B13 1e400", input("b13a", "1e400"), rejected("range")),
        case("B13 1e3", input("b13b", "1e3"), rejected("type")),
        case("B13 1.0", input("b13c", "1.0"), rejected("type")),
        case("B13 1.5", input("b13d", "1.5"), rejected("type")),
        case("B13 NaN", input("b13e", "NaN"), rejected("json")),
        case("B13 Infinity", input("b13f", "Infinity"), rejected("json")),
        case("B13 0x10", input("b13g", "0x10"), rejected("json")),
        case("B13 1_000", input("b13h", "1_000"), rejected("json")),
        case("B14 absurd", input("b14", "1000000000001"), rejected("limit")),
        case(
            "B16 all zero",
            with("b16", |e| e["data"]["usage"] = json!({"input": 0, "output": 0})),
            Outcome::Recorded,
        ),
        case("B16 no class", with("b16b", |e| e["data"]["usage"] = json!({})), rejected("unmetered")),
        case(
            "B17 cached above prompt",
            with("b17", |e| {
                let data = e["data"].as_object_mut().unwrap();
                data.remove("usage");
                data.insert(
                    "provider_usage".to_owned(),
                    json!({"format": "openai.chat", "body": {
                    "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                    "prompt_tokens_details": {"cached_tokens": 11}}}),
                );
            }),
            rejected("inconsistent"),
        ),
        case(
            "B18 both forms of usage",
            with("b18", |e| {
                e["data"]["provider_usage"] = json!({"format": "openai.chat", "body": {
                    "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}});
            }),
            rejected("ambiguous"),
        ),
    ]
}

fn identity_cases() -> Vec<Case> {
    vec![
        case("B19 no id", with("b19", |e| drop(e.as_object_mut().unwrap().remove("id"))), rejected("no_id")),
        case("B19 empty id", with("b19b", |e| e["id"] = json!("")), rejected("no_id")),
        case("B19 blank id", with("b19c", |e| e["id"] = json!(" ")), rejected("no_id")),
        case("B19 null id", with("b19d", |e| e["id"] = json!(null)), rejected("no_id")),
        // Ids are free texts by design: these are other ids, not other spellings of one.
        case(
            "B20 nil UUID",
            usage_event("00000000-0000-0000-0000-000000000000").to_string(),
            Outcome::Recorded,
        ),
        case("B20 no UUID", usage_event("call:7.of_9").to_string(), Outcome::Recorded),
        case(
            "B21 upper case",
            usage_event("0198C3A2-0000-7000-8000-000000000001").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B21 lower case is another id",
            usage_event("0198c3a2-0000-7000-8000-000000000001").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B21 braces",
            usage_event("{0198c3a2-0000-7000-8000-000000000001}").to_string(),
            rejected("charset"),
        ),
        case("B39 id of 129", usage_event(&"x".repeat(129)).to_string(), rejected("length")),
        case("B40 id with a zero-width space", usage_event("a\u{200b}b").to_string(), rejected("charset")),
        case("B41 id with a line feed", usage_event("a\nb").to_string(), rejected("charset")),
        case(
            "B33 unknown customer",
            with("b33", |e| e["subject"] = json!("nobody")),
            rejected("unknown_customer"),
        ),
        case(
            "B34 another gateway's source",
            with("b34", |e| e["source"] = json!("gw-2")),
            rejected("not_allowed"),
        ),
        case("B34 a path of its own", with("b34b", |e| e["source"] = json!("gw-1/pod-3")), Outcome::Recorded),
        case(
            "B34 not a path of its own",
            with("b34c", |e| e["source"] = json!("gw-10")),
            rejected("not_allowed"),
        ),
        case(
            "B35 unknown model",
            with("b35", |e| e["data"]["model"] = json!("gpt-99")),
            rejected("unpriced"),
        ),
        case("B36 a cost in the body", with("b36", |e| e["data"]["cost"] = json!("0.01")), Outcome::Recorded),
        case("B37 NUL in a text", with("b37", |e| e["data"]["task"]["id"] = json!("a\0b")), rejected("nul")),
        case("B38 lone surrogate", text("b38", "\"task-1\"", "\"\\ud800\""), rejected("json")),
        case(
            "B39 long model",
            with("b39", |e| e["data"]["model"] = json!("m".repeat(129))),
            rejected("length"),
        ),
        case(
            "B40 task id with a space",
            with("b40", |e| e["data"]["task"]["id"] = json!("task 1 ")),
            rejected("charset"),
        ),
        case(
            "B41 escape sequence",
            with("b41", |e| e["data"]["task"]["id"] = json!("\u{1b}[31m")),
            rejected("charset"),
        ),
        case(
            "B42 SQL, templates",
            with("b42", |e| {
                e["data"]["attributes"] = json!({"note": "'; DROP TABLE usage_events; -- $1 %s {{7*7}}"});
            }),
            Outcome::Recorded,
        ),
        case(
            "B43 spreadsheet formula",
            with("b43", |e| e["data"]["attributes"] = json!({"note": "=cmd|'/c calc'!A1"})),
            Outcome::Recorded,
        ),
        case(
            "B44 markup",
            with("b44", |e| e["data"]["attributes"] = json!({"note": "<script>alert(1)</script>"})),
            Outcome::Recorded,
        ),
        case(
            "B46 sequence jump",
            with("b46", |e| {
                e["sequence"] = json!("1000000000");
                e["epoch"] = json!("journal-1");
            }),
            Outcome::Recorded,
        ),
    ]
}

fn time_cases() -> Vec<Case> {
    let time = |id: &str, at: Value, outcome: Outcome, name: &'static str| {
        case(name, with(id, |e| e["time"] = at), outcome)
    };
    let at = now();
    vec![
        time("b28a", json!("1970-01-01T00:00:00Z"), rejected("too_old"), "B28 1970"),
        time("b28b", json!("0001-01-01T00:00:00Z"), rejected("too_old"), "B28 year 1"),
        time("b28c", json!("-0001-01-01T00:00:00Z"), rejected("time"), "B28 year -1"),
        time("b28d", json!("9999-12-31T23:59:59Z"), rejected("future"), "B28 year 9999"),
        time("b28e", json!("10000-01-01T00:00:00Z"), rejected("time"), "B28 year 10000"),
        time("b28f", json!("infinity"), rejected("time"), "B28 infinity"),
        time("b28g", json!("2026-02-30T00:00:00Z"), rejected("time"), "B28 30 February"),
        time("b28h", json!("2026-11-01T24:00:00Z"), rejected("time"), "B28 24:00"),
        time("b28i", json!("2026-11-01T10:00:00"), rejected("time"), "B28 no offset"),
        time("b28j", json!("2026-11-01T10:00:00+99:00"), rejected("time"), "B28 offset of 99 hours"),
        time("b28l", json!("2026-11-01T23:59:60Z"), rejected("time"), "B28 leap second"),
        time("b28m", json!(""), rejected("time"), "B28 empty"),
        time(
            "b28n",
            json!((at - TimeDelta::hours(1)).format("%Y-%m-%dT%H:%M:%S.123456789Z").to_string()),
            Outcome::Recorded,
            "B28 nanoseconds",
        ),
        time("b28k", json!(1_764_000_000), rejected("type"), "B28 a number"),
        time("b29", json!((at + TimeDelta::minutes(10)).to_rfc3339()), rejected("future"), "B29 future"),
        time(
            "b29b",
            json!((at + TimeDelta::minutes(4)).to_rfc3339()),
            Outcome::Recorded,
            "B29 a clock 4 minutes ahead",
        ),
        time("b30", json!((at - TimeDelta::days(36)).to_rfc3339()), rejected("too_old"), "B30 too old"),
        time("b30b", json!((at - TimeDelta::days(34)).to_rfc3339()), Outcome::Recorded, "B30 old enough"),
    ]
}

/// Copies and contradictions: pairs of messages, in order.
fn identity_pairs() -> Vec<Case> {
    let again = |id: &str| usage_event(id).to_string();
    let pair = |name, first: Vec<u8>, second: Vec<u8>, outcome| {
        [case(name, first, Outcome::Recorded), case(name, second, outcome)]
    };
    let conflict = || rejected("conflict");
    let mut cases = Vec::new();
    cases.extend(pair("B23 the same again", again("b23").into(), again("b23").into(), Outcome::Duplicate));
    cases.extend(pair(
        "B23 the same in an array",
        again("b23c").into(),
        format!("[{}]", again("b23c")).into(),
        Outcome::Duplicate,
    ));
    cases.extend(pair(
        "B23 the same with other white space",
        again("b23b").into(),
        serde_json::to_string_pretty(&usage_event("b23b")).unwrap().into(),
        Outcome::Duplicate,
    ));
    cases.extend(pair(
        "B24 another time",
        again("b24").into(),
        with("b24", |e| e["time"] = json!((now() - TimeDelta::hours(3)).to_rfc3339())),
        conflict(),
    ));
    cases.extend(pair(
        "B25 other tokens",
        again("b25").into(),
        with("b25", |e| e["data"]["usage"]["input"] = json!(7)),
        conflict(),
    ));
    cases.extend(pair(
        "B25 another customer",
        again("b25b").into(),
        with("b25b", |e| e["subject"] = json!("globex")),
        conflict(),
    ));
    cases.extend(pair(
        "B27 joined keys",
        with("c-d", |e| e["source"] = json!("gw-1/a-b")),
        with("b-c-d", |e| e["source"] = json!("gw-1/a")),
        Outcome::Recorded,
    ));
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_is_kept_with_its_reason_and_touches_nobody() {
    let world = World::start().await;
    let cases: Vec<Case> =
        [envelope_cases(), number_cases(), identity_cases(), time_cases(), identity_pairs()]
            .into_iter()
            .flatten()
            .collect();
    let mut sequences = Vec::new();
    for case in &cases {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = case.headers {
            headers.insert(name, value);
        }
        sequences.push(world.publish_raw("gw-1", headers, case.body.clone()).await);
    }
    world.settled().await;
    let mut wrong = Vec::new();
    for (case, sequence) in cases.iter().zip(&sequences) {
        let outcomes = world.outcomes(*sequence, case.expected.len()).await;
        if outcomes != case.expected {
            wrong.push(format!("{}: is {outcomes:?}, must be {:?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (case, sequence) in cases.iter().zip(&sequences) {
        if matches!(case.expected[..], [Outcome::Rejected(_)]) {
            assert_eq!(
                world.rejected_bytes(*sequence).await,
                case.body,
                "{}: the raw bytes are kept",
                case.name
            );
        }
    }
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_size_limit_is_refused_by_the_server() {
    let world = World::start().await;
    let refused = world.try_publish("gw-1", vec![b' '; 65_537]).await;
    assert!(refused.is_err(), "B05: 64 KiB + 1 must be refused");
    assert_eq!(world.stream_length().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_from_another_gateway_is_another_event() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("b26")).await;
    let mut other = usage_event("b26");
    other["source"] = json!("gw-2");
    world.publish("gw-2", &other).await;
    world.settled().await;
    assert_eq!(world.recorded_events().await, 2);
}
