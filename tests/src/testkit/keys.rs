//! What programs of a lockbox's machine ask it about keys and transfers, over its local socket.

use std::sync::atomic::{AtomicU64, Ordering};

use lockbox_authz::{AuthorizationId, KeyId};
use lockbox_rpc::api::local::{
    self, AcceptTransferRequest, CreateKeyRequest, DestroyKeyRequest, GetKeyRequest, GetTransferRequest,
    ImportKeyRequest, ListKeysRequest, RevealKeyRequest, TransferPolicy,
};
use tonic::{Code, Status};

use super::wait::eventually;
use super::{Lockbox, block_on, runtime};

/// What a new key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// Its id, unless the lockbox is to choose.
    pub key_id: Option<KeyId>,
    pub name: String,
    pub labels: Vec<(&'static str, &'static str)>,
    pub policy: TransferPolicy,
}

impl NewKey {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    fn to_wire(&self) -> CreateKeyRequest {
        let labels = self.labels.iter().map(|(key, value)| lockbox_authz::wire::Label {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        });
        CreateKeyRequest {
            key_id: self.key_id.map(|key_id| key_id.to_vec()).unwrap_or_default(),
            name: self.name.clone(),
            labels: labels.collect(),
            transfer_policy: Some(self.policy.clone()),
            ..CreateKeyRequest::default()
        }
    }
}

impl Lockbox {
    pub fn create_key(&self, name: &str) -> KeyId {
        self.create(&NewKey::named(name))
    }

    pub fn create(&self, key: &NewKey) -> KeyId {
        let request = key.to_wire();
        let answer = self.call(async |mut client| client.create_key(request.clone()).await);
        key_id(&answer.expect("a good request").key.unwrap_or_default())
    }

    pub fn create_keys(&self, count: usize) -> Vec<KeyId> {
        self.create_keys_like(&NewKey::named("volume"), count)
    }

    /// Many keys at once, each with its own name.
    pub fn create_keys_like(&self, key: &NewKey, count: usize) -> Vec<KeyId> {
        const AT_ONCE: usize = 32;
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let client = self.client().expect("it is running");
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let batch = (ids.len()..count).take(AT_ONCE).map(|_| {
                let mut request = key.to_wire();
                request.name += &format!("-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
                let mut client = client.clone();
                runtime::runtime().spawn(async move { client.create_key(request).await })
            });
            for task in batch.collect::<Vec<_>>() {
                let answer = block_on(task).expect("it does not panic").expect("a good request");
                ids.push(key_id(&answer.into_inner().key.unwrap_or_default()));
            }
        }
        ids
    }

    pub fn import_key(&self, name: &str, material: &[u8]) -> KeyId {
        self.import(&NewKey::named(name), material)
    }

    pub fn import(&self, key: &NewKey, material: &[u8]) -> KeyId {
        let request = ImportKeyRequest {
            attributes: Some(key.to_wire()),
            material: material.to_vec(),
        };
        let answer = self.call(async |mut client| client.import_key(request.clone()).await);
        key_id(&answer.expect("a good request").key.unwrap_or_default())
    }

    /// The material, or why there is none.
    pub fn try_reveal(&self, key: KeyId) -> Result<Vec<u8>, Status> {
        let request = RevealKeyRequest { key_id: key.to_vec() };
        let answer = self.call(async |mut client| client.reveal_key(request.clone()).await)?;
        Ok(answer.material.clone())
    }

    pub fn reveal(&self, key: KeyId) -> Vec<u8> {
        self.try_reveal(key)
            .unwrap_or_else(|status| panic!("{}: {status}", self.name()))
    }

    /// Whether the key can be read here.
    ///
    /// # Panics
    ///
    /// If it can't be told.
    pub fn holds(&self, key: KeyId) -> bool {
        match self.try_reveal(key) {
            Ok(_) => true,
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => false,
            Err(status) => panic!("{}: {status}", self.name()),
        }
    }

    /// One key without its material, also one that is gone.
    pub fn key(&self, key: KeyId) -> Result<local::Key, Status> {
        let request = GetKeyRequest { key_id: key.to_vec() };
        let answer = self.call(async |mut client| client.get_key(request.clone()).await)?;
        Ok(answer.key.unwrap_or_default())
    }

    pub fn destroy(&self, key: KeyId) -> Result<(), Status> {
        let request = DestroyKeyRequest {
            key_id: key.to_vec(),
            force: false,
        };
        self.call(async |mut client| client.destroy_key(request.clone()).await)
            .map(drop)
    }

    /// The keys that are here, by id.
    pub fn keys(&self) -> Vec<KeyId> {
        let mut keys = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListKeysRequest {
                page_size: 1_000,
                page_token,
                ..ListKeysRequest::default()
            };
            let page = self
                .call(async |mut client| client.list_keys(request.clone()).await)
                .expect("it lists keys");
            keys.extend(page.keys.iter().map(key_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return keys;
            }
        }
    }

    /// A transfer as this end has it, if it knows it.
    pub fn transfer(&self, id: AuthorizationId) -> Option<local::Transfer> {
        let request = GetTransferRequest {
            authorization_id: id.to_vec(),
        };
        let answer = self.call(async |mut client| client.get_transfer(request.clone()).await);
        match answer {
            Ok(answer) => answer.transfer,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{}: {status}", self.name()),
        }
    }

    /// Waits until this end's ledger says so of a transfer.
    pub fn wait_for_transfer(&self, id: AuthorizationId, state: &str) -> local::Transfer {
        eventually(&format!("{} has transfer {id} {state}", self.name()), || {
            self.transfer(id).filter(|transfer| transfer.state == state)
        })
    }

    /// Begins a transfer from an authorization that was brought by hand.
    pub fn accept_transfer(&self, authorization: &[u8], source_address: &str) -> Result<local::Transfer, Status> {
        let request = AcceptTransferRequest {
            authorization: authorization.to_vec(),
            source_address: source_address.to_owned(),
        };
        let answer = self.call(async |mut client| client.accept_transfer(request.clone()).await)?;
        Ok(answer.transfer.unwrap_or_default())
    }
}

fn key_id(key: &local::Key) -> KeyId {
    KeyId::from_slice("key_id", &key.key_id).expect("a key has an id")
}
