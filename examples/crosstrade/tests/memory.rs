//! The memory of an open socket.
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Child;

use tollgate::mint::TokenFormat;
use tollgate::store::sql::NewGrant;

use super::frames::Raw;
use super::*;
use crate::database;
use crate::sockets::MAX_SOCKETS;

/// A process of its own, which is killed when the test ends.
struct Program(Child);

impl Program {
    /// The memory that it uses.
    fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// It was 131 KiB each, nearly all of it a buffer. It is 6 KiB in a release build.
#[tokio::test]
async fn an_idle_socket_takes_less_than_24_kib() {
    let folder = std::env::temp_dir().join(format!("crosstrade-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
    let users = 20;
    let database = database::open(&url).await.unwrap();
    let mut secrets = Vec::new();
    for user in 0..users {
        let issued =
            database.issue(&TokenFormat::new("ct").unwrap(), &NewGrant::new(format!("user-{user}"))).await.unwrap();
        secrets.push(issued.secret);
    }

    let mut process = crash::program(&["--database", &url]).spawn().unwrap();
    // Kept, so that the program can go on to write.
    let mut out = BufReader::new(process.stdout.take().unwrap());
    let program = Program(process);
    let addr = out.by_ref().lines().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once("listening on http://")?;
        rest.split('/').next()?.parse().ok()
    });
    let addr = addr.expect("the program shows where it listens");

    let mut sockets = Vec::new();
    let mut before = 0;
    for secret in &secrets {
        for _ in 0..MAX_SOCKETS {
            let mut socket = Raw::open_at(addr, secret.expose()).await;
            // So that its buffers are there.
            socket.send(&[0x89, 0x80, 0, 0, 0, 0]).await;
            socket.reader.next().await.expect("a pong");
            sockets.push(socket);
        }
        if before == 0 {
            // The first sockets take what all others share.
            before = program.resident_kib();
        }
    }
    let each = program.resident_kib().saturating_sub(before) / (MAX_SOCKETS * (users - 1));
    assert!(each < 24, "{each} KiB");
    drop((program, out));
    _ = std::fs::remove_dir_all(&folder);
}
