use super::*;
use crate::domain::event::{CallConditions, UsagePart};
use crate::domain::tokens::{Quantities, TokenClass};
use crate::rating::starter::tests::book_of;

fn defaults() -> Defaults {
    Defaults {
        valid_from: "2026-11-01T00:00:00Z".parse().unwrap(),
        source: "a list".to_owned(),
        checked_at: "2026-11-23".parse().unwrap(),
    }
}

fn import(format: Format, file: &str) -> Import {
    read(format, file.as_bytes(), &defaults()).unwrap()
}

/// A price in one line: what it asks for, its rates and fees, its multiplier, its dates.
fn line(price: &NewPrice) -> String {
    let conditions = price.conditions.clone().normalized().unwrap().key().unwrap();
    let quotes = price.rates.iter().chain(&price.fees);
    let rates: Vec<String> = quotes.map(|(class, quote)| format!("{class}={}", quote.0)).collect();
    let factor = price.multiplier.as_ref().map(|factor| format!(" x{}", factor.0)).unwrap_or_default();
    let from = price.valid_from.date_naive();
    let to = price.valid_to.map(|to| to.date_naive().to_string()).unwrap_or_default();
    format!("{} {} [{conditions}] {}{factor} {from}..{to}", price.provider, price.model, rates.join(" "))
}

fn lines(import: &Import) -> Vec<String> {
    import.prices.iter().map(line).collect()
}

fn reasons(import: &Import) -> Vec<String> {
    import.ignored.iter().map(|ignored| format!("{}: {}", ignored.what, ignored.reason)).collect()
}

#[test]
fn our_json_is_taken_as_it_is_and_wrong_prices_are_named() {
    let file = r#"[
        {"provider":"openai","model":"gpt-5","per":1000000,"rates":{"input":"1.25"},"valid_from":"2025-08-07T00:00:00Z"},
        {"provider":"openai","model":"gpt-5","rates":{"input":"1.25"},"valid_from":"2025-08-07T00:00:00Z"}]"#;
    let import = import(Format::Json, file);
    assert_eq!(lines(&import), ["openai gpt-5 [standard] input=1.25 2025-08-07.."]);
    assert!(
        reasons(&import)[0].starts_with("openai gpt-5 (price 2): per: is missing"),
        "{:?}",
        import.ignored
    );
    assert!(matches!(read(Format::Json, b"{}", &defaults()), Err(ImportError::Json { .. })));
}

#[test]
fn our_csv_is_what_the_api_writes() {
    let file = "id,book,currency,provider,model,aliases,service_tier,context_above,context_inclusive,hours_utc,weekdays,\
                per,input,web_search,multiplier,valid_from,valid_to,source,checked_at,recorded_at\r\n\
                7,list,USD,xai,grok-4.3,grok-latest grok-4.3-0701,Priority,200000,true,01:00-04:00 06:00-10:00,1 5,1000000,\
                2.5,0.01,1.1,2026-01-01T00:00:00Z,,'=source,2026-11-01,2026-11-02T00:00:00Z\r\n\
                8,list,USD,xai,grok-4.3,,,x,,,,1000000,2.5,,,2026-01-01T00:00:00Z,,,,\r\n";
    let import = import(Format::Csv, file);
    let price = &import.prices[0];
    assert_eq!(price.aliases, ["grok-latest", "grok-4.3-0701"]);
    assert_eq!(price.source.as_deref(), Some("=source"));
    assert!(price.conditions.context_inclusive);
    let expected = format!(
        "xai grok-4.3 [service_tier=priority context>=200000 minutes=60-240,360-600,{}] input=2.5 web_search=0.01 x1.1 \
         2026-01-01..",
        "5820-6000,6120-6360"
    );
    assert_eq!(line(price), expected);
    assert_eq!(reasons(&import), ["row 3: context_above: `x` cannot be read"]);
    let unknown = read(Format::Csv, b"provider,modell\n", &defaults()).unwrap_err();
    assert!(unknown.to_string().contains("`modell`"), "{unknown}");
}

