//! Responses of a gate during outages of its database, and recovery afterwards.

use std::time::Duration;
use tollgate::TokenDigest;

use http::StatusCode;
use tokio::sync::mpsc;
use tollgate::AuthLayer;
use tollgate::mint::TokenFormat;
use tollgate::store::Invalidation;
use tollgate::store::sql::{Database, NewGrant};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::machine::say;
use crate::proxy::{Fault, Proxy};
use crate::servers::{Home, on_each_database};

const TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout of a test step. No step takes this long unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

const FAULTS: [Fault; 4] = [Fault::Cut, Fault::Silence, Fault::Garbage, Fault::Delay(Duration::from_secs(8))];

async fn behind_a_proxy(test: &str) -> Option<(Home, Proxy, Database)> {
    let home = Home::postgres(test).await?;
    let direct = home.database().await;
    direct.migrate().await.unwrap();
    let proxy = Proxy::to(home.address()).await;
    Some((home, proxy, direct))
}

/// Waits until the condition holds.
async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WATCHDOG, wait).await.expect("the condition never holds");
}

/// Many connections are open when the fault begins, and all of them are lost when it ends.
#[tokio::test]
async fn requests_during_a_fault_get_503_and_succeed_after_it() {
    let test = "requests_during_a_fault_get_503_and_succeed_after_it";
    let Some((home, proxy, direct)) = behind_a_proxy(test).await else { return };
    direct.import(TokenDigest::of(TOKEN), &NewGrant::new("alice")).await.unwrap();
    let database = Database::connect_lazily(&home.url_through(proxy.address)).unwrap().with_timeout(TIMEOUT);
    let gate = AuthLayer::with_timeout(database.store::<()>(), TIMEOUT * 2);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    let requests = |status: u16| (0..8).flat_map(move |_| [(with_token(TOKEN), status), (with_token("unknown"), 401)]);

    for fault in FAULTS {
        tokio::time::timeout(WATCHDOG, all_at_once(&service, requests(200))).await.expect("healthy requests hang");
        proxy.set(fault);
        // Both valid and unknown tokens get 503: no request is admitted, and no token is called invalid.
        let unavailable = (0..16).map(|at| (with_token(if at % 2 == 0 { TOKEN } else { "unknown" }), 503));
        tokio::time::timeout(WATCHDOG, all_at_once(&service, unavailable)).await.expect("a request hangs");
        proxy.set(Fault::None);
        let healed = tokio::time::timeout(WATCHDOG, send(&service, with_token(TOKEN))).await.expect("a request hangs");
        let rejection = healed.extensions().get::<tollgate::Rejection>();
        assert_eq!(healed.status(), StatusCode::OK, "after {fault:?}: {rejection:?}");
    }
}

#[tokio::test]
async fn dropped_lookups_keep_connections_usable() {
    let test = "dropped_lookups_keep_connections_usable";
    let Some((home, proxy, direct)) = behind_a_proxy(test).await else { return };
    direct.import(TokenDigest::of(TOKEN), &NewGrant::new("alice")).await.unwrap();
    let database = Database::connect(&home.url_through(proxy.address)).await.unwrap();
    let gate = AuthLayer::with_timeout(database.store::<()>(), WATCHDOG);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    for timeout_ms in [0, 1, 2, 5, 300] {
        for _ in 0..if timeout_ms < 300 { 30 } else { 12 } {
            proxy.set(Fault::Delay(Duration::from_millis(if timeout_ms < 300 { 1 } else { 1_000 })));
            _ = tokio::time::timeout(Duration::from_millis(timeout_ms), send(&service, with_token(TOKEN))).await;
        }
        proxy.set(Fault::None);
        for _ in 0..20 {
            assert_eq!(send(&service, with_token(TOKEN)).await.status(), StatusCode::OK);
            assert_eq!(send(&service, with_token("unknown")).await.status(), StatusCode::UNAUTHORIZED);
        }
    }
}

/// Watches a database and returns the reported changes.
fn watch(database: &Database, interval: Duration) -> mpsc::UnboundedReceiver<Invalidation> {
    let (report, changes) = mpsc::unbounded_channel();
    let database = database.clone();
    tokio::spawn(async move { database.watch(interval, move |change| _ = report.send(change)).await });
    changes
}

