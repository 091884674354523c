//! Token introspection over real connections.

mod bounds;
mod claims;
mod errors;
mod requests;
mod settings;
