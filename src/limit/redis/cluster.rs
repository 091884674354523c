//! A Redis cluster: the node of a key, and the connections to the nodes.
//!
//! # Rules
//!
//! 1. A charge depends only on the node that has its key. Each node has a connection and a circuit breaker. A silent node delays
//!    other charges only while commands to it use all permits to send, which is until their timeout. A redirection is a part of the
//!    command. A failure after it is that of the node to which it leads.
//! 2. One node is asked for the slots. If it does not reply, the next ones are asked soon after. Each request starts with another
//!    node, since a node that is partitioned from the others may reply with outdated slots.
//! 3. After a failed charge and after `MOVED` the slots are requested again, at most once in 100 milliseconds. Charges that an open
//!    breaker decides request them too, at most once a second. Charges use the previous slots until the reply.
//! 4. A command is sent again only after `MOVED`, `ASK` and `TRYAGAIN`, which mean that nothing was executed. A charge that ends
//!    with `TRYAGAIN` is decided without Redis. It is no failure of the node.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::connect::{Attempt, Connection, Lazy};
use super::limits::breaker;
use super::node::{Endpoint, Node, unexpected};
use crate::pending::breaker::{Breaker, SharedState};

/// The number of redirections after which a charge fails.
const REDIRECTS: u32 = 4;
/// The pause before a command is sent again after `TRYAGAIN`: some of its keys have moved.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The longest time after which the next node is asked for the slots as well.
const NEXT_NODE: Duration = Duration::from_millis(50);
/// The shortest time between two refreshes of the slots after failures.
const REFRESH: Duration = Duration::from_millis(100);
/// The shortest time between two refreshes of the slots while the breaker of a node is open.
const REFRESH_IN_OUTAGE: Duration = Duration::from_secs(1);
const SLOTS: u16 = 16_384;

type Address = (String, u16);

pub(super) struct Cluster {
    seeds: Vec<Endpoint>,
    connection_timeout: Duration,
    /// The slots by the last reply. They are used while they are requested again.
    slots: ArcSwapOption<Slots>,
    request: Lazy<()>,
    /// The number of requests for the slots.
    requests: AtomicUsize,
    /// The time of the last refresh, in milliseconds after `begin`; 0 before the first one.
    refreshed_at: AtomicU64,
    begin: Instant,
    /// The nodes that have slots, those that are being asked for the slots, and the targets of redirections.
    nodes: Mutex<HashMap<Address, Arc<ClusterNode>>>,
    /// Reports that breakers of removed nodes are closed. Its settings have no effect.
    breaker: Breaker,
}

/// A node, with a circuit breaker of its own.
#[derive(Default)]
struct ClusterNode {
    connection: Lazy<Node>,
    breaker: Arc<SharedState>,
}

/// The cluster and the node that a connection belongs to.
pub(super) struct Route {
    cluster: Arc<Cluster>,
    address: Address,
}

/// The master of each range of slots.
struct Slots(Vec<(RangeInclusive<u16>, Address)>);

impl Cluster {
    /// Creates a cluster from some of its nodes, which all have a host and a port.
    pub(super) fn new(seeds: Vec<Endpoint>, connection_timeout: Duration) -> Self {
        Self {
            seeds,
            connection_timeout,
            slots: ArcSwapOption::empty(),
            request: Lazy::default(),
            requests: AtomicUsize::new(0),
            refreshed_at: AtomicU64::new(0),
            begin: Instant::now(),
            nodes: Mutex::default(),
            breaker: breaker(Duration::ZERO),
        }
    }

    /// Returns the connection to the node that has a key. Waits while the connection is being made.
    pub(super) async fn open(self: &Arc<Self>, key: &[u8]) -> RedisResult<Connection> {
        if self.slots.load().is_none() {
            self.request_slots().done().await?;
        }
        let address = self.slots.load().as_ref().and_then(|slots| slots.node_of(slot(key)).cloned());
        self.open_at(address.ok_or_else(|| unexpected("no node has this slot"))?).await
    }

    /// Returns the state of the breaker of the node that has a key. Returns `None` while the slots are unknown.
    pub(super) fn breaker_of(&self, key: &[u8]) -> Option<Arc<SharedState>> {
        let slots = self.slots.load();
        let node = slots.as_ref()?.node_of(slot(key)).map(|address| self.node(address));
        // Charges for a slot without a node fail immediately, so they need no breaker.
        Some(node.map_or_else(|| Arc::new(SharedState::retired()), |node| Arc::clone(&node.breaker)))
    }

    pub(super) fn breakers(&self) -> Vec<Arc<SharedState>> {
        self.lock_nodes().values().map(|node| Arc::clone(&node.breaker)).collect()
    }

