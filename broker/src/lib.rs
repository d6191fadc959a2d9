//! The broker: it decides which transfer is allowed now, signs that, and follows what becomes of it. It holds no key and
//! could not open one: nothing in its dependencies can.
//!
//! | module | knows |
//! |---|---|
//! | [`decide`] | who may transfer what where; pure |
//! | [`registry`] | what the broker remembers, durably |
//! | [`broker`] | the two together with the signing key and the open connections |
//! | `evidence` | what is given out about one lockbox's keys, for restoring a backup of it |
//! | `offers` | whose transfer a target is offered next |
//! | [`node_service`], [`control_service`] | the two ports; they parse, ask and answer |
//! | [`inventory_service`] | what lockboxes report of their keys, and what a stolen one opens |
//! | [`notice_service`] | what the admins tell every lockbox of keys that strangers know |
//! | [`certificate_service`], [`port_certificates`] | the certificates of the control plane's port: in use, renewed, expiring |
//! | [`admin`], [`init`], [`pki`] | the admins' side: changes of the roster, new clusters, certificates |
//! | [`cli`] | the command line |
//!
//! What an answer says is durable before it is given: see [`registry`].

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when their reader is gone; use lockbox_host::say!, ask! and console::answer"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail that way"))]

pub mod admin;
pub mod broker;
pub mod certificate_service;
pub mod cli;
pub mod clock;
pub mod config;
mod connection;
pub mod control_service;
pub mod decide;
mod evidence;
pub mod files;
mod health;
pub mod init;
pub mod inventory_service;
mod key_names;
pub mod keyfile;
pub mod limits;
pub mod node_service;
pub mod notice_service;
mod offers;
pub mod picture;
pub mod pki;
pub mod port_certificates;
pub mod refusal;
pub mod registry;
mod reload;
pub mod requester_name;
pub mod requesters;
pub mod serve;
mod sessions;
mod status;
mod theft;
mod watchers;
