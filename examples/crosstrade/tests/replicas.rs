//! Tests of two services in separate processes, with one database and one Redis: together they admit what one would.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use redis::{Client, Commands as _};
use tollgate::mint::TokenFormat;

use super::*;
use crate::args::SECRET;

const SECONDS_TO_START: u64 = 30;

/// A process of the service.
struct Replica {
    process: Child,
    address: String,
    token: String,
    /// Kept, so that the program can go on to write.
    _out: BufReader<ChildStdout>,
}

impl Replica {
    fn start(args: &[&str], secret: &str) -> Self {
        let mut process = crash::program(args).env(SECRET, secret).spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let token = regex::Regex::new(&TokenFormat::new("ct").unwrap().pattern()).unwrap();
        let address = regex::Regex::new(r"127\.0\.0\.1:\d+").unwrap();
        // The first line with a token has the address, and it is the token that may trade.
        let lines = out.by_ref().lines().map_while(Result::ok);
        let shown = lines.filter_map(|line| Some((find(&address, &line)?, find(&token, &line)?))).next();
        let (address, token) = shown.expect("the program shows where it listens");
        Self { process, address, token, _out: out }
    }

    /// Asks for the accounts.
    async fn get(&self, token: &str) -> Response<String> {
        let request = Request::get(format!("http://{}/v1/api/accounts", self.address));
        send(request.header("authorization", format!("Bearer {token}")).body(String::new()).unwrap()).await
    }

    async fn alert(&self, body: String) -> Response<String> {
        let request = Request::post(format!("http://{}/v1/webhook", self.address));
        send(request.header("content-type", "text/plain").body(body).unwrap()).await
    }
}

fn find(pattern: &regex::Regex, line: &str) -> Option<String> {
    pattern.find(line).map(|found| found.as_str().to_owned())
}

impl Drop for Replica {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Two replicas with a database of their own.
struct Pair {
    replicas: [Replica; 2],
    folder: PathBuf,
}

impl Pair {
    fn start(redis: &str, more: &[&str]) -> Self {
        let mut random = [0_u8; 16];
        getrandom::fill(&mut random).unwrap();
        let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = std::env::temp_dir().join(format!("crosstrade-{secret}"));
        std::fs::create_dir(&folder).unwrap();
        let database = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
        let args = [&["--database", &database, "--redis", redis, "--replicas", "2"], more].concat();
        Self { replicas: [(); 2].map(|()| Replica::start(&args, &secret)), folder }
    }

    fn token(&self) -> &str {
        &self.replicas[0].token
    }

