//! JWT access tokens.

mod beside_others;
mod claims;
mod hostile;
mod keys;
mod provider;
mod remote;
mod revocation;
mod settings;
