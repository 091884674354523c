//! Caches with invalidation by PostgreSQL, during outages and floods of notifications.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tollgate::TokenDigest;

use http::{Request, Response};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::mpsc;
use tollgate::store::sql::{Database, NewGrant};
use tollgate::store::{CachedStore, CircuitBreaker, Invalidation};
use tollgate::{Answer, AuthLayer, BearerToken, GrantId, TokenStore};
use tower::ServiceBuilder;

use crate::kit::*;
use crate::machine::say;
use crate::proxy::{Fault, Proxy};
use crate::servers::Home;

/// The timeout of the database. Detecting a silent outage takes at least this long.
const TIMEOUT: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(100);
/// The timeout of a test step. No step takes this long unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

type Service = tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, std::convert::Infallible>;

async fn status(service: &Service, token: &str) -> u16 {
    tokio::time::timeout(WATCHDOG, send(service, with_token(token))).await.expect("a request hangs").status().as_u16()
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WATCHDOG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A random number generator. Prints its seed, so that a failure can be reproduced.
struct Random(u64);

impl Random {
    fn new(test: &str) -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).unwrap();
        let seed = u64::from_le_bytes(seed) | 1;
        say(format_args!("{test}: seed {seed}"));
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Creates a gate with a cache and invalidation, as the documentation recommends.
fn process(database: &Database, pause: Duration) -> (Service, mpsc::UnboundedReceiver<Invalidation>) {
    let breaker =
        CircuitBreaker::with_timeout(database.store::<()>(), TIMEOUT * 2).with_backoff(pause, pause * 4).unwrap();
    let cache = CachedStore::new(breaker.clone(), HOUR).unwrap();
    let (report, reported) = mpsc::unbounded_channel();
    let (watched, invalidated) = (database.clone(), cache.clone());
    tokio::spawn(async move {
        let on_change = move |change: Invalidation| {
            invalidated.invalidate(&change);
            if change == Invalidation::Everything {
                breaker.probe_now();
            }
            _ = report.send(change);
        };
        watched.watch(INTERVAL, on_change).await
    });
    let gate = AuthLayer::with_timeout(cache, WATCHDOG / 2);
    (Service::new(ServiceBuilder::new().layer(gate).service(echo())), reported)
}

struct Holder {
    token: String,
    grant: GrantId,
    /// Set before the revocation is written.
    is_being_revoked: AtomicBool,
    /// Set when a request was rejected with 401.
    is_rejected: AtomicBool,
}

/// Clients with cached tokens send requests all the time, with outages at random times. Tokens are revoked during outages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cached_tokens_survive_outages_and_revoked_ones_are_rejected() {
    let test = "cached_tokens_survive_outages_and_revoked_ones_are_rejected";
    let Some(home) = Home::postgres(test).await else { return };
    let mut random = Random::new(test);
    let direct = home.database().await;
    direct.migrate().await.unwrap();
    let proxy = Proxy::to(home.address()).await;
    let database = Database::connect_lazily(&home.url_through(proxy.address)).unwrap().with_timeout(TIMEOUT);
    let (service, mut reported) = process(&database, Duration::from_millis(500));
    assert_eq!(reported.recv().await, Some(Invalidation::Everything), "the first connection");

    let mut holders = Vec::new();
    for number in 0..40 {
        let token = format!("holder-token-{number}");
        let grant = direct.import(TokenDigest::of(&*token), &NewGrant::new(format!("user-{number}"))).await.unwrap().id;
        until("a token is cached", || async { status(&service, &token).await == 200 }).await;
        let (is_being_revoked, is_rejected) = (AtomicBool::new(false), AtomicBool::new(false));
        holders.push(Arc::new(Holder { token, grant, is_being_revoked, is_rejected }));
    }
    let (stop, unavailable, sent) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for holder in &holders {
        let (holder, service, stop) = (Arc::clone(holder), service.clone(), Arc::clone(&stop));
        let (unavailable, sent, seed) = (Arc::clone(&unavailable), Arc::clone(&sent), random.below(1 << 32) | 1);
        clients.push(tokio::spawn(async move {
            let mut random = Random(seed);
            while !stop.load(Ordering::SeqCst) {
                let status = status(&service, &holder.token).await;
                sent.fetch_add(1, Ordering::SeqCst);
                let is_being_revoked = holder.is_being_revoked.load(Ordering::SeqCst);
                match status {
                    200 => assert!(!holder.is_rejected.load(Ordering::SeqCst), "a rejected token is admitted again"),
                    401 if is_being_revoked => holder.is_rejected.store(true, Ordering::SeqCst),
                    503 if !is_being_revoked => _ = unavailable.fetch_add(1, Ordering::SeqCst),
                    503 => {}
                    other => panic!("{} got {other}", holder.token),
                }
                tokio::time::sleep(Duration::from_millis(random.below(20))).await;
            }
        }));
    }
    // Tokens that no cache holds open the breaker during the outages.
    for client in 0..4 {
        let (service, stop) = (service.clone(), Arc::clone(&stop));
        clients.push(tokio::spawn(async move {
            for number in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                assert_ne!(status(&service, &format!("unknown-{client}-{number}")).await, 200);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }));
    }

    let mut valid: Vec<_> = holders.clone();
    let mut slowest = Duration::ZERO;
    for fault in [Fault::Cut, Fault::Silence, Fault::Garbage, Fault::Cut, Fault::Delay(WATCHDOG), Fault::Cut] {
        tokio::time::sleep(Duration::from_millis(random.below(300))).await;
        proxy.set(fault);
        tokio::time::sleep(Duration::from_millis(200 + random.below(1_800))).await;
        let revoked: Vec<_> = (0..2).map(|_| valid.swap_remove(random.below(valid.len() as u64) as usize)).collect();
        for holder in &revoked {
            holder.is_being_revoked.store(true, Ordering::SeqCst);
            assert!(direct.revoke(&holder.grant).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(random.below(500))).await;
        proxy.set(Fault::None);
        let since = Instant::now();
        for holder in &revoked {
            until("a token that was revoked in an outage is rejected", || async {
                holder.is_rejected.load(Ordering::SeqCst)
            })
            .await;
        }
        slowest = slowest.max(since.elapsed());
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let (unavailable, sent) = (unavailable.load(Ordering::SeqCst), sent.load(Ordering::SeqCst));
    say(format_args!("{test}: {sent} requests, revocations took effect at most {slowest:?} after the return"));
    assert_eq!(unavailable, 0, "answers 503 for cached holders, of {sent}");
}

/// The backoff of the circuit breaker is longer than the test may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncached_tokens_recover_when_the_connection_is_back() {
    let test = "uncached_tokens_recover_when_the_connection_is_back";
    let Some(home) = Home::postgres(test).await else { return };
    let direct = home.database().await;
    direct.migrate().await.unwrap();
    for number in 0..8 {
        direct.import(TokenDigest::of(format!("uncached-{number}")), &NewGrant::new("alice")).await.unwrap();
    }
    for fault in [Fault::Cut, Fault::Garbage, Fault::Silence] {
        let proxy = Proxy::to(home.address()).await;
        let database = Database::connect_lazily(&home.url_through(proxy.address)).unwrap().with_timeout(TIMEOUT * 5);
        let (service, mut reported) = process(&database, HOUR);
        assert_eq!(reported.recv().await, Some(Invalidation::Everything), "the first connection");
        assert_eq!(status(&service, "uncached-0").await, 200);
        proxy.set(fault);
        let lookups = (1..8).map(|number| (with_token(&format!("uncached-{number}")), 503));
        tokio::time::timeout(WATCHDOG, all_at_once(&service, lookups)).await.expect("a request hangs");
        let rejected = send(&service, with_token("uncached-1")).await;
        let retry_after: u64 = field(rejected.headers(), "retry-after").unwrap().parse().unwrap();
        assert!(rejected.status() == 503 && retry_after > 1_000, "open circuit breaker: {retry_after}");
        // A new connection shows that the loss was detected.
        let taken = proxy.taken();
        until("a new connection", || async { proxy.taken() > taken }).await;
        proxy.set(Fault::None);
        until("uncached tokens are valid again", || async {
            let mut all = true;
            for number in 0..8 {
                all &= status(&service, &format!("uncached-{number}")).await == 200;
            }
            all
        })
        .await;
    }
}

/// The channel on which the database announces changes.
async fn channel(connection: &mut PgConnection) -> String {
    let name = "SELECT 'tollgate_changes_' || relnamespace FROM pg_class WHERE oid = 'tollgate_grants'::regclass";
    sqlx::query_scalar(name).fetch_one(connection).await.unwrap()
}

/// Sends notifications with different payloads until it is stopped.
async fn flood(home: &Home, payload: &'static str, batch: usize, stop: Arc<AtomicBool>, sent: Arc<AtomicUsize>) {
    let mut connection = PgConnection::connect(home.url()).await.unwrap();
    let channel = channel(&mut connection).await;
    while !stop.load(Ordering::SeqCst) {
        let notify = sqlx::query("SELECT pg_notify($1, $2 || i) FROM generate_series(1, $3) i");
        let notify = notify.bind(&channel).bind(payload).bind(i64::try_from(batch).unwrap());
        notify.execute(&mut connection).await.unwrap();
        sent.fetch_add(batch, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_notifications_is_merged_and_no_change_is_lost() {
    let test = "a_flood_of_notifications_is_merged_and_no_change_is_lost";
    let Some(home) = Home::postgres(test).await else { return };
    let database = home.database().await;
    database.migrate().await.unwrap();
    let interval = Duration::from_millis(500);
    let (report, mut reported) = mpsc::unbounded_channel();
    // Another process, which learns of changes by notifications only.
    let watched = home.database().await;
    tokio::spawn(async move { watched.watch(interval, move |change| _ = report.send((change, Instant::now()))).await });
    assert_eq!(reported.recv().await.unwrap().0, Invalidation::Everything, "the first connection");

    let began = Instant::now();
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attackers: Vec<_> = ["everything ", "nonsense ", "grant junk-"]
        .map(|payload| {
            let (home, stop, sent) = (home.clone(), Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move { flood(&home, payload, 500, stop, sent).await })
        })
        .into();
    let mut revoked = Vec::new();
    for number in 0..10 {
        let grant = database.import(TokenDigest::of(format!("token-{number}")), &NewGrant::new("alice")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(database.revoke(&grant.id).await.unwrap());
        revoked.push((Invalidation::Grant(grant.id), Instant::now()));
    }
    stop.store(true, Ordering::SeqCst);
    for attacker in attackers {
        attacker.await.unwrap();
    }
    // The last change must be reported, even immediately after another one.
    let last = Instant::now();
    let mut connection = PgConnection::connect(home.url()).await.unwrap();
    let channel = channel(&mut connection).await;
    sqlx::query("SELECT pg_notify($1, 'everything')").bind(&channel).execute(&mut connection).await.unwrap();

    let (mut everything, mut named, mut added) = (0, 0, 0);
    loop {
        let next = tokio::time::timeout(WATCHDOG, reported.recv()).await.expect("the last change is lost").unwrap();
        match next {
            (Invalidation::Everything, at) => {
                everything += 1;
                // It includes all changes that were committed before it.
                revoked.retain(|(_, committed)| *committed > at);
                if at > last && revoked.is_empty() {
                    break;
                }
            }
            (Invalidation::Added, _) => added += 1,
            (change, _) => {
                named += 1;
                revoked.retain(|(grant, _)| *grant != change);
            }
        }
    }
    let (intervals, sent) = (began.elapsed().as_millis() / interval.as_millis(), sent.load(Ordering::SeqCst));
    say(format_args!("{test}: {everything} and {named} grants of {sent} were reported in {intervals} intervals"));
    assert!(sent > 5_000 && everything <= intervals + 2, "{everything} reported in {intervals} intervals");
    assert!(named <= 100 * (intervals + 2) && added <= intervals + 2, "{named}, {added} in {intervals} intervals");
}

/// Counts the lookups of a store.
struct Counted<T>(T, Arc<AtomicUsize>);

impl<T: TokenStore> TokenStore for Counted<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<T::Future> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.lookup(token)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_of_unknown_grants_do_not_empty_a_cache() {
    let test = "notifications_of_unknown_grants_do_not_empty_a_cache";
    let Some(home) = Home::postgres(test).await else { return };
    let database = home.database().await;
    database.migrate().await.unwrap();
    let tokens: Vec<String> = (0..30).map(|number| format!("token-{number}")).collect();
    for token in &tokens {
        database.import(TokenDigest::of(&**token), &NewGrant::new("alice").with_id(token)).await.unwrap();
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let cache = CachedStore::new(Counted(database.store::<()>(), Arc::clone(&asked)), HOUR).unwrap();
    let (named, everything) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (watched, invalidated) = (home.database().await, cache.clone());
    let counts = (Arc::clone(&named), Arc::clone(&everything));
    tokio::spawn(async move {
        let on_change = move |change: Invalidation| {
            let count = if change == Invalidation::Everything { &counts.1 } else { &counts.0 };
            count.fetch_add(1, Ordering::SeqCst);
            invalidated.invalidate(&change);
        };
        watched.watch(Duration::from_millis(500), on_change).await
    });
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let attackers: Vec<_> = ["grant a", "grant b", "grant c"]
        .map(|payload| {
            let (home, stop, sent) = (home.clone(), Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move { flood(&home, payload, 20, stop, sent).await })
        })
        .into();
    until("the flood arrives", || async { named.load(Ordering::SeqCst) >= 100 }).await;
    let mut rounds = 0;
    while rounds < 20 || everything.load(Ordering::SeqCst) < 4 {
        for token in &tokens {
            assert!(cache.lookup(&BearerToken::new(token)).await.unwrap().is_some());
        }
        rounds += 1;
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::SeqCst);
    for attacker in attackers {
        attacker.await.unwrap();
    }
    let (asked, named, everything) =
        (asked.load(Ordering::SeqCst), named.load(Ordering::SeqCst), everything.load(Ordering::SeqCst));
    let sent = sent.load(Ordering::SeqCst);
    say(format_args!(
        "{test}: {asked} lookups in {rounds} rounds; {named} and {everything} times `Everything` reported of {sent}"
    ));
    // One lookup for each `Everything`, and sometimes one more because two names share a table entry.
    assert!(asked <= tokens.len() * (everything + 2), "{asked} lookups, {everything} times `Everything`");
    assert!(rounds * tokens.len() > asked);
    // A revoked grant is still removed from the cache.
    assert!(database.revoke(&tokens[0].as_str().into()).await.unwrap());
    until("a revoked token is unknown", || async {
        cache.lookup(&BearerToken::new(&tokens[0])).await.unwrap().is_none()
    })
    .await;
}
