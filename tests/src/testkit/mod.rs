//! A cluster of real processes on loopback, told as a story.
//!
//! ```no_run
//! use lockbox_tests::testkit::Cluster;
//!
//! let cluster = Cluster::start();
//! let (a, b) = (cluster.add_lockbox("a"), cluster.add_lockbox("b"));
//! let key = a.create_key("volume");
//! cluster.move_keys(&a, &b, &[key]).wait();
//! assert!(b.holds(key) && !a.holds(key));
//! ```
//!
//! | module | knows |
//! |---|---|
//! | [`Cluster`], [`Broker`], [`Lockbox`], [`Transfer`] | the verbs of the story |
//! | [`proxy`] | the loopback wire: it is in front of every port, records what passes and cuts where it is told to |
//! | [`attacker`], [`fake_broker`] | machines that follow no rule |
//! | `clock` | wrong wall clocks |
//! | [`crowd`] | connections that are opened and say nothing |
//! | `store` | the rows of a lockbox's store, to be damaged |
//! | [`thief`] | a copy of a state folder, and what unseals it |
//! | [`memory`] | what a process has in its memory |
//! | [`canary`] | a key whose bytes are looked for everywhere |
//! | [`qemu`], [`luks`] | encrypted images and volumes, and the tools that open them |
//! | [`disk`] | a disk that can be filled |
//! | [`key_client`] | systemd, as the key socket sees it |
//! | `process`, `binaries`, `wait`, `runtime` | processes, and waiting for what they do |
//!
//! Every process is killed when its handle is dropped, also by a panic; then the logs of all of them are printed. Nothing
//! waits for a time to pass: each wait is for something that can be observed, up to [`DEADLINE`].

pub mod attacker;
mod binaries;
mod broker;
pub mod canary;
mod clock;
mod cluster;
pub mod crowd;
pub mod disk;
pub mod fake_broker;
mod families;
pub mod key_client;
mod keys;
mod lockbox;
pub mod luks;
pub mod memory;
pub mod process;
pub mod proxy;
pub mod qemu;
pub mod raw_client;
mod runtime;
mod store;
pub mod thief;
mod transfer;
mod wait;

pub use binaries::lockbox as lockbox_binary;
pub use broker::Broker;
pub use cluster::Cluster;
pub use keys::NewKey;
pub use lockbox::Lockbox;
pub use process::{Output, Running};
pub use runtime::block_on;
pub use transfer::{Ask, Transfer};
pub use wait::{DEADLINE, eventually};

pub use lockbox_rpc::api::control::TransferState;
