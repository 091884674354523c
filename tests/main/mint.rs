//! Minted tokens: minted tokens are accepted, mistyped tokens are rejected without a store lookup.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tollgate::TokenDigest;

use http::{HeaderMap, header};
use proptest::prelude::*;
use regex::Regex;
use tollgate::extract::{Extracted, TokenSyntax, authorization};
use tollgate::mint::{CheckError, FormatError, TokenFormat};
use tollgate::store::contract::Contract;
use tollgate::store::{CheckedStore, from_fn};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, MemoryStore, Rejection, RejectionKind, TokenStore};
use tower::Layer;

use crate::kit::*;

fn format(prefix: &str) -> TokenFormat {
    TokenFormat::new(prefix).unwrap()
}

fn formats() -> impl Strategy<Value = TokenFormat> {
    ("[A-Za-z][0-9A-Za-z]{0,5}(_[0-9A-Za-z]{1,4}){0,2}", 128..=512_u32)
        .prop_map(|(prefix, bits)| format(&prefix).with_random_bits(bits).unwrap())
}

/// Returns a format and a token of that format.
fn minted() -> impl Strategy<Value = (TokenFormat, String)> {
    formats().prop_map(|format| {
        let token = format.mint().unwrap().expose().to_owned();
        (format, token)
    })
}

fn any_character() -> impl Strategy<Value = char> {
    prop_oneof![8 => "[0-9A-Za-z]", 2 => "[_=;&%,+/ -]", 1 => any::<char>().prop_map(String::from)]
        .prop_map(|text| text.chars().next().unwrap())
}

/// Checks tokens whose parts were computed by another program, in another language.
#[test]
fn tokens_minted_by_another_program_pass_the_check() {
    let tokens = [
        (format("acme"), "acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22"),
        (format("acme"), "acme_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg1cfhE7"),
        (format("acme"), "acme_JKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz255Xwo"),
        (format("acme_live"), "acme_live_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq44NDQu"),
        (format("tg"), "tg_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz3tvSOV"),
        (format("a").with_random_bits(128).unwrap(), "a_00000000000000000000003U1WXk"),
        // The checksum begins with zeros.
        (format("t").with_random_bits(128).unwrap(), "t_000000000000000000033000QrWt"),
    ];
    for (format, token) in &tokens {
        assert_eq!(format.check(token), Ok(()), "{token}");
        assert_eq!(format.token_len(), token.len());
        for (other, _) in tokens.iter().filter(|(other, _)| other != format) {
            assert_ne!(other.check(token), Ok(()), "{token} as {other:?}");
        }
    }
}

#[test]
fn a_failed_check_returns_the_reason() {
    let format = format("acme");
    let token = "acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22";
    for (text, wrong) in [
        ("", CheckError::Prefix),
        ("acme", CheckError::Prefix),
        ("Acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22", CheckError::Prefix),
        (" acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22", CheckError::Prefix),
        ("acme_", CheckError::Length),
        (&token[..53], CheckError::Length),
        (&format!("{token}\n"), CheckError::Length),
        (&"acme_".repeat(10_000), CheckError::Length),
        ("acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp2=", CheckError::Charset),
        ("acme_\u{e9}QzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22", CheckError::Charset),
        ("acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp23", CheckError::Checksum),
        ("acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKQ3mlp22", CheckError::Checksum),
        // The right checksum plus 2^32 in base62: an implementation that drops the carry would accept this token.
        ("acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq8TR4E6", CheckError::Checksum),
    ] {
        assert_eq!(format.check(text), Err(wrong), "{text}");
    }
    assert_eq!(format.check(b"\xff\xfe"), Err(CheckError::Prefix));
    // The body of a test token under the live prefix.
    let test = self::format("acme_test").mint().unwrap();
    let renamed = test.expose().replace("test", "live");
    assert_eq!(self::format("acme_live").check(&renamed), Err(CheckError::Checksum));
}

