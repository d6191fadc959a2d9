//! Lets a client of the Unix socket send any `:authority`.
//!
//! gRPC's C core (Python, Ruby, PHP) sends the percent-encoded path of the socket, and h2 resets each request whose
//! authority is no host. A socket has one server, so the header says nothing: the bytes of its value that a host can't
//! have are replaced before h2 reads them. The length stays, and so do the frame and HPACK's table.
//!
//! Only the form that the C core writes is looked for: a literal name and a value of less than 127 bytes, neither of them
//! Huffman-coded (RFC 7541, section 6.2). Nothing but header blocks is changed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Of the client's connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// The name as a string literal: its length, then its bytes.
const NAME: &[u8] = b"\x0a:authority";

/// The first length that takes more than one byte, or the flag of Huffman coding.
const LONG: u8 = 0x7f;

/// A server's end of a connection.
pub(super) struct AnyAuthority<I> {
    io: I,
    scan: Scan,
}

/// How far the client's bytes were read.
struct Scan {
    preface_left: usize,
    frame_header: [u8; FRAME_HEADER_BYTES],
    frame_header_len: usize,
    payload_left: usize,
    is_header_block: bool,
    within: Within,
}

/// What of a header block comes next.
#[derive(Clone, Copy)]
enum Within {
    /// As many bytes of [`NAME`] were there.
    Name(usize),
    Length,
    Value {
        left: u8,
    },
}

impl<I> AnyAuthority<I> {
    pub(super) fn new(io: I) -> Self {
        Self {
            io,
            scan: Scan {
                preface_left: PREFACE_BYTES,
                frame_header: [0; FRAME_HEADER_BYTES],
                frame_header_len: 0,
                payload_left: 0,
                is_header_block: false,
                within: Within::Name(0),
            },
        }
    }
}

impl Scan {
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let part = if self.preface_left > 0 {
                take(&mut self.preface_left, bytes.len())
            } else if self.payload_left > 0 {
                let part = take(&mut self.payload_left, bytes.len());
                if self.is_header_block {
                    bytes[..part].iter_mut().for_each(|byte| self.within.pass(byte));
                }
                part
            } else {
                self.frame_header[self.frame_header_len] = bytes[0];
                self.frame_header_len += 1;
                if self.frame_header_len == FRAME_HEADER_BYTES {
                    self.begin_frame();
                }
                1
            };
            bytes = &mut bytes[part..];
        }
    }

    fn begin_frame(&mut self) {
        let [a, b, c, kind, ..] = self.frame_header;
        self.frame_header_len = 0;
        self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
        self.is_header_block = matches!(kind, HEADERS | CONTINUATION);
        if kind == HEADERS {
            self.within = Within::Name(0);
        }
    }
}

impl Within {
    fn pass(&mut self, byte: &mut u8) {
        *self = match *self {
            Self::Name(matched) if *byte == NAME[matched] => match matched + 1 == NAME.len() {
                true => Self::Length,
                false => Self::Name(matched + 1),
            },
            Self::Name(_) => Self::Name(usize::from(*byte == NAME[0])),
            Self::Length if (1..LONG).contains(&*byte) => Self::Value { left: *byte },
            Self::Length => Self::Name(0),
            Self::Value { left } => {
                if !byte.is_ascii_alphanumeric() {
                    *byte = b'-';
                }
                match left {
                    1 => Self::Name(0),
                    _ => Self::Value { left: left - 1 },
                }
            }
        };
    }
}

/// As much of `left` as `available` has.
fn take(left: &mut usize, available: usize) -> usize {
    let part = available.min(*left);
    *left -= part;
    part
}

impl<I: AsyncRead + Unpin> AsyncRead for AnyAuthority<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.scan.pass(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
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
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &[u8] = b"tmp%2Fs.sock";

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("it is short");
        [&[0, 0, length, kind, 4, 0, 0, 0, 1][..], payload].concat()
    }

    fn literal(value: &[u8]) -> Vec<u8> {
        let length = u8::try_from(value.len()).expect("it is short");
        [&b"\x83\x40"[..], NAME, &[length], value, b"\x86"].concat()
    }

    /// Keys are in DATA frames.
    #[test]
    fn only_header_blocks_are_changed_wherever_a_read_ends() {
        let preface = [0; PREFACE_BYTES];
        let block = literal(VALUE);
        let (first, second) = block.split_at(9);
        let written = |block: &[u8], first: &[u8], second: &[u8]| {
            let data = frame(0, &literal(VALUE));
            let headers = frame(HEADERS, block);
            let split = [frame(HEADERS, first), frame(CONTINUATION, second)].concat();
            [&preface[..], &headers, &data, &split].concat()
        };
        let changed = literal(b"tmp-2Fs-sock");
        let expected = written(&changed, &changed[..9], &changed[9..]);
        for size in 1..40 {
            let mut bytes = written(&block, first, second);
            let mut scan = AnyAuthority::new(()).scan;
            bytes.chunks_mut(size).for_each(|part| scan.pass(part));
            assert_eq!(bytes, expected, "read in parts of {size}");
        }
    }
}
