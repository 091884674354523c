//! Protects credentials: marks header values sensitive, removes credentials on request, and clears them from preflights.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, Request, header};

use super::settings::{Gate, Settings};
use super::state::{NoToken, TokenLookup};
use crate::extract::{allows_query_token, authorization_value, has_bearer, without_parameter, without_token};
use crate::limit::Limiter;
use crate::request_head::RequestHead;
use crate::store::GateStore;
use crate::token::TokenLocation;

/// The request of stores that ignore it.
static NO_REQUEST: LazyLock<Request<()>> = LazyLock::new(Request::default);

impl<T: GateStore, L: Limiter, R> Gate<T, L, R> {
    /// Extracts the token, looks it up, and protects it from code behind the gate.
    #[inline(always)]
    pub(super) fn look_up_and_redact<B>(&self, request: &mut Request<B>) -> TokenLookup<T> {
        let Settings { locations, remove_credentials, syntax, .. } = &self.settings;
        // The usual case finds the header field once, because it is marked before it is read.
        if locations.is_authorization_only() && !self.store.reads_head() {
            if let Some(value) = mark_only_line(request.headers_mut(), &header::AUTHORIZATION) {
                let Some(value) = value else { return Err(NoToken::Missing) };
                let (extracted, location) = (authorization_value(value, *syntax), TokenLocation::AuthorizationHeader);
                let lookup = self.look_up(extracted, location, &RequestHead::of(&NO_REQUEST));
                if *remove_credentials {
                    remove_bearer(request.headers_mut(), &lookup);
                }
                return lookup;
            }
        }
        self.look_up_then_redact(request)
    }

    #[inline(never)]
    fn look_up_then_redact<B>(&self, request: &mut Request<B>) -> TokenLookup<T> {
        let (extracted, location) = self.extract(request);
        let lookup = self.look_up(extracted, location, &RequestHead::of(request));
        self.redact(&lookup, request);
        lookup
    }
}

impl<T, L, R> Gate<T, L, R> {
    /// Prevents code behind the gate from printing the token. Removes the token if the gate is set up so.
    #[inline]
    pub(super) fn redact<B>(&self, lookup: &TokenLookup<T>, request: &mut Request<B>)
    where
        T: GateStore,
    {
        if !self.settings.locations.is_authorization_only() {
            self.redact_other_locations(request);
        }
        redact_field(request.headers_mut(), &header::AUTHORIZATION, false);
        let Settings { remove_credentials, locations, .. } = &self.settings;
        if *remove_credentials && !locations.authorization_disabled {
            remove_bearer(request.headers_mut(), lookup);
        }
    }

    fn redact_other_locations<B>(&self, request: &mut Request<B>) {
        let (locations, remove) = (&self.settings.locations, self.settings.remove_credentials);
        if let Some(name) = &locations.api_key {
            // If Bearer credentials take precedence, the field has another purpose and stays. Its lines may still be secret.
            match locations.api_key_beside(request.headers(), self.settings.syntax) {
                Some(name) => redact_field(request.headers_mut(), name, remove),
                None => mark_all_lines(request.headers_mut(), name),
            }
        }
        if let Some(prefix) = &locations.websocket {
            without_token(request.headers_mut(), prefix);
        }
        match &locations.query {
            Some(name) if remove && allows_query_token(request.method()) => remove_parameter(request, name),
            _ => {}
        }
    }

    /// Removes credentials from all enabled locations of a preflight. Preflights need none, and the gate did not check any.
    pub(super) fn remove_credentials<B>(&self, request: &mut Request<B>) {
        let locations = &self.settings.locations;
        let headers = request.headers_mut();
        if !locations.authorization_disabled {
            headers.remove(header::AUTHORIZATION);
        }
        if let Some(name) = &locations.api_key {
            headers.remove(name);
        }
        if let Some(prefix) = &locations.websocket {
            without_token(headers, prefix);
        }
        if let Some(name) = &locations.query {
            remove_parameter(request, name);
        }
    }
}

/// Removes Bearer credentials. Credentials of another scheme are not removed.
#[inline(never)]
fn remove_bearer<T: GateStore>(headers: &mut HeaderMap, lookup: &TokenLookup<T>) {
    let is_found = matches!(lookup, Ok(asked) if asked.location() == TokenLocation::AuthorizationHeader);
    if is_found || has_bearer(headers) {
        headers.remove(header::AUTHORIZATION);
    }
}

/// Marks a header field sensitive, or removes it.
#[inline]
fn redact_field(headers: &mut HeaderMap, name: &HeaderName, remove: bool) {
    if remove {
        headers.remove(name);
        return;
    }
    if let Some(line) = headers.get_mut(name) {
        line.set_sensitive(true);
    }
    // Only then can the field have several lines. Responders or services may still print them.
    if headers.len() > headers.keys_len() {
        mark_all_lines(headers, name);
    }
}

/// Marks the only line of a header field sensitive, and returns its value. Returns `None` if the field may have several lines.
#[inline]
fn mark_only_line<'a>(headers: &'a mut HeaderMap, name: &HeaderName) -> Option<Option<&'a [u8]>> {
    if headers.len() > headers.keys_len() {
        return None;
    }
    Some(headers.get_mut(name).map(|line| {
        line.set_sensitive(true);
        line.as_bytes()
    }))
}

fn mark_all_lines(headers: &mut HeaderMap, name: &HeaderName) {
    headers.iter_mut().filter(|(own, _)| *own == name).for_each(|(_, line)| line.set_sensitive(true));
}

fn remove_parameter<B>(request: &mut Request<B>, name: &str) {
    if let Some(uri) = without_parameter(request.uri(), name) {
        *request.uri_mut() = uri;
    }
}
