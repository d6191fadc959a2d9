//! Whether a connection is in use.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::Bytes;

/// How many times the limit of a silence the first request may take.
const LIMITS_BEFORE_THE_FIRST: u32 = 10;

/// Counts the requests under way on one connection, and those that there ever were.
#[derive(Default)]
pub(super) struct Activity {
    under_way: AtomicUsize,
    begun: AtomicU64,
}

/// A request that has begun, until it is dropped.
pub(super) struct UnderWay(Arc<Activity>);

impl Activity {
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Returns when there was no request for as long as `limit`, or up to twice that; without one, never. The first request may
    /// take [`LIMITS_BEFORE_THE_FIRST`] times as long: no key went over the connection yet, and the program may have been stopped
    /// between connecting and asking.
    pub(super) async fn fallen_silent(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        let mut silent = 0;
        loop {
            let begun = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(limit).await;
            let is_silent = self.under_way.load(Ordering::Relaxed) == 0 && self.begun.load(Ordering::Relaxed) == begun;
            silent = if is_silent { silent + 1 } else { 0 };
            if is_silent && (begun > 0 || silent == LIMITS_BEFORE_THE_FIRST) {
                return;
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer: its request is under way until it was sent or given up.
pub(super) struct Held {
    body: Body,
    _under_way: UnderWay,
}

impl Held {
    pub(super) fn new(body: Body, under_way: UnderWay) -> Self {
        Self {
            body,
            _under_way: under_way,
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
