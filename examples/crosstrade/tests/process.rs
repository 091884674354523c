//! Tests of the program in its own process: signals, descriptors and the log.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use super::tls::{Folder, Pair};
use super::*;

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The running program. It is killed when this is dropped.
struct Program {
    child: Child,
    addr: SocketAddr,
    token: String,
    folder: PathBuf,
}

impl Program {
    /// Starts the program after the shell command `setup`, with a database of its own.
    fn start(name: &str, setup: &str, stderr: impl FnOnce(&Path) -> Stdio) -> Self {
        Self::start_with(name, setup, &[], stderr)
    }

    /// Starts the program with these arguments too.
    fn start_with(name: &str, setup: &str, args: &[&str], stderr: impl FnOnce(&Path) -> Stdio) -> Self {
        let folder = std::env::temp_dir().join(format!("crosstrade-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
        let program = crash::program(&[&["--database", &url], args].concat());
        let mut child = Command::new("sh")
            .args(["-c", &format!("{setup}\nexec \"$0\" \"$@\"")])
            .arg(program.get_program())
            .args(program.get_args())
            .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdout(Stdio::piped())
            .stderr(stderr(&folder))
            .spawn()
            .unwrap();
        let find = |pattern: &str, line: &str| {
            let found = regex::Regex::new(pattern).unwrap().captures(line)?;
            Some(found[1].to_owned())
        };
        let (mut addr, mut token) = (None, None);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while addr.is_none() || token.is_none() {
            let line = lines.next().expect("the program starts").unwrap();
            addr = addr.or_else(|| find("listening on https?://([^/]*)/", &line));
            token = token.or_else(|| find("(ct_[0-9A-Za-z]+) may trade", &line));
        }
        // Read the rest too, so that the program does not wait for it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, addr: addr.unwrap().parse().unwrap(), token: token.unwrap(), folder }
    }

    fn terminate(&self) {
        self.signal("TERM");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    async fn exit(&mut self) -> ExitStatus {
        let exit = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WATCHDOG, exit).await.expect("the program ends")
    }

    /// What was written to [`log_file`].
    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Sends an alert that changes nothing and returns the status.
    async fn alert(&self, fields: &str) -> StatusCode {
        let request = Request::post(format!("http://{}/v1/webhook", self.addr)).header("content-type", "text/plain");
        let body = format!("key={};command=CANCELALLORDERS;{fields}", self.token);
        let response = timeout(WATCHDOG, send(request.body(body).unwrap())).await;
        response.expect("the program answers").status()
    }

    async fn connect_from(&self, from: impl Into<IpAddr>) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.into(), 0))?;
        socket.connect(self.addr).await
    }

    /// The answer to `GET /healthz` on a new connection from this address; empty if the connection was reset.
    async fn health_from(&self, from: impl Into<IpAddr>) -> String {
        let ask = async {
            let mut stream = self.connect_from(from).await.unwrap();
            let mut answer = Vec::new();
            _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        timeout(WATCHDOG, ask).await.expect("the program answers")
    }

    /// Processor time that the program has used, in clock ticks.
    #[cfg(target_os = "linux")]
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn log_file(folder: &Path) -> Stdio {
    std::fs::File::create(folder.join("log")).unwrap().into()
}

fn no_log(_: &Path) -> Stdio {
    Stdio::null()
}

/// One token sends alerts of 60 KB, each different from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_alerts_by_one_token_leaves_a_small_log() {
    let mut program = Program::start("flood", "", log_file);
    let padding = "x".repeat(60_000);
    let statuses = join_all((0..8).map(async |client| {
        let mut statuses = Vec::new();
        for nth in 0..40 {
            statuses.push(program.alert(&format!("nth={client}/{nth};padding={padding};")).await);
        }
        statuses
    }));
    let statuses = statuses.await.concat();
    let count = |status| statuses.iter().filter(|own| **own == status).count();
    let (admitted, rejected) = (count(StatusCode::OK), count(StatusCode::TOO_MANY_REQUESTS));
    assert!(admitted >= 20 && rejected >= 20, "{admitted} + {rejected}");
    assert_eq!(admitted + rejected, statuses.len());
    program.terminate();
    assert!(program.exit().await.success());
    let log = program.log();
    assert!(log.len() < 200_000, "{} bytes of log", log.len());
    assert!(log.lines().all(|line| line.len() < 4_000));
    assert!(log.contains("CANCELALLORDERS"), "{log}");
}

/// The log is not read, and the pipe is full.
#[tokio::test]
async fn program_answers_while_its_log_is_blocked() {
    let (mut pipe, _unread) = UnixStream::pair().unwrap();
    pipe.set_nonblocking(true).unwrap();
    while pipe.write(&[0; 4096]).is_ok() {}
    pipe.set_nonblocking(false).unwrap();
    let program = Program::start("blocked", "", |_| OwnedFd::from(pipe).into());
    for nth in 0..5 {
        assert_eq!(program.alert(&format!("nth={nth}")).await, StatusCode::OK);
    }
    assert!(program.health_from(Ipv4Addr::LOCALHOST).await.starts_with("HTTP/1.1 200 "));
}

