use crate::check::PREFIX;
use crate::oracle::{Doors, Form};

/// How a gate is set up.
#[derive(Clone, Debug)]
pub struct Options {
    pub doors: Doors,
    /// Whether the gate has to wait for its store.
    pub waits: bool,
    pub removes_credentials: bool,
    pub anonymous: bool,
    pub http_2: bool,
    /// Whether the body comes in small pieces.
    pub chunked: bool,
    pub partition_key: bool,
    pub burst: u32,
    /// How far the clock is turned between requests.
    pub step_ns: i128,
}

/// What one unit takes to come back.
pub const INTERVAL_NS: i128 = 700_000_001;

/// The header field of the service's own door.
pub const OTHER: &str = "x-session";

impl Options {
    /// All zero is the default of a gate, with all doors open.
    pub fn of([closed, ways, budget]: [u8; 3]) -> Self {
        let is_open = |bit: u8| closed & 1 << bit == 0;
        let way = |bit: u8| ways & 1 << bit != 0;
        let doors = Doors {
            api_key: is_open(0),
            query: is_open(1),
            websocket: is_open(2).then(|| PREFIX.to_owned()),
            other: is_open(3).then(|| OTHER.to_owned()),
            form: is_open(4),
            json: is_open(5),
            text: is_open(6),
            api_key_yields: !is_open(7),
            sniff: budget & 0x10 != 0,
            max_body: if way(3) { 256 } else { 65_536 },
            preflight: !way(5),
            token: Form { max_len: if budget & 0x20 == 0 { 8192 } else { 16 }, lenient: way(4) },
        };
        Self {
            doors,
            waits: way(0),
            removes_credentials: way(1),
            anonymous: way(2),
            http_2: way(6),
            chunked: way(7),
            partition_key: budget & 0x40 != 0,
            burst: u32::from(budget & 3) + 1,
            step_ns: [0, INTERVAL_NS - 1, INTERVAL_NS, 2 * INTERVAL_NS][usize::from(budget >> 2 & 3)],
        }
    }

    /// The bytes for a gate with these doors in the words of the vectors, and the default otherwise.
    pub fn with_carriers(carriers: &[&str]) -> [u8; 3] {
        let names = ["api_key", "query", "ws", "other", "form", "json", "text"];
        let closed = names.iter().enumerate().filter(|(_, name)| !carriers.contains(name));
        [closed.fold(0, |bits, (bit, _)| bits | 1 << bit), 0, 0]
    }
}
