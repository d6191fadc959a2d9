//! A client of a lockbox's socket that writes its HTTP/2 frames itself (RFC 9113): for what no client library sends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::DEADLINE;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The only request's stream.
const STREAM: u32 = 1;

pub struct RawClient(UnixStream);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl RawClient {
    /// Begins a `GetStatus` with this `:authority`. Returns when the daemon has read the headers; it waits for the message.
    pub fn begin(socket: &Path, authority: &str) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("the deadline is not zero");
        let mut client = Self(stream);
        client.0.write_all(PREFACE).expect("the daemon reads");
        client.write(SETTINGS, 0, 0, &[]);
        client.write(HEADERS, END_HEADERS, STREAM, &header_block(authority));
        client.write(PING, 0, 0, &[0; 8]);
        // Frames are read in their order.
        while !matches!(
            client.read(),
            Frame {
                kind: PING,
                flags: ACK,
                ..
            }
        ) {}
        client
    }

    /// Sends the message, and tells whether the answer begins with headers. A refused request gets RST_STREAM.
    pub fn is_answered(mut self) -> bool {
        // An empty message: not compressed, no bytes (gRPC's length-prefixed message).
        self.write(DATA, END_STREAM, STREAM, &[0; 5]);
        loop {
            let frame = self.read();
            if frame.stream == STREAM {
                return frame.kind == HEADERS;
            }
        }
    }

    fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).expect("the daemon reads");
    }

    fn read(&mut self) -> Frame {
        let mut header = [0; 9];
        self.0.read_exact(&mut header).expect("the daemon answers");
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).expect("the daemon answers");
        Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
        }
    }
}

/// HPACK (RFC 7541) without its dynamic table: literals, two with names of their own as gRPC's C core writes them.
fn header_block(authority: &str) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` of the static table.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/lockbox.local.v1.LocalService/GetStatus"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0x00);
        for text in [name, value] {
            block.push(
                u8::try_from(text.len())
                    .ok()
                    .filter(|length| *length < 127)
                    .expect("it is short"),
            );
            block.extend(text.as_bytes());
        }
    }
    block
}
