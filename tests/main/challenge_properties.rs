//! Properties of challenges: any text is either read back unchanged by `http-auth` or rejected by the builder.
//!
//! The accepted grammar is written here a second time, from the RFCs.

use std::time::Duration;

use proptest::prelude::*;
use tollgate::respond::{Challenge, ChallengeError, ErrorCode};
use tollgate::{AuthLayer, Scopes};
use tower::Layer;

use crate::challenges::{parameters, parse};
use crate::kit::*;

/// RFC 9110, section 5.6.2: `1*tchar`.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

/// RFC 9110, section 5.6.4: the characters of a quoted string without the tab and `obs-text`, which parsers read
/// differently.
fn is_printable(text: &str) -> bool {
    text.chars().all(|c| (' '..='~').contains(&c))
}

/// RFC 6750, section 3: %x20-21 / %x23-5B / %x5D-7E.
fn is_description(text: &str) -> bool {
    is_printable(text) && !text.contains(['"', '\\'])
}

/// RFC 6749, section 3.3: a `scope-token`.
fn is_word(text: &str) -> bool {
    !text.is_empty() && is_description(text) && !text.contains(' ')
}

/// RFC 3986, section 4.3: the scheme that makes a URI absolute.
fn is_uri(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    let mut letters = scheme.chars();
    let begins = letters.next().is_some_and(|c| c.is_ascii_alphabetic());
    begins && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) && is_word(text)
}

#[derive(Clone, Debug)]
enum Step {
    Realm(String),
    Error(ErrorCode),
    Description(String),
    ErrorUri(String),
    Scope(Vec<String>),
    AcrValues(Vec<String>),
    MaxAge(Duration),
    ResourceMetadata(String),
    Other(String, String),
}

/// The parameters with a method of their own, in header order.
const NAMES: [&str; 8] =
    ["realm", "error", "error_description", "error_uri", "scope", "acr_values", "max_age", "resource_metadata"];

/// The expected contents of a challenge.
#[derive(Default)]
struct Model {
    named: [Option<String>; NAMES.len()],
    others: Vec<(String, String)>,
}

impl Model {
    /// Applies a step, or returns the expected error.
    fn take(&mut self, step: &Step) -> Result<(), ChallengeError> {
        let check = |fits: bool, error| if fits { Ok(()) } else { Err(error) };
        let list = |words: &[String]| (!words.is_empty()).then(|| words.join(" "));
        let (at, value) = match step {
            Step::Realm(text) => {
                check(!text.is_empty() && is_printable(text), ChallengeError::Realm)?;
                (0, Some(text.clone()))
            }
            Step::Error(code) => (1, Some(code.as_str().to_owned())),
            Step::Description(text) => {
                check(is_description(text), ChallengeError::ErrorDescription)?;
                (2, Some(text.clone()))
            }
            Step::ErrorUri(text) => {
                check(is_uri(text), ChallengeError::Uri)?;
                (3, Some(text.clone()))
            }
            Step::Scope(words) => (4, list(words)),
            Step::AcrValues(words) => {
                check(words.iter().all(|word| is_word(word)), ChallengeError::AcrValue)?;
                (5, list(words))
            }
            Step::MaxAge(age) => (6, Some(age.as_secs().to_string())),
            Step::ResourceMetadata(text) => {
                check(is_uri(text), ChallengeError::Uri)?;
                (7, Some(text.clone()))
            }
            Step::Other(name, value) => {
                let taken = NAMES.iter().copied().chain(self.others.iter().map(|(name, _)| name.as_str()));
                let new = !taken.into_iter().any(|taken| taken.eq_ignore_ascii_case(name));
                check(new && is_token(name) && is_printable(value), ChallengeError::Parameter)?;
                self.others.push((name.clone(), value.clone()));
                return Ok(());
            }
        };
        self.named[at] = value;
        Ok(())
    }

    fn parameters(self) -> Vec<(String, String)> {
        let named = NAMES.into_iter().zip(self.named).filter_map(|(name, value)| Some((name.to_owned(), value?)));
        named.chain(self.others).collect()
    }
}

fn take(challenge: Challenge, step: &Step) -> Result<Challenge, ChallengeError> {
    match step {
        Step::Realm(text) => challenge.with_realm(text),
        Step::Error(code) => Ok(challenge.with_error(*code)),
        Step::Description(text) => challenge.with_error_description(text),
        Step::ErrorUri(text) => challenge.with_error_uri(text),
        Step::Scope(words) => Ok(challenge.with_scope(&Scopes::new(words).unwrap())),
        Step::AcrValues(words) => challenge.with_acr_values(words),
        Step::MaxAge(age) => Ok(challenge.with_max_age(*age)),
        Step::ResourceMetadata(text) => challenge.with_resource_metadata(text),
        Step::Other(name, value) => challenge.with_parameter(name, value),
    }
}

/// Returns text that is mostly accepted, text that is mostly rejected, and text that tries to escape its quotes.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,20}",
        "[!#-\\[\\]-~]{1,12}",
        "https?://[!#-\\[\\]-~]{0,12}",
        "[a-zA-Z0-9+.-]{0,4}:[ -~]{0,6}",
        "[\"\\\\, =a]{0,12}",
        "[\\x00-\\x20\\x7f-\\xff]{0,3}[a-z]{0,3}",
        any::<String>(),
    ]
}

fn words() -> impl Strategy<Value = String> {
    "[!#-\\[\\]-~]{1,8}"
}

