//! JWT access tokens.

mod claims;
mod hostile;
mod keys;
mod provider;
mod remote;
mod revocation;
mod settings;
