//! Redis servers for tests: a key prefix on a shared server, and private servers that a test may kill.
//!
//! They are controlled over a separate blocking connection, independent of the client library. Without a server the tests report
//! `skipped: no Redis` with their names, as in `servers`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{skip, unique};

/// A timeout that only a hanging test exceeds.
const NEVER: Duration = Duration::from_secs(30);

/// A reply of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    pub fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            other => panic!("{other:?} is not a text"),
        }
    }

    pub fn list(self) -> Vec<Reply> {
        match self {
            Self::List(list) => list,
            other => panic!("{other:?} is not a list"),
        }
    }
}

/// A blocking connection. It must not go through a proxy on the test's own thread.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    /// Connects to `redis://[[user]:password@]host[:port][/database]`.
    pub fn open(url: &str) -> io::Result<Self> {
        let (userinfo, address, database) = parts(url);
        let address = std::net::ToSocketAddrs::to_socket_addrs(&address)?.next().ok_or(io::ErrorKind::NotFound)?;
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut wire = Self(BufReader::new(stream));
        if let Some((user, password)) = userinfo.and_then(|userinfo| userinfo.split_once(':')) {
            let arguments = ["AUTH", user, password];
            wire.ask(&arguments.into_iter().filter(|argument| !argument.is_empty()).collect::<Vec<_>>())?;
        }
        if !database.is_empty() {
            wire.ask(&["SELECT", database])?;
        }
        Ok(wire)
    }

    pub fn ask(&mut self, arguments: &[&str]) -> io::Result<Reply> {
        let mut command = format!("*{}\r\n", arguments.len());
        for argument in arguments {
            command += &format!("${}\r\n{argument}\r\n", argument.len());
        }
        self.0.get_mut().write_all(command.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let Some(rest) = line.strip_suffix("\r\n").filter(|line| !line.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let (kind, rest) = rest.split_at(1);
        let count = || rest.parse::<i64>().map_err(io::Error::other);
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            ":" => Reply::Int(count()?),
            "$" => match usize::try_from(count()?) {
                Err(_) => Reply::Nil,
                Ok(len) => {
                    let mut text = vec![0; len + 2];
                    self.0.read_exact(&mut text)?;
                    Reply::Text(String::from_utf8_lossy(&text[..len]).into_owned())
                }
            },
            "*" => Reply::List((0..count()?).map(|_| self.reply()).collect::<io::Result<_>>()?),
            _ => return Err(io::Error::other(line.trim_end().to_owned())),
        })
    }
}