#[test]
fn litellm_suffixes_become_conditions() {
    let file = r#"{"sample_spec": {"input_cost_per_token": 0.0},
        "gpt-x": {"litellm_provider": "openai", "mode": "chat", "max_tokens": 100000,
            "input_cost_per_token": 2e-06, "output_cost_per_token": 1.5000020000000002e-05,
            "input_cost_per_token_above_272k_tokens": 4e-06, "input_cost_per_token_batches": 1e-06,
            "input_cost_per_token_priority": 5e-06, "output_cost_per_image_token": 3e-05,
            "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.01},
            "regional_processing_uplift_multiplier_eu": 1.1, "citation_cost_per_token": 1e-06, "new_cost_of_air": 1},
        "xai/grok": {"litellm_provider": "xai", "input_cost_per_token": 1e-06,
            "input_cost_per_token_above_200k_tokens": 2e-06},
        "free": {"litellm_provider": "openai", "input_cost_per_token": 0.0, "output_cost_per_token": 0}}"#;
    let import = import(Format::LiteLlm, file);
    let output = "output=15.00002 output_image=30";
    let mut expected: Vec<String> = Vec::new();
    for (tier, base, long) in [
        ("", "2", "4"),
        ("processing=batch", "1", "1"),
        ("service_tier=fast", "5", "5"),
        ("service_tier=priority", "5", "5"),
    ] {
        for (above, input) in [("", base), ("context>272000", long)] {
            for (region, factor) in [("", ""), ("region=eu", " x1.1")] {
                let named: Vec<&str> =
                    [region, tier, above].into_iter().filter(|part| !part.is_empty()).collect();
                let key = if named.is_empty() { "standard".to_owned() } else { named.join(" ") };
                expected.push(format!(
                    "openai gpt-x [{key}] input={input} {output} web_search=0.01{factor} 2026-11-01.."
                ));
            }
        }
    }
    expected.push("xai grok [standard] input=1 2026-11-01..".to_owned());
    expected.push("xai grok [context>=200000] input=2 2026-11-01..".to_owned());
    let mut found = lines(&import);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(
        import.cleaned.iter().map(|cleaned| cleaned.taken.to_string()).collect::<Vec<_>>(),
        ["0.00001500002"]
    );
    let reasons = reasons(&import);
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("citation")));
    assert!(reasons.iter().any(|reason| reason.contains("new_cost_of_air: the key is not known here")));
    assert!(reasons.iter().any(|reason| reason.starts_with("openai free as a whole")));
}

