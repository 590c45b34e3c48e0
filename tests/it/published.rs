//! What is published beside the program is what the program does.

use std::collections::BTreeSet;
use std::path::Path;

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