    /// Asks both, several at a time, for so long. Returns how many were admitted.
    async fn drive(&self, time: Duration) -> u64 {
        let begin = Instant::now();
        let ask = |number: usize| async move {
            let mut admitted = 0;
            for turn in 0_u64.. {
                if begin.elapsed() >= time {
                    break;
                }
                let response = self.replicas[number % 2].get(self.token()).await;
                match response.status() {
                    StatusCode::OK => admitted += 1,
                    StatusCode::TOO_MANY_REQUESTS => {}
                    other => panic!("{other}: {}", response.body()),
                }
                // In no pattern that both keep.
                tokio::time::sleep(Duration::from_millis(3 + (turn * 7 + number as u64 * 5) % 23)).await;
            }
            admitted
        };
        futures_util::future::join_all((0..4).map(ask)).await.into_iter().sum()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// `TOLLGATE_TEST_REDIS`, or what answers on this machine.
pub(super) fn redis_server(test: &str) -> Option<String> {
    let url = std::env::var("TOLLGATE_TEST_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let answers = Client::open(&*url).unwrap().get_connection_with_timeout(Duration::from_secs(5)).is_ok();
    answers.then_some(url).or_else(|| skipped("no Redis", test))
}

/// Says that a test is skipped for lack of a server.
pub(super) fn skipped<T>(what: &str, test: &str) -> Option<T> {
    skip(what, test, "TOLLGATE_REQUIRE_SERVERS");
    None
}

/// A Redis that can be killed.
pub(super) struct Private {
    process: Child,
    port: u16,
}

impl Private {
    pub(super) fn start(test: &str) -> Option<Self> {
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let Ok(process) = Self::spawn(port) else { return skipped("no redis-server", test) };
        let private = Self { process, port };
        private.wait();
        Some(private)
    }

    fn spawn(port: u16) -> std::io::Result<Child> {
        let args = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()];
        Command::new("redis-server").args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn wait(&self) {
        let client = Client::open(self.url()).unwrap();
        let mut waits = (0..SECONDS_TO_START * 20).map(|_| std::thread::sleep(Duration::from_millis(50)));
        while !client.get_connection().is_ok_and(|mut redis| redis.ping::<String>().is_ok()) {
            waits.next().expect("redis-server does not start");
        }
    }

    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(super) fn restart(&mut self) {
        self.process = Self::spawn(self.port).unwrap();
        self.wait();
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Returns how many requests a full bucket admits in this time: 20, and 3 a second.
fn quota(time: Duration) -> u64 {
    20 + (3.0 * time.as_secs_f64()) as u64
}

async fn two_admit_what_one_would(more: &[&str], test: &str) {
    let Some(redis) = redis_server(test) else { return };
    let pair = Pair::start(&redis, more);
    let begin = Instant::now();
    let admitted = pair.drive(Duration::from_secs(8)).await;
    let most = quota(begin.elapsed());
    assert!(admitted <= most, "{admitted} of {most}");
    assert!(admitted * 100 >= most * 95, "{admitted} of {most}");
}

#[tokio::test]
async fn two_replicas_admit_what_one_would() {
    two_admit_what_one_would(&[], "two_replicas_admit_what_one_would").await;
}

#[tokio::test]
async fn two_replicas_with_leases_admit_what_one_would() {
    two_admit_what_one_would(&["--leases"], "two_replicas_with_leases_admit_what_one_would").await;
}

#[tokio::test]
async fn an_outage_of_redis_divides_the_limit_until_it_is_back() {
    let Some(mut redis) = Private::start("the_service_goes_on_without_redis") else { return };
    let pair = Pair::start(&redis.url(), &[]);
    let begin = Instant::now();
    let admitted = pair.drive(Duration::from_secs(3)).await;
    assert!(admitted <= quota(begin.elapsed()));

    redis.kill();
    let begin = Instant::now();
    let admitted = pair.drive(Duration::from_secs(4)).await;
    // Both halves are full when the outage begins.
    let most = quota(begin.elapsed());
    assert!(admitted <= most && admitted * 100 >= most * 90, "{admitted} of {most} without Redis");

    // Safety limits need Redis: without it no alert with a limit is carried out.
    let alert = || {
        let fields = "command=cancelallorders;account=sim101;id=strategy;rate_limit=3/60;";
        pair.replicas[0].alert(format!("key={};{fields}", pair.token()))
    };
    for _ in 0..3 {
        assert_eq!(alert().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    redis.restart();
    // A probe may come one backoff later; charges are local until then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for replica in &pair.replicas {
        replica.get(pair.token()).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let admitted = pair.drive(Duration::from_secs(4)).await;
    let most = quota(begin.elapsed());
    assert!(admitted <= most && admitted * 100 >= most * 90, "{admitted} of {most} with another Redis");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(alert().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn self_limits_are_shared_by_replicas() {
    let Some(redis) = redis_server("the_limit_that_an_alert_sets_itself") else { return };
    let pair = Pair::start(&redis, &[]);
    let alert = |id: usize| {
        format!("key={};command=cancelallorders;account=sim101;id=strategy-{id};rate_limit=3/60;", pair.token())
    };
    let mut told = Vec::new();
    for turn in 0..8 {
        let response = pair.replicas[turn % 2].alert(alert(1)).await;
        told.push((response.status().as_u16(), response.headers().contains_key("ratelimit")));
    }
    // An alert that its own limit rejects is not charged.
    assert_eq!(told, [[(200, true); 3].as_slice(), &[(429, false); 5]].concat());
    let another = pair.replicas[1].alert(alert(2)).await;
    assert!(another.headers()["ratelimit"].to_str().unwrap().starts_with(r#""default";r=1"#), "{another:?}");

    // An alert that the rate limit rejects does not count, and leaves no state.
    while pair.replicas[0].get(pair.token()).await.status() == StatusCode::OK {}
    while pair.replicas[1].alert(alert(3)).await.status() != StatusCode::OK {}
    tokio::time::sleep(Duration::from_secs(1)).await;
    let statuses = [pair.replicas[0].alert(alert(3)).await.status(), pair.replicas[1].alert(alert(3)).await.status()];
    assert_eq!(statuses, [StatusCode::OK; 2]);
    let response = pair.replicas[0].alert(alert(3)).await;
    assert!(response.body().contains("own `rate_limit`"), "{}", response.body());
}
