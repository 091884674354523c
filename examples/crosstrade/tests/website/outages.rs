//! Outages of the database.

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::sleep;

use super::*;
use crate::tests::log::Captured;

/// A wire to a server. In a silence, connections stay open, and all that is sent is lost: also for connections that it broke.
struct Wire {
    addr: SocketAddr,
    is_silent: Arc<watch::Sender<bool>>,
}

impl Wire {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let is_silent = Arc::new(watch::Sender::new(false));
        let silence = is_silent.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, silence) = (server.clone(), silence.clone());
                tokio::spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = TcpStream::connect(server).await.unwrap().into_split();
                    tokio::join!(copy(from_client, to_server, &silence), copy(from_server, to_client, &silence));
                });
            }
        });
        Self { addr, is_silent }
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silence: &watch::Receiver<bool>) {
    let (mut buffer, mut is_broken) = ([0; 4_096], false);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        is_broken |= *silence.borrow();
        if !is_broken && to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

/// The address of the server in a URL, and the URL with another address.
fn through(url: &str, addr: SocketAddr) -> (String, String) {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("postgres", authority));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5432") };
    (host, format!("{scheme}://{user}@{addr}/{path}"))
}

async fn wire(test: &str) -> Option<(Wire, Home, String)> {
    let home = Home::postgres(test).await?;
    let (server, _) = through(&home.url, ([127, 0, 0, 1], 0).into());
    let wire = Wire::to(server).await;
    let (_, url) = through(&home.url, wire.addr);
    Some((wire, home, url))
}

