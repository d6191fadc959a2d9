//! Waits until a server has answered at all.
//!
//! In TLS 1.3 a client's handshake is over before the server has looked at the client's key (RFC 8446, section 2), and
//! on a Unix socket there is no handshake. A refusal arrives later, as an alert or an end of the stream in place of
//! the server's first HTTP/2 frame. Without this wait it would come up in some first request, as a broken pipe.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Passes everything through, and tells the other half how the first read ended.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    tell: Option<oneshot::Sender<io::Result<()>>>,
}

/// Becomes the outcome of the first read.
#[derive(Debug)]
pub(super) struct FirstAnswer {
    outcome: oneshot::Receiver<io::Result<()>>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I) -> (Self, FirstAnswer) {
        let (tell, outcome) = oneshot::channel();
        let watched = Self { io, tell: Some(tell) };
        (watched, FirstAnswer { outcome })
    }

    /// For a connection that nobody waits for.
    pub(super) fn unwatched(io: I) -> Self {
        Self { io, tell: None }
    }
}

impl FirstAnswer {
    /// An error says why there will be no answer.
    pub(super) async fn wait(self) -> io::Result<()> {
        // The sender is dropped unused when writing failed before anything was read.
        self.outcome
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        let Some(tell) = self.tell.take() else {
            return Poll::Ready(outcome);
        };
        let (told, outcome) = match outcome {
            Ok(()) if buffer.filled().len() > before => (Ok(()), Ok(())),
            Ok(()) => (Err(io::ErrorKind::UnexpectedEof.into()), Ok(())),
            // An `io::Error` can't be had twice; the waiting half is the one that explains it.
            Err(error) => {
                let kind = error.kind();
                (Err(error), Err(kind.into()))
            }
        };
        // The other half may have given up waiting.
        let _ = tell.send(told);
        Poll::Ready(outcome)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
