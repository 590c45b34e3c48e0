//! The files of the set-up agree with each other.

use std::collections::BTreeSet;

const NATS: &str = include_str!("../../src/dev/servers/nats.conf");
const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../Dockerfile");
const README: &str = include_str!("../../README.md");
const MANIFEST: &str = include_str!("../../Cargo.toml");
const TOOLS: &str = include_str!("../../.ci/tools");

/// What follows `start` up to the first character that a name cannot have, wherever it occurs.
fn names_after<'a>(text: &'a str, start: &str) -> BTreeSet<&'a str> {
    let end =
        |rest: &str| rest.find(|letter: char| !letter.is_ascii_alphanumeric() && !"_.".contains(letter));
    let name = |rest: &'a str| &rest[..end(rest).unwrap_or(rest.len())];
    text.split(start).skip(1).map(name).collect()
}

#[test]
fn every_variable_of_the_nats_configuration_is_told_of_and_set_by_compose() {
    let wanted = names_after(NATS, "$WAYBILL_NATS_");
    assert!(wanted.contains("PASSWORD"), "{wanted:?}");
    for variable in wanted {
        assert!(COMPOSE.contains(&format!("\n      WAYBILL_NATS_{variable}: ")), "{variable}");
        assert!(README.contains(&format!("`WAYBILL_NATS_{variable}`")), "{variable} is not in README.md");
    }
    assert!(COMPOSE.contains("./src/dev/servers/nats.conf:"));
}

#[test]
fn nats_syncs_before_it_acknowledges_and_knows_nobody_by_default() {
    assert!(NATS.contains("sync_interval: $WAYBILL_NATS_SYNC"));
    assert!(COMPOSE.contains(r#"WAYBILL_NATS_SYNC: '"always"'"#));
    assert!(NATS.contains("strict: true"));
    for never in ["no_auth_user", "websocket", "mqtt", "leafnodes", "allowed_connection_types"] {
        assert!(!NATS.contains(never), "{never}");
    }
}

#[test]
fn compose_opens_ports_to_this_machine_only() {
    let ports: Vec<&str> = COMPOSE.lines().filter(|line| line.contains("_PORT:-")).collect();
    assert_eq!(ports.len(), 4, "{ports:?}");
    for port in ports {
        assert!(port.contains("\"127.0.0.1:"), "{port}");
    }
}

#[test]
fn versions_are_the_same_everywhere() {
    let rust = names_after(MANIFEST, "rust-version = \"");
    let image = names_after(DOCKERFILE, "rust:");
    assert_eq!(rust, image);
    let library = names_after(MANIFEST, "\nsqlx = { version = \"");
    let tool = names_after(TOOLS, "SQLX_CLI=");
    assert_eq!(library, tool);
}

#[test]
fn the_image_can_check_the_certificate_of_a_server() {
    let (_, run) = DOCKERFILE.split_once("\nFROM debian:").unwrap();
    assert!(run.contains(" ca-certificates "), "NATS over tls:// trusts the authorities of the system");
}
