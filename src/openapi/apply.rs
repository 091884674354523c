//! Adds the description of a gate to the operations of a document.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{OpenApi, Ref, RefOr};

use super::components::{by_status, merge};
use super::response::headers;
use super::{GateDocs, GateDocsError, Rule};
use crate::rejection::RejectionKind;

/// An operation, with its method and path.
struct Route<'a> {
    method: &'a str,
    path: &'a str,
    operation: &'a mut Operation,
}

impl GateDocs {
    /// Adds this description to all operations of a document, by the [rules](Self#rules).
    ///
    /// The document must contain the operations behind the gate and no others: apply the description before public routes are
    /// merged. With utoipa-axum, this is the document of the `OpenApiRouter` that gets the gate as a layer. After an error, the
    /// document is unchanged.
    ///
    /// # Errors
    ///
    /// - [`Component`](GateDocsError::Component), if the document has another component with the same name, or if two security
    ///   schemes have one name.
    /// - [`UnknownOperation`](GateDocsError::UnknownOperation), if an operation with scopes, a rate limit or a rejection is not
    ///   in the document.
    /// - [`AmbiguousOperation`](GateDocsError::AmbiguousOperation), if such an operation is named by an id that several operations
    ///   have.
    /// - [`Security`](GateDocsError::Security), if an operation with scopes has another `security` already.
    /// - [`NoSecurityScheme`](GateDocsError::NoSecurityScheme), if an operation requires a token and no scheme describes how to
    ///   send it, or if the gate reads tokens and has no scheme.
    pub fn apply(&self, document: &mut OpenApi) -> Result<(), GateDocsError> {
        let mut names = BTreeSet::new();
        if let Some(second) = self.schemes().into_iter().find(|scheme| !names.insert(scheme.name.clone())) {
            return Err(GateDocsError::Component(second.name));
        }
        let mut changed = document.clone();
        let mut routes: Vec<_> = changed.paths.paths.iter_mut().flat_map(|(path, item)| of_path(path, item)).collect();
        for operation in self.rules.iter().flat_map(|rule| &rule.operations) {
            match routes.iter().filter(|route| route.has_name(operation)).count() {
                0 => return Err(GateDocsError::UnknownOperation(operation.clone())),
                1 => {}
                _ => return Err(GateDocsError::AmbiguousOperation(operation.clone())),
            }
        }
        let mut used: BTreeMap<u16, Vec<RejectionKind>> = BTreeMap::new();
        for route in &mut routes {
            for (status, kinds) in self.describe(route)? {
                used.entry(status).or_default().extend(kinds);
            }
        }
        let used = by_status(used.into_values().flatten());
        let requirements = routes.iter().flat_map(|route| route.operation.security.iter().flatten());
        let schemes: BTreeSet<String> = requirements.flat_map(|one| scopes_by_scheme(one).into_keys()).collect();
        let components = self.components_with(&used, |scheme| schemes.contains(scheme));
        merge(changed.components.get_or_insert_default(), components)?;
        *document = changed;
        Ok(())
    }

    /// Changes one operation. Returns the reasons for rejections that it refers to.
    fn describe(&self, route: &mut Route<'_>) -> Result<BTreeMap<u16, Vec<RejectionKind>>, GateDocsError> {
        let rules: Vec<&Rule> =
            self.rules.iter().filter(|rule| rule.operations.iter().any(|name| route.has_name(name))).collect();
        let mut kinds = self.gate.kinds.clone();
        if [Method::POST, Method::PUT, Method::PATCH].iter().any(|method| route.method == method.as_str()) {
            kinds.extend(&self.gate.body_kinds);
        }
        kinds.extend(rules.iter().flat_map(|rule| &rule.kinds));
        let scopes: Vec<_> = rules.iter().filter_map(|rule| rule.scopes.as_deref()).collect();
        let security = self.security(route, &kinds, &scopes);
        match &route.operation.security {
            None => route.operation.security = Some(security?),
            Some(own) if !scopes.is_empty() && security.as_ref() != Ok(own) => {
                return Err(GateDocsError::Security(route.name()));
            }
            Some(own) if own.iter().any(has_scopes) => kinds.push(RejectionKind::InsufficientScope),
            Some(_) => {}
        }
        if self.gate.is_limited || rules.iter().any(|rule| rule.is_limited) {
            self.add_limit_headers(route.operation);
        }
        let responses = &mut route.operation.responses.responses;
        let mut kinds = by_status(kinds.into_iter());
        kinds.retain(|status, _| {
            let reference = Ref::from_response_name(self.response_name(*status));
            let described = responses.entry(status.to_string()).or_insert_with(|| RefOr::Ref(reference.clone()));
            *described == RefOr::Ref(reference)
        });
        Ok(kinds)
    }