fn steps() -> impl Strategy<Value = Step> {
    let codes = vec![
        ErrorCode::InvalidRequest,
        ErrorCode::InvalidToken,
        ErrorCode::InsufficientScope,
        ErrorCode::InsufficientUserAuthentication,
    ];
    let names = prop_oneof![
        "[a-c]{1,2}",
        "[A-C]{1,2}",
        "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}",
        prop::sample::select(&NAMES[..]).prop_map(str::to_ascii_uppercase),
        texts(),
    ];
    prop_oneof![
        texts().prop_map(Step::Realm),
        prop::sample::select(codes).prop_map(Step::Error),
        texts().prop_map(Step::Description),
        texts().prop_map(Step::ErrorUri),
        prop::collection::vec(words(), 0..4).prop_map(Step::Scope),
        prop::collection::vec(prop_oneof![4 => words(), 1 => texts()], 0..3).prop_map(Step::AcrValues),
        any::<Duration>().prop_map(Step::MaxAge),
        texts().prop_map(Step::ResourceMetadata),
        (names, texts()).prop_map(|(name, value)| Step::Other(name, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn accepted_parameters_are_read_back_unchanged(realm in "[ -~]{1,20}", steps in prop::collection::vec(steps(), 0..12)) {
        let mut challenge = Challenge::bearer(&realm).unwrap();
        let mut model = Model::default();
        model.take(&Step::Realm(realm)).unwrap();
        for step in &steps {
            match (take(challenge.clone(), step), model.take(step)) {
                (Ok(next), Ok(())) => challenge = next,
                (result, expected) => prop_assert_eq!(result.map(|_| ()), expected, "{:?}", step),
            }
        }
        let value = challenge.to_header_value();
        let read = parse(value.to_str().unwrap());
        prop_assert_eq!(read.len(), 1);
        prop_assert_eq!(read[0].scheme, "Bearer");
        prop_assert_eq!(parameters(&read[0]), model.parameters());
    }

    #[test]
    fn accepted_schemes_are_read_back_unchanged(scheme in prop_oneof!["[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}", texts()], value in "[ -~]{0,9}") {
        let error = match () {
            () if !is_token(&scheme) => Some(ChallengeError::Scheme),
            () if scheme.eq_ignore_ascii_case("bearer") => Some(ChallengeError::Realm),
            () => None,
        };
        let challenge = Challenge::new(&scheme);
        prop_assert_eq!(challenge.as_ref().err(), error.as_ref());
        if let Ok(challenge) = challenge {
            let value_line = challenge.with_parameter("p", &value).unwrap().to_header_value();
            let read = parse(value_line.to_str().unwrap());
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(read[0].scheme, scheme);
            prop_assert_eq!(parameters(&read[0]), [("p".to_owned(), value)]);
        }
    }

    #[test]
    fn scopes_follow_the_scope_token_grammar(scopes in prop::collection::vec(prop_oneof![4 => words(), 1 => texts()], 0..4)) {
        let accepted = Scopes::new(&scopes);
        prop_assert_eq!(accepted.is_ok(), scopes.iter().all(|scope| is_word(scope)));
        if let Ok(accepted) = accepted {
            prop_assert!(accepted.iter().eq(&scopes));
            prop_assert_eq!(accepted.to_string(), scopes.join(" "));
        }
    }

    #[test]
    fn the_gate_accepts_the_same_parameters_as_a_challenge(realm in texts(), metadata in texts()) {
        let gate = AuthLayer::new(memory());
        let fits = !realm.is_empty() && is_printable(&realm);
        prop_assert_eq!(gate.clone().with_realm(&realm).err(), (!fits).then_some(ChallengeError::Realm));
        prop_assert_eq!(
            gate.clone().with_resource_metadata(&metadata).err(),
            (!is_uri(&metadata)).then_some(ChallengeError::Uri)
        );
        if !fits || !is_uri(&metadata) {
            return Ok(());
        }
        let service = gate.with_realm(&realm).unwrap().with_resource_metadata(&metadata).unwrap().layer(echo());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for (request, error) in [(get(), None), (with_token("unknown"), Some("invalid_token"))] {
                let response = send(&service, request).await;
                let read = parameters(&parse(field(response.headers(), "www-authenticate").unwrap())[0]);
                let value = |name| read.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
                assert_eq!((value("realm"), value("resource_metadata")), (Some(&*realm), Some(&*metadata)));
                assert_eq!(value("error"), error);
            }
        });
    }
}

#[test]
fn every_character_is_checked_by_its_grammar() {
    for c in (0..=0x2ff).filter_map(char::from_u32) {
        let text = c.to_string();
        let bearer = || Challenge::bearer("r").unwrap();
        assert_eq!(Challenge::bearer(&text).is_ok(), is_printable(&text), "{c:?} in a realm");
        assert_eq!(bearer().with_error_description(&text).is_ok(), is_description(&text), "{c:?} in a description");
        assert_eq!(bearer().with_error_uri(&format!("a:{c}")).is_ok(), is_word(&text), "{c:?} in a URI");
        assert_eq!(
            bearer().with_error_uri(&format!("a{c}b:")).is_ok(),
            is_uri(&format!("a{c}b:")),
            "{c:?} in a scheme"
        );
        assert_eq!(bearer().with_acr_values([&text]).is_ok(), is_word(&text), "{c:?} in an acr value");
        assert_eq!(Scopes::new([&text]).is_ok(), is_word(&text), "{c:?} in a scope");
        assert_eq!(bearer().with_parameter(&text, "").is_ok(), is_token(&text), "{c:?} in a name");
        assert_eq!(bearer().with_parameter("p", &text).is_ok(), is_printable(&text), "{c:?} in a value");
        assert_eq!(Challenge::new(&text).is_ok(), is_token(&text), "{c:?} in an authentication scheme");
    }
}
