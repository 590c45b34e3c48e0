//! What rating costs: a call of six classes against a book of 5,000 prices, beside the decoding of its event.
//!
//! The machine may be busy, so the fastest of many short rounds counts. Prints one JSON object per line.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use waybill::domain::event::{Report, UsagePart};
use waybill::domain::ids::{BookId, PriceId};
use waybill::domain::money::{Currency, Rate};
use waybill::domain::price::{BookInfo, BookKind, Price, PriceConditions, resolve_parents};
use waybill::domain::tokens::TokenClass;
use waybill::metering::parse_event;
use waybill::rating::PriceBook;

/// Models of the book, and prices of each: five periods, with and without a context tier.
const MODELS: i64 = 500;
const PERIODS: i64 = 5;
const TIERS: i64 = 2;
/// Calls of one round, and rounds.
const CALLS: u32 = 1_000;
const ROUNDS: usize = 300;

fn event() -> String {
    concat!(
        r#"{"specversion":"1.0","id":"0198c3a2-7b1e-7cc0-9d6e-0b4d1f2a3c4d","source":"gw-eu-1","type":"llm.usage.v1","#,
        r#""subject":"acme","time":"2026-11-23T10:00:00.123Z","data":{"provider":"anthropic","model":"model-250","#,
        r#""task":{"id":"refund-8812","type":"refund"},"attributes":{"project":"support","agent":"triage"},"status":"ok","#,
        r#""usage":{"input":2095,"cache_read":50000,"cache_write_5m":2000,"cache_write_1h":4000,"output":503,"reasoning":1024}}}"#
    )
    .to_owned()
}

fn book() -> PriceBook {
    let start: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
    let day = |days: i64| start + chrono::TimeDelta::days(days);
    let own: BTreeMap<TokenClass, Rate> = TokenClass::ALL[..6]
        .iter()
        .zip(1_i128..)
        .map(|(class, rate)| (*class, Rate::from_femtos(rate * 1_250_000_000).unwrap()))
        .collect();
    let mut prices = Vec::new();
    for model in 0..MODELS {
        for period in 0..PERIODS {
            for tier in 0..TIERS {
                prices.push(Price {
                    id: PriceId((model * PERIODS + period) * TIERS + tier),
                    book: BookId(1),
                    provider: "anthropic".to_owned(),
                    model: format!("model-{model}"),
                    conditions: PriceConditions {
                        context_above: (tier > 0).then_some(200_000),
                        ..PriceConditions::default()
                    },
                    rates: resolve_parents(&own),
                    valid_from: day(period * 70),
                    valid_to: Some(day(period * 70 + 70)),
                    recorded_at: start,
                    derived: false,
                });
            }
        }
    }
    assert_eq!(prices.len(), 5_000);
    let info =
        BookInfo { id: BookId(1), name: "bench".to_owned(), kind: BookKind::Cost, currency: Currency::USD };
    PriceBook::new(info, prices, Vec::new()).unwrap()
}

/// The fastest and the middle round.
fn timed(mut call: impl FnMut()) -> (Duration, Duration) {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(|_| call());
            start.elapsed()
        })
        .collect();
    rounds.sort_unstable();
    (rounds[0], rounds[ROUNDS / 2])
}

fn report(metric: &str, value: impl std::fmt::Display, unit: &str) {
    println!(r#"{{"bench":"rating","metric":"{metric}","value":{value},"unit":"{unit}"}}"#);
}

/// Nanoseconds of one call, of a round.
fn per_call(round: Duration) -> String {
    let picos = round.as_nanos() * 1_000 / u128::from(CALLS);
    format!("{}.{:03}", picos / 1_000, picos % 1_000)
}

fn main() {
    let book = book();
    let text = event();
    let decoded = parse_event(text.as_bytes()).unwrap();
    let Report::Usage(usage) = &decoded.report else { return };
    let (part, at): (&UsagePart, _) = (&usage.parts[0], decoded.occurred_at);
    assert_eq!(part.quantities.non_zero().count(), 6);

    let rate = || {
        black_box(book.rate(black_box(part), black_box(at)).unwrap().amount);
    };
    let allocated = allocation_counter::measure(rate);
    let (decode, decode_middle) = timed(|| drop(black_box(parse_event(black_box(text.as_bytes())))));
    let (rating, rating_middle) = timed(rate);
    report("decode_fastest", per_call(decode), "ns");
    report("decode_median", per_call(decode_middle), "ns");
    report("rate_fastest", per_call(rating), "ns");
    report("rate_median", per_call(rating_middle), "ns");
    report("rate_allocations", allocated.count_total, "count");
    assert_eq!(allocated.count_total, 0, "rating a call allocates nothing");
}