/// Returns the user info before the `@`, `host:port`, and the number of the database.
fn parts(url: &str) -> (Option<&str>, String, &str) {
    let rest = url.split_once("://").unwrap().1;
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (userinfo, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:6379") };
    (userinfo, address, database)
}

/// Returns the time of the server's clock since 1970, the clock that buckets use.
pub fn time_of(url: &str) -> Duration {
    let time = Wire::open(url).unwrap().ask(&["TIME"]).unwrap().list();
    let [seconds, micros] = [0, 1].map(|at: usize| time[at].clone().text().parse().unwrap());
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// A key prefix on the shared server for one test. Its keys are deleted on drop.
pub struct RedisHome {
    url: String,
    prefix: String,
}

impl RedisHome {
    /// Connects to `TOLLGATE_TEST_REDIS`, or to Redis on this machine.
    pub fn new(test: &str) -> Option<Self> {
        let named = std::env::var("TOLLGATE_TEST_REDIS").ok();
        let url = named.unwrap_or_else(|| "redis://127.0.0.1:6379".to_owned());
        if Wire::open(&url).and_then(|mut wire| wire.ask(&["PING"])).is_err() {
            skip("Redis", test);
            return None;
        }
        Some(Self { url, prefix: format!("tollgate-test-{}", unique()) })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns `host:port` of the server.
    pub fn address(&self) -> String {
        parts(&self.url).1
    }

    /// Returns the URL with another address, such as that of a proxy.
    pub fn url_through(&self, address: SocketAddr) -> String {
        through(&self.url, address)
    }

    pub fn wire(&self) -> Wire {
        Wire::open(&self.url).unwrap()
    }

    /// Returns the current keys of this test.
    pub fn keys(&self) -> Vec<String> {
        keys(&mut self.wire(), &self.prefix).unwrap()
    }
}

impl Drop for RedisHome {
    fn drop(&mut self) {
        _ = Wire::open(&self.url).and_then(|mut wire| {
            for key in keys(&mut wire, &self.prefix)? {
                wire.ask(&["DEL", &key])?;
            }
            Ok(())
        });
    }
}

/// Returns all keys with the prefix, also in a hash tag.
fn keys(wire: &mut Wire, prefix: &str) -> io::Result<Vec<String>> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let page = wire.ask(&["SCAN", &cursor, "MATCH", &format!("*{prefix}*"), "COUNT", "1000"])?.list();
        let [next, keys] = [0, 1].map(|at: usize| page[at].clone());
        found.extend(keys.list().into_iter().map(Reply::text));
        cursor = next.text();
        if cursor == "0" {
            found.sort();
            found.dedup();
            return Ok(found);
        }
    }
}

fn through(url: &str, address: SocketAddr) -> String {
    let (userinfo, _, database) = parts(url);
    let userinfo = userinfo.map_or(String::new(), |userinfo| format!("{userinfo}@"));
    format!("redis://{userinfo}{address}/{database}")
}

/// A private `redis-server` with its own folder and port. It is killed on drop, and at the end of the test's process.
pub struct PrivateRedis {
    port: u16,
    folder: PathBuf,
    arguments: Vec<String>,
    /// A shell that kills the server when its standard input is closed.
    guard: Option<Child>,
}

impl PrivateRedis {
    /// Returns the number of scripts that the server has run.
    pub fn trips(&self) -> u64 {
        let Reply::Text(stats) = self.ask(&["INFO", "commandstats"]).unwrap() else { panic!("not a text") };
        let calls = |name: &str| {
            let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
            line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
        };
        calls("evalsha") + calls("eval")
    }

    /// Starts an empty server that writes nothing to disk.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[])
    }

    /// Starts an empty server with more arguments.
    pub fn start_with(test: &str, more: &[&str]) -> Option<Self> {
        let mut server = Self::new(test)?;
        server.arguments.extend(["--save", "", "--appendonly", "no"].map(str::to_owned));
        server.arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        server.start_again();
        Some(server)
    }

    fn new(test: &str) -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        if !version.is_ok_and(|version| version.success()) {
            skip("redis-server", test);
            return None;
        }
        let folder = std::env::temp_dir().join(format!("tollgate-redis-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        Some(Self { port: free_port(), folder, arguments: Vec::new(), guard: None })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}/", self.address())
    }

    pub fn url_through(&self, address: SocketAddr) -> String {
        through(&self.url(), address)
    }

    /// Sends a command on a new connection.
    pub fn ask(&self, arguments: &[&str]) -> io::Result<Reply> {
        Wire::open(&self.url())?.ask(arguments)
    }

    /// Kills the server (SIGKILL): connections are reset, and the data is lost.
    pub fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            _ = guard.wait();
        }
    }

    /// Starts the server on the same port, without data.
    pub fn start_again(&mut self) {
        self.kill();
        let port = self.port.to_string();
        let guard = Command::new("sh")
            .args(["-c", r#""$@" & read -r _; kill -9 $!; wait"#, "sh", "redis-server"])
            .args(&self.arguments)
            .args(["--port", &port, "--bind", "127.0.0.1", "--dir"])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.guard = Some(guard.unwrap());
        until("the server replies", || self.ask(&["PING"]).is_ok());
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A cluster of three masters, each with a third of the slots.
pub struct RedisCluster(pub Vec<PrivateRedis>);

impl PrivateRedis {
    /// Sends a command of `CLUSTER` about the slots that the node at this index has at first.
    pub fn ask_about_slots(&self, command: &str, at: usize) {
        let slots: Vec<String> = (at * 16_384 / 3..(at + 1) * 16_384 / 3).map(|slot| slot.to_string()).collect();
        let arguments: Vec<&str> = ["CLUSTER", command].into_iter().chain(slots.iter().map(|s| &**s)).collect();
        self.ask(&arguments).unwrap();
    }
}

impl RedisCluster {
    pub fn start(test: &str) -> Option<Self> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            // A failed master must not make the other slots unavailable.
            let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
            let arguments = [&arguments[..], &["--cluster-require-full-coverage", "no"]].concat();
            nodes.push(PrivateRedis::start_with(test, &arguments)?);
        }
        for (at, node) in nodes.iter().enumerate() {
            node.ask_about_slots("ADDSLOTS", at);
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]).unwrap();
        }
        for node in &nodes[1..] {
            nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]).unwrap();
        }
        for node in &nodes {
            until("the cluster is ready", || {
                let info = node.ask(&["CLUSTER", "INFO"]).unwrap().text();
                ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"]
                    .iter()
                    .all(|it| info.contains(it))
            });
        }
        Some(Self(nodes))
    }

    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(PrivateRedis::url).collect()
    }
}