#[test]
fn invalid_formats_return_errors() {
    for good in ["a", "Z9", "acme", "acme_live", "a_1_b", &"a".repeat(32)] {
        assert_eq!(format(good).prefix(), good);
    }
    let long = "a".repeat(33);
    for bad in ["", "_", "9a", "_a", "a_", "a__b", "a-b", "a b", "a.b", "a=", "a;", "a%", "\u{e9}", "a\u{e9}", &long] {
        assert_eq!(TokenFormat::new(bad), Err(FormatError::Prefix), "{bad}");
    }
    for bits in [0, 1, 127] {
        assert_eq!(format("a").with_random_bits(bits), Err(FormatError::TooFewBits), "{bits}");
    }
    for bits in [513, u32::MAX] {
        assert_eq!(format("a").with_random_bits(bits), Err(FormatError::TooManyBits), "{bits}");
    }
    assert_eq!(format("a").random_bits(), 256);
    for (bits, len) in [(128, 2 + 22 + 6), (256, 2 + 43 + 6), (512, 2 + 86 + 6)] {
        let format = format("a").with_random_bits(bits).unwrap();
        assert_eq!((format.random_bits(), format.token_len()), (bits, len));
    }
}

/// Applies a chi-squared test to the characters, for all positions together and for each position.
/// A fair source exceeds these bounds once in 10^9 runs.
#[test]
fn characters_are_uniformly_distributed_in_every_position() {
    let format = format("t");
    let tokens: HashSet<String> = (0..5_000).map(|_| format.mint().unwrap().expose().to_owned()).collect();
    assert_eq!(tokens.len(), 5_000, "a token was minted twice");
    let chi_squared = |places: std::ops::Range<usize>| {
        let mut counts = [0_u32; 128];
        tokens.iter().for_each(|token| token[places.clone()].bytes().for_each(|byte| counts[usize::from(byte)] += 1));
        let expected = 5_000.0 * places.len() as f64 / 62.0;
        let digits = (0..128_u8).filter(u8::is_ascii_alphanumeric);
        digits.map(|digit| (f64::from(counts[usize::from(digit)]) - expected).powi(2) / expected).sum::<f64>()
    };
    let all = chi_squared(2..45);
    assert!(all < 150.0, "{all}");
    for place in 2..45 {
        let one = chi_squared(place..place + 1);
        assert!(one < 160.0, "place {place}: {one}");
    }
}

proptest! {
    #[test]
    fn minted_tokens_need_no_escaping_in_any_location((format, token) in minted()) {
        prop_assert_eq!(format.check(&token), Ok(()));
        prop_assert_eq!(token.len(), format.token_len());
        let is_plain = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        prop_assert!(is_plain, "the token needs escaping in some location");
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        let extracted = authorization(&headers, TokenSyntax::default());
        prop_assert!(matches!(extracted, Extracted::Token(found) if found.expose() == token.as_bytes()));
    }

    #[test]
    fn a_changed_byte_fails_the_check((format, token) in minted(), at: prop::sample::Index, change in 1..=255_u8) {
        let mut bytes = token.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert!(format.check(&bytes).is_err());
    }

    #[test]
    fn a_replaced_character_fails_the_check((format, token) in minted(), at: prop::sample::Index) {
        let at = at.index(token.len());
        for other in ('0'..='9').chain('A'..='Z').chain('a'..='z').chain(['_']) {
            let mut changed = token.clone();
            changed.replace_range(at..=at, &other.to_string());
            prop_assert!(changed == token || format.check(&changed).is_err(), "{} at {}", other, at);
        }
    }

    #[test]
    fn swapped_neighbours_fail_the_check((format, token) in minted()) {
        for at in 1..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes.swap(at - 1, at);
            prop_assert!(bytes == token.as_bytes() || format.check(&bytes).is_err(), "at {}", at);
        }
    }

    #[test]
    fn other_lengths_fail_the_check((format, token) in minted(), more in "[0-9A-Za-z]{1,8}") {
        for len in 0..token.len() {
            prop_assert!(format.check(&token[..len]).is_err());
            prop_assert!(format.check(&token[token.len() - len..]).is_err());
        }
        prop_assert_eq!(format.check(format!("{token}{more}")), Err(CheckError::Length));
        for longer in [format!("{more}{token}"), format!("{token}{token}")] {
            prop_assert!(format.check(longer).is_err());
        }
    }

    #[test]
    fn changed_letter_case_fails_the_check((format, token) in minted()) {
        for other in [token.to_ascii_lowercase(), token.to_ascii_uppercase()] {
            prop_assert!(other == token || format.check(&other).is_err());
        }
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            if bytes[at].is_ascii_alphabetic() {
                bytes[at] ^= 0x20;
                prop_assert!(format.check(&bytes).is_err(), "at {}", at);
            }
        }
    }

    /// Checks that the pattern matches exactly the texts that pass the check, up to the checksum.
    #[test]
    fn the_pattern_matches_what_the_check_accepts_up_to_the_checksum(
        (format, token) in minted(),
        edits in prop::collection::vec((0..4_u8, any::<prop::sample::Index>(), any_character()), 0..4),
    ) {
        let mut text: Vec<char> = token.chars().collect();
        for (edit, at, character) in edits {
            let at = at.index(text.len().max(1));
            match edit {
                0 if at < text.len() => text[at] = character,
                1 => text.insert(at, character),
                2 if at < text.len() => drop(text.remove(at)),
                _ if at > 0 => text.swap(at - 1, at),
                _ => {}
            }
        }
        let text: String = text.into_iter().collect();
        let whole = Regex::new(&format!(r"\A(?:{})\z", format.pattern())).unwrap();
        let fits = matches!(format.check(&text), Ok(()) | Err(CheckError::Checksum));
        prop_assert_eq!(whole.is_match(&text), fits, "{}", text);
    }

    #[test]
    fn the_pattern_finds_tokens_within_text(
        (format, token) in minted(),
        before in r#"[ "'=:/\n]{0,3}|%3D|\\n|https?://a/\?key="#,
        behind in r#"[ "'=:;&,\n]{0,3}|\\n|%20"#,
    ) {
        let text = format!("{before}{token}{behind}");
        let pattern = Regex::new(&format.pattern()).unwrap();
        let found: Vec<&str> = pattern.find_iter(&text).map(|found| found.as_str()).collect();
        prop_assert_eq!(found, [&token]);
    }
}

