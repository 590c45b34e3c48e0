//! The cases: what is published, and how each event of it must end.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::Case;
use crate::world::{Outcome, now, usage_event};

/// A suspended customer.
pub const SUSPENDED: &str = "initech";
/// A model that has a price only from tomorrow on.
pub const ANNOUNCED_MODEL: &str = "gpt-6";

/// Every case, in the order in which they are published.
pub fn cases() -> Vec<Case> {
    let groups = [
        envelope_cases(),
        number_cases(),
        identity_cases(),
        text_cases(),
        sequence_cases(),
        time_cases(),
        identity_pairs(),
    ];
    groups.into_iter().flatten().collect()
}

fn case(name: &'static str, body: impl Into<Vec<u8>>, expected: Outcome) -> Case {
    Case { name, body: body.into(), headers: None, expected: vec![expected] }
}

/// A packed message, compressed.
fn packed(name: &'static str, body: &[u8], expected: Vec<Outcome>) -> Case {
    let body = zstd::encode_all(body, 1).unwrap();
    Case { name, body, headers: Some(("Content-Encoding", "zstd")), expected }
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

/// A valid event with a payload of OpenAI's chat completions instead of quantities.
fn chat(id: &str, usage: &Value) -> Vec<u8> {
    with(id, |e| {
        let data = e["data"].as_object_mut().unwrap();
        data.remove("usage");
        data.insert("provider_usage".to_owned(), json!({"format": "openai.chat", "body": usage}));
    })
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
    let crowd = format!("[{}]", vec!["0"; 100_000].join(","));
    let bomb = vec![b' '; 64 << 20];
    let mut neighbours: Vec<Value> = (0..200).map(|n| usage_event(&format!("b07-{n}"))).collect();
    neighbours[50]["data"]["usage"]["input"] = json!(-1);
    let mut expected = vec![Outcome::Recorded; 200];
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
        packed("B06 100,000 events", crowd.as_bytes(), vec![rejected("too_many")]),
        packed("B07 one bad of 200", json!(neighbours).to_string().as_bytes(), expected),
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
        packed("B45 a bomb of 64 MiB", &bomb, vec![rejected("too_large")]),
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
            chat(
                "b17",
                &json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                "prompt_tokens_details": {"cached_tokens": 11}}),
            ),
            rejected("inconsistent"),
        ),
        case(
            "B17 reasoning above completion",
            chat(
                "b17b",
                &json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
                "completion_tokens_details": {"reasoning_tokens": 6}}),
            ),
            rejected("inconsistent"),
        ),
        case(
            "B17 a total that is no sum",
            chat("b17c", &json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 16})),
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
        case("B19 an undefined id", with("b19e", |e| e["id"] = json!("undefined")), rejected("no_id")),
        // Ids are free texts by design: these are other ids, not other spellings of one.
        case(
            "B20 nil UUID",
            usage_event("00000000-0000-0000-0000-000000000000").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B20 max UUID",
            usage_event("ffffffff-ffff-ffff-ffff-ffffffffffff").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B20 UUIDv4",
            usage_event("9b2f1b0e-6c0f-4a52-9c3e-2f1f6b0a7d11").to_string(),
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
            "B21 a URN is another id",
            usage_event("urn:uuid:0198c3a2-0000-7000-8000-000000000001").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B21 without hyphens is another id",
            usage_event("0198c3a2000070008000000000000001").to_string(),
            Outcome::Recorded,
        ),
        case(
            "B21 braces",
            usage_event("{0198c3a2-0000-7000-8000-000000000001}").to_string(),
            rejected("charset"),
        ),
        case("B39 id of 128", usage_event(&"x".repeat(128)).to_string(), Outcome::Recorded),
        case("B39 id of 129", usage_event(&"x".repeat(129)).to_string(), rejected("length")),
        case("B40 id with a zero-width space", usage_event("a\u{200b}b").to_string(), rejected("charset")),
        case("B41 id with a line feed", usage_event("a\nb").to_string(), rejected("charset")),
        case(
            "B33 unknown customer",
            with("b33", |e| e["subject"] = json!("nobody")),
            rejected("unknown_customer"),
        ),
        case(
            "B33 suspended customer",
            with("b33b", |e| e["subject"] = json!(SUSPENDED)),
            rejected("suspended_customer"),
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
        case(
            "B35 a model without a price at that time",
            with("b35b", |e| e["data"]["model"] = json!(ANNOUNCED_MODEL)),
            rejected("unpriced"),
        ),
        case(
            "B35 an alias",
            with("b35c", |e| e["data"]["model"] = json!("gpt-5-2025-08-07")),
            Outcome::Recorded,
        ),
        case("B36 a cost in the body", with("b36", |e| e["data"]["cost"] = json!("0.01")), Outcome::Recorded),
    ]
}

