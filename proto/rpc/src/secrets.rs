//! Messages that carry a secret forget it when they are dropped.
//!
//! A generated message owns plain buffers, so this is the only hook there is. Copies that the transport makes are freed
//! before they are cleared; the daemons therefore run on an allocator that clears what it frees.

use zeroize::Zeroize;

use crate::api::local::{
    CreateBackupRequest, ImportKeyRequest, RevealKeyResponse, UnsealRequest, create_backup_request, join_request,
    unseal_request,
};

impl Drop for ImportKeyRequest {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

impl Drop for RevealKeyResponse {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

impl Drop for UnsealRequest {
    fn drop(&mut self) {
        match &mut self.secret {
            Some(unseal_request::Secret::Passphrase(bytes) | unseal_request::Secret::KeyFile(bytes)) => bytes.zeroize(),
            None => {}
        }
    }
}

impl Drop for crate::api::local::JoinRequest {
    fn drop(&mut self) {
        if let Some(join_request::How::Token(token)) = &mut self.how {
            token.zeroize();
        }
    }
}

impl Drop for CreateBackupRequest {
    fn drop(&mut self) {
        match &mut self.secret {
            Some(create_backup_request::Secret::Passphrase(bytes) | create_backup_request::Secret::KeyFile(bytes)) => {
                bytes.zeroize();
            }
            None => {}
        }
    }
}
