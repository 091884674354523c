//! The frames of a WebSocket, byte by byte, and how a connection ends (RFC 6455).

use base64::prelude::{BASE64_STANDARD, Engine as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::*;
use crate::app::MAX_BODY;
use tollgate::store::Invalidation;

/// A watchdog: far more than any time limit of the server.
const WATCHDOG: Duration = Duration::from_secs(60);

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
const FIN: u8 = 0x80;

/// A frame of a client, whose mask changes nothing if it is 0.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn text(message: &str) -> Vec<u8> {
    frame(FIN | TEXT, [1, 2, 3, 4], message.as_bytes())
}

/// A Close frame with this code and reason, or with neither.
fn close(code: Option<u16>, reason: &str) -> Vec<u8> {
    frame(FIN | CLOSE, [5, 6, 7, 8], &close_payload(code, reason))
}

fn close_payload(code: Option<u16>, reason: &str) -> Vec<u8> {
    let code = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
    [code, reason.as_bytes().to_vec()].concat()
}

#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Text(String),
    Ping,
    Pong(Vec<u8>),
    /// The code, if there is one.
    Close(Option<u16>),
}

pub(super) struct Reader(OwnedReadHalf);

impl Reader {
    /// The next frame, or `None` at the end of the connection, which must not be reset.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 2];
        if timeout(WATCHDOG, self.0.read(&mut head[..1])).await.expect("in time").expect("no reset") == 0 {
            return None;
        }
        self.fill(&mut head[1..]).await;
        assert_eq!(head[0] & 0xf0, FIN, "whole messages, and no extension");
        let len = match head[1] {
            126 => {
                let mut len = [0; 2];
                self.fill(&mut len).await;
                usize::from(u16::from_be_bytes(len))
            }
            len @ ..126 => usize::from(len),
            _ => panic!("a large or masked frame"),
        };
        let mut payload = vec![0; len];
        self.fill(&mut payload).await;
        Some(match head[0] & 0xf {
            TEXT => Frame::Text(String::from_utf8(payload).unwrap()),
            PING => Frame::Ping,
            PONG => Frame::Pong(payload),
            CLOSE => Frame::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
            other => panic!("frame of type {other}"),
        })
    }

    async fn fill(&mut self, bytes: &mut [u8]) {
        timeout(WATCHDOG, self.0.read_exact(bytes)).await.expect("in time").expect("no reset");
    }
}

pub(super) struct Raw {
    pub(super) reader: Reader,
    pub(super) writer: OwnedWriteHalf,
}

impl Raw {
    pub(super) async fn open(server: &Server, token: &str) -> Self {
        Self::open_at(server.addr, token).await
    }

    pub(super) async fn open_at(addr: SocketAddr, token: &str) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let key = BASE64_STANDARD.encode([7; 16]);
        let head = format!(
            "GET /ws/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timeout(WATCHDOG, stream.read_u8()).await.expect("in time").unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
        let (reader, writer) = stream.into_split();
        Self { reader: Reader(reader), writer }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        timeout(WATCHDOG, self.writer.write_all(bytes)).await.expect("in time").expect("the server reads");
    }

    pub(super) async fn pong(&mut self) {
        self.send(&frame(FIN | PONG, [0; 4], b"")).await;
    }

    pub(super) async fn close(&mut self, code: Option<u16>) {
        self.send(&close(code, "")).await;
    }

