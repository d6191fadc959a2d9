//! `client.toml`: how the command line reaches the broker, as whom, and which cluster it expects there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, ConfigError};

/// Relative paths are taken from the folder of the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// host:port of the broker's control-plane port.
    pub server: String,
    /// The name in the broker's certificate.
    pub server_name: String,
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Which roster to believe: hexadecimal. Without it, a broker could show another.
    pub cluster_id: String,
    /// host:port of the broker's node port, for join tokens.
    pub broker_address: String,
    /// The broker's public key, hexadecimal, for join tokens.
    pub broker_key: String,
}

impl ClientFile {
    /// Reads a file, and makes its paths absolute or relative to the working folder.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            key: "the file".to_owned(),
            problem: format!("it can't be read: {error}"),
            mend: "name the client.toml that `lockbox-broker init` wrote with --client, or set LOCKBOX_BROKER_CLIENT"
                .to_owned(),
        })?;
        let mut client: Self = toml::from_str(&text).map_err(|error| config::explain(file, &text, &error))?;
        let base = file.parent().unwrap_or(Path::new(""));
        for path in [&mut client.ca, &mut client.certificate, &mut client.key] {
            *path = base.join(&*path);
        }
        Ok(client)
    }
}

/// The text of a file.
pub fn client_toml(client: &ClientFile) -> String {
    let quoted = |path: &Path| toml_string(&path.display().to_string());
    format!(
        "# How the command line reaches the broker, and as whom. Relative paths are taken from this file's folder.\n\
         \n\
         # The broker's control-plane port, and the name in its certificate.\n\
         server = {}\n\
         server_name = {}\n\
         ca = {}\n\
         certificate = {}\n\
         key = {}\n\
         \n\
         # The cluster that is expected there.\n\
         cluster_id = {}\n\
         \n\
         # What join tokens say: the broker's node port and its key.\n\
         broker_address = {}\n\
         broker_key = {}\n",
        toml_string(&client.server),
        toml_string(&client.server_name),
        quoted(&client.ca),
        quoted(&client.certificate),
        quoted(&client.key),
        toml_string(&client.cluster_id),
        toml_string(&client.broker_address),
        toml_string(&client.broker_key),
    )
}

/// A basic string of TOML. Its escapes are those of JSON.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let written = ClientFile {
            server: "127.0.0.1:7402".to_owned(),
            server_name: "quo\"ted\\name".to_owned(),
            ca: "pki/ca.crt".into(),
            certificate: "/abs/operator.crt".into(),
            key: "pki/operator.key".into(),
            cluster_id: "00".to_owned(),
            broker_address: "[::1]:7400".to_owned(),
            broker_key: "11".to_owned(),
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("client.toml");
        std::fs::write(&file, client_toml(&written)).unwrap();
        let read = ClientFile::load(&file).unwrap();
        assert_eq!(read.server_name, written.server_name);
        assert_eq!(read.ca, dir.path().join("pki/ca.crt"));
        assert_eq!(read.certificate, Path::new("/abs/operator.crt"));
    }
}
