//! Tests of the grants of open sockets after changes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use tokio::task::JoinSet;
use tollgate::store::Invalidation;
use tollgate::{BoxStore, StoreError, TokenDigest};

use super::frames::{Frame, Random, Raw};
use super::*;
use crate::live::{RETRY, WORKERS};
use crate::stream::PING_EVERY;

/// A store whose lookups by open sockets are counted, and can be made to wait or to fail.
#[derive(Clone, Default)]
struct Counted {
    memory: MemoryStore<User>,
    lookups: Arc<AtomicUsize>,
    at_a_time: Arc<AtomicUsize>,
    most_at_a_time: Arc<AtomicUsize>,
    takes_ms: Arc<AtomicU64>,
    is_down: Arc<AtomicBool>,
    /// The token whose row cannot be read.
    unreadable: Arc<Mutex<Option<TokenDigest>>>,
}

impl Counted {
    fn with_users(users: usize) -> Self {
        let store = Self::default();
        for user in 0..users {
            store.memory.insert(TokenDigest::of(token(user)), grant(user)).unwrap();
        }
        store
    }

    fn tokens(&self) -> Tokens {
        let store = self.clone();
        Tokens::new(BoxStore::new(self.memory.clone()), move |token: TokenDigest| {
            let store = store.clone();
            async move {
                store.lookups.fetch_add(1, Ordering::SeqCst);
                let at_a_time = store.at_a_time.fetch_add(1, Ordering::SeqCst) + 1;
                store.most_at_a_time.fetch_max(at_a_time, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(store.takes_ms.load(Ordering::SeqCst))).await;
                store.at_a_time.fetch_sub(1, Ordering::SeqCst);
                if *store.unreadable.lock().unwrap() == Some(token) {
                    return Err(StoreError::for_token(std::io::Error::other("a row cannot be read")));
                }
                match store.is_down.load(Ordering::SeqCst) {
                    true => Err(StoreError::new(std::io::Error::other("the database is down"))),
                    false => Ok(store.memory.get(token)),
                }
            }
        })
    }

    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    /// Waits until so many lookups were made, and all are done.
    async fn looked_up(&self, lookups: usize) {
        while self.lookups() < lookups || self.at_a_time.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn token(user: usize) -> String {
    format!("ct_user_{user}")
}

fn grant(user: usize) -> Grant<User> {
    Grant::new(format!("grant-{user}"), User { name: format!("user-{user}") }).with_subject(format!("user-{user}"))
}

/// Opens sockets whose clients answer pings, and say which of them was closed, with which code.
async fn open(server: &Server, sockets: impl IntoIterator<Item = usize>) -> JoinSet<(usize, Option<u16>)> {
    let mut open = JoinSet::new();
    for user in sockets {
        let mut raw = Raw::open(server, &token(user)).await;
        open.spawn(async move {
            loop {
                match raw.reader.next().await {
                    Some(Frame::Ping) => raw.pong().await,
                    Some(Frame::Close(code)) => {
                        raw.close(code).await;
                        return (user, code);
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    open
}

/// Paused time moves on in steps that are short enough for what comes over sockets meanwhile.
pub(super) fn short_steps() {
    tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

#[tokio::test(start_paused = true)]
async fn idle_sockets_look_nothing_up() {
    short_steps();
    let store = Counted::with_users(6);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, (0..12).map(|socket| socket % 6)).await;
    store.looked_up(6).await;
    tokio::time::sleep(20 * PING_EVERY).await;
    // Two sockets of one token may be looked up once or twice when they are opened, and never again.
    assert!(store.lookups() <= 12, "{}", store.lookups());
    assert!(open.try_join_next().is_none(), "all are still open");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_looked_up_once_for_each_token_that_it_concerns() {
    short_steps();
    let (users, sockets) = (40, 3);
    let store = Counted::with_users(users);
    store.takes_ms.store(20, Ordering::SeqCst);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, (0..users * sockets).map(|socket| socket % users)).await;
    store.looked_up(users).await;
    tokio::time::sleep(Duration::from_secs(10)).await;

    let before = store.lookups();
    server.live.refresh(&Invalidation::Grant("grant-7".into()));
    server.live.refresh(&Invalidation::Subject("user-8".into()));
    server.live.refresh(&Invalidation::Token(TokenDigest::of(token(9))));
    server.live.refresh(&Invalidation::Grant("unknown".into()));
    server.live.refresh(&Invalidation::Added);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.lookups() - before, 3);

    // A token is queued once for many changes, and is looked up at most once more for changes meanwhile.
    let before = store.lookups();
    for _ in 0..1_000 {
        server.live.refresh(&Invalidation::Everything);
        server.live.refresh(&Invalidation::Grant("grant-7".into()));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.lookups() - before, users);
    assert_eq!(store.most_at_a_time.load(Ordering::SeqCst), WORKERS);

    // A named change goes to the front of the queue.
    let before = store.lookups();
    store.memory.revoke(TokenDigest::of(token(11)));
    server.live.refresh(&Invalidation::Everything);
    server.live.refresh(&Invalidation::Grant("grant-11".into()));
    for _ in 0..sockets {
        assert_eq!(open.join_next().await.unwrap().unwrap(), (11, Some(1008)));
    }
    assert!(store.lookups() - before <= 3 * WORKERS, "{}", store.lookups() - before);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(open.try_join_next().is_none(), "all others are still open");
}

/// A token with another grant may belong to another user, so its sockets are closed.
#[tokio::test(start_paused = true)]
async fn a_socket_ends_when_its_token_gets_another_grant() {
    short_steps();
    let store = Counted::with_users(2);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, [0, 1]).await;
    store.looked_up(2).await;
    store.memory.replace(TokenDigest::of(token(0)), grant(1));
    server.live.refresh(&Invalidation::Grant("grant-0".into()));
    assert_eq!(open.join_next().await.unwrap().unwrap(), (0, Some(1008)));
}

/// The end of a grace period is not reported as a change.
#[tokio::test(start_paused = true)]
async fn a_socket_of_a_rotated_token_ends_with_the_grace_period() {
    short_steps();
    let store = Counted::with_users(1);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, [0, 0]).await;
    store.looked_up(1).await;
    let now = UNIX_EPOCH;
    store
        .memory
        .rotate_at(TokenDigest::of(token(0)), TokenDigest::of("ct_successor"), Duration::from_secs(90), now)
        .unwrap();
    server.live.refresh(&Invalidation::Grant("grant-0".into()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(open.try_join_next().is_none(), "the clock stands still: the grace period is not over");
    let before = store.lookups();
    server.set_clocks(90);
    for _ in 0..2 {
        assert_eq!(open.join_next().await.unwrap().unwrap(), (0, Some(1008)));
    }
    assert_eq!(store.lookups(), before, "the expiry needs no lookup");
    Raw::open(&server, "ct_successor").await.ask_ping().await;
}

/// An outage loses no change, and its end causes no lookup for every socket.
#[tokio::test(start_paused = true)]
async fn an_outage_delays_the_end_and_causes_no_stampede() {
    short_steps();
    let users = 40;
    let store = Counted::with_users(users);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, 0..users).await;
    store.looked_up(users).await;
    store.is_down.store(true, Ordering::SeqCst);
    store.memory.revoke(TokenDigest::of(token(3)));
    let before = store.lookups();
    server.live.refresh(&Invalidation::Everything);
    let outage = Duration::from_secs(60);
    tokio::time::sleep(outage).await;
    assert!(open.try_join_next().is_none(), "revocations are unknown during the outage");
    let tries = store.lookups() - before;
    let most = WORKERS * (outage.as_secs() / RETRY.as_secs() + 1) as usize;
    assert!((WORKERS..=most).contains(&tries), "{tries} of {most}");
    // A socket that is opened now, with a token in the gate's cache, cannot be used.
    let mut blind = Raw::open(&server, &token(4)).await;
    blind.send_ping().await;
    let Some(Frame::Text(answer)) = blind.reader.next().await else { panic!("no answer") };
    assert!(answer.contains("503"), "{answer}");

    store.is_down.store(false, Ordering::SeqCst);
    assert_eq!(open.join_next().await.unwrap().unwrap(), (3, Some(1008)), "no further change was reported");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(open.try_join_next().is_none());
    Raw::open(&server, &token(4)).await.ask_ping().await;
}

/// Repeating the lookup would fail again, and delay other lookups.
#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_read_is_looked_up_again_with_its_next_change() {
    short_steps();
    let store = Counted::with_users(2);
    let server = Server::start_on(store.tokens(), Errors::ProblemDetails).await;
    let mut open = open(&server, [0, 1]).await;
    store.looked_up(2).await;
    *store.unreadable.lock().unwrap() = Some(TokenDigest::of(token(0)));
    store.memory.revoke(TokenDigest::of(token(0)));
    server.live.refresh(&Invalidation::Everything);
    tokio::time::sleep(20 * RETRY).await;
    assert_eq!(store.lookups(), 4);
    assert!(open.try_join_next().is_none(), "the grant is unknown");
    *store.unreadable.lock().unwrap() = None;
    server.live.refresh(&Invalidation::Grant("grant-0".into()));
    assert_eq!(open.join_next().await.unwrap().unwrap(), (0, Some(1008)));
}

/// Closed sockets leave no state, in any order.
#[tokio::test]
async fn subscriptions_that_ended_are_not_looked_up() {
    let store = Counted::with_users(4);
    let tokens = store.tokens();
    let (mut random, seed) = Random::new();
    let mut subscriptions = Vec::new();
    for _ in 0..500 {
        let user = random.below(4) as usize;
        match random.below(3) {
            0 => subscriptions.push(tokens.live().subscribe(TokenDigest::of(token(user)), &Arc::new(grant(user)))),
            1 if !subscriptions.is_empty() => {
                let at = random.below(subscriptions.len() as u64) as usize;
                drop(subscriptions.swap_remove(at));
            }
            _ => tokens.live().refresh(&Invalidation::Everything),
        }
        if random.below(4) == 0 {
            tokio::task::yield_now().await;
        }
    }
    subscriptions.clear();
    while !tokens.live().is_idle() {
        tokio::task::yield_now().await;
    }
    let before = store.lookups();
    tokens.live().refresh(&Invalidation::Everything);
    tokio::task::yield_now().await;
    assert_eq!(store.lookups(), before, "seed {seed}");
}
