//! SIGHUP: the configuration is read again, and what can change while the daemon runs is changed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

use lockbox_host::log;

use crate::config::Config;
use crate::node::Node;
use crate::serve::socket_modes;

/// Takes the configuration as it is now. A file that is wrong anywhere changes nothing.
pub(crate) fn reload(node: &Node) {
    let old = node.config();
    let read = match Config::load(&old.file) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(%error, "the configuration was not reloaded; the former one stays in force");
            return;
        }
    };
    let (new, fixed) = old.with_changes_of(read);
    let (mode, key_mode) = socket_modes(&new);
    log::set_level(new.log.level);
    node.engine.set_caps(new.caps);
    let socket = (new.socket.clone(), mode);
    let key_socket = new.key_socket.as_ref().map(|keys| (keys.path.clone(), key_mode));
    // Before the files' modes, which only keep out whom the list does not have anyway.
    node.set_config(new);
    for (path, mode) in [Some(socket), key_socket].into_iter().flatten() {
        if let Err(error) = set_mode(&path, mode) {
            tracing::error!(%error, socket = %path.display(), "the mode of the socket can't be changed; restart the daemon");
        }
    }
    if !fixed.is_empty() {
        tracing::warn!(
            settings = fixed.join(", "),
            "these settings take effect when the daemon is restarted"
        );
    }
    tracing::info!("the configuration was reloaded");
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
