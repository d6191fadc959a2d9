//! Join tokens.

use std::time::Duration;

use clap::Subcommand;
use lockbox_authz::roster::Change;
use lockbox_authz::{JoinToken, Labels, PublicKey, SecretKey, Signer};
use serde_json::json;

use super::client::{Admin, Broker};
use super::error::{CONFIG, CliError};
use super::output::{Format, print, print_json};
use super::{Global, block_on};
use crate::clock::{now_ms, rfc3339};
use crate::init::generate;
use crate::limits::MAX_TOKEN_LIFE;

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token with which one lockbox can join; prints the token and nothing else
    Create {
        #[command(flatten)]
        admin: Admin,
        /// A label that the lockbox gets, as key=value; repeatable
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// The name that the lockbox must have
        #[arg(long)]
        name: Option<String>,
        /// For how long the token can be used: a number with s, m, h or d, at most 90d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        expires_in: Duration,
        /// The broker's node port as the lockbox reaches it, instead of the one in the client file
        #[arg(long, value_name = "HOST:PORT")]
        broker_address: Option<String>,
    },
    /// Take back a token that nobody used
    Revoke {
        /// The join key that `token create` named
        join_key: PublicKey,
        #[command(flatten)]
        admin: Admin,
    },
}

/// What a token allows.
struct Allowance {
    labels: Labels,
    name: Option<String>,
    expires_at_ms: i64,
}

impl Token {
    pub(super) fn run(self, global: &Global) -> Result<(), CliError> {
        block_on(async {
            match self {
                Self::Create {
                    admin,
                    labels,
                    name,
                    expires_in,
                    broker_address,
                } => {
                    let labels = Labels::parse(labels.iter().map(String::as_str))
                        .map_err(|error| CliError::usage(format!("--label: {error}")))?;
                    let lasts_ms = i64::try_from(expires_in.as_millis()).unwrap_or(i64::MAX);
                    let allowance = Allowance {
                        labels,
                        name,
                        expires_at_ms: now_ms().saturating_add(lasts_ms),
                    };
                    create(global, &admin, allowance, broker_address).await
                }
                Self::Revoke { join_key, admin } => {
                    let mut broker = Broker::connect(global).await?;
                    let changed = broker.change(&admin, |_| Ok(Change::RevokeJoin { join_key })).await?;
                    changed.report(global, &format!("join key {join_key} can't be used any more"))
                }
            }
        })
    }
}

async fn create(
    global: &Global,
    admin: &Admin,
    allowance: Allowance,
    broker_address: Option<String>,
) -> Result<(), CliError> {
    let mut broker = Broker::connect(global).await?;
    let join_key = generate();
    let token = token(&broker, &join_key, broker_address)?;
    let public = join_key.public_key();
    let changed = broker
        .change(admin, |roster| {
            if !roster.broker_keys().contains(&token.broker_key) {
                return Err(CliError::new(
                    CONFIG,
                    "the client file: broker_key is not the key of a broker of this cluster; correct the value",
                ));
            }
            Ok(Change::AllowJoin {
                join_key: public,
                expires_at_ms: allowance.expires_at_ms,
                labels: allowance.labels.clone(),
                name: allowance.name.clone(),
            })
        })
        .await?;
    let expires_at = rfc3339(allowance.expires_at_ms);
    changed.tell(&format!("join key {public} admits one lockbox until {expires_at}"));
    match global.output {
        Format::Table => print(&format!("{}\n", *token.encode())),
        Format::Json => print_json(&json!({
            "token": *token.encode(),
            "join_key": public.to_string(),
            "expires_at_ms": allowance.expires_at_ms,
        })),
    }
}

fn token(broker: &Broker, join_key: &SecretKey, broker_address: Option<String>) -> Result<JoinToken, CliError> {
    let broker_key = broker.file.broker_key.parse();
    let broker_key = broker_key.map_err(|error| {
        CliError::new(
            CONFIG,
            format!("the client file: broker_key: {error}; correct the value"),
        )
    })?;
    let broker_address = broker_address.unwrap_or_else(|| broker.file.broker_address.clone());
    if broker_address.is_empty() || broker_address.ends_with(":0") {
        return Err(CliError::new(
            CONFIG,
            format!(
                "{broker_address:?} is no address that a lockbox could connect to; name the broker's node port with --broker-address"
            ),
        ));
    }
    Ok(JoinToken {
        cluster_id: broker.cluster_id()?,
        broker_address,
        broker_key,
        join_key: SecretKey::from_seed(&join_key.seed()),
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    const SHAPE: &str = "write a number with s, m, h or d, like 90m or 24h";
    let unit = text.chars().last().ok_or(SHAPE)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(SHAPE.to_owned()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| SHAPE)?;
    let seconds = number
        .checked_mul(seconds)
        .filter(|&seconds| seconds > 0)
        .ok_or(SHAPE)?;
    let lasts = Duration::from_secs(seconds);
    if lasts > MAX_TOKEN_LIFE {
        return Err("a token can be used for 90 days at most; make another one then".to_owned());
    }
    Ok(lasts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("90d"), Ok(MAX_TOKEN_LIFE));
        for wrong in [
            "91d",
            "7776001s",
            "",
            "h",
            "24",
            "0s",
            "-1h",
            "1w",
            "99999999999999999999d",
            "1é",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