async fn next(changes: &mut mpsc::UnboundedReceiver<Invalidation>) -> Invalidation {
    tokio::time::timeout(WATCHDOG, changes.recv()).await.expect("no change is reported").unwrap()
}

#[tokio::test]
async fn changes_of_another_process_are_reported() {
    on_each_database("changes_of_another_process_are_reported", |home| async move {
        let (here, there) = (home.database().await, home.database().await);
        let mut changes = watch(&here, Duration::from_millis(50));
        assert_eq!(next(&mut changes).await, Invalidation::Everything, "the first report");
        let format = TokenFormat::new("acme").unwrap();
        let issued = there.issue(&format, &NewGrant::new("alice")).await.unwrap();
        assert_eq!(next(&mut changes).await, Invalidation::Added);
        let id = issued.grant.id;
        let changed = Invalidation::Grant(id.clone());

        there.set_quota(&id, Some(tollgate::Quota::per_minute(7))).await.unwrap();
        assert_eq!(next(&mut changes).await, changed);
        there.rotate(&id, &format, Duration::from_secs(60)).await.unwrap();
        assert_eq!(next(&mut changes).await, changed);
        assert_eq!(next(&mut changes).await, Invalidation::Added);
        assert!(there.revoke(&id).await.unwrap());
        assert_eq!(next(&mut changes).await, changed);
        there.purge(std::time::SystemTime::now() + Duration::from_secs(60)).await.unwrap();
        assert_eq!(next(&mut changes).await, changed);

        // Written uses are not reported.
        let bob = there.import(TokenDigest::of("bob-token"), &NewGrant::new("bob")).await.unwrap();
        let mut change = next(&mut changes).await;
        while change != Invalidation::Added {
            assert_eq!(change, changed, "deleted tokens are reported as changes of their grant");
            change = next(&mut changes).await;
        }
        let last_used = tollgate::store::sql::LastUsed::new(&there);
        let store = last_used.wrap(there.store::<()>());
        _ = tollgate::TokenStore::lookup(&store, &tollgate::BearerToken::new("bob-token")).await.unwrap();
        assert_eq!(last_used.flush().await.unwrap(), 1);
        there.revoke(&bob.id).await.unwrap();
        assert_eq!(next(&mut changes).await, Invalidation::Grant(bob.id));
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(changes.try_recv().is_err(), "one change is reported once");
    })
    .await;
}

#[tokio::test]
async fn missed_changes_on_sqlite_are_reported_as_everything() {
    let home = Home::sqlite();
    let (here, there) = (home.database().await, home.database().await);
    here.migrate().await.unwrap();
    let kept = there.import(TokenDigest::of("kept-token"), &NewGrant::new("alice")).await.unwrap();
    let pool = sqlx::SqlitePool::connect(home.url()).await.unwrap();
    let mut changes = watch(&here, Duration::from_millis(20));
    assert_eq!(next(&mut changes).await, Invalidation::Everything);

    // More changes in one transaction than the table keeps.
    let many = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) \
         INSERT INTO tollgate_grants (id, subject, created_ms) SELECT 'g' || i, 'bob', 0 FROM n";
    sqlx::query(many).execute(&pool).await.unwrap();
    sqlx::query("UPDATE tollgate_grants SET label = 'changed' WHERE subject = 'bob'").execute(&pool).await.unwrap();
    assert_eq!(next(&mut changes).await, Invalidation::Everything);
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM tollgate_changes").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 1_000);

    there.relabel(&kept.id, "one").await.unwrap();
    assert_eq!(next(&mut changes).await, Invalidation::Grant(kept.id.clone()));
    sqlx::query("DELETE FROM tollgate_changes").execute(&pool).await.unwrap();
    assert_eq!(next(&mut changes).await, Invalidation::Everything);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(changes.try_recv().is_err(), "reported once");
    there.revoke(&kept.id).await.unwrap();
    assert_eq!(next(&mut changes).await, Invalidation::Everything);
    there.relabel(&kept.id, "two").await.unwrap();
    assert_eq!(next(&mut changes).await, Invalidation::Grant(kept.id));
    pool.close().await;
}