fn text_cases() -> Vec<Case> {
    let task = |id: &str, task: &str| with(id, |e| e["data"]["task"]["id"] = json!(task));
    vec![
        case("B37 NUL in a text", with("b37", |e| e["data"]["task"]["id"] = json!("a\0b")), rejected("nul")),
        case("B38 lone surrogate", text("b38", "\"task-1\"", "\"\\ud800\""), rejected("json")),
        case(
            "B39 long model",
            with("b39", |e| e["data"]["model"] = json!("m".repeat(129))),
            rejected("length"),
        ),
        case("B39 task of 60 KB", task("b39c", &"t".repeat(60_000)), rejected("length")),
        case("B40 task id with a space", task("b40", "task 1 "), rejected("charset")),
        case("B40 right-to-left override", task("b40b", "task-\u{202e}1"), rejected("charset")),
        case("B40 a Cyrillic a", task("b40c", "t\u{430}sk-1"), rejected("charset")),
        case("B40 composed", task("b40d", "t\u{e4}sk"), rejected("charset")),
        case("B40 decomposed", task("b40e", "ta\u{308}sk"), rejected("charset")),
        case("B40 another case is another task", task("b40f", "TASK-1"), Outcome::Recorded),
        case(
            "B40 model with a homoglyph",
            with("b40g", |e| e["data"]["model"] = json!("gpt-5\u{200b}")),
            rejected("charset"),
        ),
        case("B41 escape sequence", task("b41", "\u{1b}[31m"), rejected("charset")),
        case("B41 carriage return", task("b41b", "a\rb"), rejected("charset")),
        case(
            "B42 SQL, templates",
            with("b42", |e| {
                e["data"]["attributes"] = json!({"note": "'; DROP TABLE usage_events; -- $1 %s {{7*7}}"});
            }),
            Outcome::Recorded,
        ),
        case(
            "B43 spreadsheet formulas",
            with("b43", |e| {
                e["data"]["attributes"] = json!({"project": "=cmd|'/c calc'!A1", "a": "+1", "b": "-1+2", "c": "@SUM",
                    "d": "\t=1", "e": "\r=1"});
            }),
            Outcome::Recorded,
        ),
        case(
            "B44 markup",
            with("b44", |e| e["data"]["attributes"] = json!({"note": "<script>alert(1)</script>"})),
            Outcome::Recorded,
        ),
    ]
}

/// All of them are billed; what becomes of the count is in [`super::counts`].
fn sequence_cases() -> Vec<Case> {
    let numbered = |name, id: &str, sequence: Value, outcome| {
        let body = with(id, |e| {
            e["sequence"] = sequence;
            e["epoch"] = json!("journal-1");
        });
        case(name, body, outcome)
    };
    vec![
        case("B46 no sequence", with("b46", |e| e["epoch"] = json!("journal-1")), Outcome::Recorded),
        numbered("B46 a sequence", "b46b", json!("7"), Outcome::Recorded),
        numbered("B46 repeated", "b46c", json!("7"), Outcome::Recorded),
        numbered("B46 decreasing", "b46d", json!(3), Outcome::Recorded),
        numbered("B46 jump", "b46e", json!("1000000007"), Outcome::Recorded),
        numbered("B46 below one", "b46f", json!(0), rejected("range")),
        numbered("B46 beyond all counting", "b46g", json!("9223372036854775807"), rejected("range")),
        numbered("B46 no number", "b46h", json!("seven"), rejected("type")),
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
        time("b28k", json!(1_764_000_000), rejected("type"), "B28 seconds as a number"),
        time("b28o", json!(1_764_000_000_000_i64), rejected("type"), "B28 milliseconds as a number"),
        time(
            "b28p",
            json!((at + TimeDelta::hours(13)).format("%Y-%m-%dT%H:%M:%S+14:00").to_string()),
            Outcome::Recorded,
            "B28 an offset of 14 hours",
        ),
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
        "B25 another model",
        again("b25c").into(),
        with("b25c", |e| e["data"]["model"] = json!("gpt-5-2025-08-07")),
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
