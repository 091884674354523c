//! Tokens in form bodies.
use super::query::{Escapes, one_value};
use super::{Extracted, TokenSyntax};

/// Reads the token of a form field (RFC 6750, section 2.2) in an `application/x-www-form-urlencoded` body.
///
/// # Rules
///
/// 1. Fields are separated by `&`, never by `;`. A name without `=` has an empty value.
/// 2. `+` is a space. Then names and values are percent-decoded once. A broken escape is kept as it is.
/// 3. More than one such field is [`Extracted::Ambiguous`]. An empty field is [`Extracted::Malformed`].
/// 4. Other fields may contain non-ASCII bytes.
///
/// ```
/// use tollgate::extract::{Extracted, TokenSyntax, form};
///
/// let Extracted::Token(token) = form(b"qty=1&access_token=abc", "access_token", TokenSyntax::default()) else { panic!() };
/// assert_eq!(token.expose(), b"abc");
/// ```
pub fn form<'a>(body: &'a [u8], name: &str, form: TokenSyntax) -> Extracted<'a> {
    locate(body, name, form).0
}

pub(super) fn locate<'a>(body: &'a [u8], name: &str, form: TokenSyntax) -> (Extracted<'a>, std::ops::Range<usize>) {
    one_value(body, name, Escapes::Form, form)
}