/// 300 clients send requests and never read, while the program may open 256 descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_read_do_not_lock_out_others() {
    let program = Program::start("flooded", "ulimit -n 256", no_log);
    let attacker = Ipv4Addr::new(127, 0, 0, 2);
    let clients = join_all((0..300).map(|_| program.connect_from(attacker))).await;
    let clients: Vec<_> = clients.into_iter().map(Result::unwrap).collect();
    let flood: Vec<_> = clients
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                while stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
                    sleep(Duration::from_millis(500)).await;
                }
            })
        })
        .collect();
    for _ in 0..20 {
        assert!(program.health_from(Ipv4Addr::new(127, 0, 0, 3)).await.starts_with("HTTP/1.1 200 "));
        sleep(Duration::from_millis(200)).await;
    }
    let wait_for = async |status: &str| {
        let wait = async {
            loop {
                let answer = program.health_from(attacker).await;
                if answer.starts_with(status) {
                    return answer;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(WATCHDOG, wait).await.expect(status)
    };
    let busy = wait_for("HTTP/1.1 503 ").await;
    assert!(busy.contains("\r\nconnection: close\r\n") && busy.contains("\r\nretry-after: "), "{busy}");
    flood.iter().for_each(tokio::task::JoinHandle::abort);
    wait_for("HTTP/1.1 200 ").await;
}

/// There are fewer descriptors than the program counts on. It neither ends nor spins, and goes on when there are some.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn program_survives_a_lack_of_descriptors() {
    let mut program = Program::start("descriptors", "ulimit -n 40", log_file);
    let clients = (0..40).map(|nth| program.connect_from(Ipv4Addr::new(127, 0, 1, nth)));
    let clients = join_all(clients).await;
    // The last are not accepted now.
    sleep(Duration::from_millis(500)).await;
    let before = program.ticks();
    sleep(Duration::from_secs(2)).await;
    // Of the 200 ticks of two seconds.
    assert!(program.ticks() - before < 60, "{} ticks", program.ticks() - before);
    drop(clients);
    assert!(program.health_from(Ipv4Addr::LOCALHOST).await.starts_with("HTTP/1.1 200 "));
    program.terminate();
    assert!(program.exit().await.success());
    assert!(program.log().contains("cannot accept connections"), "{}", program.log());
}

/// One client sends a body that never ends, and another has a WebSocket and does not answer.
#[tokio::test]
async fn program_stops_within_the_stated_time() {
    let mut program = Program::start("stop", "", no_log);
    let mut stream = program.connect_from(Ipv4Addr::LOCALHOST).await.unwrap();
    let head = format!(
        "POST /v1/api/accounts/sim101/orders/place HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        program.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let endless = tokio::spawn(async move {
        while stream.write_all(b"1\r\n \r\n").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut silent = program.connect_from(Ipv4Addr::LOCALHOST).await.unwrap();
    let upgrade = format!(
        "GET /ws/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        program.token
    );
    silent.write_all(upgrade.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    silent.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    let begin = Instant::now();
    program.terminate();
    assert!(program.exit().await.success());
    // The stated time is 10 seconds.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    drop(silent);
    endless.await.unwrap();
}

/// The files are not changed at first, so that nothing but the signal loads them.
#[tokio::test]
async fn sighup_loads_the_certificate_again() {
    let folder = Folder::new();
    let files = folder.files();
    let [cert, key] = [&files.cert, &files.key].map(|file| file.to_str().unwrap());
    let args = ["--tls-cert", cert, "--tls-key", key, "--http", "127.0.0.1:0"];
    let mut program = Program::start_with("hangup", "", &args, log_file);
    let logged = async |text: &str, times: usize| {
        let wait = async {
            while program.log().matches(text).count() < times {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WATCHDOG, wait).await.unwrap_or_else(|_| panic!("{text}: {}", program.log()));
    };
    let old = folder.roots();
    let mut open = tls::connect(program.addr, tls::config(old.clone(), &[])).await.unwrap();
    program.signal("HUP");
    logged("TLS certificate loaded", 1).await;
    folder.write(&Pair::new());
    program.signal("HUP");
    let replaced = async { while tls::connect(program.addr, tls::config(folder.roots(), &[])).await.is_err() {} };
    timeout(WATCHDOG, replaced).await.expect("the new certificate is served");
    assert!(tls::connect(program.addr, tls::config(old, &[])).await.is_err());
    let current = folder.roots();
    folder.write(&Pair { cert: String::new(), ..Pair::new() });
    program.signal("HUP");
    logged("TLS certificate not loaded: the old one stays in use", 1).await;
    tls::connect(program.addr, tls::config(current, &[])).await.expect("the old certificate is served");
    open.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(WATCHDOG, open.read_to_string(&mut answer)).await.expect("the program answers").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    program.terminate();
    assert!(program.exit().await.success());
}

/// The program may open 64 descriptors, so that 12 are for the WebSockets of one client behind the proxy.
#[tokio::test]
async fn clients_behind_a_proxy_are_limited_by_their_own_address() {
    let program = Program::start_with("proxied", "ulimit -n 64", &["--behind-proxy", "127.0.1.0/24"], no_log);
    let mut open = Vec::new();
    for (client, expected) in [("192.0.2.1", "101"); 12].into_iter().chain([("192.0.2.1", "503"), ("192.0.2.2", "101")])
    {
        let mut stream = program.connect_from(Ipv4Addr::new(127, 0, 1, 1)).await.unwrap();
        let upgrade = format!(
            "GET /ws/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             x-forwarded-for: {client}\r\nx-forwarded-proto: https\r\n\r\n",
            program.token
        );
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(WATCHDOG, stream.read_exact(&mut answer)).await.expect("the program answers").unwrap();
        assert_eq!(&answer[9..], expected.as_bytes(), "{client}, {} open", open.len());
        open.push(stream);
    }
}
