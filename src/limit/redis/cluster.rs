//! A Redis cluster: the node of a key, and the connections to the nodes.
//!
//! # Rules
//!
//! 1. A charge depends only on the node that has its key. A silent node delays no other charge.
//! 2. One node is asked for the slots. If it does not reply, the next ones are asked soon after. Each request starts with another
//!    node, since a node that is partitioned from the others may reply with outdated slots.
//! 3. A command is sent again only after `MOVED`, `ASK` and `TRYAGAIN`, which mean that nothing was executed.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};

use super::connect::{Attempt, Connection, Lazy};
use super::node::{Endpoint, Node, unexpected};

/// The number of redirections after which a charge fails.
const REDIRECTS: u32 = 4;
/// The pause before a command is sent again after `TRYAGAIN`: some of its keys have moved.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The longest time after which the next node is asked for the slots as well.
const NEXT_NODE: Duration = Duration::from_millis(50);
const SLOTS: u16 = 16_384;

type Address = (String, u16);

pub(super) struct Cluster {
    seeds: Vec<Endpoint>,
    connection_timeout: Duration,
    slots: Lazy<Arc<Slots>>,
    nodes: Mutex<HashMap<Address, Arc<Lazy<Node>>>>,
    /// The number of requests for the slots.
    slot_requests: AtomicUsize,
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
        let (slots, nodes) = (Lazy::default(), Mutex::default());
        Self { seeds, connection_timeout, slots, nodes, slot_requests: AtomicUsize::new(0) }
    }

    /// Returns the connection to the node that has a key. Waits while the connection is being made.
    pub(super) async fn open(self: &Arc<Self>, key: &[u8]) -> RedisResult<Connection> {
        let slots = self.slots.attempt(self.connection_timeout, || {
            let cluster = Arc::clone(self);
            async move { cluster.find_slots().await }
        });
        let slots = slots.done().await?;
        let address = slots.node_of(slot(key)).ok_or_else(|| unexpected("no node has this slot"))?;
        self.open_at(address.clone()).await
    }

    async fn open_at(self: &Arc<Self>, address: Address) -> RedisResult<Connection> {
        let attempt = self.connection(&address)?;
        let node = attempt.done().await?;
        Ok(Connection { node, attempt, route: Some(Route { cluster: Arc::clone(self), address }) })
    }

    /// Handles a failed charge: drops its connection, if any, and the slots, since the slot may have another master.
    pub(super) fn failed(&self, connection: Option<&Connection>) {
        if let Some((connection, route)) =
            connection.and_then(|connection| Some((connection, connection.route.as_ref()?)))
        {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(made) = nodes.get(&route.address) {
                made.clear_if(&connection.attempt);
            }
        }
        self.slots.clear();
    }

    fn connection(&self, address: &Address) -> RedisResult<Arc<Attempt<Node>>> {
        let made =
            Arc::clone(self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(address.clone()).or_default());
        // All nodes have the same credentials.
        let seed = self.seeds.first().ok_or_else(|| unexpected("the cluster has no nodes"))?;
        Ok(made.attempt(self.connection_timeout, || {
            let endpoint = seed.at(&*address.0, address.1);
            async move { Node::connect(&endpoint).await }
        }))
    }

    /// Asks the known nodes for the slots, one soon after the other.
    async fn find_slots(&self) -> RedisResult<Arc<Slots>> {
        let seeds = self.seeds.iter().filter_map(Endpoint::address).map(|(host, port)| (host.to_owned(), port));
        let mut known: Vec<Address> = seeds.collect();
        known.extend(self.nodes.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        let known = in_order(known, self.slot_requests.fetch_add(1, Ordering::Relaxed));
        let step = step(self.connection_timeout, known.len());
        let replies = known.iter().zip(0..).map(|(address, place)| {
            async move {
                tokio::time::sleep(step * place).await;
                self.ask_for_slots(address).await
            }
            .boxed()
        });
        let (slots, _) = select_ok(replies).await?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|address, _| self.is_used(address, &slots));
        Ok(Arc::new(slots))
    }

    /// Returns whether a node is a seed or has slots.
    fn is_used(&self, address: &Address, slots: &Slots) -> bool {
        slots.0.iter().any(|(_, of)| of == address)
            || self.seeds.iter().any(|seed| seed.address() == Some((&address.0, address.1)))
    }

    async fn ask_for_slots(&self, address: &Address) -> RedisResult<Slots> {
        let mut node = self.connection(address)?.done().await?;
        let mut command = Cmd::new();
        command.arg("CLUSTER").arg("SLOTS");
        Slots::read(&node.query(&command).await?, &address.0)
    }
}

impl Connection {
    /// Follows the redirection of an error, and sends the command again.
    pub(super) async fn redirect<T: FromRedisValue>(&mut self, mut error: RedisError, command: &Cmd) -> RedisResult<T> {
        for _ in 0..REDIRECTS {
            let Some(route) = &self.route else { break };
            let ErrorKind::Server(kind) = error.kind() else { break };
            let done = match (kind, redirection(&error, &route.address.0)) {
                (ServerErrorKind::Moved, Some(address)) => {
                    route.cluster.slots.clear();
                    *self = Arc::clone(&route.cluster).open_at(address).await?;
                    self.node.query(command).await
                }
                (ServerErrorKind::Ask, Some(address)) => {
                    Arc::clone(&route.cluster).open_at(address).await?.node.query_asking(command).await
                }
                (ServerErrorKind::TryAgain, _) => {
                    tokio::time::sleep(TRY_AGAIN).await;
                    self.node.query(command).await
                }
                _ => break,
            };
            match done {
                Err(next) => error = next,
                done => return done,
            }
        }
        Err(error)
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
    use super::*;

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
    fn nodes_without_slots_are_dropped_unless_they_are_seeds() {
        let seed = Endpoint::parse("redis://10.0.0.1:1").unwrap();
        let (cluster, slots) = (Cluster::new(vec![seed], Duration::ZERO), Slots(vec![(0..=99, node(2))]));
        assert_eq!([1, 2, 3].map(|number| cluster.is_used(&node(number), &slots)), [true, true, false]);
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
