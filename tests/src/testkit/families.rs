//! Keys that lie on each other.

use lockbox_authz::KeyId;
use lockbox_rpc::api::local::lifecycle_service_client::LifecycleServiceClient;
use lockbox_rpc::api::local::{CancelJobRequest, ClonePolicy, CreateKeyRequest, DeriveKeyRequest, Key, Relation};
use lockbox_rpc::transport::{LocalChannel, connect_unix};

use super::{Lockbox, block_on, runtime};

impl Lockbox {
    /// A golden image's key, and the keys of so many clones that lie on it, with itself.
    pub fn create_family(&self, count: usize) -> Vec<KeyId> {
        const AT_ONCE: usize = 32;
        let base = self.create_base();
        let client = self.lifecycle();
        let layer = block_on(derive(client.clone(), base, Relation::Layer));
        // Nothing was written under it that would have to be verified.
        let cancel = CancelJobRequest {
            key_id: layer.to_vec(),
            ..CancelJobRequest::default()
        };
        block_on(client.clone().cancel_job(cancel)).expect("it is open");
        let mut family = vec![base, layer];
        while family.len() < count {
            let batch = (family.len()..count).take(AT_ONCE);
            let tasks = batch.map(|_| runtime::runtime().spawn(derive(client.clone(), layer, Relation::Share)));
            for task in tasks.collect::<Vec<_>>() {
                family.push(block_on(task).expect("it does not panic"));
            }
        }
        family
    }

    fn create_base(&self) -> KeyId {
        let request = CreateKeyRequest {
            name: "golden".to_owned(),
            clone_policy: Some(ClonePolicy {
                share: true,
                rekey: false,
                layer: true,
            }),
            ..CreateKeyRequest::default()
        };
        let answer = self.call(async |mut client| client.create_key(request).await);
        id_of(answer.expect("a good request").key)
    }

    fn lifecycle(&self) -> LifecycleServiceClient<LocalChannel> {
        let channel = block_on(connect_unix(&self.socket())).expect("it is running");
        LifecycleServiceClient::new(channel)
    }
}

async fn derive(mut client: LifecycleServiceClient<LocalChannel>, parent: KeyId, relation: Relation) -> KeyId {
    let request = DeriveKeyRequest {
        parent_key_id: parent.to_vec(),
        relation: relation.into(),
        ..DeriveKeyRequest::default()
    };
    let made = client.derive_key(request).await.expect("the clone policy allows it");
    id_of(made.into_inner().key)
}

fn id_of(key: Option<Key>) -> KeyId {
    KeyId::from_slice("key_id", &key.unwrap_or_default().key_id).expect("an id")
}
