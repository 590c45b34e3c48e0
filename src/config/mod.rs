//! Configuration: flags and `WAYBILL_*` environment variables, checked at start. One file per command, or group of them; here
//! is what several have.

mod forward;
mod ledger;
mod prices;
mod serve;

use std::net::SocketAddr;

use clap::Args;

pub use forward::{ForwardArgs, Listen};
pub use ledger::{
    CloseArgs, DropArgs, KeyArgs, ListInvoicesArgs, RerateArgs, RevokeArgs, SimulateArgs, VerifyArgs,
};
pub use prices::{
    PriceCheckArgs, PriceDefaultsArgs, PriceFileArgs, PriceImport, PriceImportArgs, PriceListArgs,
    PriceSource, Shown,
};
pub use serve::{DemandArgs, DevArgs, Durability, ListenArgs, Roles, ServeArgs};

/// The stream that usage events travel in.
const DEFAULT_STREAM: &str = "USAGE";
/// Subjects are this, a dot, and the gateway's name.
const DEFAULT_SUBJECT_PREFIX: &str = "usage.v1";
/// How long recording may take, in seconds.
const DEFAULT_ACK_WAIT_SECONDS: u32 = 60;
/// What the stream may hold, in bytes.
const DEFAULT_STREAM_BYTES: i64 = 15 << 30;
/// Longest name of a gateway.
const GATEWAY_NAME_MAX: usize = 64;

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to keep the ledger in (15 or newer), as postgres://user:password@host:port/database
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
}

/// Where the stream is.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// NATS server with JetStream to take usage events from (2.11 or newer; 2.10 with a configuration of its own), as nats://user:password@host:port
    #[arg(long, env = "WAYBILL_NATS_URL", hide_env_values = true)]
    pub nats_url: String,
    /// Name of the stream; made where it is missing
    #[arg(long, env = "WAYBILL_STREAM", default_value = DEFAULT_STREAM)]
    pub stream: String,
    /// What the stream's subjects start with; a dot and the gateway's name follow
    #[arg(long, env = "WAYBILL_SUBJECT_PREFIX", default_value = DEFAULT_SUBJECT_PREFIX)]
    pub subject_prefix: String,
    /// Copies of the stream in the NATS cluster; 3 where one machine may be lost without a pause
    #[arg(long, env = "WAYBILL_STREAM_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub stream_replicas: u8,
    /// Bytes the stream may hold before it refuses new events, at most 60 % of its volume; an existing stream keeps its own limit
    #[arg(long, env = "WAYBILL_STREAM_MAX_BYTES", default_value_t = DEFAULT_STREAM_BYTES, value_parser = clap::value_parser!(i64).range(1024 * 1024..))]
    pub stream_max_bytes: i64,
    /// Seconds a consumer may take to record a message before it is delivered again; take 20 or more: a transaction may wait 10 s for a lock, and is tried again then
    #[arg(long, env = "WAYBILL_ACK_WAIT_SECONDS", default_value_t = DEFAULT_ACK_WAIT_SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
    pub ack_wait_seconds: u32,
}

impl NatsArgs {
    /// A server of one machine with the stream's usual names and limits.
    pub fn local(nats_url: &str) -> Self {
        Self {
            nats_url: nats_url.to_owned(),
            stream: DEFAULT_STREAM.to_owned(),
            subject_prefix: DEFAULT_SUBJECT_PREFIX.to_owned(),
            stream_replicas: 1,
            stream_max_bytes: DEFAULT_STREAM_BYTES,
            ack_wait_seconds: DEFAULT_ACK_WAIT_SECONDS,
        }
    }
}

/// A configuration that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Metrics would be served with the API.
    #[error("WAYBILL_METRICS_ADDR and WAYBILL_HTTP_ADDR are both {0}; metrics need an address of their own")]
    SameAddress(SocketAddr),
    /// The same of a forwarder.
    #[error(
        "WAYBILL_FORWARD_METRICS_ADDR and WAYBILL_FORWARD_LISTEN are both {0}; metrics need an address of their own"
    )]
    SameForwardAddress(SocketAddr),
    /// A name that no gateway can have.
    #[error(
        "WAYBILL_FORWARD_GATEWAY must be 1 to {GATEWAY_NAME_MAX} characters of A-Z, a-z, 0-9, `_` and `-`"
    )]
    Gateway,
    /// A forwarder that anybody could send to.
    #[error(
        "WAYBILL_FORWARD_LISTEN is {0}, which other machines reach, and a forwarder asks for no key; listen on 127.0.0.1 or a Unix socket, or set WAYBILL_FORWARD_ALLOW_REMOTE=true"
    )]
    Remote(SocketAddr),
    /// A list of addresses of which only some ask for TLS.
    #[error(
        "{0} has addresses with tls:// and others without; write tls:// before each of them, or before none"
    )]
    PartlyEncrypted(&'static str),
    /// A connection URL of another kind.
    #[error("{variable} starts with `{scheme}`; it must start with {expected}")]
    Scheme {
        /// The variable.
        variable: &'static str,
        /// What it starts with.
        scheme: String,
        /// What it must start with.
        expected: &'static str,
    },
}

/// Checks addresses of NATS, with commas between them.
fn nats_servers(variable: &'static str, urls: &str) -> Result<(), ConfigError> {
    scheme(variable, urls, &["nats", "tls"], "nats:// or tls://")?;
    let encrypted = |url: &str| url.trim().starts_with("tls://");
    if urls.split(',').any(encrypted) && !urls.split(',').all(encrypted) {
        return Err(ConfigError::PartlyEncrypted(variable));
    }
    Ok(())
}

fn scheme(
    variable: &'static str,
    url: &str,
    known: &[&str],
    expected: &'static str,
) -> Result<(), ConfigError> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if known.contains(&scheme) {
        Ok(())
    } else {
        Err(ConfigError::Scheme { variable, scheme: scheme.chars().take(16).collect(), expected })
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, nats_servers};

    #[test]
    fn all_addresses_of_nats_ask_for_tls_or_none_does() {
        let checked = |urls| nats_servers("WAYBILL_NATS_URL", urls);
        for good in ["nats://a:4222", "nats://a:4222,b:4222", "tls://u:p@a:4222, tls://b:4222"] {
            assert_eq!(checked(good), Ok(()), "{good}");
        }
        for mixed in ["tls://a:4222,b:4222", "nats://a:4222,tls://b:4222"] {
            assert_eq!(checked(mixed), Err(ConfigError::PartlyEncrypted("WAYBILL_NATS_URL")), "{mixed}");
        }
        assert!(matches!(checked("wss://a"), Err(ConfigError::Scheme { .. })));
    }
}
