//! Requests that are one message are received before anybody works on them, within a time and a size.
//!
//! gRPC libraries set a message's announced size aside with its first five bytes and wait for the rest without an end. Here
//! only what has come is held, and not for long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use http_body::{Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes};

use super::limits::STREAMING_REQUESTS;

/// gRPC's prefix of each message: one byte of flags and four of length.
const PREFIX_BYTES: usize = 5;

/// Whether a call's request is a stream of messages, which lasts as long as both sides like.
pub(super) fn is_streaming(path: &str) -> bool {
    STREAMING_REQUESTS.contains(&path)
}

/// Waits for the whole of a request that is one message. `turns` bounds how many are received at once.
pub(super) async fn receive(
    request: Request<Body>,
    max_message_bytes: usize,
    time: Duration,
    turns: &Semaphore,
) -> Result<Request<Body>, Status> {
    let (head, body) = request.into_parts();
    let receiving = async {
        let _turn = turns.acquire().await;
        collect(body, max_message_bytes + PREFIX_BYTES).await
    };
    let late = |_| Status::deadline_exceeded("the request did not arrive in time");
    let received = timeout(time, receiving).await.map_err(late)??;
    Ok(Request::from_parts(head, Body::new(Received(received))))
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, Status> {
    let mut received = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| Status::cancelled("the request broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > max_bytes {
            return Err(Status::out_of_range(format!(
                "the request is larger than {} bytes",
                max_bytes - PREFIX_BYTES
            )));
        }
        if received.is_empty() && announced(&data) > max_bytes {
            return Err(Status::out_of_range(format!(
                "the request announces more than {} bytes",
                max_bytes - PREFIX_BYTES
            )));
        }
        received.extend_from_slice(&data);
    }
    Ok(received.into())
}

/// Bytes of the first message with its prefix, if the prefix is there. Without it the sum decides later.
fn announced(start: &[u8]) -> usize {
    match start {
        [_flags, a, b, c, d, ..] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            usize::try_from(length)
                .unwrap_or(usize::MAX)
                .saturating_add(PREFIX_BYTES)
        }
        _ => 0,
    }
}

/// A request that is here as a whole.
struct Received(Bytes);

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.0)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A streaming call that was taken for a unary one would be cut off after a few seconds.
    #[test]
    fn the_calls_that_stream_requests_are_those_of_the_contracts() {
        let contracts = [
            include_str!("../../../lockbox/control/v1/control.proto"),
            include_str!("../../../lockbox/local/v1/local.proto"),
            include_str!("../../../lockbox/node/v1/node.proto"),
            include_str!("../../../lockbox/peer/v1/peer.proto"),
        ];
        let mut found = Vec::new();
        for contract in contracts {
            let after = |line: &str, word: &str| line.trim().strip_prefix(word).map(str::to_owned);
            let package = contract
                .lines()
                .find_map(|line| after(line, "package "))
                .expect("it names its package");
            let service = contract
                .lines()
                .find_map(|line| after(line, "service "))
                .expect("it has a service");
            for method in contract.lines().filter_map(|line| after(line, "rpc ")) {
                let (name, rest) = method.split_once('(').expect("a method has a request");
                if rest.starts_with("stream ") {
                    let (package, service) = (package.trim_end_matches(';'), service.trim_end_matches(" {"));
                    found.push(format!("/{package}.{service}/{name}"));
                }
            }
        }
        found.sort();
        assert_eq!(found, STREAMING_REQUESTS);
    }
}