    /// Requests the slots again, unless this was called within this time or a request is pending.
    fn refresh_after(self: &Arc<Self>, interval: Duration) {
        let now = self.begin.elapsed().as_millis() as u64 + 1;
        let is_due = |last: u64| (last == 0 || now.saturating_sub(last) >= interval.as_millis() as u64).then_some(now);
        // A charge that is dropped after its runtime has ended starts no task.
        if Handle::try_current().is_ok()
            && self.refreshed_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
        {
            self.request.clear();
            self.request_slots();
        }
    }

    /// Requests the slots, since a node has failed or named another one.
    fn refresh(self: &Arc<Self>) {
        self.refresh_after(REFRESH);
    }

    /// Requests the slots, since a node is unavailable and another one may have taken over its slots.
    pub(super) fn refresh_in_outage(self: &Arc<Self>) {
        self.refresh_after(REFRESH_IN_OUTAGE);
    }

    fn request_slots(self: &Arc<Self>) -> Arc<Attempt<()>> {
        self.request.attempt(self.connection_timeout, || {
            let cluster = Arc::clone(self);
            async move {
                let slots = Arc::new(cluster.find_slots().await?);
                cluster.slots.store(Some(Arc::clone(&slots)));
                cluster.remove_without(&slots);
                Ok(())
            }
        })
    }

    async fn open_at(self: &Arc<Self>, address: Address) -> RedisResult<Connection> {
        let attempt = self.connection(&address)?;
        let node = attempt.done().await?;
        Ok(Connection { node, attempt, route: Some(Route { cluster: Arc::clone(self), address }) })
    }

    /// Handles a failed charge: drops its connection, if any, and requests the slots, since the slot may have another master.
    pub(super) fn failed(self: &Arc<Self>, connection: Option<&Connection>) {
        if let Some((connection, route)) =
            connection.and_then(|connection| Some((connection, connection.route.as_ref()?)))
        {
            self.clear(&route.address, &connection.attempt);
        }
        self.refresh();
    }

    /// Drops the connection to a node, if it is still the current one.
    fn clear(&self, address: &Address, failed: &Arc<Attempt<Node>>) {
        if let Some(node) = self.lock_nodes().get(address) {
            node.connection.clear_if(failed);
        }
    }

    fn lock_nodes(&self) -> MutexGuard<'_, HashMap<Address, Arc<ClusterNode>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, address: &Address) -> Arc<ClusterNode> {
        let mut nodes = self.lock_nodes();
        match nodes.get(address) {
            Some(node) => Arc::clone(node),
            None => Arc::clone(nodes.entry(address.clone()).or_default()),
        }
    }

    fn connection(&self, address: &Address) -> RedisResult<Arc<Attempt<Node>>> {
        // All nodes have the same credentials.
        let seed = self.seeds.first().ok_or_else(|| unexpected("the cluster has no nodes"))?;
        Ok(self.node(address).connection.attempt(self.connection_timeout, || {
            let endpoint = seed.at(&*address.0, address.1);
            async move { Node::connect(&endpoint).await }
        }))
    }

    /// Asks the known nodes for the slots.
    async fn find_slots(&self) -> RedisResult<Slots> {
        let seeds = self.seeds.iter().filter_map(Endpoint::address).map(|(host, port)| (host.to_owned(), port));
        let mut known: Vec<Address> = seeds.collect();
        known.extend(self.lock_nodes().keys().cloned());
        let known = in_order(known, self.requests.fetch_add(1, Ordering::Relaxed));
        let step = step(self.connection_timeout, known.len());
        first_reply(known.iter().map(|address| self.ask_for_slots(address)), step).await
    }

    /// Removes the nodes without slots. A seed is connected to again for the next request.
    fn remove_without(&self, slots: &Slots) {
        let mut removed = Vec::new();
        self.lock_nodes().retain(|address, node| {
            let has_slots = slots.has(address);
            if !has_slots {
                removed.push(Arc::clone(&node.breaker));
            }
            has_slots
        });
        // Without the lock, since each change is reported.
        removed.into_iter().for_each(|state| self.breaker.with_state(state).retire());
    }

    async fn ask_for_slots(&self, address: &Address) -> RedisResult<Slots> {
        let attempt = self.connection(address)?;
        let mut node = attempt.done().await?;
        let mut request = SlotRequest { cluster: self, address, attempt, has_reply: false };
        let mut command = Cmd::new();
        command.arg("CLUSTER").arg("SLOTS");
        let slots = Slots::read(&node.query(&command).await?, &address.0)?;
        request.has_reply = true;
        Ok(slots)
    }
}

