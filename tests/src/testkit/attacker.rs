//! Machines that follow no rule: a thief with everything that a broker has, and machines of the thief's own.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use getrandom::SysRng;
use lockbox_authz::roster::{Admins, Change, Genesis, Lockbox as Member, RosterEntry};
use lockbox_authz::{
    Authorization, AuthorizationId, ClusterId, Hash, Head, KeyId, Labels, LockboxId, Operation, Party, PublicKey,
    Receipt, Roster, SecretKey, Selection, SessionId, SessionOffer, Signer, UnverifiedEnvelope, Verified,
    WrappingCertificate,
};
use lockbox_core::labels::{TRANSFER_CHUNK, TRANSFER_SESSION};
use lockbox_core::primitives::{ReceiverContext, hpke_setup_receiver, wrapping_key};
use lockbox_core::secrets::WrappingSeed;
use lockbox_core::wire::{ChunkPayload, KeyRecord};
use lockbox_rpc::api::peer::peer_service_client::PeerServiceClient;
use lockbox_rpc::api::peer::{
    Chunk, Present, Resume, StoredChunk, TransferRequest, TransferResponse, transfer_request, transfer_response,
};
use lockbox_rpc::tls::raw_key::{self, NodeKey};
use lockbox_rpc::transport::{ClientTimeouts, ConnectError, MAX_MESSAGE_BYTES, connect_raw_key};
use prost::Message;
use rand_core::UnwrapErr;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{Broker, Lockbox, block_on};

/// The operating system's random numbers.
pub fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// The time now, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("it is later than 1970").as_millis()).expect("it is before the year 292,277,026")
}

/// Reads an Ed25519 key in PKCS#8 PEM form: its seed is the end of it.
pub fn read_key(file: &Path) -> SecretKey {
    let pem = fs::read_to_string(file).expect("the file is there");
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).expect("PEM is base64");
    let seed = der.last_chunk::<32>().expect("a key has 32 bytes");
    SecretKey::from_seed(seed)
}

/// Everything that a broker has, in other hands.
pub struct StolenBroker {
    pub signing_key: SecretKey,
    /// As it was at the time of the theft.
    pub roster: Roster,
    /// A copy of the broker's folder.
    pub folder: PathBuf,
}

impl StolenBroker {
    /// Takes the broker's key, its store, and what it knew. The broker notices nothing.
    pub fn steal(broker: &Broker, into: &Path) -> Self {
        copy_folder(broker.dir(), into);
        Self {
            signing_key: read_key(&into.join("broker.key")),
            roster: broker.roster(),
            folder: into.to_owned(),
        }
    }

    pub fn member(&self, lockbox: &Lockbox) -> Member {
        let mut members = self.roster.lockboxes().map(|member| &member.lockbox);
        let member = members.find(|member| member.name == lockbox.name());
        member.expect("it has joined").clone()
    }

    pub fn party(&self, lockbox: &Lockbox) -> Party {
        let member = self.member(lockbox);
        Party {
            lockbox_id: member.lockbox_id,
            identity_key: member.identity_key,
        }
    }

    /// What a broker would sign.
    pub fn statement(
        &self,
        operation: Operation,
        source: Party,
        target: Party,
        certificate: &UnverifiedEnvelope,
        selection: Selection,
    ) -> Authorization {
        let now_ms = now_ms();
        Authorization {
            authorization_id: AuthorizationId::from_random(random()),
            cluster_id: self.roster.cluster_id(),
            request_id: "forged".to_owned(),
            requester: "nobody".to_owned(),
            source,
            target,
            target_wrapping_certificate: certificate.clone(),
            operation,
            selection,
            not_before_ms: now_ms,
            expires_at_ms: now_ms + 300_000,
            roster_head: self.roster.head(),
            reason: String::new(),
            max_keys: None,
        }
    }

    pub fn sign(&self, authorization: Authorization) -> Vec<u8> {
        Verified::sign(authorization, &self.signing_key).envelope().to_bytes()
    }

    /// The next entry of the roster, signed by whomever.
    pub fn next_entry(&self, change: Change, signer: &SecretKey) -> UnverifiedEnvelope {
        Verified::sign(self.roster.next_entry(change, now_ms()), signer)
            .envelope()
            .clone()
    }
}

