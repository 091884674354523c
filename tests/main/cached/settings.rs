//! The settings of a cache.

use std::time::Duration;

use tollgate::store::{CacheSettingsError, CachedStore, CachedStoreBuilder};
use tollgate::{BearerToken, Grant, MemoryStore, TokenDigest, TokenStore as _};

use crate::kit::remote::*;
use crate::kit::*;

#[test]
fn invalid_settings_return_errors() {
    let builder = |ttl| CachedStore::builder(MemoryStore::<()>::new(), ttl);
    let error = |builder: CachedStoreBuilder<MemoryStore<()>>| builder.build().unwrap_err();
    let longest = Duration::from_secs(366 * 86_400);
    assert_eq!(error(builder(Duration::ZERO)), CacheSettingsError::Time);
    assert_eq!(error(builder(Duration::MAX)), CacheSettingsError::Time);
    assert_eq!(error(builder(longest + Duration::from_nanos(1))), CacheSettingsError::Time);
    assert!(builder(longest).build().is_ok());
    assert_eq!(error(builder(TTL).with_capacity(0)), CacheSettingsError::Capacity);
    assert_eq!(error(builder(TTL).with_unknown_ttl(Duration::MAX)), CacheSettingsError::Time);
    assert!(builder(TTL).with_unknown_ttl(longest).build().is_ok());
    for bound in [Duration::ZERO, Duration::MAX] {
        assert_eq!(error(builder(TTL).with_stale_on_error(bound)), CacheSettingsError::Time);
        assert_eq!(error(builder(TTL).with_stale_while_revalidate(bound, |_| {})), CacheSettingsError::Time);
    }
    assert_eq!(CachedStore::new(MemoryStore::<()>::new(), Duration::ZERO).unwrap_err(), CacheSettingsError::Time);
}

#[test]
fn clones_share_the_entries_of_one_cache() {
    let memory = MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]);
    let cache = CachedStore::new(memory.clone(), TTL).unwrap();
    let clone = cache.clone();
    let knows = |cache: &CachedStore<_>| cache.lookup(&BearerToken::new(TOKEN)).ready().unwrap().unwrap().is_some();
    assert!(knows(&cache));
    memory.insert(TokenDigest::of("other"), Grant::new("bob", ())).unwrap();
    assert!(cache.lookup(&BearerToken::new("other")).ready().unwrap().unwrap().is_some());
    assert_eq!(format!("{clone:?}"), "CachedStore { ttl: 60s, grants: 2, .. }");
    memory.revoke(TokenDigest::of(TOKEN));
    assert!(knows(&clone), "cached by the other handle");
    clone.clear();
    assert!(!knows(&cache), "removed by the other handle");
}