#[test]
fn litellm_structures_become_prices() {
    let file = r#"{
        "deepseek/flash": {"litellm_provider": "deepseek", "input_cost_per_token": 3e-07, "output_cost_per_token": 1.2e-06,
            "cache_read_input_token_cost": 6e-09, "input_cost_per_token_cache_hit": 6e-09,
            "off_peak_pricing": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "windows": [
                {"hours_utc": ["00:00-01:00", "10:00-00:00"], "weekdays": [1]},
                {"hours_utc": "00:00-00:00", "weekdays": [6, 7]}]}},
        "dashscope/qwen": {"litellm_provider": "dashscope", "tiered_pricing": [
            {"input_cost_per_token": 5e-08, "output_cost_per_token": 4e-07, "range": [0, 256000.0]},
            {"input_cost_per_token": 2.5e-07, "output_cost_per_token": 2e-06, "range": [256000.0, 1000000.0]}]},
        "claude-x": {"litellm_provider": "anthropic", "input_cost_per_token": 5e-06,
            "input_cost_per_token_batches": 2.5e-06, "provider_specific_entry": {"us": 1.1, "fast": 2.0}},
        "whisper": {"litellm_provider": "openai", "input_cost_per_second": 0.0001, "output_cost_per_second": 0.0}}"#;
    let import = import(Format::LiteLlm, file);
    assert_eq!(import.ignored, []);
    let mut found = lines(&import);
    found.sort();
    let mut expected = vec![
        "deepseek flash [standard] cache_read=0.006 input=0.3 output=1.2 2026-11-01..",
        "deepseek flash [minutes=0-60,600-1440] cache_read=0.006 input=0.15 output=0.6 2026-11-01..",
        "deepseek flash [minutes=7200-10080] cache_read=0.006 input=0.15 output=0.6 2026-11-01..",
        "dashscope qwen [standard] input=0.05 output=0.4 2026-11-01..",
        "dashscope qwen [context>256000] input=0.25 output=2 2026-11-01..",
        "anthropic claude-x [standard] input=5 2026-11-01..",
        "anthropic claude-x [region=us] input=5 x1.1 2026-11-01..",
        "anthropic claude-x [speed=fast] input=5 x2 2026-11-01..",
        "anthropic claude-x [region=us speed=fast] input=5 x2.2 2026-11-01..",
        "anthropic claude-x [processing=batch] input=2.5 2026-11-01..",
        "anthropic claude-x [region=us processing=batch] input=2.5 x1.1 2026-11-01..",
        "openai whisper [standard] second=0.0001 2026-11-01..",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// The keys about money of the models in LiteLLM's map, of version 1.106.2, one on each line.
const LITELLM_KEYS: &str = include_str!("litellm_keys.txt");

#[test]
fn litellm_names_are_those_that_its_calls_report() {
    let file = r#"{
        "gemini-x": {"litellm_provider": "vertex_ai-language-models", "input_cost_per_token": 1e-06},
        "vertex_ai/claude-x": {"litellm_provider": "vertex_ai-anthropic_models", "input_cost_per_token": 2e-06},
        "anthropic.claude-x": {"litellm_provider": "bedrock_converse", "input_cost_per_token": 3e-06},
        "bedrock/us-east-1/claude": {"litellm_provider": "bedrock", "input_cost_per_token": 4e-06},
        "chat-x": {"litellm_provider": "deepseek", "input_cost_per_token": 5e-06},
        "deepseek/chat-x": {"litellm_provider": "deepseek", "input_cost_per_token": 6e-06}}"#;
    let import = import(Format::LiteLlm, file);
    let mut found = lines(&import);
    found.sort();
    let expected = [
        "bedrock anthropic.claude-x [standard] input=3 2026-11-01..",
        "bedrock us-east-1/claude [standard] input=4 2026-11-01..",
        "deepseek chat-x [standard] input=6 2026-11-01..",
        "vertex_ai claude-x [standard] input=2 2026-11-01..",
        "vertex_ai gemini-x [standard] input=1 2026-11-01..",
    ];
    assert_eq!(found, expected);
    assert_eq!(reasons(&import), ["chat-x: deepseek chat-x is listed twice"]);
}

#[test]
fn litellm_rates_that_follow_others() {
    let file = r#"{
        "fireworks_ai/x": {"litellm_provider": "fireworks_ai", "input_cost_per_token": 9e-07},
        "fireworks_ai/y": {"litellm_provider": "fireworks_ai", "input_cost_per_token": 9e-07,
            "cache_read_input_token_cost": 1e-07},
        "gemini/z": {"litellm_provider": "gemini", "output_cost_per_token": 2e-06,
            "output_cost_per_reasoning_token": 2e-06, "output_cost_per_token_flex": 1e-06,
            "output_cost_per_token_above_200k_tokens": 3e-06},
        "claude-w": {"litellm_provider": "anthropic", "input_cost_per_token": 2e-06,
            "cache_creation_input_token_cost": 2.5e-06, "cache_creation_input_token_cost_above_1hr": 4e-06,
            "input_cost_per_token_batches": 1e-06, "cache_creation_input_token_cost_batches": 1.25e-06},
        "claude-v": {"litellm_provider": "anthropic", "input_cost_per_token": 2e-06,
            "cache_creation_input_token_cost_above_1hr": 4e-06, "input_cost_per_token_batches": 1e-06}}"#;
    let mut found = lines(&import(Format::LiteLlm, file));
    found.sort();
    let expected = [
        "anthropic claude-v [processing=batch] cache_write_1h=4 input=1 2026-11-01..",
        "anthropic claude-v [standard] cache_write_1h=4 input=2 2026-11-01..",
        "anthropic claude-w [processing=batch] cache_write_1h=2 cache_write_5m=1.25 input=1 2026-11-01..",
        "anthropic claude-w [standard] cache_write_1h=4 cache_write_5m=2.5 input=2 2026-11-01..",
        "fireworks_ai x [standard] cache_read=0.45 input=0.9 2026-11-01..",
        "fireworks_ai y [standard] cache_read=0.1 input=0.9 2026-11-01..",
        "google z [context>200000] output=3 2026-11-01..",
        "google z [service_tier=flex context>200000] output=1 2026-11-01..",
        "google z [service_tier=flex] output=1 2026-11-01..",
        "google z [standard] output=2 2026-11-01..",
    ];
    assert_eq!(found, expected);
}