#[tokio::test]
async fn lost_connections_are_reported_as_everything() {
    let test = "lost_connections_are_reported_as_everything";
    let Some((home, proxy, direct)) = behind_a_proxy(test).await else { return };
    let grant = direct.import(TokenDigest::of(TOKEN), &NewGrant::new("alice")).await.unwrap();
    let database = Database::connect_lazily(&home.url_through(proxy.address)).unwrap().with_timeout(TIMEOUT);
    let mut changes = watch(&database, Duration::from_millis(100));
    assert_eq!(next(&mut changes).await, Invalidation::Everything);
    for fault in FAULTS {
        proxy.set(fault);
        // Silence is detected by a query without a reply. Until then nothing is reported.
        tokio::time::sleep(TIMEOUT + Duration::from_millis(500)).await;
        direct.relabel(&grant.id, &format!("{fault:?}")).await.unwrap();
        proxy.set(Fault::None);
        // Changes during the fault may be reported or not. `Everything` is reported after it.
        while next(&mut changes).await != Invalidation::Everything {}
        tokio::time::sleep(Duration::from_millis(50)).await;
        while changes.try_recv().is_ok() {}
        direct.relabel(&grant.id, "healed").await.unwrap();
        assert_eq!(next(&mut changes).await, Invalidation::Grant(grant.id.clone()), "after {fault:?}");
    }
}

/// Tests of a complete service: a gate, a cache with invalidation, a circuit breaker and a database.
#[cfg(feature = "cache")]
mod through_a_cache {
    use tollgate::store::{CachedStore, CircuitBreaker};

    use super::*;

    type Service =
        tower::util::BoxCloneSyncService<http::Request<Body>, http::Response<Body>, std::convert::Infallible>;

    const TTL: Duration = Duration::from_secs(3_600);

    /// Creates the gate of a process, and its database.
    async fn process(url: &str) -> (Database, Service) {
        let database = Database::connect_lazily(url).unwrap().with_timeout(TIMEOUT);
        let breaker = CircuitBreaker::with_timeout(database.store::<()>(), TIMEOUT * 2)
            .with_backoff(Duration::from_millis(50), Duration::from_millis(200))
            .unwrap();
        let cache = CachedStore::new(breaker, TTL).unwrap();
        let (watched, invalidated) = (database.clone(), cache.clone());
        tokio::spawn(async move {
            watched.watch(Duration::from_millis(100), move |change| invalidated.invalidate(&change)).await
        });
        let gate = AuthLayer::with_timeout(cache, TIMEOUT * 3);
        (database, Service::new(ServiceBuilder::new().layer(gate).service(echo())))
    }

    async fn status(service: &Service, token: &str) -> u16 {
        tokio::time::timeout(WATCHDOG, send(service, with_token(token)))
            .await
            .expect("a request hangs")
            .status()
            .as_u16()
    }

    #[tokio::test]
    async fn a_revocation_reaches_the_cache_of_another_process() {
        on_each_database("a_revocation_reaches_the_cache_of_another_process", |home| async move {
            let (_, one) = process(home.url()).await;
            let (there, other) = process(home.url()).await;
            let format = TokenFormat::new("acme").unwrap();
            let mut slowest = Duration::ZERO;
            for round in 0..5 {
                let issued = there.issue(&format, &NewGrant::new("alice")).await.unwrap();
                let token = issued.secret.expose();
                for _ in 0..3 {
                    assert_eq!((status(&one, token).await, status(&other, token).await), (200, 200), "{round}");
                }
                there.revoke(&issued.grant.id).await.unwrap();
                let revoked = std::time::Instant::now();
                // Without invalidation, the cache would serve the token for an hour.
                until(|| async { (status(&one, token).await, status(&other, token).await) == (401, 401) }).await;
                slowest = slowest.max(revoked.elapsed());
                // The tokens stay invalid.
                for _ in 0..5 {
                    assert_eq!((status(&one, token).await, status(&other, token).await), (401, 401));
                }
            }
            let database = if home.is_postgres() { "PostgreSQL" } else { "SQLite, polled every 100 ms" };
            // The precision is 20 ms, the interval of this test.
            say(format_args!("revoked in two processes after {slowest:?} at most: {database}"));
        })
        .await;
    }

