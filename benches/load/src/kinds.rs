//! The kinds of requests, as scripts for `wrk`.

/// The kinds of requests. All use their tokens in turn.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A `GET` with a known token.
    Bearer { path: &'static str, tokens: usize },
    /// A text alert with a known token in it.
    Webhook { tokens: usize },
    /// A `GET` with an unknown token.
    Unknown { path: &'static str, tokens: usize },
}

/// Returns a known token.
pub(crate) fn token(i: usize) -> String {
    format!("ct_{i:064x}")
}

impl Kind {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Bearer { path, .. } | Self::Unknown { path, .. } => path,
            Self::Webhook { .. } => "/v1/webhook",
        }
    }

    pub(crate) fn is_known(self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }

    /// Returns the script, which prepares all requests before the first one is sent.
    pub(crate) fn script(self) -> String {
        let path = self.path();
        let (tokens, request) = match self {
            Self::Bearer { tokens, .. } => {
                (tokens, format!("wrk.format('GET', '{path}', {{['Authorization'] = 'Bearer ct_' .. number}})"))
            }
            Self::Unknown { tokens, .. } => {
                (tokens, format!("wrk.format('GET', '{path}', {{['Authorization'] = 'Bearer cu_' .. number}})"))
            }
            Self::Webhook { tokens } => (
                tokens,
                format!(
                    "wrk.format('POST', '{path}', {{['Content-Type'] = 'text/plain; charset=utf-8'}}, \
                     'key=ct_' .. number .. ';command=CANCELALLORDERS;account=sim101;')"
                ),
            ),
        };
        // The step is prime to the numbers of tokens, so that all are used and neighbours in memory do not follow each other.
        format!(
            "local requests, at = {{}}, 0
             function init()
                 for i = 0, {tokens} - 1 do
                     local number = string.format('%064x', i)
                     requests[i] = {request}
                 end
             end
             function request()
                 at = (at + 38197) % {tokens}
                 return requests[at]
             end
             "
        )
    }
}