/// A store that counts its lookups.
#[derive(Clone, Debug)]
struct Counted<T>(T, Arc<AtomicUsize>);

impl<T: TokenStore> TokenStore for Counted<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.lookup(token)
    }
}

struct Shop {
    format: TokenFormat,
    tokens: MemoryStore<User>,
    counted: Counted<MemoryStore<User>>,
    minted: String,
    gone: String,
}

const IMPORTED: &str = "an-imported-token";

fn shop() -> Shop {
    let format = format("acme");
    let [minted, gone] = [0, 1].map(|_| format.mint().unwrap());
    let tokens = MemoryStore::new();
    tokens.insert(&minted, Grant::new("alice", User("Alice"))).unwrap();
    tokens.insert(&gone, Grant::new("bob", User("Bob"))).unwrap();
    tokens.insert(TokenDigest::of(IMPORTED), Grant::new("carol", User("Carol"))).unwrap();
    tokens.revoke(&gone);
    let [minted, gone] = [minted, gone].map(|secret| secret.expose().to_owned());
    Shop { format, counted: Counted(tokens.clone(), Arc::default()), tokens, minted, gone }
}

impl Shop {
    fn asked(&self) -> usize {
        self.counted.1.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn checked_stores_fulfil_the_contract() {
    async fn check<T: TokenStore + Debug>(store: T, shop: &Shop, imported: bool) {
        let contract = Contract::new(store).knows(&shop.minted, "alice").has_revoked(&shop.gone);
        if imported { contract.knows(IMPORTED, "carol") } else { contract.has_revoked(IMPORTED) }.check().await;
    }
    let shop = shop();
    let checked = CheckedStore::new(shop.tokens.clone(), shop.format.clone());
    check(checked.clone(), &shop, false).await;
    check(checked.clone().with_imported_tokens(), &shop, true).await;
    check(BoxStore::new(checked), &shop, false).await;
    let tokens = shop.tokens.clone();
    let waiting = from_fn(move |digest| {
        let found = tokens.get(digest).map(|grant| Grant::clone(&grant));
        async move { Ok::<_, Infallible>(found) }
    });
    check(CheckedStore::new(BoxStore::new(waiting), shop.format.clone()), &shop, false).await;
}

#[tokio::test]
async fn a_checked_store_returns_the_error_of_a_failing_store() {
    let shop = shop();
    let down = || BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("down")) }));
    let checked = CheckedStore::new(down(), shop.format.clone());
    Contract::new(checked).knows(&shop.minted, "alice").check_outage().await;
    let imported = CheckedStore::new(down(), shop.format.clone()).with_imported_tokens();
    Contract::new(imported).knows(&shop.minted, "alice").knows(IMPORTED, "carol").check_outage().await;
    // Malformed tokens are rejected without the store.
    let junk = CheckedStore::new(down(), shop.format).lookup(&BearerToken::new("junk")).ready();
    assert!(matches!(junk, Some(Ok(None))));
}

