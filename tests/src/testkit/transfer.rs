//! One transfer, as its requester sees it.

use lockbox_authz::{AuthorizationId, Operation, Selection};
use lockbox_rpc::api::control::{
    self, AuthorizeTransferRequest, GetTransferRequest, RevokeTransferRequest, TransferState, WatchTransferRequest,
};
use tonic::Status;

use super::wait::eventually;
use super::{Broker, Lockbox, block_on};

/// What is asked of the broker.
#[derive(Clone)]
pub struct Ask {
    pub request_id: String,
    pub source: String,
    pub target: String,
    pub operation: Operation,
    pub selection: Selection,
    pub ttl_seconds: u32,
    pub reason: String,
}

impl Ask {
    /// With a new request id.
    pub fn new(operation: Operation, source: &Lockbox, target: &Lockbox, selection: Selection) -> Self {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the operating system gives random bytes");
        Self {
            request_id: AuthorizationId::from_random(random).to_string(),
            source: source.name().to_owned(),
            target: target.name().to_owned(),
            operation,
            selection,
            ttl_seconds: 0,
            reason: "a test".to_owned(),
        }
    }

    fn to_wire(&self) -> AuthorizeTransferRequest {
        AuthorizeTransferRequest {
            request_id: self.request_id.clone(),
            source: self.source.clone(),
            target: self.target.clone(),
            operation: self.operation.to_wire().into(),
            selection: Some(self.selection.to_wire()),
            ttl_seconds: self.ttl_seconds,
            reason: self.reason.clone(),
        }
    }
}

/// An authorized transfer.
pub struct Transfer {
    broker: Broker,
    pub id: AuthorizationId,
    /// The signed authorization, as a file would hold it.
    pub authorization: Vec<u8>,
}

impl Transfer {
    pub(crate) fn authorize(broker: &Broker, ask: Ask) -> Result<Self, Status> {
        let mut client = broker.client();
        let answer = block_on(client.authorize_transfer(ask.to_wire()))?.into_inner();
        let transfer = answer.transfer.unwrap_or_default();
        let id = AuthorizationId::from_slice("authorization_id", &transfer.authorization_id);
        Ok(Self {
            broker: broker.clone(),
            id: id.expect("an id"),
            authorization: answer.authorization,
        })
    }

    /// Waits until it is complete. The broker may be down meanwhile.
    ///
    /// # Panics
    ///
    /// If it ends in any other way.
    pub fn wait(&self) -> control::Transfer {
        let ended = self.wait_for_end();
        assert_eq!(ended.state(), TransferState::Complete, "{} {}", self.id, ended.detail);
        ended
    }

    /// Waits until it has ended, however that may be.
    pub fn wait_for_end(&self) -> control::Transfer {
        self.wait_until("the transfer has ended", |transfer| is_ended(transfer.state()))
    }

    /// Watches until the transfer is as wanted.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&control::Transfer) -> bool) -> control::Transfer {
        let what = format!("{what} ({})", self.id);
        eventually(&what, || {
            // A watch ends with the transfer, with the broker, or when it is late; in each case one looks again.
            let mut client = self.broker.client();
            let watch = async {
                let request = WatchTransferRequest {
                    authorization_id: self.id.to_vec(),
                };
                let mut changes = client.watch_transfer(request).await.ok()?.into_inner();
                while let Some(change) = changes.message().await.ok()? {
                    let transfer = change.transfer?;
                    if wanted(&transfer) {
                        return Some(transfer);
                    }
                }
                None
            };
            block_on(async { tokio::time::timeout(super::DEADLINE / 4, watch).await.ok().flatten() })
        })
    }

    /// As it stands now.
    pub fn now(&self) -> control::Transfer {
        self.detail().transfer.unwrap_or_default()
    }

    /// As it stands now, with receipts and erasure records.
    pub fn detail(&self) -> control::GetTransferResponse {
        let request = GetTransferRequest {
            authorization_id: self.id.to_vec(),
            from_chunk: 0,
        };
        let mut client = self.broker.client();
        let answer = block_on(client.get_transfer(request));
        answer.unwrap_or_else(|status| panic!("{status}")).into_inner()
    }

    pub fn revoke(&self) -> Result<control::Transfer, Status> {
        let request = RevokeTransferRequest {
            authorization_id: self.id.to_vec(),
            reason: "changed our mind".to_owned(),
        };
        let mut client = self.broker.client();
        let answer = block_on(client.revoke_transfer(request))?;
        Ok(answer.into_inner().transfer.unwrap_or_default())
    }
}

fn is_ended(state: TransferState) -> bool {
    matches!(
        state,
        TransferState::Complete | TransferState::Refused | TransferState::Revoked | TransferState::Expired
    )
}
