//! What is published beside the program is what the program does.

use std::collections::BTreeSet;
use std::path::Path;

use waybill::domain::event::StatedVerdict;
use waybill::metering::Reason;

#[test]
fn the_openapi_document_is_the_routers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let published = std::fs::read_to_string(path).unwrap();
    let routed = waybill::http::openapi::openapi_json().unwrap();
    assert!(
        published.trim_end() == routed.trim_end(),
        "openapi/openapi.json is not what the router says: run `make openapi`"
    );
}

/// Names of metrics in a text, without the suffixes that Prometheus gives a histogram.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("waybill_"))
        .map(|word| {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            base.unwrap_or(word).to_owned()
        })
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let described = metrics_in(&read("src/telemetry.rs"));
    for path in ["docs/monitoring/alerts.yml", "docs/monitoring/grafana-dashboard.json"] {
        let asked = metrics_in(&read(path));
        assert!(asked.len() > 5, "{path} asks for {asked:?}");
        let unknown: Vec<_> = asked.difference(&described).collect();
        assert!(unknown.is_empty(), "{path} asks for {unknown:?}, which src/telemetry.rs does not describe");
    }
}

/// What is asked of the labels of our metrics in a text, as `(label, value)`; one for each value of `label=~"a|b"`.
fn labels_in(text: &str) -> BTreeSet<(String, String)> {
    let text = text.replace("\\\"", "\"");
    let braces = text.match_indices("waybill_").filter_map(|(at, _)| {
        let rest = text[at..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        rest.strip_prefix('{')?.split('}').next()
    });
    let mut labels = BTreeSet::new();
    for asked in braces {
        for matcher in asked.split("\",").filter(|matcher| !matcher.is_empty()) {
            let (label, values) = matcher.split_once('"').unwrap();
            let label = label.trim().trim_end_matches(['=', '~', '!']);
            let values = values.trim_end_matches('"').split('|');
            labels.extend(values.map(|value| (label.to_owned(), value.to_owned())));
        }
    }
    labels
}

/// The job that a line of a scrape configuration names.
fn job_name(line: &str) -> Option<&str> {
    line.split_once("- job_name: ")?.1.split_whitespace().next()
}

#[test]
fn alerts_and_dashboard_ask_for_labels_that_are_given() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (meters, listener) = (read("src/ingest/meters.rs"), read("src/forward/listener.rs"));
    // The scrape configuration gives it, as README.md shows.
    let readme = read("README.md");
    let verdicts = StatedVerdict::ALL.map(StatedVerdict::name);
    let given = |label: &str, value: &str| match label {
        "reason" => value.parse::<Reason>().is_ok(),
        "verdict" => verdicts.contains(&value),
        "outcome" => meters.contains(&format!("(\"{value}\", outcome.")),
        "part" => listener.contains(&format!(": &str = \"{value}\";")),
        "job" => readme.lines().any(|line| job_name(line) == Some(value)),
        _ => false,
    };
    let labels =
        labels_in(&(read("docs/monitoring/alerts.yml") + &read("docs/monitoring/grafana-dashboard.json")));
    for named in ["reason", "verdict", "outcome", "part", "job"] {
        assert!(labels.iter().any(|(label, _)| label == named), "{named}");
    }
    let unknown: Vec<_> = labels.iter().filter(|(label, value)| !given(label, value)).collect();
    assert!(unknown.is_empty(), "no metric has these labels: {unknown:?}");
}

/// The reasons of rejections that alerts name: `{reason="…"}`, or several in `{reason=~"…|…"}`.
fn reasons_in(alerts: &str) -> BTreeSet<&str> {
    let lists = alerts.split("waybill_rejections_open{reason=").skip(1);
    lists.flat_map(|rest| rest.split('"').nth(1).unwrap().split('|')).collect()
}

#[test]
fn every_rejection_that_waits_for_something_raises_an_alert_of_its_own() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring/alerts.yml");
    let alerts = std::fs::read_to_string(path).unwrap();
    let named = reasons_in(&alerts);
    for reason in &named {
        assert!(reason.parse::<Reason>().is_ok(), "{reason}");
    }
    let all: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    for reason in Reason::ALL.iter().filter(|reason| reason.replayable()) {
        assert!(named.contains(reason.as_str()), "{reason:?}");
    }
    // The alert on all the others leaves out those that have one, and nothing else.
    let (_, others) = alerts.split_once("waybill_rejections_open{reason!~\"").unwrap();
    let left_out: BTreeSet<&str> = others.split('"').next().unwrap().split('|').collect();
    assert_eq!(left_out, named);
    assert!(named.is_subset(&all) && named.len() < all.len());
}