#[test]
fn litellm_weekdays_of_a_zone_ahead_begin_the_day_before() {
    let off_peak = |zone: &str| {
        format!(
            r#"{{"tencent/x": {{"litellm_provider": "tencent", "input_cost_per_token": 2e-06, "off_peak_pricing": {{
            "input_cost_per_token": 1e-06, "weekday_timezone": "{zone}", "windows": [
            {{"hours_utc": ["00:00-01:00", "10:00-00:00"], "weekdays": [1, 2]}}, {{"weekdays": [7]}}]}}}}}}"#
        )
    };
    let prices = import(Format::LiteLlm, &off_peak("Asia/Shanghai")).prices;
    let windows: Vec<(Vec<String>, Vec<u8>)> = prices[1..]
        .iter()
        .map(|price| (price.conditions.hours_utc.clone(), price.conditions.weekdays.clone()))
        .collect();
    let hours = |hours: &[&str]| hours.iter().map(|&hours| hours.to_owned()).collect::<Vec<_>>();
    let expected = [
        (hours(&["00:00-01:00", "10:00-16:00"]), vec![1, 2]),
        (hours(&["16:00-00:00"]), vec![7, 1]),
        (hours(&["00:00-16:00"]), vec![7]),
        (hours(&["16:00-00:00"]), vec![6]),
    ];
    assert_eq!(windows, expected);
    let over_midnight = off_peak("Asia/Shanghai").replace("10:00-00:00", "15:00-02:00");
    let prices = import(Format::LiteLlm, &over_midnight).prices;
    let windows =
        |at: usize| (prices[at].conditions.hours_utc.clone(), prices[at].conditions.weekdays.clone());
    assert_eq!(windows(1), (hours(&["00:00-01:00", "15:00-16:00", "00:00-02:00"]), vec![1, 2]));
    assert_eq!(windows(2), (hours(&["16:00-00:00"]), vec![7, 1]));
    let of_utc = import(Format::LiteLlm, &over_midnight.replace("Asia/Shanghai", "UTC")).prices;
    assert_eq!(of_utc[1].conditions.hours_utc, hours(&["00:00-01:00", "15:00-00:00", "00:00-02:00"]));
    let summer = import(Format::LiteLlm, &off_peak("Europe/Berlin"));
    assert_eq!(summer.prices.len(), 1);
    assert!(reasons(&summer).iter().any(|reason| reason.contains("summer time")), "{:?}", reasons(&summer));
}

#[test]
fn every_price_key_of_litellm_is_mapped_or_has_a_reason() {
    let keys: BTreeSet<&str> = LITELLM_KEYS.lines().collect();
    assert_eq!(keys.len(), 149);
    let (mut mapped, mut unsupported) = (BTreeSet::new(), BTreeSet::new());
    for name in &keys {
        match litellm::key(name) {
            litellm::Key::Rate { .. } | litellm::Key::Structure => mapped.insert(*name),
            litellm::Key::Unsupported(reason) => {
                assert_ne!(reason, litellm::UNKNOWN, "{name}");
                unsupported.insert(*name)
            }
            litellm::Key::Other => panic!("{name} is about money"),
        };
    }
    assert_eq!((mapped.len(), unsupported.len()), (113, 36));
    // A suffix is read as what it says.
    let rate = |class, above, tier| litellm::Key::Rate { class, above, tier };
    assert_eq!(
        litellm::key("cache_read_input_token_cost_above_272k_tokens_priority"),
        rate(TokenClass::CacheRead, 272_000, Some("priority"))
    );
    assert_eq!(
        litellm::key("cache_creation_input_token_cost_above_1hr_above_200k_tokens"),
        rate(TokenClass::CacheWrite1h, 200_000, None)
    );
    assert_eq!(litellm::key("output_cost_per_image_token"), rate(TokenClass::OutputImage, 0, None));
}