/// A request for the slots that waits for its reply.
struct SlotRequest<'a> {
    cluster: &'a Cluster,
    address: &'a Address,
    attempt: Arc<Attempt<Node>>,
    has_reply: bool,
}

impl Drop for SlotRequest<'_> {
    /// Without a reply, the connection is not used again. Charges notice that a connection to a node with slots has failed.
    fn drop(&mut self) {
        let has_slots = || self.cluster.slots.load().as_ref().is_some_and(|slots| slots.has(self.address));
        if !self.has_reply && !has_slots() {
            self.cluster.clear(self.address, &self.attempt);
        }
    }
}

impl Route {
    /// Returns the state of the breaker of this node, if it is in use.
    pub(super) fn breaker(&self) -> Option<Arc<SharedState>> {
        self.cluster.lock_nodes().get(&self.address).map(|node| Arc::clone(&node.breaker))
    }
}

impl Connection {
    /// Follows the redirection of an error, and sends the command again.
    pub(super) async fn redirect<T: FromRedisValue>(&mut self, mut error: RedisError, command: &Cmd) -> RedisResult<T> {
        let mut is_asking = false;
        for _ in 0..REDIRECTS {
            let Some(route) = &self.route else { break };
            let ErrorKind::Server(kind) = error.kind() else { break };
            match (kind, redirection(&error, &route.address.0)) {
                (ServerErrorKind::Moved, Some(address)) => {
                    route.cluster.refresh();
                    self.move_to(address).await?;
                    is_asking = false;
                }
                (ServerErrorKind::Ask, Some(address)) => {
                    self.move_to(address).await?;
                    is_asking = true;
                }
                (ServerErrorKind::TryAgain, _) => tokio::time::sleep(TRY_AGAIN).await,
                _ => break,
            }
            let done = match is_asking {
                true => self.node.query_asking(command).await,
                false => self.node.query(command).await,
            };
            match done {
                Err(next) => error = next,
                done => return done,
            }
        }
        Err(error)
    }

    /// Continues at another node. Already while this waits, a failure is that of the other node.
    async fn move_to(&mut self, address: Address) -> RedisResult<()> {
        if let Some(route) = &mut self.route {
            self.attempt = route.cluster.connection(&address)?;
            route.address = address;
            self.node = self.attempt.done().await?;
        }
        Ok(())
    }
}

/// Returns the nodes in the order in which a request for the slots asks them. Each request starts with another node.
fn in_order(mut nodes: Vec<Address>, request: usize) -> Vec<Address> {
    nodes.sort_unstable();
    nodes.dedup();
    let first = request % nodes.len().max(1);
    nodes.rotate_left(first);
    nodes
}

