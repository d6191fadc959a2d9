//! Clients, servers and messages of the four services, generated from `proto/lockbox`.

/// Between lockboxes.
pub mod peer {
    tonic::include_proto!("lockbox.peer.v1");
}

/// Between a lockbox and a broker.
pub mod node {
    tonic::include_proto!("lockbox.node.v1");
}

/// Between a control plane and a broker.
pub mod control {
    tonic::include_proto!("lockbox.control.v1");
}

/// Between a lockbox and the processes of its own machine.
pub mod local {
    tonic::include_proto!("lockbox.local.v1");
}