#[test]
fn a_checked_store_looks_up_well_formed_tokens_only() {
    let shop = shop();
    let knows = |store: &dyn Fn(&str) -> bool, text: &str| {
        let before = shop.asked();
        (store(text), shop.asked() - before)
    };
    let store = CheckedStore::new(shop.counted.clone(), shop.format.clone());
    let strict = |text: &str| store.lookup(&BearerToken::new(text)).ready().unwrap().unwrap().is_some();
    let typo = format!("{}x", &shop.minted[..shop.minted.len() - 1]);
    let typo = if typo == shop.minted { typo.replace('x', "y") } else { typo };
    assert_eq!(knows(&strict, &shop.minted), (true, 1));
    assert_eq!(knows(&strict, &shop.gone), (false, 1));
    for text in [&typo, IMPORTED, "", "acme_", &shop.minted[1..]] {
        assert_eq!(knows(&strict, text), (false, 0), "{text}");
    }

    let store = store.with_imported_tokens();
    let open = |text: &str| store.lookup(&BearerToken::new(text)).ready().unwrap().unwrap().is_some();
    assert_eq!(knows(&open, &shop.minted), (true, 1));
    assert_eq!(knows(&open, IMPORTED), (true, 1));
    assert_eq!(knows(&open, "acme-with-another-sign"), (false, 1));
    for text in [&typo, "acme_", "acme_imported"] {
        assert_eq!(knows(&open, text), (false, 0), "{text}");
    }

    // One prefix is the beginning of the other prefix.
    let old = format("acme_old");
    let old_token = old.mint().unwrap();
    shop.tokens.insert(&old_token, Grant::new("dave", User("Dave"))).unwrap();
    let both = CheckedStore::new(shop.counted.clone(), shop.format.clone()).with_format(old);
    let both = |text: &str| both.lookup(&BearerToken::new(text)).ready().unwrap().unwrap().is_some();
    assert_eq!(knows(&open, old_token.expose()), (false, 0));
    assert_eq!(knows(&both, old_token.expose()), (true, 1));
    assert_eq!(knows(&both, &shop.minted), (true, 1));
    assert_eq!(knows(&both, &old_token.expose()[..20]), (false, 0));
}

/// Checks that responses do not show whether the checksum is wrong or the token is unknown.
#[tokio::test]
async fn a_failed_check_gets_the_same_response_as_an_unknown_token() {
    let shop = shop();
    let gate = AuthLayer::new(CheckedStore::new(shop.counted.clone(), shop.format.clone())).layer(echo());
    assert_eq!(send(&gate, with_token(&shop.minted)).await.status(), 200);
    let unknown = send(&gate, with_token(shop.format.mint().unwrap().expose())).await;
    assert_eq!(shop.asked(), 2);
    let mut typo = shop.minted.clone();
    typo.replace_range(10..11, if &typo[10..11] == "x" { "y" } else { "x" });
    let mistyped = send(&gate, with_token(&typo)).await;
    assert_eq!(shop.asked(), 2);
    assert_eq!(mistyped.extensions().get::<Rejection>().unwrap().kind(), RejectionKind::UnknownToken);
    assert_eq!((unknown.status(), unknown.headers()), (mistyped.status(), mistyped.headers()));
    assert_eq!(field(mistyped.headers(), "www-authenticate"), Some(r#"Bearer realm="api", error="invalid_token""#));
    assert_eq!(text(unknown).await, text(mistyped).await);
}
