//! `waybill forward`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::{ConfigError, DEFAULT_SUBJECT_PREFIX, GATEWAY_NAME_MAX, nats_servers, scheme};

/// A body of the largest size fits twice, with what the journal adds to each of its events.
const JOURNAL_BYTES_MIN: u64 = 2 << 20;

/// A forwarder beside a gateway.
#[derive(Debug, Clone, Args)]
pub struct ForwardArgs {
    /// The gateway whose events it takes: the last token of its subject, what their `source` begins with
    #[arg(long, env = "WAYBILL_FORWARD_GATEWAY")]
    pub gateway: String,
    /// Folder of the journal, made where it is missing; one forwarder per folder, on a disk of this machine
    #[arg(long, env = "WAYBILL_FORWARD_JOURNAL")]
    pub journal: PathBuf,
    /// Bytes the journal may take before events are refused, 2 MiB at least: about 630 for each event that waits
    #[arg(long, env = "WAYBILL_FORWARD_JOURNAL_MAX_BYTES", default_value_t = 4 << 30, value_parser = clap::value_parser!(u64).range(JOURNAL_BYTES_MIN..))]
    pub journal_max_bytes: u64,
    /// Hours for which settled events are kept, for a ledger that is restored to an older state; they go earlier where new events need their room
    #[arg(long, env = "WAYBILL_FORWARD_JOURNAL_KEEP_HOURS", default_value_t = 72, value_parser = clap::value_parser!(u64).range(0..=8_760))]
    pub journal_keep_hours: u64,
    /// Where events are taken: an IP address of this machine and a port, or `unix:` and the path of a socket
    #[arg(long, env = "WAYBILL_FORWARD_LISTEN", default_value = "127.0.0.1:8090")]
    pub listen: Listen,
    /// Who may send to a Unix socket, as an octal file mode: whoever may write to it can report usage
    #[arg(long, env = "WAYBILL_FORWARD_SOCKET_MODE", default_value = "0660", value_parser = file_mode)]
    pub socket_mode: u32,
    /// Take events from other machines too: whoever reaches the address can report usage
    #[arg(long, env = "WAYBILL_FORWARD_ALLOW_REMOTE", default_value_t = false)]
    pub allow_remote: bool,
    /// Address of the Prometheus metrics and the probes; port 0 takes a free one
    #[arg(long, env = "WAYBILL_FORWARD_METRICS_ADDR", default_value = "127.0.0.1:9465")]
    pub metrics_addr: SocketAddr,
    /// NATS server with the stream, with the gateway's own user, as nats://user:password@host:port
    #[arg(long, env = "WAYBILL_FORWARD_NATS_URL", hide_env_values = true)]
    pub nats_url: String,
    /// What the stream's subjects start with; a dot and the gateway's name follow
    #[arg(long, env = "WAYBILL_SUBJECT_PREFIX", default_value = DEFAULT_SUBJECT_PREFIX)]
    pub subject_prefix: String,
    /// The API that tells the settled watermark, as https://host:port
    #[arg(long, env = "WAYBILL_FORWARD_API_URL")]
    pub api_url: String,
    /// The gateway's API key
    #[arg(long, env = "WAYBILL_FORWARD_KEY", hide_env_values = true)]
    pub key: String,
    /// Milliseconds between two looks at the watermark
    #[arg(long, env = "WAYBILL_FORWARD_POLL_MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub poll_ms: u64,
    /// Seconds a hole in the watermark may last before its events are published again; longer than the consumer's ack wait. Above the highest number, where the watermark stands still, fifteen times as long, then daily; time in which the API does not answer never counts
    #[arg(long, env = "WAYBILL_FORWARD_RESEND_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub resend_seconds: u64,
}

/// Where a forwarder takes events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(_) => Err("a path must follow `unix:`".to_owned()),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "give an IP address and a port, as 127.0.0.1:8090, or unix:/path".to_owned()),
        }
    }
}

/// Reads a file mode as `chmod` does.
fn file_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "give three octal digits, as 0660".to_owned())
}

impl ForwardArgs {
    /// Refuses a configuration that contradicts itself.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !(1..=GATEWAY_NAME_MAX).contains(&self.gateway.len()) || !self.gateway.bytes().all(named) {
            return Err(ConfigError::Gateway);
        }
        if let Listen::Tcp(address) = self.listen {
            if !address.ip().is_loopback() && !self.allow_remote {
                return Err(ConfigError::Remote(address));
            }
            if address == self.metrics_addr && address.port() != 0 {
                return Err(ConfigError::SameForwardAddress(address));
            }
        }
        scheme("WAYBILL_FORWARD_API_URL", &self.api_url, &["http", "https"], "http:// or https://")?;
        nats_servers("WAYBILL_FORWARD_NATS_URL", &self.nats_url)
    }
}
