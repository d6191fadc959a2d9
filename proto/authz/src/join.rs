//! Join tokens and requests. SPEC section 3.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use crate::envelope::Statement;
use crate::field::{self, FieldError};
use crate::id::ClusterId;
use crate::keys::{PublicKey, SecretKey};
use crate::limits::{MAX_ADDRESS_CHARS, VERSION};
use crate::roster::Lockbox;
use crate::{labels, wire};

const PREFIX: &str = "lbxjoin1.";

/// A token decodes to about 120 bytes and an address.
const MAX_TOKEN_CHARS: usize = 1_024;

/// Everything that a lockbox needs to join a cluster. It holds a secret key: whoever has the token can join once.
pub struct JoinToken {
    pub cluster_id: ClusterId,
    /// host:port of the broker's node port.
    pub broker_address: String,
    pub broker_key: PublicKey,
    pub join_key: SecretKey,
}

/// What a lockbox asks for. Signed by the identity key that it names, which proves that the lockbox has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    pub cluster_id: ClusterId,
    pub lockbox: Lockbox,
    pub requested_at_ms: i64,
}

impl JoinToken {
    /// The token's text.
    pub fn encode(&self) -> Zeroizing<String> {
        let wire = wire::JoinToken {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            broker_address: self.broker_address.clone(),
            broker_key: self.broker_key.to_vec(),
            join_secret: self.join_key.seed().to_vec(),
        };
        let bytes = Zeroizing::new(wire.encode_to_vec());
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + bytes.len() * 4 / 3 + 4));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
        text
    }

    /// Parses a token. The error never echoes it.
    pub fn decode(text: &str) -> Result<Self, FieldError> {
        const SHAPE: FieldError = FieldError::new(
            "join token",
            "must be one line that begins with lbxjoin1., as `lockbox-broker token create` prints it",
        );
        const DAMAGED: FieldError = FieldError::new(
            "join token",
            "is incomplete or damaged; copy it whole, as one line, from the output of `lockbox-broker token create`",
        );
        let text = text.trim();
        if text.len() > MAX_TOKEN_CHARS {
            return Err(SHAPE);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(SHAPE)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| DAMAGED)?);
        let mut wire = wire::JoinToken::decode(&bytes[..]).map_err(|_| DAMAGED)?;
        if *Zeroizing::new(wire.encode_to_vec()) != *bytes {
            return Err(DAMAGED);
        }
        // The last field: a token that was cut short between two fields lacks it.
        let seed = Zeroizing::new(<[u8; 32]>::try_from(&wire.join_secret[..]).map_err(|_| DAMAGED)?);
        field::version(wire.version)?;
        field::text("broker_address", &wire.broker_address, 1, MAX_ADDRESS_CHARS)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            broker_address: std::mem::take(&mut wire.broker_address),
            broker_key: PublicKey::from_slice("broker_key", &wire.broker_key)?,
            join_key: SecretKey::from_seed(&seed),
        })
    }
}

impl Drop for wire::JoinToken {
    fn drop(&mut self) {
        self.join_secret.zeroize();
    }
}

impl Statement for JoinRequest {
    const PAYLOAD_TYPE: &'static str = labels::JOIN_REQUEST;
    type Wire = wire::JoinRequest;

    fn from_wire(wire: Self::Wire) -> Result<Self, FieldError> {
        field::version(wire.version)?;
        Ok(Self {
            cluster_id: ClusterId::from_slice("cluster_id", &wire.cluster_id)?,
            lockbox: Lockbox::from_wire(field::required("lockbox", wire.lockbox)?)?,
            requested_at_ms: field::time_ms("requested_at_ms", wire.requested_at_ms)?,
        })
    }

    fn to_wire(&self) -> Self::Wire {
        wire::JoinRequest {
            version: VERSION,
            cluster_id: self.cluster_id.to_vec(),
            lockbox: Some(self.lockbox.to_wire()),
            requested_at_ms: self.requested_at_ms,
        }
    }
}
