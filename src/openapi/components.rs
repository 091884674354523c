//! The components of a gate: security schemes, responses and schemas.

use std::collections::BTreeMap;

use utoipa::openapi::Components;
use utoipa::openapi::schema::ComponentsBuilder;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::response::{response, status};
use super::{GateDocs, GateDocsError};
use crate::rejection::RejectionKind;

/// A security scheme of a gate.
pub(super) struct Scheme {
    pub(super) name: String,
    pub(super) scheme: SecurityScheme,
    /// Whether the gate reads this location in `GET` and `HEAD` requests only.
    pub(super) is_for_reads: bool,
}

impl GateDocs {
    /// Returns the security schemes, the responses and the schemas of this gate.
    ///
    /// [`apply`](Self::apply) adds them to a document, but only those that its operations use.
    #[must_use]
    pub fn components(&self) -> Components {
        let rules = self.rules.iter().flat_map(|rule| &rule.kinds);
        let kinds = self.gate.kinds.iter().chain(&self.gate.body_kinds).chain(rules);
        self.components_with(&by_status(kinds.copied()), |_| true)
    }

    /// Returns the components of a document with these responses and security schemes.
    pub(super) fn components_with(
        &self,
        kinds: &BTreeMap<u16, Vec<RejectionKind>>,
        is_used: impl Fn(&str) -> bool,
    ) -> Components {
        let mut components = ComponentsBuilder::new();
        for Scheme { name, scheme, .. } in self.schemes().into_iter().filter(|scheme| is_used(&scheme.name)) {
            components = components.security_scheme(name, scheme);
        }
        for (status, kinds) in kinds {
            let is_charged = kinds.iter().any(|kind| self.is_charged(*kind));
            let response = response(&self.gate, self.content.as_ref(), kinds, is_charged);
            components = components.response(self.response_name(*status), response);
        }
        if let Some(content) = self.content.as_ref().filter(|_| !kinds.is_empty()) {
            components = components.schemas_from_iter(content.schemas.clone());
        }
        components.build()
    }

    /// Returns whether this rejection may be made behind a rate limit, which then adds its headers.
    fn is_charged(&self, kind: RejectionKind) -> bool {
        let is_limited = self.gate.is_limited || self.rules.iter().any(|rule| rule.is_limited);
        let is_made_behind =
            kind == RejectionKind::InsufficientScope || self.rules.iter().any(|rule| rule.kinds.contains(&kind));
        is_limited && is_made_behind
    }

    pub(super) fn response_name(&self, status: u16) -> String {
        format!("{}Rejection{status}", self.prefix)
    }

    /// Returns the security schemes in the order in which operations list them.
    pub(super) fn schemes(&self) -> Vec<Scheme> {
        let mut schemes = Vec::new();
        let mut add = |name: &str, scheme, is_for_reads| {
            schemes.push(Scheme { name: format!("{}{name}", self.prefix), scheme, is_for_reads });
        };
        if let Some(locations) = &self.gate.locations {
            if !locations.authorization_disabled {
                let bearer =
                    HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format(&self.bearer_format).description(
                        Some("The token in the field `Authorization`, after `Bearer` (RFC 6750, section 2.1)."),
                    );
                add("bearer", SecurityScheme::Http(bearer.build()), false);
            }
            if let Some(name) = &locations.api_key {
                let text = match locations.api_key_is_fallback {
                    false => "The token alone. Send exactly one credential.",
                    true => "The token alone. The field is ignored beside Bearer credentials.",
                };
                let value = ApiKeyValue::with_description(name.as_str(), text);
                add("api_key", SecurityScheme::ApiKey(ApiKey::Header(value)), false);
            }
            if let Some(parameter) = &locations.query {
                let text = "The token in the URL of `GET` and `HEAD` requests (RFC 6750, section 2.3). Logs contain URLs, \
                            so prefer another scheme.";
                let value = ApiKeyValue::with_description(&**parameter, text);
                add("query_token", SecurityScheme::ApiKey(ApiKey::Query(value)), true);
            }
        }
        let own = self.schemes.iter().cloned();
        schemes.extend(own.map(|(name, scheme)| Scheme { name, scheme, is_for_reads: false }));
        schemes
    }
}

/// Groups reasons by the status of their response. Each status lists a reason once.
pub(super) fn by_status(kinds: impl Iterator<Item = RejectionKind>) -> BTreeMap<u16, Vec<RejectionKind>> {
    let mut grouped: BTreeMap<u16, Vec<RejectionKind>> = BTreeMap::new();
    for kind in kinds {
        let listed = grouped.entry(status(kind).as_u16()).or_default();
        if !listed.contains(&kind) {
            listed.push(kind);
        }
    }
    grouped
}

/// Adds components to those of a document.
pub(super) fn merge(into: &mut Components, from: Components) -> Result<(), GateDocsError> {
    add_all(&mut into.schemas, from.schemas)?;
    add_all(&mut into.responses, from.responses)?;
    add_all(&mut into.security_schemes, from.security_schemes)
}

/// Adds components. Returns an error if a name has another component already.
fn add_all<V: PartialEq>(into: &mut BTreeMap<String, V>, from: BTreeMap<String, V>) -> Result<(), GateDocsError> {
    for (name, value) in from {
        if into.get(&name).is_some_and(|own| *own != value) {
            return Err(GateDocsError::Component(name));
        }
        into.insert(name, value);
    }
    Ok(())
}