/// A roster of the thief's own, which says of itself what the thief wants.
pub fn forged_roster(admin: &SecretKey, members: &[Member]) -> Vec<UnverifiedEnvelope> {
    let genesis = RosterEntry {
        cluster_id: None,
        index: 0,
        previous: None,
        signed_at_ms: now_ms(),
        change: Change::Genesis(Genesis {
            cluster_name: "test".to_owned(),
            admins: Admins::new(vec![admin.public_key()], 1, 1).expect("one admin"),
            nonce: random(),
        }),
    };
    let genesis = Verified::sign(genesis, admin).envelope().clone();
    let mut roster = Roster::found(&genesis, None).expect("a good genesis");
    let mut entries = vec![genesis];
    for member in members {
        let entry = Verified::sign(roster.next_entry(Change::AdmitLockbox(member.clone()), now_ms()), admin);
        roster.apply(entry.envelope()).expect("a good entry");
        entries.push(entry.envelope().clone());
    }
    entries
}

/// A machine with the identity of a lockbox, whose program is the test.
pub struct Machine {
    pub name: String,
    pub id: LockboxId,
    pub identity: SecretKey,
    wrapping_seed: WrappingSeed,
}

/// Why a machine got nothing.
#[derive(Debug)]
pub enum Nothing {
    /// It was not let in.
    NotLetIn(ConnectError),
    /// It was let in, and refused.
    Refused(Status),
}

impl Machine {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            id: LockboxId::from_random(random()),
            identity: SecretKey::generate(&mut rng()),
            wrapping_seed: WrappingSeed::random(&mut rng()),
        }
    }

    pub fn member(&self) -> Member {
        Member {
            lockbox_id: self.id,
            name: self.name.clone(),
            identity_key: self.identity.public_key(),
            labels: Labels::default(),
        }
    }

    pub fn party(&self) -> Party {
        Party {
            lockbox_id: self.id,
            identity_key: self.identity.public_key(),
        }
    }

    /// A certificate for this machine's wrapping key, in whatever name, signed by whomever.
    pub fn certificate_as(&self, cluster_id: ClusterId, name: LockboxId, signer: &SecretKey) -> UnverifiedEnvelope {
        let certificate = WrappingCertificate {
            cluster_id,
            lockbox_id: name,
            wrapping_key: wrapping_key(&self.wrapping_seed),
            generation: 1,
        };
        Verified::sign(certificate, signer).envelope().clone()
    }

    /// The certificate that is due.
    pub fn certificate(&self, cluster_id: ClusterId) -> UnverifiedEnvelope {
        self.certificate_as(cluster_id, self.id, &self.identity)
    }

    /// Connects to a peer port with the identity of this machine.
    pub fn connect(&self, address: &str, expected: PublicKey) -> Result<PeerServiceClient<Channel>, ConnectError> {
        connect_with(&self.identity, address, expected)
    }

    /// Presents an authorization and takes what it can get: the material of every key that it could open. What is received
    /// is acknowledged, as it should be.
    pub fn pull(&self, source: &Lockbox, key: PublicKey, bytes: &[u8], head: Head) -> Result<Vec<KeyRecord>, Nothing> {
        let client = self.connect(&source.peer_address(), key).map_err(Nothing::NotLetIn)?;
        block_on(self.session(client, bytes, head)).map_err(Nothing::Refused)
    }

    async fn session(
        &self,
        mut client: PeerServiceClient<Channel>,
        bytes: &[u8],
        head: Head,
    ) -> Result<Vec<KeyRecord>, Status> {
        let (outbound, messages) = mpsc::unbounded_channel();
        let say = |message| {
            let message = Some(message);
            // If the stream is gone, the next read says so.
            let _ = outbound.send(TransferRequest { message });
        };
        say(transfer_request::Message::Present(Present {
            authorization: bytes.to_vec(),
            roster_head: Some(head.to_wire()),
        }));
        let mut inbound = client
            .transfer(UnboundedReceiverStream::new(messages))
            .await?
            .into_inner();
        let Some(transfer_response::Message::Offer(offer)) = next(&mut inbound).await? else {
            return Err(Status::aborted("the source offered nothing"));
        };
        let mut session = Session::open(self, bytes, &offer.session_offer);
        say(transfer_request::Message::Resume(Resume {
            last: true,
            ..Resume::default()
        }));
        let mut keys = Vec::new();
        loop {
            match next(&mut inbound).await? {
                Some(transfer_response::Message::Chunk(chunk)) => {
                    let opened = session
                        .take(&chunk)
                        .ok_or_else(|| Status::data_loss("the chunk does not open"))?;
                    say(transfer_request::Message::StoredChunk(StoredChunk {
                        receipt: session.receipt(self, &chunk, &opened),
                    }));
                    keys.extend(opened);
                }
                Some(transfer_response::Message::Finished(_)) | None => return Ok(keys),
                Some(_) => {}
            }
        }
    }
}