#[test]
fn a_key_of_litellm_that_nobody_knows_is_reported() {
    let file = r#"{"m": {"litellm_provider": "p", "mode": "chat", "supports_vision": true, "input_cost_per_token": 1e-06,
        "input_cost_per_smell": 0.5, "surcharge": 0.1, "input_cost_per_token_turbo": 2e-06,
        "off_peak_pricing": {"hours_utc": "00:00-08:00", "input_cost_per_token": 5e-07, "input_cost_per_smell": 0.1},
        "tiered_pricing": [{"range": [0, 1000], "surcharge": 1}]}}"#;
    let import = import(Format::LiteLlm, file);
    let mut expected = vec![
        "p m input_cost_per_smell: the key is not known here",
        "p m surcharge: the key is not known here",
        "p m input_cost_per_token_turbo: the key is not known here",
        "p m input_cost_per_smell: it is not taken inside off_peak_pricing",
        "p m surcharge: it is not taken inside tiered_pricing",
    ];
    let mut found = reasons(&import);
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(import.prices.len(), 2);
}

#[test]
fn a_tenth_and_two_tenths_are_three_tenths_in_every_format() {
    for (format, file) in [
        (
            Format::Json,
            r#"[{"provider": "p", "model": "m", "per": 1000000, "rates": {"input": "0.1", "output": "0.2"},
                "valid_from": "2026-01-01T00:00:00Z"}]"#,
        ),
        (
            Format::Csv,
            "provider,model,per,input,output,valid_from\np,m,1000000,0.1,0.2,2026-01-01T00:00:00Z\n",
        ),
        (
            Format::LiteLlm,
            r#"{"m": {"litellm_provider": "p", "input_cost_per_token": 1e-07, "output_cost_per_token": 0.0000002}}"#,
        ),
        (
            Format::GenaiPrices,
            r#"[{"id": "p", "name": "P", "models": [{"id": "m", "match": {"equals": "m"},
                "prices": {"input_mtok": 0.1, "output_mtok": 0.2}}]}]"#,
        ),
        (
            Format::OpenRouter,
            r#"{"data": [{"id": "p/m", "pricing": {"prompt": "0.0000001", "completion": "0.0000002"}}]}"#,
        ),
    ] {
        // That list holds the prices of one seller, whatever the maker of the model.
        let (provider, model) = if format == Format::OpenRouter { ("openrouter", "p/m") } else { ("p", "m") };
        let import = import(format, file);
        let call = UsagePart {
            provider: provider.into(),
            model: model.into(),
            conditions: CallConditions::default(),
            quantities: Quantities::from_raw(std::array::from_fn(|class| match TokenClass::ALL[class] {
                TokenClass::Input | TokenClass::Output => 1_000_000,
                _ => 0,
            })),
            tier_input: 1_000_000,
            stated_cost: None,
        };
        let rated = book_of(&import.prices).rate(&call, "2026-11-23T10:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(rated.amount.to_string(), "0.3", "{format:?}");
    }
    // The same sum out of somebody else's float.
    let noisy = import(
        Format::LiteLlm,
        r#"{"m": {"litellm_provider": "p", "input_cost_per_token": 3.0000000000000004e-07}}"#,
    );
    assert_eq!(lines(&noisy), ["p m [standard] input=0.3 2026-11-01.."]);
}

