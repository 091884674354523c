//! PostgreSQL connections during outages: their number, their locks, and the errors of administration.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tollgate::TokenDigest;

use sqlx::{Connection as _, Executor as _, PgConnection};
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Database, GrantRecord, LastUsed, NewGrant, SqlError, SqlStore};
use tollgate::{BearerToken, GrantId, StoreError, TokenStore};

use crate::machine::{say, unique};
use crate::proxy::{Fault, Proxy};
use crate::servers::Home;

const TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout of a test step. No step takes this long unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

/// The size of the pool, and the connection of `watch`.
const CLIENT_BOUND: usize = 11;
/// The server may keep the same number of lost connections that it has not detected.
const SERVER_BOUND: usize = 22;

struct Setting {
    home: Home,
    proxy: Proxy,
    /// Connects without the proxy.
    direct: Database,
    admin: PgConnection,
    /// The application name of connections through the proxy.
    name: String,
}

impl Setting {
    async fn new(test: &str) -> Option<Self> {
        let home = Home::postgres(test).await?;
        let direct = home.database().await;
        direct.migrate().await.unwrap();
        let proxy = Proxy::to(home.address()).await;
        let admin = PgConnection::connect(home.url()).await.unwrap();
        Some(Self { home, proxy, direct, admin, name: unique() })
    }

    fn url(&self) -> String {
        format!("{}&application_name={}", self.home.url_through(self.proxy.address), self.name)
    }

    fn database(&self) -> Database {
        Database::connect_lazily(&self.url()).unwrap().with_timeout(TIMEOUT)
    }

    async fn sessions(&mut self, condition: &str) -> usize {
        let count =
            format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND {condition}", self.name);
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(&mut self.admin).await.unwrap();
        count.try_into().unwrap()
    }
}

async fn find(store: &SqlStore<()>, token: &str) -> Result<bool, StoreError> {
    let found = tokio::time::timeout(WATCHDOG, store.lookup(&BearerToken::new(token)).into_future()).await;
    Ok(found.expect("a lookup hangs")?.is_some_and(|grant| grant.is_valid_at(SystemTime::now())))
}

async fn in_time<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(WATCHDOG, work).await.expect("the operation hangs")
}

/// Issues grants and uses each of them once.
async fn used(direct: &Database, last_used: &LastUsed, count: usize) -> Vec<GrantId> {
    let store = last_used.wrap(direct.store::<()>());
    let mut ids = Vec::new();
    for at in 0..count {
        let token = format!("token-{at}-{}", unique());
        ids.push(
            direct.import(TokenDigest::of(token.as_str()), &NewGrant::new(format!("subject-{at}"))).await.unwrap().id,
        );
        assert!(store.lookup(&BearerToken::new(&token)).await.unwrap().is_some());
    }
    ids
}

