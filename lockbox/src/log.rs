//! The log: one line for each event on standard error. Never a secret, and never what a peer sent as text.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat};

/// Begins to log. To be called once.
pub fn begin(log: Log) {
    // Libraries are heard when something is wrong.
    let filter = EnvFilter::new(format!(
        "warn,lockbox={0},lockbox_rpc={0},transfer={0}",
        log.level.as_str()
    ));
    let builder = fmt::Subscriber::builder()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // It can only fail if a subscriber is there already, and then that one has its say.
    let _ = match log.format {
        LogFormat::Text => tracing::subscriber::set_global_default(builder.finish()),
        LogFormat::Json => tracing::subscriber::set_global_default(builder.json().flatten_event(true).finish()),
    };
}
