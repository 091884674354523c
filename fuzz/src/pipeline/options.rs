//! Settings of a gate, read from bytes.

use crate::check::PREFIX;
use crate::oracle::{Form, Locations};

/// The settings of a gate.
#[derive(Clone, Debug)]
pub struct Options {
    pub locations: Locations,
    /// Makes the store pending.
    pub pending: bool,
    pub removes_credentials: bool,
    pub anonymous: bool,
    pub http_2: bool,
    /// Sends the body in small pieces.
    pub chunked: bool,
    pub partition_key: bool,
    pub burst: u32,
    /// The time between requests.
    pub step_ns: i128,
}

/// The time to refill one unit.
pub const INTERVAL_NS: i128 = 700_000_001;

/// The header field of the custom location.
pub const OTHER: &str = "x-session";

impl Options {
    /// Reads settings. All zero is a default gate with all locations enabled.
    pub fn of([disabled, flags, limit]: [u8; 3]) -> Self {
        let is_enabled = |bit: u8| disabled & 1 << bit == 0;
        let flag = |bit: u8| flags & 1 << bit != 0;
        let locations = Locations {
            api_key: is_enabled(0),
            query: is_enabled(1),
            websocket: is_enabled(2).then(|| PREFIX.to_owned()),
            other: is_enabled(3).then(|| OTHER.to_owned()),
            form: is_enabled(4),
            json: is_enabled(5),
            text: is_enabled(6),
            api_key_unless_bearer: !is_enabled(7),
            json_in_text: limit & 0x10 != 0,
            max_body: if flag(3) { 256 } else { 65_536 },
            preflight: !flag(5),
            token: Form { max_len: if limit & 0x20 == 0 { 8192 } else { 16 }, lenient: flag(4) },
        };
        Self {
            locations,
            pending: flag(0),
            removes_credentials: flag(1),
            anonymous: flag(2),
            http_2: flag(6),
            chunked: flag(7),
            partition_key: limit & 0x40 != 0,
            burst: u32::from(limit & 3) + 1,
            step_ns: [0, INTERVAL_NS - 1, INTERVAL_NS, 2 * INTERVAL_NS][usize::from(limit >> 2 & 3)],
        }
    }

    /// Returns the bytes for a gate with these locations, in the names of the vectors, and default settings.
    pub fn with_locations(locations: &[&str]) -> [u8; 3] {
        let names = ["api_key", "query", "ws", "other", "form", "json", "text"];
        let disabled = names.iter().enumerate().filter(|(_, name)| !locations.contains(name));
        [disabled.fold(0, |bits, (bit, _)| bits | 1 << bit), 0, 0]
    }
}