/// Returns the first reply that is no error. Starts one request after the other: the next one after `step`, or after an error.
async fn first_reply<T>(
    requests: impl Iterator<Item = impl Future<Output = RedisResult<T>>>,
    step: Duration,
) -> RedisResult<T> {
    let (mut requests, mut pending) = (requests.fuse(), FuturesUnordered::new());
    let mut error = unexpected("the cluster has no nodes");
    loop {
        pending.extend(requests.next());
        match timeout(step, pending.next()).await {
            Ok(Some(Err(failed))) => error = failed,
            Ok(Some(reply)) => return reply,
            Ok(None) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Returns the time after which the next node is asked for the slots as well. All nodes are asked within half of the timeout, early
/// enough for waiting charges.
fn step(timeout: Duration, nodes: usize) -> Duration {
    let step = timeout / 2 / u32::try_from(nodes.max(1)).unwrap_or(u32::MAX);
    step.min(NEXT_NODE)
}

/// Returns the address in a redirection error.
fn redirection(error: &RedisError, host_of_node: &str) -> Option<Address> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    let host = if host.is_empty() { host_of_node } else { host };
    Some((host.to_owned(), port.parse().ok()?))
}

/// Returns the slot of a key with a hash tag that is not empty (`key.rs`): CRC-16/XMODEM of the tag.
fn slot(key: &[u8]) -> u16 {
    let tag = key.split(|byte| *byte == b'{').nth(1).and_then(|rest| rest.split(|byte| *byte == b'}').next());
    let shift = |crc: u16| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
    let crc =
        tag.unwrap_or(key).iter().fold(0, |crc, byte| (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| shift(crc)));
    crc % SLOTS
}

impl Slots {
    fn has(&self, address: &Address) -> bool {
        self.0.iter().any(|(_, of)| of == address)
    }

    fn node_of(&self, slot: u16) -> Option<&Address> {
        self.0.iter().find(|(slots, _)| slots.contains(&slot)).map(|(_, address)| address)
    }

    /// Reads a reply to `CLUSTER SLOTS`: for each range its ends, its master, and replicas.
    ///
    /// `replier` is the host that replied. It stands for a master without a host name.
    fn read(reply: &Value, replier: &str) -> RedisResult<Self> {
        let range = |range: &Value| {
            let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = list(range)? else { return None };
            let [host, Value::Int(port), ..] = &**master else { return None };
            let host = match host {
                Value::Nil => replier.to_owned(),
                host => String::from_redis_value(host.clone()).ok()?,
            };
            let host = match &*host {
                "" => replier.to_owned(),
                // The node has no address for this master.
                "?" => return None,
                _ => host,
            };
            let slots = u16::try_from(*from).ok()?..=u16::try_from(*to).ok()?;
            Some((slots, (host, u16::try_from(*port).ok()?)))
        };
        let slots: Vec<_> = list(reply).unwrap_or_default().iter().filter_map(range).collect();
        match slots.is_empty() {
            true => Err(unexpected("the node is not part of a cluster")),
            false => Ok(Self(slots)),
        }
    }
}

fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::tests::{redis, url};
    use super::*;
    use crate::pending::breaker::BreakerState;

    #[test]
    fn slots_match_redis() {
        // The check value of CRC-16/XMODEM, and `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"{123456789}:x"), 0x31c3 % SLOTS);
        assert_eq!(slot(b"tollgate:{shared}:default"), slot(b"other{shared}"));
        assert_eq!(slot(b"foo"), 12_182);
    }

    fn node(number: u16) -> Address {
        ("10.0.0.1".to_owned(), number)
    }

    #[test]
    fn each_request_for_the_slots_starts_with_another_node() {
        let order = |request| in_order([3, 1, 2, 1].map(node).to_vec(), request).into_iter().map(|(_, port)| port);
        let orders = [0, 1, 2, 3].map(|request| order(request).collect::<Vec<_>>());
        assert_eq!(orders, [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]);
        assert_eq!(in_order(Vec::new(), 1), []);
        let [short, long] = [120, 1_000].map(Duration::from_millis);
        assert_eq!([step(short, 3), step(long, 3), step(short, 0)], [20, 50, 50].map(Duration::from_millis));
    }

    #[test]
    fn the_previous_slots_are_used_while_they_are_requested() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seed = Endpoint::parse("redis://10.0.0.1:1").unwrap();
        let cluster = Arc::new(Cluster::new(vec![seed], Duration::from_secs(1)));
        let breaker_of = |key: &[u8]| cluster.breaker_of(key);
        assert!(breaker_of(b"foo").is_none());
        cluster.slots.store(Some(Arc::new(Slots(vec![(12_182..=12_182, node(2))]))));
        let breaker = breaker_of(b"foo").unwrap();
        // Without a runtime no request begins.
        cluster.failed(None);
        assert_eq!(cluster.requests.load(Ordering::Relaxed), 0);
        runtime.block_on(async {
            cluster.failed(None);
            cluster.failed(None);
            tokio::task::yield_now().await;
            assert_eq!(cluster.requests.load(Ordering::Relaxed), 1);
            assert!(Arc::ptr_eq(&breaker_of(b"foo").unwrap(), &breaker));
        });
        assert_eq!(cluster.breakers().len(), 2, "the node and the seed");
        let without_node = [breaker_of(b"bar").unwrap(), breaker_of(b"bar").unwrap()];
        assert!(!Arc::ptr_eq(&without_node[0], &without_node[1]));
    }

    #[tokio::test(start_paused = true)]
    async fn the_slots_are_requested_again_after_an_interval() {
        const TIMEOUT: Duration = Duration::from_secs(1);
        let seed = Endpoint::parse("redis://10.0.0.1:1").unwrap();
        // No time passes until `begin`.
        let begin = Instant::now() + Duration::from_secs(3_600);
        let cluster = Arc::new(Cluster { begin, ..Cluster::new(vec![seed], TIMEOUT) });
        for (interval_ms, requests) in [(9, 1), (9, 1), (1, 1), (0, 2), (1, 2)] {
            cluster.refresh_after(Duration::from_millis(interval_ms));
            // The request ends without a reply.
            tokio::time::sleep(2 * TIMEOUT).await;
            assert_eq!(cluster.requests.load(Ordering::Relaxed), requests, "{interval_ms}");
        }
        // Another thread has read a later time.
        cluster.refreshed_at.store(2, Ordering::Relaxed);
        cluster.refresh();
        tokio::time::sleep(TIMEOUT).await;
        assert_eq!(cluster.requests.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_node_is_asked_after_an_error_or_a_pause() {
        const STEP: Duration = Duration::from_millis(50);
        let ask = async |replies: &[(u64, Result<u32, ()>)]| {
            let begin = tokio::time::Instant::now();
            let replies = replies.iter().map(|(ms, reply)| async move {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                reply.map_err(|()| unexpected("an error"))
            });
            let reply = first_reply(replies, STEP).await.ok();
            (reply, begin.elapsed().as_millis())
        };
        assert_eq!(ask(&[(1, Err(())), (1, Ok(2))]).await, (Some(2), 2));
        assert_eq!(ask(&[(1_000, Ok(1)), (1, Ok(2))]).await, (Some(2), 51));
        assert_eq!(ask(&[(90, Ok(1)), (1_000, Ok(2))]).await, (Some(1), 90));
        assert_eq!(ask(&[(200, Err(())), (1, Err(()))]).await, (None, 200));
        assert_eq!(ask(&[]).await, (None, 0));
    }

    #[test]
    fn nodes_without_slots_are_removed_and_their_breakers_closed() {
        let seed = Endpoint::parse("redis://10.0.0.1:1").unwrap();
        let cluster = Cluster::new(vec![seed], Duration::ZERO);
        let [gone, kept] =
            [1, 2].map(|number| cluster.breaker.with_state(Arc::clone(&cluster.node(&node(number)).breaker)));
        let fail = || (0..5).for_each(|_| [&gone, &kept].into_iter().for_each(|breaker| breaker.failed(false)));
        fail();
        cluster.remove_without(&Slots(vec![(0..=99, node(2))]));
        // Charges in flight change nothing.
        fail();
        gone.succeeded(true);
        fail();
        assert_eq!([&gone, &kept].map(Breaker::state), [BreakerState::Closed, BreakerState::Open]);
        assert!(gone.acquire().is_ok());
        assert_eq!(cluster.lock_nodes().keys().collect::<Vec<_>>(), [&node(2)]);
    }

    #[test]
    fn a_connection_without_a_reply_about_the_slots_is_replaced() {
        let Some((runtime, _)) = redis("a_connection_without_a_reply_about_the_slots_is_replaced") else { return };
        let seed = Endpoint::parse(&url()).unwrap();
        let address = seed.address().map(|(host, port)| (host.to_owned(), port)).unwrap();
        let cluster = Cluster::new(vec![seed], Duration::from_secs(10));
        runtime.block_on(async {
            let connection = async || {
                let attempt = cluster.connection(&address).unwrap();
                attempt.done().await.unwrap();
                attempt
            };
            let first = connection().await;
            assert!(cluster.ask_for_slots(&address).await.is_err(), "the server is no cluster");
            let second = connection().await;
            assert!(!Arc::ptr_eq(&first, &second));
            assert!(cluster.ask_for_slots(&address).now_or_never().is_none());
            let third = connection().await;
            assert!(!Arc::ptr_eq(&second, &third));
            let end_request = |has_reply| {
                let attempt = Arc::clone(&third);
                drop(SlotRequest { cluster: &cluster, address: &address, attempt, has_reply });
            };
            end_request(true);
            cluster.slots.store(Some(Arc::new(Slots(vec![(0..=1, address.clone())]))));
            end_request(false);
            assert!(Arc::ptr_eq(&third, &connection().await), "after a reply, or with slots");
        });
    }

    #[test]
    fn cluster_slots_replies_are_parsed() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range = |from, to, node| Value::Array(vec![Value::Int(from), Value::Int(to), node, Value::Nil]);
        let reply = Value::Array(vec![
            range(0, 99, node(text("10.0.0.1"), 7_000)),
            range(100, 199, node(text(""), 7_001)),
            range(200, 299, node(Value::Nil, 7_002)),
            range(300, 399, node(text("?"), 7_003)),
            Value::Nil,
        ]);
        let slots = Slots::read(&reply, "seed").unwrap();
        let at = |slot| slots.node_of(slot).map(|(host, port)| (&**host, *port));
        let hosts = [at(0), at(99), at(100), at(250)];
        assert_eq!(
            hosts,
            [Some(("10.0.0.1", 7_000)), Some(("10.0.0.1", 7_000)), Some(("seed", 7_001)), Some(("seed", 7_002))]
        );
        assert_eq!([at(300), at(16_000)], [None, None]);
        assert!(Slots::read(&Value::Array(Vec::new()), "seed").is_err());
        assert!(Slots::read(&Value::Okay, "seed").is_err());
    }
}
