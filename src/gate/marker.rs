//! The markers of an [`AuthLayer`](super::AuthLayer), which name what it reads and serves beside tokens in request heads.

#[cfg(feature = "body")]
use super::BodyTokens;
use super::Identity;
#[cfg(feature = "utoipa")]
use super::description;
#[cfg(feature = "utoipa")]
use crate::rejection::RejectionKind;

/// Marks an [`AuthLayer`](super::AuthLayer) that never reads request bodies.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadOnly;

/// An [`AuthLayer`](super::AuthLayer) that reads tokens: all but an [`Identity`] layer.
pub trait ReadsTokens: sealed::Sealed {}

/// An [`AuthLayer`](super::AuthLayer) that serves no metadata of a protected resource: all but those with a `ProtectedResource`.
#[diagnostic::on_unimplemented(
    message = "this gate has a `ProtectedResource` already, which sets `resource_metadata` of its challenges"
)]
pub trait WithoutMetadata: sealed::Sealed {}

pub(super) mod sealed {
    pub trait Sealed {
        /// Returns whether the layer accepts tokens in this form field.
        #[doc(hidden)]
        #[cfg(feature = "resource-metadata")]
        fn reads_form_field(&self, _: &str) -> bool {
            false
        }

        /// Returns the reasons for rejections of any request by its credential, and those of requests whose body is read.
        #[doc(hidden)]
        #[cfg(feature = "utoipa")]
        fn credential_kinds(&self) -> [&'static [crate::rejection::RejectionKind]; 2];
    }
}

impl ReadsTokens for HeadOnly {}
impl WithoutMetadata for HeadOnly {}
impl sealed::Sealed for HeadOnly {
    #[cfg(feature = "utoipa")]
    fn credential_kinds(&self) -> [&'static [RejectionKind]; 2] {
        [description::TOKEN_KINDS, &[]]
    }
}

impl WithoutMetadata for Identity {}
impl sealed::Sealed for Identity {
    #[cfg(feature = "utoipa")]
    fn credential_kinds(&self) -> [&'static [RejectionKind]; 2] {
        // The grants of callers that something else has authenticated expire, too.
        [if self.identifies() { &[RejectionKind::ExpiredToken] } else { &[] }, &[]]
    }
}

#[cfg(feature = "body")]
impl ReadsTokens for BodyTokens {}
#[cfg(feature = "body")]
impl WithoutMetadata for BodyTokens {}
#[cfg(feature = "body")]
impl sealed::Sealed for BodyTokens {
    #[cfg(feature = "resource-metadata")]
    fn reads_form_field(&self, name: &str) -> bool {
        self.is_form_field(name)
    }

    #[cfg(feature = "utoipa")]
    fn credential_kinds(&self) -> [&'static [RejectionKind]; 2] {
        [description::TOKEN_KINDS, description::BODY_KINDS]
    }
}
