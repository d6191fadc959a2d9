//! The connection to the daemon.

use std::path::{Path, PathBuf};

use lockbox_rpc::api::local::lifecycle_service_client::LifecycleServiceClient;
use lockbox_rpc::api::local::local_service_client::LocalServiceClient;
use lockbox_rpc::transport::{LocalChannel, LocalConnectError, MAX_MESSAGE_BYTES, connect_unix};

use super::error::CliError;

/// The daemon of this machine.
pub(super) struct Client {
    pub(super) service: LocalServiceClient<LocalChannel>,
    pub(super) lifecycle: LifecycleServiceClient<LocalChannel>,
    socket: PathBuf,
}

impl Client {
    pub(super) async fn connect(socket: &Path) -> Result<Self, CliError> {
        let channel = connect_unix(socket).await.map_err(explain)?;
        let lifecycle = LifecycleServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let service = LocalServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self {
            service,
            lifecycle,
            socket: socket.to_owned(),
        })
    }

    /// A new connection in the place of this one.
    pub(super) async fn reconnect(&mut self) -> Result<(), CliError> {
        *self = Self::connect(&self.socket).await?;
        Ok(())
    }
}

fn explain(error: LocalConnectError) -> CliError {
    let text = crate::chain(&error);
    match error {
        LocalConnectError::NotServed { path, .. } => CliError::unavailable(format!(
            "no daemon answers at {}; start it with `lockbox serve`, or name its socket with --socket",
            path.display()
        )),
        LocalConnectError::NotAllowed { .. } => CliError::not_permitted(text),
        _ => CliError::unavailable(text),
    }
}