#[test]
fn genai_prices_keep_their_history_tiers_and_variants() {
    let file = r#"[{"id": "x-ai", "name": "xAI", "models": [
        {"id": "grok-9", "match": {"or": [{"equals": "grok-9"}, {"equals": "grok-9-latest"}, {"regex": "^grok-9-.*"}]},
         "prices": [
            {"prices": {"input_mtok": 5, "output_mtok": 30}},
            {"constraint": {"start_date": "2026-12-01"},
             "prices": {"input_mtok": {"base": 4, "tiers": [{"start": 272000, "price": 8}]}, "output_mtok": 20.5,
                        "web_searches_kcount": 10, "storage_searches_kcount": 2.5}},
            {"constraint": {"start_time": "01:00:00Z", "end_time": "04:00:00Z"}, "prices": {"input_mtok": 6, "output_mtok": 40}},
            {"constraint": {"start_time": "06:00:00Z", "end_time": "10:00:00Z"}, "prices": {"input_mtok": 6, "output_mtok": 40}}],
         "price_variants": [
            {"when": {"service_tier": "default"}, "prices": {}},
            {"when": {"processing": "batch"}, "prices": {"input_mtok": 2}, "constraint": {"start_date": "2026-10-14"}},
            {"when": {"route": "eu"}, "prices": {"input_mtok": 2}}]}]}]"#;
    let import = import(Format::GenaiPrices, file);
    let mut found = lines(&import);
    found.sort();
    let mut expected = vec![
        "xai grok-9 [standard] input=5 output=30 2026-11-01..2026-12-01",
        "xai grok-9 [processing=batch] input=2 output=30 2026-11-01..2026-12-01",
        "xai grok-9 [standard] input=4 output=20.5 web_search=0.01 2026-12-01..",
        "xai grok-9 [context>272000] input=8 output=20.5 web_search=0.01 2026-12-01..",
        "xai grok-9 [processing=batch] input=2 output=20.5 web_search=0.01 2026-12-01..",
        "xai grok-9 [processing=batch context>272000] input=2 output=20.5 web_search=0.01 2026-12-01..",
        "xai grok-9 [minutes=60-240,360-600,1500-1680,1800-2040,2940-3120,3240-3480,4380-4560,4680-4920,5820-6000,6120-6360,\
         7260-7440,7560-7800,8700-8880,9000-9240] input=6 output=40 2026-12-01..",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(import.prices[0].aliases, ["grok-9-latest"]);
    assert!(reasons(&import).iter().any(|reason| reason.contains("storage_searches_kcount")));
    assert!(reasons(&import).iter().any(|reason| reason.contains("route")));
}

#[test]
fn openrouter_prices_are_taken_with_their_overrides() {
    let file = r#"{"data": [
        {"id": "openai/gpt-5", "name": "GPT-5", "pricing": {"prompt": "0.00000125", "completion": "0.00001", "request": "0",
            "image": "0", "input_cache_read": "0.000000125", "overrides": [
                {"min_prompt_tokens": 272000, "prompt": "0.0000025"},
                {"utc_start": "16:30", "utc_end": "00:30", "completion": "0.000005"}]}},
        {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
        {"id": "x/free", "pricing": {"prompt": "0", "completion": "0"}},
        {"id": "x/sale", "pricing": {"prompt": "1", "completion": "1", "discount": 0.5}}]}"#;
    let import = import(Format::OpenRouter, file);
    let mut found = lines(&import);
    found.sort();
    let daily = (0..6).map(|day| format!("{}-{}", 990 + day * 1440, 1470 + day * 1440));
    let windows: Vec<String> =
        std::iter::once("0-30".to_owned()).chain(daily).chain(["9630-10080".to_owned()]).collect();
    let hours = format!(
        "openrouter openai/gpt-5 [minutes={}] cache_read=0.125 input=1.25 output=5 2026-11-01..",
        windows.join(",")
    );
    let mut expected = vec![
        "openrouter openai/gpt-5 [standard] cache_read=0.125 input=1.25 output=10 2026-11-01..",
        "openrouter openai/gpt-5 [context>=272000] cache_read=0.125 input=2.5 output=10 2026-11-01..",
        &hours,
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    let reasons = reasons(&import);
    for what in
        ["openrouter/auto prompt", "openrouter/auto as a whole", "x/free as a whole", "x/sale discount"]
    {
        assert!(
            reasons.iter().any(|reason| reason.starts_with(&format!("openrouter {what}"))),
            "{what}: {reasons:?}"
        );
    }
}

#[test]
fn noise_is_removed_and_real_digits_are_not() {
    let number =
        |text: &str| number::decimal(&serde_json::value::RawValue::from_string(text.to_owned()).unwrap());
    let cleaned = |text: &str| crate::domain::money::without_noise(number(text).unwrap());
    let exact = |text: &str| Decimal::from_str_exact(text).unwrap();
    assert_eq!(cleaned("1.25e-06"), Some((exact("0.00000125"), false)));
    assert_eq!(cleaned("3.0001999999999996e-07"), Some((exact("0.00000030002"), true)));
    assert_eq!(cleaned("7.999999999999999e-08"), Some((exact("0.00000008"), true)));
    assert_eq!(cleaned("0.0002833333333333333"), Some((exact("0.000283333333333"), true)));
    assert_eq!(cleaned("1.5e-15"), None, "a third more is not noise");
    assert_eq!(cleaned("0"), Some((Decimal::ZERO, false)));
    assert_eq!(number("1e-40"), None);
    assert_eq!(number("true"), None);
}
