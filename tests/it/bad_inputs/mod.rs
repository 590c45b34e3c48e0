//! Every bad input ends as a rejection with a reason and its raw bytes, over a real stream, and touches nobody else.
//!
//! The cases are B01 to B46 of the bad-input matrix (`reliability` c.1), and [`MATRIX`] says where each one is shown.
//! Where the design differs (ids are free texts, zstd is allowed, a sum has no bound), the design holds.

mod boundaries;
mod counts;
mod sums;
mod table;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::json;

use crate::world::{Outcome, World, usage_event};

/// One case: the message as published, and how each of its events must end.
struct Case {
    name: &'static str,
    body: Vec<u8>,
    headers: Option<(&'static str, &'static str)>,
    expected: Vec<Outcome>,
}

/// Where an entry of the bad-input matrix is shown.
enum Shown {
    /// By cases of the table, whose names begin with it.
    Table,
    /// By tests of these names, beside the table.
    Tests(&'static [&'static str]),
    /// By both.
    Both(&'static [&'static str]),
    /// Nowhere: the design dropped the rule, for this reason.
    Dropped(&'static str),
}
use Shown::{Both, Dropped, Table, Tests};

/// The matrix, entry by entry.
const MATRIX: [(&str, Shown); 46] = [
    ("B01", Table),
    ("B02", Table),
    ("B03", Table),
    ("B04", Table),
    ("B05", Tests(&["a_message_over_the_size_limit_is_refused_by_the_server"])),
    ("B06", Table),
    ("B07", Table),
    ("B08", Table),
    ("B09", Table),
    ("B10", Table),
    ("B11", Table),
    ("B12", Table),
    ("B13", Table),
    ("B14", Table),
    (
        "B15",
        Tests(&[
            "a_million_events_of_the_largest_size_are_summed_exactly",
            "sums_beyond_all_bounds_stop_nobody_and_are_named",
        ]),
    ),
    ("B16", Table),
    ("B17", Table),
    ("B18", Table),
    ("B19", Table),
    ("B20", Table),
    ("B21", Table),
    (
        "B22",
        Dropped(
            "an id is a free text and holds no time to compare (design section 3); the look-up of identities covers the \
             partitions of the horizon instead of trusting the id's time",
        ),
    ),
    ("B23", Table),
    ("B24", Table),
    ("B25", Table),
    ("B26", Tests(&["the_same_id_from_another_gateway_is_another_event"])),
    ("B27", Table),
    ("B28", Table),
    ("B29", Table),
    ("B30", Table),
    ("B31", Tests(&["usage_of_a_closed_period_is_late_and_billed_with_the_next"])),
    (
        "B32",
        Tests(&[
            "a_price_applies_from_its_first_microsecond",
            "a_period_holds_its_first_microsecond_and_not_its_last",
        ]),
    ),
    ("B33", Table),
    ("B34", Table),
    ("B35", Table),
    ("B36", Both(&["a_cost_in_the_body_changes_no_amount"])),
    ("B37", Table),
    ("B38", Table),
    ("B39", Table),
    ("B40", Table),
    ("B41", Table),
    ("B42", Table),
    ("B43", Table),
    ("B44", Table),
    ("B45", Table),
    (
        "B46",
        Both(&[
            "anomalies_of_a_gateways_count_are_shown",
            "a_flood_of_epochs_or_holes_is_recorded_and_bounded",
        ]),
    ),
];

/// What this module's tests are written in.
const SOURCES: [&str; 4] = [
    include_str!("mod.rs"),
    include_str!("boundaries.rs"),
    include_str!("counts.rs"),
    include_str!("sums.rs"),
];

#[test]
fn every_entry_of_the_matrix_is_shown_or_dropped_with_a_reason() {
    let entries: Vec<&str> = MATRIX.iter().map(|(entry, _)| *entry).collect();
    let all: Vec<String> = (1..=46).map(|number| format!("B{number:02}")).collect();
    assert_eq!(entries, all);
    let cases = table::cases();
    let in_table: BTreeSet<&str> = cases.iter().map(|case| &case.name[..3]).collect();
    for (entry, shown) in &MATRIX {
        let (by_case, tests) = match shown {
            Table => (true, &[][..]),
            Tests(tests) => (false, *tests),
            Both(tests) => (true, *tests),
            Dropped(reason) => {
                assert!(!reason.is_empty(), "{entry} is dropped without a reason");
                (false, &[][..])
            }
        };
        assert_eq!(
            in_table.contains(entry),
            by_case,
            "{entry}: has cases in the table, or not, as MATRIX says"
        );
        for test in tests {
            let written = format!("async fn {test}()");
            assert!(
                SOURCES.iter().any(|source| source.contains(&written)),
                "{entry}: there is no test {test}"
            );
        }
    }
    let stray: Vec<&&str> = in_table.iter().filter(|entry| !entries.contains(entry)).collect();
    assert!(stray.is_empty(), "not in the matrix: {stray:?}");
}

/// A world in which a customer is suspended and a model is announced.
async fn world() -> World {
    let world = World::idle().await;
    world.suspend(table::SUSPENDED).await;
    let price = |model: &str, from: &str| {
        json!({"provider": "openai", "model": model, "per": 1_000_000, "valid_from": from, "source": "test",
            "rates": {"input": "1.25", "cache_read": "0.125", "output": "10"}})
    };
    let mut known = price("gpt-5", "2025-08-07T00:00:00Z");
    known["aliases"] = json!(["gpt-5-2025-08-07"]);
    world.publish_prices(json!([known, price(table::ANNOUNCED_MODEL, "2100-01-01T00:00:00Z")])).await;
    world.start_consumer();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_is_kept_with_its_reason_and_touches_nobody() {
    let world = world().await;
    let cases = table::cases();
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
    for bytes in [65_537, 1 << 20] {
        let refused = world.try_publish("gw-1", vec![b' '; bytes]).await;
        assert!(refused.is_err(), "{bytes} bytes must be refused");
    }
    // A client that ignores what the server allows, and says so before it sends.
    let address = world.bed.nats_url.strip_prefix("nats://").unwrap();
    let (credentials, host) = address.split_once('@').unwrap();
    let (user, password) = credentials.split_once(':').unwrap();
    let mut socket = TcpStream::connect(host).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let login = json!({"user": user, "pass": password, "verbose": false});
    write!(socket, "CONNECT {login}\r\nPUB {}.gw-1 {}\r\n", world.names.prefix, 64 << 20).unwrap();
    let mut answers = String::new();
    let mut lines = BufReader::new(&socket);
    while lines.read_line(&mut answers).unwrap() > 0 && !answers.contains("-ERR") {}
    assert!(answers.contains("Maximum Payload Violation"), "{answers}");
    assert!(!matches!(lines.read(&mut [0]), Ok(1..)), "the connection is closed");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cost_in_the_body_changes_no_amount() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("plain")).await;
    let mut claiming = usage_event("claiming");
    for (field, claim) in [("cost", "0"), ("price", "1e9"), ("currency", "BTC"), ("invoice_id", "1")] {
        claiming[field] = json!(claim);
        claiming["data"][field] = json!(claim);
    }
    world.publish("gw-1", &claiming).await;
    world.settled().await;
    assert_eq!(world.rated("claiming").await, world.rated("plain").await);
    world.verified().await;
}
