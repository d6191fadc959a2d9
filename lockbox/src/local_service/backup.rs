//! A backup that is made while the daemon goes on. Nothing of it is kept here: what is read is sealed, and what is sealed is
//! sent.

use std::sync::Arc;

use lockbox_core::backup::{MakeError, Making, Writer};
use lockbox_core::slots::{PassphraseCost, SlotSecret};
use lockbox_rpc::api::local::CreateBackupResponse;
use lockbox_rpc::transport::LocalPeer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::clock::now_ms;
use crate::entropy::rng;
use crate::node::Node;
use crate::status::{self, LocalCode};

/// Parts that wait for the caller. Each is at most 64 KiB and a little.
const WAITING_PARTS: usize = 8;

/// Bytes of one part. A page of keys, or what changed, may be more than one message can be.
const PART_BYTES: usize = 64 * 1024;

type Part = Result<CreateBackupResponse, Status>;

pub(super) fn create(node: Arc<Node>, secret: SlotSecret, peer: LocalPeer) -> ReceiverStream<Part> {
    let (parts, stream) = mpsc::channel(WAITING_PARTS);
    tokio::spawn(async move {
        match make(&node, secret, &parts).await {
            Ok(()) => tracing::info!(uid = peer.uid, pid = peer.pid, "a backup was made"),
            Err(status) => {
                tracing::warn!(
                    uid = peer.uid,
                    pid = peer.pid,
                    error = status.message(),
                    "no backup was made"
                );
                // The caller may be gone, which is then the reason.
                let _ = parts.send(Err(status)).await;
            }
        }
    });
    ReceiverStream::new(stream)
}

async fn make(node: &Arc<Node>, secret: SlotSecret, parts: &mpsc::Sender<Part>) -> Result<(), Status> {
    let info = node.engine.read(|lockbox| lockbox.backup_info(now_ms(), &mut rng()));
    let info = info.await.map_err(status::local)?.map_err(status::local)?;
    // A passphrase takes Argon2id's time, which no step should have to wait for.
    let begun =
        tokio::task::spawn_blocking(move || Writer::begin(info, &secret, PassphraseCost::RECOMMENDED, &mut rng()));
    let begun = begun
        .await
        .map_err(|_| Status::unavailable("the lockbox is stopping"))?;
    let (writer, beginning) = begun.map_err(status::local)?;
    send(parts, beginning).await?;
    let making = node.engine.read(move |lockbox| Making::begin(writer, lockbox));
    let mut making = Some(making.await.map_err(status::local)?);
    while let Some(current) = making.take() {
        // Durable, as a key that a power cut took away would come back with the backup.
        let next = node.engine.read_durable(move |lockbox| current.next(lockbox, now_ms()));
        let (bytes, rest) = next.await.map_err(status::local)?.map_err(status::local)?;
        send(parts, bytes).await?;
        making = rest;
    }
    Ok(())
}

async fn send(parts: &mpsc::Sender<Part>, bytes: Vec<u8>) -> Result<(), Status> {
    for part in bytes.chunks(PART_BYTES) {
        let response = CreateBackupResponse { part: part.to_vec() };
        let sent = parts.send(Ok(response)).await;
        sent.map_err(|_| Status::cancelled("the caller is gone"))?;
    }
    Ok(())
}

impl LocalCode for MakeError {
    fn code(&self) -> Code {
        match self {
            Self::TooManyChanges | Self::Interrupted => Code::Aborted,
            Self::Lockbox(error) => error.code(),
        }
    }
}