    #[tokio::test]
    async fn cached_tokens_work_during_an_outage_and_revocations_take_effect_after_it() {
        let test = "cached_tokens_work_during_an_outage_and_revocations_take_effect_after_it";
        for fault in [Fault::Cut, Fault::Silence, Fault::Garbage] {
            let Some((home, proxy, direct)) = behind_a_proxy(test).await else { return };
            let alice = direct.import(TokenDigest::of("alice-token"), &NewGrant::new("alice")).await.unwrap();
            direct.import(TokenDigest::of("bob-token"), &NewGrant::new("bob")).await.unwrap();
            direct.import(TokenDigest::of("carol-token"), &NewGrant::new("carol")).await.unwrap();
            let (_, service) = process(&home.url_through(proxy.address)).await;
            // Wait until the cache listens and has handled the first `Everything`.
            until(|| async { status(&service, "alice-token").await == 200 }).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!((status(&service, "alice-token").await, status(&service, "bob-token").await), (200, 200));

            proxy.set(fault);
            for _ in 0..8 {
                assert_eq!(status(&service, "carol-token").await, 503, "{fault:?}: not cached");
                assert_eq!(status(&service, "unknown").await, 503, "{fault:?}");
                assert_eq!((status(&service, "alice-token").await, status(&service, "bob-token").await), (200, 200));
            }
            direct.revoke(&alice.id).await.unwrap();
            proxy.set(Fault::None);
            until(|| async { status(&service, "alice-token").await == 401 }).await;
            until(|| async { status(&service, "carol-token").await == 200 }).await;
            assert_eq!(status(&service, "bob-token").await, 200, "after {fault:?}");
        }
    }

    /// Two tasks send requests all the time, while tokens are rotated and revoked.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn under_load_revoked_tokens_are_rejected_and_valid_ones_admitted() {
        on_each_database("under_load_revoked_tokens_are_rejected_and_valid_ones_admitted", |home| async move {
            use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
            use std::sync::{Arc, Mutex};

            /// A token. It is valid until `ending` is set, and invalid after `ended` is set.
            #[derive(Default)]
            struct Token {
                secret: String,
                ending: AtomicBool,
                ended: AtomicBool,
            }

            let (there, _) = process(home.url()).await;
            let (_, service) = process(home.url()).await;
            let format = TokenFormat::new("acme").unwrap();
            let tokens = Arc::new(Mutex::new(Vec::<Arc<Token>>::new()));
            let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let (service, tokens, stop, sent) = (service.clone(), tokens.clone(), stop.clone(), sent.clone());
                    tokio::spawn(async move {
                        while !stop.load(Ordering::SeqCst) {
                            let now = tokens.lock().unwrap().clone();
                            for token in now {
                                let had_ended = token.ended.load(Ordering::SeqCst);
                                let status = status(&service, &token.secret).await;
                                let is_ending = token.ending.load(Ordering::SeqCst);
                                assert!(!(had_ended && status == 200), "a revoked token works");
                                assert!(is_ending || status == 200, "a valid token is rejected: {status}");
                                sent.fetch_add(1, Ordering::SeqCst);
                            }
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            // The documented bound, and time for a slow machine.
            let bound = Duration::from_millis(100) + Duration::from_secs(2);
            for round in 0..6 {
                let issued = there.issue(&format, &NewGrant::new("alice")).await.unwrap();
                let add = |secret: &str| {
                    let token = Arc::new(Token { secret: secret.to_owned(), ..Token::default() });
                    tokens.lock().unwrap().push(token.clone());
                    token
                };
                let first = add(issued.secret.expose());
                tokio::time::sleep(Duration::from_millis(50)).await;
                let next = there.rotate(&issued.grant.id, &format, Duration::from_secs(600)).await.unwrap();
                let second = add(next.secret.expose());
                tokio::time::sleep(Duration::from_millis(50)).await;
                first.ending.store(true, Ordering::SeqCst);
                second.ending.store(true, Ordering::SeqCst);
                there.revoke(&issued.grant.id).await.unwrap();
                if round % 2 == 0 {
                    tokio::time::sleep(bound).await;
                    first.ended.store(true, Ordering::SeqCst);
                    second.ended.store(true, Ordering::SeqCst);
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.store(true, Ordering::SeqCst);
            for sender in senders {
                sender.await.unwrap();
            }
            assert!(sent.load(Ordering::SeqCst) > 100, "too few requests");
        })
        .await;
    }
}