async fn record(direct: &Database, id: &GrantId) -> GrantRecord {
    direct.describe(id).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_succeeds_while_a_flush_is_cut_off() {
    let test = "revocation_succeeds_while_a_flush_is_cut_off";
    let Some(setting) = Setting::new(test).await else { return };
    for round in 0..4 {
        let database = setting.database();
        let last_used = LastUsed::new(&database);
        let ids = used(&setting.direct, &last_used, 500).await;
        // Connect first, so that the fault interrupts the flush.
        assert!(!find(&database.store::<()>(), "unknown").await.unwrap());

        let mut random = [0; 4];
        getrandom::fill(&mut random).unwrap();
        // A flush of 500 uses sends more bytes than this.
        let cut = usize::try_from(u32::from_le_bytes(random)).unwrap() % 30_000;
        say(format_args!("round {round}: the network is silent after {cut} bytes"));
        setting.proxy.silence_after(cut);
        let writer = last_used.clone();
        let task = tokio::spawn(async move { writer.run(Duration::from_millis(20)).await });
        in_time(setting.proxy.fails()).await;

        for id in [&ids[0], &ids[250], &ids[499]] {
            assert!(in_time(setting.direct.revoke(id)).await.unwrap(), "after {cut} bytes");
            assert!(record(&setting.direct, id).await.revoked_at.is_some());
        }

        setting.proxy.set(Fault::None);
        let written = async {
            for id in &ids {
                while record(&setting.direct, id).await.last_used.is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        in_time(written).await;
        task.abort();
    }
}

#[tokio::test]
async fn flush_skips_locked_rows_and_writes_them_later() {
    let test = "flush_skips_locked_rows_and_writes_them_later";
    let Some(mut setting) = Setting::new(test).await else { return };
    let last_used = LastUsed::new(&setting.direct);
    let ids = used(&setting.direct, &last_used, 20).await;
    let mut transaction = setting.admin.begin().await.unwrap();
    let lock = sqlx::query("SELECT 1 FROM tollgate_grants WHERE id = $1 FOR UPDATE").bind(ids[7].as_str());
    lock.execute(&mut *transaction).await.unwrap();

    assert_eq!(in_time(last_used.flush()).await.unwrap(), 19);
    assert_eq!(in_time(last_used.flush()).await.unwrap(), 0, "the row is still locked");
    transaction.rollback().await.unwrap();
    assert_eq!(in_time(last_used.flush()).await.unwrap(), 1);
    for id in &ids {
        assert!(record(&setting.direct, id).await.last_used.is_some());
    }
}

#[tokio::test]
async fn administration_reports_a_lock_and_then_succeeds() {
    let test = "administration_reports_a_lock_and_then_succeeds";
    let Some(mut setting) = Setting::new(test).await else { return };
    let (short, format) = (Duration::from_millis(400), TokenFormat::new("acme").unwrap());
    let database = setting.direct.clone().with_admin_timeout(short);
    let issued = database.issue(&format, &NewGrant::new("alice")).await.unwrap();
    let id = &issued.grant.id;
    let mut transaction = setting.admin.begin().await.unwrap();
    transaction.execute("LOCK TABLE tollgate_grants IN EXCLUSIVE MODE").await.unwrap();

    let revoked = in_time(database.revoke(id)).await;
    assert!(matches!(revoked, Err(SqlError::Locked)), "{revoked:?}");
    let rotated = in_time(database.rotate(id, &format, short)).await;
    assert!(matches!(rotated, Err(SqlError::Locked)), "{rotated:?}");
    let other = in_time(database.issue(&format, &NewGrant::new("bob"))).await;
    assert!(matches!(other, Err(SqlError::Locked)), "{other:?}");
    transaction.rollback().await.unwrap();
    assert!(database.revoke(id).await.unwrap());
}

#[tokio::test]
async fn administration_reports_a_deadlock_as_a_lock() {
    let Some(mut setting) = Setting::new("administration_reports_a_deadlock_as_a_lock").await else { return };
    for id in ["1", "2"] {
        setting.direct.import(TokenDigest::of(id), &NewGrant::new("alice").with_id(id)).await.unwrap();
    }
    let mut transaction = setting.admin.begin().await.unwrap();
    // The other transaction ends the deadlock.
    transaction.execute("SET LOCAL deadlock_timeout = '60s'").await.unwrap();
    let lock = async |transaction: &mut PgConnection, id: &str| {
        let lock = sqlx::query("SELECT 1 FROM tollgate_grants WHERE id = $1 FOR UPDATE").bind(id.to_owned());
        lock.execute(transaction).await.unwrap();
    };
    lock(&mut transaction, "2").await;
    let database = setting.direct.clone();
    // It locks the first grant, and waits for the second one.
    let suspended = tokio::spawn(async move { in_time(database.suspend_subject(&"alice".into())).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    lock(&mut transaction, "1").await;
    let suspended = suspended.await.unwrap();
    transaction.rollback().await.unwrap();
    assert!(matches!(suspended, Err(SqlError::Locked)), "{suspended:?}");
    assert_eq!(in_time(setting.direct.suspend_subject(&"alice".into())).await.unwrap().len(), 2);
}

#[tokio::test]
async fn administration_fails_in_time_on_a_silent_network() {
    let test = "administration_fails_in_time_on_a_silent_network";
    let Some(mut setting) = Setting::new(test).await else { return };
    let database = setting.database().with_admin_timeout(TIMEOUT);
    let issued = database.issue(&TokenFormat::new("acme").unwrap(), &NewGrant::new("alice")).await.unwrap();
    let id = &issued.grant.id;
    for cut in [1, 100, 200, 250, 300, 400] {
        setting.proxy.silence_after(cut);
        let mut outcome = Ok(());
        while outcome.is_ok() {
            outcome = in_time(database.relabel(id, "another label")).await;
        }
        assert!(matches!(outcome, Err(SqlError::Timeout)), "{outcome:?}");
        // The server ends the transaction of a silent client, even if the network stays silent.
        in_time(setting.direct.relabel(id, "the last label")).await.unwrap();
        setting.proxy.set(Fault::None);
        in_time(database.relabel(id, "healed")).await.unwrap();
    }
    assert_eq!(setting.sessions("state LIKE 'idle in transaction%'").await, 0);
}

/// The next user of a connection must not inherit the transaction of a dropped operation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_administration_leaves_no_transaction_behind() {
    let test = "dropped_administration_leaves_no_transaction_behind";
    let Some(mut setting) = Setting::new(test).await else { return };
    let database = setting.database();
    let id = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
    setting.proxy.set(Fault::Delay(Duration::from_millis(3)));
    for at in 0..60 {
        _ = tokio::time::timeout(Duration::from_millis(at), database.relabel(&id, "dropped")).await;
    }
    setting.proxy.set(Fault::None);
    for at in 0..20 {
        let label = format!("label {at}");
        in_time(database.relabel(&id, &label)).await.unwrap();
        assert_eq!(record(&setting.direct, &id).await.label, label);
        assert!(find(&database.store::<()>(), "a-token").await.unwrap());
    }
    let mut left = 1;
    while left > 0 {
        left = in_time(setting.sessions("state LIKE 'idle in transaction%'")).await;
    }
}

/// Counts the open sockets of this process to the proxy.
async fn sockets_to(proxy: &Proxy) -> usize {
    let port = format!(":{:04X}", proxy.address.port());
    let is_open = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        // Established or connecting.
        fields.next().is_some_and(|remote| remote.ends_with(&port)) && matches!(fields.next(), Some("01" | "02"))
    };
    let mut count = usize::MAX;
    // The list is not a snapshot. It may contain a socket that is closed during the read, and also its replacement.
    for _ in 0..3 {
        let Ok(sockets) = std::fs::read_to_string("/proc/self/net/tcp") else { return proxy.open() };
        count = count.min(sockets.lines().filter(is_open).count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count
}

/// Opens all connections of the pool.
async fn open_all(database: &Database) {
    let store = database.store::<()>();
    for _ in 0..3 {
        for found in futures_util::future::join_all((0..30).map(|_| find(&store, "a-token"))).await {
            assert!(found.unwrap());
        }
    }
}

/// Sends lookups without a pause for this time. Returns the maximum numbers of connections of the client and of the server, and
/// the number of failed lookups.
async fn load(setting: &mut Setting, database: &Database, time: Duration) -> (usize, usize, usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let failures = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..30)
        .map(|_| {
            let (store, stop, failures) = (database.store::<()>(), stop.clone(), failures.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    if find(&store, "a-token").await.is_err() {
                        failures.fetch_add(1, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    let (mut client, mut server) = (0, 0);
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
        client = client.max(sockets_to(&setting.proxy).await);
        server = server.max(setting.sessions("true").await);
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    (client, server, failures.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_bounded_on_a_silent_network() {
    let test = "connections_stay_bounded_on_a_silent_network";
    let Some(mut setting) = Setting::new(test).await else { return };
    setting.direct.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let database = setting.database();
    let watched = database.clone();
    let watching = tokio::spawn(async move { watched.watch(Duration::from_millis(100), drop).await });
    for fault in [Fault::Silence, Fault::Delay(TIMEOUT * 12 / 10), Fault::Silence] {
        open_all(&database).await;
        setting.proxy.set(fault);
        let (client, server, failures) = load(&mut setting, &database, TIMEOUT * 6).await;
        say(format_args!("{fault:?}: {client} connections of the client, {server} of the server"));
        assert!(failures > 30, "too few failures for an outage");
        assert!(client <= CLIENT_BOUND && server <= SERVER_BOUND, "{fault:?}: {client} and {server}");
        setting.proxy.set(Fault::None);
        assert!(find(&database.store::<()>(), "a-token").await.unwrap(), "after {fault:?}");
    }
    watching.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_bounded_on_a_slow_database() {
    let test = "connections_stay_bounded_on_a_slow_database";
    let Some(mut setting) = Setting::new(test).await else { return };
    setting.direct.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    setting.admin.execute("ALTER TABLE tollgate_grants RENAME TO real_grants").await.unwrap();
    let view = "CREATE OR REPLACE VIEW tollgate_grants AS SELECT g.* FROM real_grants g, pg_sleep";
    let database = setting.database();
    for seconds in ["1.2", "60"] {
        setting.admin.execute(sqlx::AssertSqlSafe(format!("{view}(0)"))).await.unwrap();
        assert!(find(&database.store::<()>(), "a-token").await.unwrap());
        setting.admin.execute(sqlx::AssertSqlSafe(format!("{view}({seconds})"))).await.unwrap();
        let (client, server, failures) = load(&mut setting, &database, TIMEOUT * 6).await;
        say(format_args!("{seconds} s a statement: {client} connections of the client, {server} of the server"));
        assert!(failures > 30, "too few failures for an outage");
        assert!(client <= CLIENT_BOUND && server <= SERVER_BOUND, "{seconds} s: {client} and {server}");
        setting.admin.execute(sqlx::AssertSqlSafe(format!("{view}(0)"))).await.unwrap();
        assert!(find(&database.store::<()>(), "a-token").await.unwrap(), "after {seconds} s a statement");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_of_the_service_lose_no_slots_on_a_silent_network() {
    let test = "pools_of_the_service_lose_no_slots_on_a_silent_network";
    let Some(mut setting) = Setting::new(test).await else { return };
    setting.direct.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(3).test_before_acquire(false);
    let pool = options.connect(&setting.url()).await.unwrap();
    let database = Database::from_postgres(pool.clone()).with_timeout(TIMEOUT);
    for _ in 0..2 {
        open_all(&database).await;
        setting.proxy.set(Fault::Silence);
        let (client, server, failures) = load(&mut setting, &database, TIMEOUT * 3).await;
        assert!(failures > 30, "too few failures for an outage");
        assert!(client <= 3 && server <= 6, "{client} and {server}");
        setting.proxy.set(Fault::None);
        assert!(find(&database.store::<()>(), "a-token").await.unwrap());
    }
    for _ in 0..3 {
        in_time(pool.acquire()).await.unwrap().detach();
    }
}

/// Runs all uses of a database at the same time, with a random schedule of faults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_bounded_on_a_network_that_fails_at_random() {
    let test = "connections_stay_bounded_on_a_network_that_fails_at_random";
    let Some(mut setting) = Setting::new(test).await else { return };
    let id = setting.direct.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
    let database = setting.database().with_admin_timeout(TIMEOUT);
    let last_used = LastUsed::new(&database);
    let store = last_used.wrap(database.store::<()>());
    let (writer, watched, changed) = (last_used.clone(), database.clone(), database.clone());
    let others = [
        tokio::spawn(async move { _ = writer.run(Duration::from_millis(30)).await }),
        tokio::spawn(async move { _ = watched.watch(Duration::from_millis(100), drop).await }),
        tokio::spawn(async move {
            loop {
                _ = changed.relabel(&id, "a label").await;
            }
        }),
        // Clients that disconnect.
        tokio::spawn(async move {
            loop {
                let lookup = store.lookup(&BearerToken::new("a-token")).into_future();
                _ = tokio::time::timeout(Duration::from_millis(5), lookup).await;
            }
        }),
    ];
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    say(format_args!("{test}: seed {seed:?}"));
    let mut random = u64::from_le_bytes(seed) | 1;
    for _ in 0..12 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, millis) = (random >> 61, random >> 32 & 0x3ff);
        setting.proxy.set(match kind {
            0..3 => Fault::Silence,
            3 => Fault::Cut,
            4 => Fault::Delay(TIMEOUT / 2),
            5 => Fault::Delay(TIMEOUT * 2),
            _ => Fault::None,
        });
        let (client, server, _) = load(&mut setting, &database, Duration::from_millis(millis + 50)).await;
        assert!(client <= CLIENT_BOUND && server <= SERVER_BOUND, "{kind}: {client} and {server}");
    }
    setting.proxy.set(Fault::None);
    in_time(until_found(&database)).await;
    for other in others {
        other.abort();
    }
}

async fn until_found(database: &Database) {
    let store = database.store::<()>();
    while !find(&store, "a-token").await.unwrap_or(false) {}
}

#[tokio::test]
async fn stricter_statement_timeout_of_the_url_stays() {
    let test = "stricter_statement_timeout_of_the_url_stays";
    let Some(mut setting) = Setting::new(test).await else { return };
    setting.direct.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    setting.admin.execute("ALTER TABLE tollgate_grants RENAME TO real_grants").await.unwrap();
    let view = "CREATE VIEW tollgate_grants AS SELECT g.* FROM real_grants g, pg_sleep(2)";
    setting.admin.execute(view).await.unwrap();
    let url = format!("{}&options[statement_timeout]=300", setting.home.url());
    let strict = Database::connect(&url).await.unwrap().with_timeout(WATCHDOG);
    let error = find(&strict.store::<()>(), "a-token").await.unwrap_err();
    let cause = error.source().and_then(|source| source.downcast_ref());
    assert!(matches!(cause, Some(SqlError::Timeout)), "{error:?}");
    let database = setting.direct.clone().with_timeout(WATCHDOG);
    assert!(find(&database.store::<()>(), "a-token").await.unwrap());
}

#[tokio::test]
async fn administration_reports_a_locked_file() {
    let home = Home::sqlite();
    let database = home.database().await;
    database.migrate().await.unwrap();
    let grant = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap();
    let mut other = sqlx::SqliteConnection::connect(home.url()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let revoked = in_time(database.revoke(&grant.id)).await;
    assert!(matches!(revoked, Err(SqlError::Locked)), "{revoked:?}");
    let timed = in_time(database.clone().with_admin_timeout(Duration::from_millis(50)).revoke(&grant.id)).await;
    assert!(matches!(timed, Err(SqlError::Timeout)), "{timed:?}");
    assert!(find(&database.store::<()>(), "a-token").await.unwrap(), "lookups still work");
    assert_eq!(in_time(database.list(None)).await.unwrap().len(), 1);
    other.execute("ROLLBACK").await.unwrap();
    assert!(in_time(database.revoke(&grant.id)).await.unwrap());
}