/// A master, and a Sentinel that monitors it under the name `tollgate`.
pub struct RedisSentinel {
    pub master: PrivateRedis,
    pub sentinel: PrivateRedis,
}

impl RedisSentinel {
    pub fn start(test: &str) -> Option<Self> {
        let master = PrivateRedis::start(test)?;
        let mut sentinel = PrivateRedis::new(test)?;
        let settings = sentinel.folder.join("sentinel.conf");
        let monitor = format!(
            "sentinel monitor tollgate 127.0.0.1 {} 1\nsentinel down-after-milliseconds tollgate 1000\n",
            master.port()
        );
        std::fs::write(&settings, monitor).unwrap();
        sentinel.arguments = vec![settings.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        sentinel.start_again();
        Some(Self { master, sentinel })
    }
}

/// Returns a free port below the system's ephemeral ports, so that a killed server can reuse its port.
///
/// The port 10,000 above is free too: cluster nodes use it among themselves.
fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let port = 12_000 + u16::from_ne_bytes(random) % 10_000;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < NEVER, "{what}: the condition never became true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_prefix_is_empty_and_cleaned_up() {
    let Some(home) = RedisHome::new("a_prefix_is_empty_and_cleaned_up") else { return };
    assert_eq!(home.keys(), [""; 0]);
    let key = format!("{{{}}}x", home.prefix());
    home.wire().ask(&["SET", &key, "1", "PX", "60000"]).unwrap();
    assert_eq!(home.keys(), [&*key]);
    assert!(home.wire().ask(&["NONSENSE"]).is_err());
    let url = home.url().to_owned();
    drop(home);
    assert_eq!(Wire::open(&url).unwrap().ask(&["GET", &key]).unwrap(), Reply::Nil);
}

#[test]
fn a_killed_private_server_restarts_empty() {
    let Some(mut server) = PrivateRedis::start("a_killed_private_server_restarts_empty") else { return };
    assert_eq!(server.ask(&["SET", "a", "1"]).unwrap(), Reply::Text("OK".to_owned()));
    server.kill();
    assert!(server.ask(&["PING"]).is_err());
    server.start_again();
    assert_eq!(server.ask(&["GET", "a"]).unwrap(), Reply::Nil);
    assert!(time_of(&server.url()) > Duration::from_secs(1_700_000_000));
    let (url, folder) = (server.url(), server.folder.clone());
    drop(server);
    assert!(Wire::open(&url).is_err() && !folder.exists());
}

#[test]
fn one_node_of_a_cluster_accepts_a_key() {
    let Some(cluster) = RedisCluster::start("one_node_of_a_cluster_accepts_a_key") else { return };
    let accepting = |key: &str| cluster.0.iter().filter(|node| node.ask(&["SET", key, "1"]).is_ok()).count();
    assert_eq!([accepting("a"), accepting("b"), accepting("c")], [1; 3]);
}

#[test]
fn a_sentinel_names_the_master() {
    let Some(servers) = RedisSentinel::start("a_sentinel_names_the_master") else { return };
    let master = servers.sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "tollgate"]).unwrap().list();
    assert_eq!(master[1], Reply::Text(servers.master.port().to_string()));
}