    pub(super) async fn send_ping(&mut self) {
        self.send(&text(r#"{"op":"ping"}"#)).await;
    }

    /// Asks something that is answered at any time. Pings of the server are answered on the way.
    pub(super) async fn ask_ping(&mut self) {
        self.send_ping().await;
        loop {
            match self.reader.next().await {
                Some(Frame::Ping) => self.pong().await,
                Some(Frame::Text(answer)) => return assert_eq!(answer, r#"{"op":"pong"}"#),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The code of the Close frame that comes next, and that nothing follows until the server ends the connection.
    async fn ends_with(mut self, reply: bool) -> Option<u16> {
        let Some(Frame::Close(code)) = self.reader.next().await else { panic!("no Close frame") };
        if reply {
            self.send(&close(code, "")).await;
        }
        assert_eq!(self.reader.next().await, None, "nothing follows Close, and the server ends the connection");
        code
    }
}

/// A browser reports 1006, a connection that broke off, if its Close frame is not answered.
#[tokio::test]
async fn close_is_answered_with_close() {
    let server = Server::start().await;
    for (sent, reason, answered) in [
        (Some(1000), "", Some(1000)),
        (Some(1001), "going away", Some(1001)),
        (Some(3000), "r\u{e9}ason", Some(3000)),
        (Some(4999), "", Some(4999)),
        (None, "", None),
        // Codes that no endpoint may send (section 7.4.1).
        (Some(1005), "", Some(1002)),
        (Some(1006), "", Some(1002)),
        (Some(999), "", Some(1002)),
    ] {
        let mut raw = Raw::open(&server, TRADER).await;
        raw.send(&close(sent, reason)).await;
        assert_eq!(raw.ends_with(false).await, answered, "{sent:?}");
    }
    // After a message, whose answer comes first, and in one segment with it.
    let mut raw = Raw::open(&server, TRADER).await;
    raw.send(&[text(r#"{"op":"ping"}"#), close(Some(1000), "")].concat()).await;
    assert_eq!(raw.reader.next().await, Some(Frame::Text(r#"{"op":"pong"}"#.to_owned())));
    assert_eq!(raw.ends_with(false).await, Some(1000));
}

/// Also if the client sends all of its message before it reads.
#[tokio::test]
async fn messages_that_are_too_large_end_with_1009() {
    let server = Server::start().await;
    let too_large = "a".repeat(MAX_BODY + 1);
    let half = "a".repeat(MAX_BODY / 2 + 1);
    let fragments = |opcode: u8| {
        let second = frame(CONTINUATION, [0; 4], half.as_bytes());
        [frame(opcode, [0; 4], half.as_bytes()), second, frame(FIN | CONTINUATION, [0; 4], b"a")].concat()
    };
    let many = [vec![frame(TEXT, [0; 4], b"a")], vec![frame(CONTINUATION, [0; 4], b"a"); MAX_BODY]].concat().concat();
    for (bytes, what) in [
        (text(&too_large), "text"),
        (frame(FIN | BINARY, [1; 4], too_large.as_bytes()), "binary"),
        (fragments(TEXT), "text in fragments"),
        (fragments(BINARY), "binary in fragments"),
        (many, "text in fragments of one byte"),
        (text(&"a".repeat(32 << 20)), "more than any buffer holds"),
    ] {
        for reply in [true, false] {
            let mut raw = Raw::open(&server, "ct_other").await;
            raw.send(&bytes).await;
            // A client that answers closes its side, as all do, and so does one that does not.
            let Some(Frame::Close(code)) = raw.reader.next().await else { panic!("{what}: no Close frame") };
            assert_eq!(code, Some(1009), "{what}");
            if reply {
                raw.send(&close(code, "")).await;
            }
            raw.writer.shutdown().await.unwrap();
            assert_eq!(raw.reader.next().await, None, "{what}");
        }
    }
}

#[tokio::test]
async fn messages_of_the_largest_size_are_answered() {
    let server = Server::start().await;
    let padded = r#"{"op":"ping"}"#.to_owned() + &" ".repeat(MAX_BODY - r#"{"op":"ping"}"#.len());
    let mut raw = Raw::open(&server, TRADER).await;
    let (first, second) = padded.split_at(MAX_BODY / 2);
    let second = [frame(FIN | PING, [0; 4], b"between"), frame(FIN | CONTINUATION, [3; 4], second.as_bytes())];
    raw.send(&text(&padded)).await;
    raw.send(&[frame(TEXT, [2; 4], first.as_bytes()), second.concat()].concat()).await;
    let pong = || Some(Frame::Text(r#"{"op":"pong"}"#.to_owned()));
    assert_eq!(raw.reader.next().await, pong());
    assert_eq!(raw.reader.next().await, Some(Frame::Pong(b"between".to_vec())));
    assert_eq!(raw.reader.next().await, pong());
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_with_its_codes() {
    let server = Server::start().await;
    let mut unmasked = text("{}");
    unmasked[1] &= 0x7f;
    for (bytes, code, what) in [
        (unmasked, 1002, "unmasked"),
        (frame(FIN | 0x40 | TEXT, [0; 4], b"{}"), 1002, "reserved bit"),
        (frame(FIN | 0x3, [0; 4], b"{}"), 1002, "reserved type"),
        (frame(FIN | CONTINUATION, [0; 4], b"{}"), 1002, "a continuation of nothing"),
        (frame(PING, [0; 4], b""), 1002, "a ping in fragments"),
        (frame(FIN | PING, [0; 4], &[0; 126]), 1002, "a large ping"),
        (frame(FIN | CLOSE, [0; 4], &[3]), 1002, "half a code"),
        (frame(FIN | TEXT, [0; 4], b"\xff"), 1007, "not UTF-8"),
        (
            [frame(TEXT, [0; 4], b"\xe2"), frame(FIN | CONTINUATION, [0; 4], b"\x28\xa1")].concat(),
            1007,
            "nor in fragments",
        ),
        (
            frame(FIN | CLOSE, [0; 4], &close_payload(Some(1000), "").into_iter().chain([0xff]).collect::<Vec<_>>()),
            1007,
            "a reason",
        ),
        (frame(FIN | BINARY, [0; 4], b"{}"), 1003, "binary"),
    ] {
        let mut raw = Raw::open(&server, "ct_other").await;
        raw.send(&bytes).await;
        assert_eq!(raw.reader.next().await, Some(Frame::Close(Some(code))), "{what}");
        raw.writer.shutdown().await.unwrap();
        assert_eq!(raw.reader.next().await, None, "{what}");
    }
}

/// The server reads no more pings until its answers were sent, and closes the connection after a time limit.
#[tokio::test(start_paused = true)]
async fn a_client_that_sends_pings_and_reads_nothing_is_dropped() {
    live::short_steps();
    let server = Server::start().await;
    let mut raw = Raw::open(&server, TRADER).await;
    let pings = frame(FIN | PING, [1; 4], &[0; 125]).repeat(1_000);
    let mut sent = 0;
    while timeout(WATCHDOG, raw.writer.write_all(&pings)).await.expect("in time").is_ok() {
        sent += pings.len();
        assert!(sent < 64 << 20, "more than the buffers of two connections hold");
    }
}

/// Messages in pieces, Close frames of the client, revocations and a service that stops, at random times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_close_frame_ends_each_socket_whatever_comes_at_the_same_time() {
    let (mut random, seed) = Random::new();
    let mut ends = [0; 3];
    for round in 0..150 {
        let what = format!("round {round} of seed {seed}");
        let server = Server::start().await;
        let Raw { mut reader, mut writer } = Raw::open(&server, TRADER).await;
        let texts = random.below(12);
        let mut bytes = Vec::new();
        for _ in 0..texts {
            match random.below(4) {
                0 => {
                    bytes.extend(frame(TEXT, [9; 4], br#"{"op":"#));
                    bytes.extend(frame(FIN | PING, [9; 4], b"between"));
                    bytes.extend(frame(FIN | CONTINUATION, [9; 4], br#""ping"}"#));
                }
                1 => bytes.extend([frame(FIN | PONG, [9; 4], b""), text(r#"{"op":"ping"}"#)].concat()),
                _ => bytes.extend(text(r#"{"op":"ping"}"#)),
            }
        }
        let own_close = (random.below(4) > 0).then(|| 3_000 + random.below(1_000) as u16);
        if let Some(code) = own_close {
            bytes.extend(close(Some(code), "done"));
        }
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let rest = bytes.split_off(bytes.len().min(1 + random.below(64) as usize));
            pieces.push((bytes, random.below(3)));
            bytes = rest;
        }
        let write = async move {
            for (piece, pause) in pieces {
                // The server may have closed already.
                if writer.write_all(&piece).await.is_err() {
                    break;
                }
                match pause {
                    0 => {}
                    1 => tokio::task::yield_now().await,
                    _ => tokio::time::sleep(Duration::from_micros(100)).await,
                }
            }
            writer
        };
        let (event, at) = (if own_close.is_none() { random.below(2) } else { random.below(3) }, random.below(4_000));
        let happen = async {
            tokio::time::sleep(Duration::from_micros(at)).await;
            match event {
                0 => {
                    server.tokens.revoke(TokenDigest::of(TRADER));
                    server.live.refresh(&Invalidation::Grant("demo-1".into()));
                }
                1 => _ = server.close.send(true),
                _ => {}
            }
        };
        let read = async {
            let mut answers = 0;
            let end = loop {
                match reader.next().await.expect("a Close frame first") {
                    Frame::Close(code) => break code.unwrap(),
                    Frame::Text(_) => answers += 1,
                    Frame::Ping | Frame::Pong(_) => {}
                }
            };
            (answers, end)
        };
        let (mut writer, (answers, end), ()) = tokio::join!(write, read, happen);
        if own_close != Some(end) {
            assert_eq!(end, if event == 0 { 1008 } else { 1001 }, "{what}");
            if own_close.is_none() {
                _ = writer.write_all(&close(Some(end), "")).await;
            }
        }
        assert!(answers <= texts, "{what}");
        if event == 2 {
            assert_eq!((answers, Some(end)), (texts, own_close), "{what}");
        }
        assert_eq!(reader.next().await, None, "{what}: nothing follows Close");
        ends[if own_close == Some(end) { 2 } else { event as usize }] += 1;
    }
    assert!(ends.iter().all(|&ends| ends > 5), "each end was met, or nothing was tested: {ends:?} of seed {seed}");
}

/// Numbers for schedules, from a seed that a failed test shows.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> (Self, u64) {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from_le_bytes(seed));
        (Self(seed | 1), seed)
    }

    /// A number below this one (xorshift).
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}
