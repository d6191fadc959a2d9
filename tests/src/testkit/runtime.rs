//! The runtime on which the tests' own gRPC calls are made.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

/// Runs a future to its end on the runtime that all tests of this process share.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("threads can be started")
    })
}
