//! The broker's store, while the broker does not run.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use lockbox_host::say;
use lockbox_store_sled::{SledStore, When, once_in};
use serde_json::json;

use super::Global;
use super::error::CliError;
use super::output::{Format, print, print_json};
use crate::config::Config;
use crate::init::store_options;

#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Give back disk space that the store wastes: copies every record into new files, compares, and removes the old ones. The
    /// broker must not run. It does the same at its start, if the waste is large
    Compact {
        /// The broker.toml that `init` wrote
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Store {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        let Self::Compact { config } = self;
        let config = Config::load(&config)?;
        let mut progress = once_in(Duration::from_secs(1), |progress| say!("{progress}"));
        let copied = SledStore::compact(&config.store, &store_options(), When::Always, &mut progress);
        let copied = copied?.ok_or_else(|| CliError::other("the store was not compacted"))?;
        if global.output == Format::Json {
            return print_json(&json!({
                "records": copied.records,
                "bytes_before": copied.bytes_before,
                "bytes_after": copied.bytes_after,
            }));
        }
        print(&format!(
            "{} records were copied into new files, read again and compared; the old files are removed\n\
             the store takes {} KiB instead of {} KiB\n",
            copied.records,
            copied.bytes_after / 1024,
            copied.bytes_before / 1024
        ))
    }
}
