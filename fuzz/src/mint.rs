//! The check of minted tokens, and the store that applies it.
//!
//! The input is a token. Since few inputs are valid tokens, it is also read as the body of a token, to which the oracle
//! adds the rest. The last three bytes select a change of that token and its position.

use std::convert::Infallible;
use std::sync::Arc;

use tollgate::mint::{CheckError, TokenFormat};
use tollgate::store::{CheckedStore, Lookup};
use tollgate::{Answer, BearerToken, Grant, Immediate, TokenStore};

use crate::oracle::{self, Misfit, bytes, latin_1};

/// Prefix, random bits, and the length of the body. The first prefix is the beginning of the second.
const FORMATS: [(&str, u32, usize); 4] = [("acme", 256, 43), ("acme_live", 256, 43), ("t", 128, 22), ("Z9_a", 512, 86)];

pub fn check(data: &[u8]) {
    let formats = FORMATS.map(|(prefix, bits, _)| {
        TokenFormat::new(prefix).and_then(|format| format.with_random_bits(bits)).expect("a good format")
    });
    same(&formats, data);
    for (format, (prefix, _, body)) in formats.iter().zip(FORMATS) {
        let token = token_of(data, prefix, body);
        assert_eq!(format.check(&token), Ok(()), "{token}");
        same(&formats, token.as_bytes());
        same(&formats, &changed(token.as_bytes(), data));
    }
}

/// Returns a well-formed token with these bytes as its body.
fn token_of(data: &[u8], prefix: &str, body: usize) -> String {
    let digits = data.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_alphanumeric);
    let covered: String =
        prefix.chars().chain(['_']).chain(digits.chain(['0'].into_iter().cycle()).take(body)).collect();
    covered.clone() + &oracle::checksum_text(&covered)
}

fn changed(token: &[u8], data: &[u8]) -> Vec<u8> {
    let &[.., kind, at, new] = data else { return token.to_vec() };
    let mut token = token.to_vec();
    let len = token.len();
    let at = usize::from(at) % len;
    match kind % 6 {
        0 => token[at] = new,
        1 => token[at] ^= 0x20,
        2 => token.insert(at, new),
        3 => drop(token.remove(at)),
        4 => token.swap(at, (at + 1) % len),
        _ => token.truncate(at),
    }
    token
}

/// Asserts that the crate and the oracle agree on a token for each format. The store may be asked for tokens of its
/// formats only.
fn same(formats: &[TokenFormat; 4], token: &[u8]) {
    let text = latin_1(token);
    let should_be = FORMATS.map(|(prefix, _, body)| oracle::minted(&text, prefix, body));
    for (format, should_be) in formats.iter().zip(should_be) {
        let is = format.check(token).map_err(|error| match error {
            CheckError::Prefix => Misfit::Prefix,
            CheckError::Length => Misfit::Length,
            CheckError::Charset => Misfit::Charset,
            CheckError::Checksum => Misfit::Checksum,
            other => panic!("unknown error: {other}"),
        });
        assert_eq!(is, should_be, "{format:?} {text:?}");
    }
    let [acme, acme_live, t, _] = formats.clone();
    let checked = CheckedStore::new(EveryToken, acme_live).with_format(t);
    let fits = should_be[1].is_ok() || should_be[2].is_ok();
    assert_eq!(finds(&checked, token), fits, "{text:?}");
    let is_foreign = !text.starts_with("acme_live_") && !text.starts_with("t_");
    assert_eq!(finds(&checked.clone().with_imported_tokens(), token), fits || is_foreign, "{text:?}");
    // One prefix is the beginning of the other.
    let checked = checked.with_format(acme).with_imported_tokens();
    let is_foreign = !text.starts_with("acme_") && !text.starts_with("t_");
    assert_eq!(finds(&checked, token), fits || should_be[0].is_ok() || is_foreign, "{text:?}");
}

fn finds(store: &CheckedStore<EveryToken>, token: &[u8]) -> bool {
    let Some(Ok(found)) = store.lookup(&BearerToken::new(token)).ready() else {
        panic!("the store is immediate and never fails")
    };
    found.is_some()
}

/// A store that knows every token.
#[derive(Clone, Debug)]
struct EveryToken;

impl TokenStore for EveryToken {
    type Principal = ();
    type Error = Infallible;
    type Future = Immediate<Lookup<(), Infallible>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(Ok(Some(Arc::new(Grant::new("everyone", ())))))
    }
}

/// Returns well-formed tokens, and tokens with one small error.
pub fn seeds() -> Vec<Vec<u8>> {
    let bodies = ["", "4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq"];
    let tokens =
        FORMATS.into_iter().flat_map(|(prefix, _, body)| bodies.map(|text| token_of(text.as_bytes(), prefix, body)));
    let changes = (0..6_u8).flat_map(|kind| [0, 6, 48, 49, 53].map(|at| vec![b'a', kind, at, b'x']));
    tokens.map(|token| bytes(&token)).chain(changes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values computed by other programs.
    #[test]
    fn the_oracle_matches_known_values() {
        assert_eq!(oracle::checksum("123456789"), 0xcbf4_3926, "the check value of the catalogue");
        let token = "acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22";
        assert_eq!(oracle::minted(token, "acme", 43), Ok(()));
        assert_eq!(oracle::minted("t_000000000000000000033000QrWt", "t", 22), Ok(()));
        assert_eq!(oracle::minted(&token.replace('q', "Q"), "acme", 43), Err(Misfit::Checksum));
        assert_eq!(oracle::minted(&token.replace('q', "="), "acme", 43), Err(Misfit::Charset));
        assert_eq!(oracle::minted(&token.replace('q', ""), "acme", 43), Err(Misfit::Length));
        assert_eq!(oracle::minted(&token.replace('_', "-"), "acme", 43), Err(Misfit::Prefix));
    }
}