/// Connects to a peer port with any Ed25519 key.
pub fn connect_with(
    identity: &SecretKey,
    address: &str,
    expected: PublicKey,
) -> Result<PeerServiceClient<Channel>, ConnectError> {
    let key = NodeKey::from_seed(&identity.seed()).expect("any seed is a key");
    let tls = raw_key::client_config(&key, *expected.as_bytes());
    let channel = block_on(connect_raw_key(address, tls, &ClientTimeouts::default()))?;
    Ok(PeerServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

async fn next(inbound: &mut Streaming<TransferResponse>) -> Result<Option<transfer_response::Message>, Status> {
    Ok(inbound.message().await?.and_then(|response| response.message))
}

/// The target's end of a session, from SPEC section 7 alone.
struct Session {
    cluster_id: ClusterId,
    authorization_hash: Hash,
    session_id: SessionId,
    chunk_count: u32,
    /// Absent if the source wrapped to another key than this machine's.
    context: Option<ReceiverContext>,
}

impl Session {
    fn open(machine: &Machine, authorization: &[u8], offer: &[u8]) -> Self {
        let authorization = UnverifiedEnvelope::from_bytes(authorization).expect("the source took it");
        let statement: Authorization = authorization.unverified_statement().expect("the source took it");
        let offer = UnverifiedEnvelope::from_bytes(offer).expect("a good source");
        let offer: SessionOffer = offer.unverified_statement().expect("a good source");
        let info = [
            TRANSFER_SESSION,
            &authorization.hash().0,
            &offer.session_id.0,
            &statement.source.lockbox_id.0,
            &statement.target.lockbox_id.0,
        ]
        .concat();
        Self {
            cluster_id: statement.cluster_id,
            authorization_hash: authorization.hash(),
            session_id: offer.session_id,
            chunk_count: offer.chunk_count,
            context: hpke_setup_receiver(&machine.wrapping_seed, &offer.encapsulated_key, &info).ok(),
        }
    }

    fn take(&mut self, chunk: &Chunk) -> Option<Vec<KeyRecord>> {
        let aad = [
            TRANSFER_CHUNK,
            &chunk.chunk.to_be_bytes(),
            &self.chunk_count.to_be_bytes(),
        ]
        .concat();
        let plaintext = self.context.as_mut()?.open(&chunk.ciphertext, &aad).ok()?;
        let payload = ChunkPayload::decode(&plaintext[..]).ok()?;
        Some(payload.keys)
    }

    fn receipt(&self, machine: &Machine, chunk: &Chunk, keys: &[KeyRecord]) -> Vec<u8> {
        let receipt = Receipt {
            cluster_id: self.cluster_id,
            authorization_hash: self.authorization_hash,
            session_id: self.session_id,
            chunk: chunk.chunk,
            chunk_hash: Hash::of(&chunk.ciphertext),
            key_ids: keys
                .iter()
                .map(|key| KeyId::from_slice("key_id", &key.key_id).expect("a good source"))
                .collect(),
            stored_at_ms: now_ms(),
        };
        Verified::sign(receipt, &machine.identity).envelope().to_bytes()
    }
}

/// Copies a folder and everything in it to a new place.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("the test's folder is ours");
    for entry in fs::read_dir(from).expect("it is a folder") {
        let entry = entry.expect("it can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it can be read").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it can be read");
        }
    }
}

/// Random bytes of the operating system.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
