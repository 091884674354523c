//! TLS for clients: Mozilla's roots, and the crypto provider of the application or else ring.
//!
//! Libraries that create a TLS configuration themselves install a crypto provider for the whole process, or panic if the build has
//! several providers. The application chooses the provider. So client libraries get the configuration of this module.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, Error, RootCertStore};

/// Returns the roots that Mozilla trusts.
pub(crate) fn mozilla() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Returns the configuration of a client that trusts these roots.
pub(crate) fn client_config(roots: RootCertStore) -> Result<ClientConfig, Error> {
    // Use the application's provider if one is installed. Never install one here.
    let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
