//! [`GateDocsError`]: the errors of descriptions.

use thiserror::Error;

/// The error of a description that does not fit its document.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GateDocsError {
    /// The name of a component is empty, or has a character that OpenAPI does not allow.
    #[error("invalid component name {0:?}: must be one or more letters, digits, `.`, `-` or `_`")]
    ComponentName(String),
    /// The document has another component with this name, or two security schemes of the description have this name.
    #[error("conflicting component `{0}`: another component has this name")]
    Component(String),
    /// No operation of the document has this id, or this method and path.
    #[error("unknown operation `{0}`: must be an operation id, or a method and a path such as `POST /orders`")]
    UnknownOperation(String),
    /// Several operations of the document have this id.
    #[error(
        "ambiguous operation `{0}`: several operations have this id; name the method and the path, such as `POST /orders`"
    )]
    AmbiguousOperation(String),
    /// The operation has a security requirement of its own, other than that of the gate and its layers.
    #[error(
        "conflicting security of operation `{0}`: a layer requires scopes, and the operation has its own `security`"
    )]
    Security(String),
    /// The operation requires a token, or the gate reads tokens, and no security scheme describes how a client sends one.
    #[error("no security scheme for operation `{0}`: add one by `GateDocs::with_security_scheme`")]
    NoSecurityScheme(String),
}