async fn until_signed_in(visitor: &Visitor) {
    let recovered = async {
        while visitor.get("/account").await.status() != StatusCode::OK {
            assert!(visitor.cookie().is_some(), "an outage ends no session");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(WATCHDOG, recovered).await.expect("the website recovers");
}

#[tokio::test]
async fn missing_tables_are_failures_that_pass() {
    Home::each("missing_tables_are_failures_that_pass", async |home| {
        let site = Site::start_at(home).await;
        let (log, _, _guard) = Captured::start();
        let demo = site.signed_in("demo").await;
        for table in ["crosstrade_users", "crosstrade_sessions", "crosstrade_rejections", "tollgate_tokens"] {
            site.home.execute(&format!("ALTER TABLE {table} RENAME TO hidden")).await;
            let response = demo.post("/account/reveal", &[("password", PASSWORD)]).await;
            let page = assert_page(&response, StatusCode::SERVICE_UNAVAILABLE);
            assert!(page.contains("The service is unavailable for a moment."), "{page}");
            assert!(!page.contains(table) && tokens_in(page).is_empty(), "{page}");
            assert!(demo.cookie().is_some(), "{table}: an outage ends no session");
            site.home.execute(&format!("ALTER TABLE hidden RENAME TO {table}")).await;
            assert!(demo.is_signed_in().await, "{table}");
        }
        let log = log.take().join("\n");
        assert!(log.contains("WARN") && !log.contains(&demo.cookie().unwrap()) && !log.contains(PASSWORD), "{log}");
        assert!(!tokens_in(demo.post("/account/reveal", &[]).await.body()).is_empty());
    })
    .await;
}

/// The database fails between the check of the password and the end of the sign-in.
#[tokio::test]
async fn sign_in_fails_with_a_page_if_the_session_cannot_be_written() {
    let site = Site::start().await;
    site.home.execute("ALTER TABLE crosstrade_sessions RENAME TO hidden").await;
    let visitor = site.visitor();
    let response = visitor.sign_in("demo", PASSWORD).await;
    assert_page(&response, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(visitor.cookie(), None);
}

#[tokio::test]
async fn a_silent_network_is_bounded_and_the_website_recovers() {
    let test = "a_silent_network_is_bounded_and_the_website_recovers";
    let Some((wire, home, url)) = wire(test).await else { return };
    let site = Site::start_with(Setup { url: Some(url), ..Setup::at(home) }).await;
    let visitors = join_all((0..8).map(|_| site.signed_in("demo"))).await;
    for _ in 0..2 {
        // All connections of the pool are open.
        join_all(visitors.iter().map(async |visitor| assert!(visitor.is_signed_in().await))).await;
        wire.is_silent.send_replace(true);
        for _ in 0..2 {
            let responses = join_all(visitors.iter().map(|visitor| visitor.get("/account"))).await;
            for response in responses {
                assert_page(&response, StatusCode::SERVICE_UNAVAILABLE);
            }
        }
        wire.is_silent.send_replace(false);
        until_signed_in(&visitors[0]).await;
        for visitor in &visitors {
            until_signed_in(visitor).await;
        }
    }
    let response = visitors[0].post("/account/reveal", &[("password", PASSWORD)]).await;
    assert_eq!(tokens_in(response.body())[0], site.trader);
}

/// The network falls silent while statements run. They hold no place in the pool afterwards, whether their clients wait for the
/// timeout or disconnect before.
#[tokio::test]
async fn statements_that_a_silence_interrupts_hold_no_connection() {
    let test = "statements_that_a_silence_interrupts_hold_no_connection";
    let Some((wire, home, url)) = wire(test).await else { return };
    let site = Site::start_with(Setup { url: Some(url), ..Setup::at(home) }).await;
    let demo = site.signed_in("demo").await;
    let mut locker = PgConnection::connect(&site.home.url).await.unwrap();
    for disconnects in [true, false] {
        locker.execute("BEGIN; LOCK TABLE crosstrade_users IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let users = &site.website.users;
        let statements = join_all((0..8).map(|_| {
            let end = if disconnects { Duration::from_millis(600) } else { WATCHDOG };
            timeout(end, users.find("demo"))
        }));
        let silence = async {
            sleep(Duration::from_millis(400)).await;
            wire.is_silent.send_replace(true);
        };
        let (found, ()) = tokio::join!(statements, silence);
        assert!(found.iter().all(|found| !matches!(found, Ok(Ok(_)))), "{disconnects}");
        assert_eq!(found.iter().all(Result::is_err), disconnects);
        locker.execute("ROLLBACK").await.unwrap();
        wire.is_silent.send_replace(false);
        until_signed_in(&demo).await;
    }
}

/// Another transaction locks the tables for longer than requests wait.
#[tokio::test]
async fn locked_tables_end_statements_on_the_server() {
    let Some(home) = Home::postgres("locked_tables_end_statements_on_the_server").await else { return };
    let site = Site::start_at(home).await;
    let demo = site.signed_in("demo").await;
    let mut locker = PgConnection::connect(&site.home.url).await.unwrap();
    locker.execute("BEGIN; LOCK TABLE crosstrade_users IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let responses = join_all((0..6).map(|_| demo.get("/account"))).await;
    for response in &responses {
        assert_page(response, StatusCode::SERVICE_UNAVAILABLE);
    }
    // The server does not go on with statements whose clients have given up.
    let waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'crosstrade_users'::regclass";
    let ended = async {
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut locker).await.unwrap() > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(WATCHDOG, ended).await.expect("statements end");
    locker.execute("ROLLBACK").await.unwrap();
    until_signed_in(&demo).await;
}

/// Another program writes into SQLite for longer than requests wait.
#[tokio::test]
async fn locked_files_are_bounded_and_the_website_recovers() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let mut locker = sqlx::SqliteConnection::connect(&site.home.url).await.unwrap();
    locker.execute("BEGIN IMMEDIATE").await.unwrap();
    // Each page extends the session, so it writes.
    let response = demo.get("/account").await;
    assert!(response.status().is_server_error(), "{}", response.status());
    assert!(demo.cookie().is_some());
    locker.execute("ROLLBACK").await.unwrap();
    until_signed_in(&demo).await;
}
