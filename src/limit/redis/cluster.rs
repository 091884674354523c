//! A cluster: which node has a key, and the connections to the nodes.
//!
//! # Rules
//!
//! 1. A charge depends on the node that has its key, and on no other. A node that is silent takes nobody else's time.
//! 2. One node is asked for the slots, and the next ones soon after it if it does not reply. Each time another one is the first,
//!    since one that is cut off from the others may reply with what was.
//! 3. Nothing is sent twice but on `MOVED`, `ASK` and `TRYAGAIN`, which say that nothing was done.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};

use super::connect::{Attempt, Made, Open};
use super::node::{Endpoint, Node, unexpected};

/// How often a cluster may say that a slot is elsewhere before a charge fails.
const REDIRECTS: u32 = 4;
/// How long to wait before a command is sent again of whose keys some have moved.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long one node has to reply before the next one is asked for the slots as well.
const NEXT_NODE: Duration = Duration::from_millis(50);
const SLOTS: u16 = 16_384;

type Address = (String, u16);

pub(super) struct Cluster {
    seeds: Vec<Endpoint>,
    connection_timeout: Duration,
    slots: Made<Arc<Slots>>,
    nodes: Mutex<HashMap<Address, Arc<Made<Node>>>>,
    /// How often was asked for the slots.
    asked: AtomicUsize,
}

/// How a node was found.
pub(super) struct Route {
    cluster: Arc<Cluster>,
    address: Address,
}

/// Which master has which slots.
struct Slots(Vec<(RangeInclusive<u16>, Address)>);

impl Cluster {
    /// `seeds` are some nodes, and all have a host and a port.
    pub(super) fn new(seeds: Vec<Endpoint>, connection_timeout: Duration) -> Self {
        let (slots, nodes) = (Made::default(), Mutex::default());
        Self { seeds, connection_timeout, slots, nodes, asked: AtomicUsize::new(0) }
    }

    /// The connection to the node that has a key. Waits while it is being made.
    pub(super) async fn open(self: &Arc<Self>, key: &[u8]) -> RedisResult<Open> {
        let cluster = Arc::clone(self);
        let mut slots = self.slots.attempt(self.connection_timeout, async move { cluster.find_slots().await });
        let slots = slots.done().await?;
        let address = slots.node_of(slot(key)).ok_or_else(|| unexpected("no node has this slot"))?;
        self.open_at(address.clone()).await
    }

    async fn open_at(self: &Arc<Self>, address: Address) -> RedisResult<Open> {
        let mut attempt = self.connection(&address)?;
        let node = attempt.done().await?;
        Ok(Open { node, attempt, route: Some(Route { cluster: Arc::clone(self), address }) })
    }

    /// A charge has failed, on this connection if there was one. Its slot may have another master now.
    pub(super) fn failed(&self, open: Option<&Open>) {
        if let Some((open, route)) = open.and_then(|open| Some((open, open.route.as_ref()?))) {
            let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(made) = nodes.get(&route.address) {
                made.forget(&open.attempt);
            }
        }
        self.slots.forget_any();
    }

    fn connection(&self, address: &Address) -> RedisResult<Attempt<Node>> {
        let made =
            Arc::clone(self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(address.clone()).or_default());
        // All nodes want to know the same.
        let seed = self.seeds.first().ok_or_else(|| unexpected("a cluster without nodes"))?;
        let endpoint = seed.at(&*address.0, address.1);
        Ok(made.attempt(self.connection_timeout, async move { Node::connect(&endpoint).await }))
    }

    /// Asks the nodes that are known, one soon after the other.
    async fn find_slots(&self) -> RedisResult<Arc<Slots>> {
        let seeds = self.seeds.iter().filter_map(Endpoint::address).map(|(host, port)| (host.to_owned(), port));
        let mut known: Vec<Address> = seeds.collect();
        known.extend(self.nodes.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        known.sort_unstable();
        known.dedup();
        let first = self.asked.fetch_add(1, Ordering::Relaxed) % known.len().max(1);
        known.rotate_left(first);
        // Soon enough for charges that wait, and all by half of the time.
        let step = self.connection_timeout / 2 / u32::try_from(known.len().max(1)).unwrap_or(u32::MAX);
        let step = step.min(NEXT_NODE);
        let asked = known.iter().zip(0..).map(|(address, place)| {
            async move {
                tokio::time::sleep(step * place).await;
                self.ask_for_slots(address).await
            }
            .boxed()
        });
        let (slots, _) = select_ok(asked).await?;
        let is_used = |address: &Address, _: &mut Arc<Made<Node>>| {
            slots.0.iter().any(|(_, of)| of == address)
                || self.seeds.iter().any(|seed| seed.address() == Some((&address.0, address.1)))
        };
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).retain(is_used);
        Ok(Arc::new(slots))
    }

    async fn ask_for_slots(&self, address: &Address) -> RedisResult<Slots> {
        let mut node = self.connection(address)?.done().await?;
        let mut command = Cmd::new();
        command.arg("CLUSTER").arg("SLOTS");
        Slots::read(&node.query(&command).await?, &address.0)
    }
}

impl Open {
    /// Sends a command again that a node of a cluster has not taken, to the one that takes it.
    pub(super) async fn watch<T: FromRedisValue>(&mut self, mut error: RedisError, command: &Cmd) -> RedisResult<T> {
        for _ in 0..REDIRECTS {
            let Some(route) = &self.route else { break };
            let ErrorKind::Server(kind) = error.kind() else { break };
            let done = match (kind, redirection(&error, &route.address.0)) {
                (ServerErrorKind::Moved, Some(address)) => {
                    route.cluster.slots.forget_any();
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

/// Where an error says that a slot is.
fn redirection(error: &RedisError, host_of_node: &str) -> Option<Address> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    let host = if host.is_empty() { host_of_node } else { host };
    Some((host.to_owned(), port.parse().ok()?))
}

/// The slot of a key whose hash tag is not empty, as all of ours (`key.rs`): CRC-16/XMODEM of the tag.
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

    /// Reads a reply to `CLUSTER SLOTS`: of each range its ends, its master, and replicas. `asked` is the host that replied,
    /// which is meant where a node does not know its own name.
    fn read(reply: &Value, asked: &str) -> RedisResult<Self> {
        let range = |range: &Value| {
            let [Value::Int(from), Value::Int(to), Value::Array(master), ..] = list(range)? else { return None };
            let [host, Value::Int(port), ..] = &**master else { return None };
            let host = match host {
                Value::Nil => asked.to_owned(),
                host => String::from_redis_value(host.clone()).ok()?,
            };
            let host = match &*host {
                "" => asked.to_owned(),
                // The node does not know it either.
                "?" => return None,
                _ => host,
            };
            let slots = u16::try_from(*from).ok()?..=u16::try_from(*to).ok()?;
            Some((slots, (host, u16::try_from(*port).ok()?)))
        };
        let slots: Vec<_> = list(reply).unwrap_or_default().iter().filter_map(range).collect();
        match slots.is_empty() {
            true => Err(unexpected("a node without a cluster")),
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
    fn slots_are_those_of_redis() {
        // The check value of CRC-16/XMODEM, and `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"{123456789}:x"), 0x31c3 % SLOTS);
        assert_eq!(slot(b"tollgate:{shared}:default"), slot(b"other{shared}"));
        assert_eq!(slot(b"foo"), 12_182);
    }

    #[test]
    fn replies_about_slots_are_read() {
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
