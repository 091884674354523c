//! The style, the script and the icon. Their addresses change with their content, so browsers may keep them.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use sha2::{Digest as _, Sha256};

pub(crate) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("/assets/style.css", "text/css; charset=utf-8", include_str!("style.css")));
pub(crate) static SCRIPT: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("/assets/page.js", "text/javascript; charset=utf-8", include_str!("page.js")));
pub(crate) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("/assets/icon.svg", "image/svg+xml", include_str!("icon.svg")));

/// A file of the website.
pub(crate) struct Asset {
    path: &'static str,
    media_type: &'static str,
    content: &'static str,
    /// The path, with a digest of the content.
    pub(crate) url: String,
}

impl Asset {
    fn new(path: &'static str, media_type: &'static str, content: &'static str) -> Self {
        let digest = Sha256::digest(content);
        let version = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Self { path, media_type, content, url: format!("{path}?v={version:08x}") }
    }
}

/// Returns the routes of the files, which need no session.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    [&STYLE, &SCRIPT, &ICON].into_iter().fold(Router::new(), |routes, asset| {
        let asset: &'static Asset = asset;
        let headers =
            [(header::CONTENT_TYPE, asset.media_type), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
        routes.route(asset.path, get(move || async move { (headers, asset.content) }))
    })
}
