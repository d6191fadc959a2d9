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
///
/// A write that fails before that is answered only after a read: whoever refuses and closes may have reset the connection
/// meanwhile, and what was refused then stands in the bytes that arrived before the reset.
#[derive(Debug)]
pub(super) struct Watched<I> {
    io: I,
    tell: Option<oneshot::Sender<io::Result<()>>>,
    /// The error of a write, while the read is awaited that says why.
    failed_write: Option<io::Error>,
}

/// Becomes the outcome of the first read.
#[derive(Debug)]
pub(super) struct FirstAnswer {
    outcome: oneshot::Receiver<io::Result<()>>,
}

impl<I> Watched<I> {
    pub(super) fn new(io: I) -> (Self, FirstAnswer) {
        let (tell, outcome) = oneshot::channel();
        let watched = Self {
            io,
            tell: Some(tell),
            failed_write: None,
        };
        (watched, FirstAnswer { outcome })
    }

    /// For a connection that nobody waits for.
    pub(super) fn unwatched(io: I) -> Self {
        Self {
            io,
            tell: None,
            failed_write: None,
        }
    }
}

impl FirstAnswer {
    /// An error says why there will be no answer.
    pub(super) async fn wait(self) -> io::Result<()> {
        // The sender is dropped unused when the connection was given up before anything was read.
        self.outcome
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Watched<I> {
    /// One write or flush; if it fails before the first answer, what is there to be read comes first.
    fn poll_out<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed_write.is_none() {
            match ready!(poll(Pin::new(&mut self.io), cx)) {
                Err(error) if self.tell.is_some() => self.failed_write = Some(error),
                outcome => return Poll::Ready(outcome),
            }
        }
        let mut discarded = [0; 1024];
        if self.tell.is_some() {
            // The outcome is told to the other half; this one has the error of its write.
            let _ = ready!(Pin::new(&mut *self).poll_read(cx, &mut ReadBuf::new(&mut discarded)));
        }
        let error = self.failed_write.take();
        Poll::Ready(Err(error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
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

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_out(cx, |io, cx| io.poll_write(cx, buffer))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, |io, cx| io.poll_write_vectored(cx, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};

    use tokio::io::{AsyncWriteExt, Interest};
    use tokio::net::TcpStream;

    use super::*;

    /// A connection whose server has sent `last_words`, ended its half, and then reset it.
    async fn reset_after(last_words: &[u8]) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (mut server, _) = listener.accept().expect("it is connected");
        client.write_all(b"greeting").await.expect("it is open");
        server.read_exact(&mut [0]).expect("the greeting has arrived");
        server.write_all(last_words).expect("it is open");
        server.shutdown(Shutdown::Write).expect("it is open");
        // Bytes of the client's are unread, so the kernel answers them with a reset.
        drop(server);
        client.ready(Interest::ERROR).await.expect("the reset arrives");
        client
    }

    #[tokio::test]
    async fn what_was_said_before_a_reset_is_heard_though_a_write_came_first() {
        let (mut watched, answer) = Watched::new(reset_after(b"you may not").await);
        assert!(watched.write_all(b"a request").await.is_err(), "it is reset");
        drop(watched);
        answer.wait().await.expect("the answer was there before the reset");
    }

    #[tokio::test]
    async fn a_reset_without_a_word_is_no_answer() {
        let (mut watched, answer) = Watched::new(reset_after(b"").await);
        assert!(watched.write_all(b"a request").await.is_err(), "it is reset");
        drop(watched);
        assert!(answer.wait().await.is_err());
    }
}