    /// Returns the requirements of an operation, of which one suffices.
    fn security(
        &self,
        route: &Route<'_>,
        kinds: &[RejectionKind],
        scopes: &[&[Vec<String>]],
    ) -> Result<Vec<SecurityRequirement>, GateDocsError> {
        let is_read = route.method == Method::GET.as_str() || route.method == Method::HEAD.as_str();
        let schemes = self.schemes();
        let has_schemes = !schemes.is_empty();
        let mut requirements = Vec::new();
        for scheme in schemes.into_iter().filter(|scheme| is_read || !scheme.is_for_reads) {
            for scopes in combined(scopes) {
                requirements.push(SecurityRequirement::new(scheme.name.clone(), scopes));
            }
        }
        let is_required = kinds.contains(&RejectionKind::Missing);
        let is_undescribed = self.gate.locations.is_some() && !has_schemes;
        if requirements.is_empty() && (is_required || is_undescribed) {
            return Err(GateDocsError::NoSecurityScheme(route.name()));
        }
        // The list is empty if no scheme applies. Otherwise, an empty requirement says that no credential is needed.
        if !is_required && !requirements.is_empty() {
            requirements.push(SecurityRequirement::default());
        }
        Ok(requirements)
    }

    fn add_limit_headers(&self, operation: &mut Operation) {
        let described = headers(&[self.gate.limit_headers()]);
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                for (name, header) in &described {
                    let is_described = response.headers.keys().any(|own| own.eq_ignore_ascii_case(name));
                    if !is_described {
                        response.headers.insert(name.clone(), header.clone().into());
                    }
                }
            }
        }
    }
}

impl Route<'_> {
    /// Returns whether this is the id of the operation, or its method and path.
    fn has_name(&self, name: &str) -> bool {
        let id = self.operation.operation_id.as_deref();
        id == Some(name) || name.split_once(' ') == Some((self.method, self.path))
    }

    /// Returns the name of the operation in errors.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Returns the operations of a path.
fn of_path<'a>(path: &'a str, item: &'a mut PathItem) -> Vec<Route<'a>> {
    let PathItem { get, put, post, delete, options, head, patch, trace, query, additional_operations, .. } = item;
    let fixed = [
        ("GET", get),
        ("PUT", put),
        ("POST", post),
        ("DELETE", delete),
        ("OPTIONS", options),
        ("HEAD", head),
        ("PATCH", patch),
        ("TRACE", trace),
        ("QUERY", query),
    ];
    let fixed = fixed.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)));
    let additional = additional_operations.iter_mut().map(|(method, operation)| (&**method, operation));
    fixed.chain(additional).map(|(method, operation)| Route { method, path, operation }).collect()
}

/// Returns the sets of scopes of which one suffices, if several layers have sets of which one suffices each.
fn combined(layers: &[&[Vec<String>]]) -> Vec<Vec<String>> {
    layers.iter().fold(vec![Vec::new()], |sets, layer| {
        let with = |set: &Vec<String>, more: &Vec<String>| {
            let mut all = set.clone();
            all.extend(more.iter().filter(|scope| !set.contains(scope)).cloned());
            all
        };
        sets.iter().flat_map(|set| layer.iter().map(move |more| with(set, more))).collect()
    })
}

fn has_scopes(requirement: &SecurityRequirement) -> bool {
    scopes_by_scheme(requirement).values().any(|scopes| !scopes.is_empty())
}

/// Returns the scopes of each scheme of a requirement. utoipa has no accessor for them.
fn scopes_by_scheme(requirement: &SecurityRequirement) -> BTreeMap<String, Vec<String>> {
    serde_json::to_value(requirement).and_then(serde_json::from_value).unwrap_or_default()
}
