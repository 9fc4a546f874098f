//! From what a plugin's spec refers to, to the bytes of a component that are what they should be.
//!
//! ```text
//! config_map    a key of a ConfigMap, plain or gzip
//! http          a file of a listed web server
//! oci           an image of a listed registry: tag -> manifest -> signatures -> component
//! file          a file in the operator's folder
//! config        what an operator lists; nothing else is ever asked
//! client        GET, bounded, to what is listed
//! reference     PURE   the name of an image
//! credentials   PURE   a pull Secret, and what a registry demands
//! cache         bytes that were accepted once, by what was asked for
//! ```

mod cache;
mod client;
mod config;
mod config_map;
mod credentials;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod oci;
mod reference;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use cache::Cache;
use client::GetError;
pub use config::{Sources, SourcesError};

use super::verify::{SignatureError, TrustRoot};
use crate::{
    api::gateplugin::{ClusterSource, Trust},
    gate::text,
    model::trial::Digest,
};

/// Bytes of a component, unpacked. gzip can make a thousand times of what a ConfigMap holds, and a registry may send
/// for ever.
pub(super) const LARGEST: usize = 32 << 20;

/// Bytes of what is said of a source. It may quote what a registry sent, which may be of any length.
const MESSAGE: usize = 1 << 10;

/// MiB of components that come over the network at the same time: three of the largest, so that slow servers can fill
/// neither the memory nor, unless there are several, the queue.
const DOWNLOADS: usize = 96;
/// Components that are read from this machine or the API at the same time.
const LOCAL: usize = 2;

/// Objects that the spec of a plugin may name.
#[async_trait]
pub trait Objects: Send + Sync {
    /// The ConfigMap, if there is one.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, kube::Error>;
    /// The Secret, if there is one.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, kube::Error>;
}

#[async_trait]
impl Objects for Client {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, kube::Error> {
        Api::namespaced(self.clone(), namespace).get_opt(name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, kube::Error> {
        Api::namespaced(self.clone(), namespace).get_opt(name).await
    }
}

/// Gets components. One for the process.
pub struct Fetcher {
    objects: Arc<dyn Objects>,
    sources: Sources,
    folder: Option<PathBuf>,
    cache: Option<Cache>,
    trust_root: Option<TrustRoot>,
    downloads: Arc<Semaphore>,
    local: Arc<Semaphore>,
}

/// What an operator allows, and has for it. Nothing, by default.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Registries and web servers.
    pub sources: Sources,
    /// The folder of files.
    pub folder: Option<PathBuf>,
    /// Where what was sent is kept.
    pub cache: Option<Cache>,
    /// Against whom identities are verified.
    pub trust_root: Option<TrustRoot>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'spec> {
    /// The namespace of the objects that `source` names.
    pub home: &'spec str,
    /// Where the bytes are.
    pub source: &'spec ClusterSource,
    /// Which are accepted.
    pub trust: &'spec Trust,
    /// The manifest that the image was found to mean before.
    pub resolved: Option<&'spec Digest>,
}

/// A component that is what was asked for.
#[derive(Debug)]
pub struct Admitted {
    /// Its bytes.
    pub component: Bytes,
    /// Their sha256.
    pub digest: Digest,
    /// The manifest that the image was found to mean.
    pub resolved: Option<Digest>,
    /// The place of `component` in memory, given back with it.
    _place: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are no bytes, or not those that were asked for.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Nobody who is trusted has signed them.
    #[error("spec.verify: {error}")]
    Signature {
        /// What was not signed.
        resolved: Digest,
        /// Why not.
        error: SignatureError,
    },
}

impl Refusal {
    /// The reason of the plugin's conditions.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Source(error) => error.reason.code(),
            Self::Signature { error, .. } => error.code(),
        }
    }

    /// May go away though nothing changes that is watched.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Source(error) => error.reason.may_pass(),
            Self::Signature { error, .. } => error.may_pass(),
        }
    }
}

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SourceError {
    /// What kind of wrong.
    pub reason: Reason,
    /// Where in the plugin's object.
    field: &'static str,
    message: String,
}

/// What kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No such ConfigMap.
    ConfigMapNotFound,
    /// The ConfigMap has no such key.
    KeyNotFound,
    /// No such Secret.
    SecretNotFound,
    /// The Secret is no pull secret.
    InvalidSecret,
    /// Nothing in it.
    Empty,
    /// It begins like gzip and is broken.
    BadGzip,
    /// More than may be.
    TooLarge,
    /// The name of an image, a URL or a path cannot be read.
    InvalidReference,
    /// The operator was not told that it may be asked.
    NotListed,
    /// It is not there.
    NotFound,
    /// Not for these credentials, or not without.
    Unauthorized,
    /// Nobody answers, or only errors.
    Unavailable,
    /// An image, but none that holds a component as it should.
    NotAPluginImage,
    /// Not the bytes that were asked for.
    DigestMismatch,
}

impl Reason {
    fn code(self) -> &'static str {
        match self {
            Self::ConfigMapNotFound => "ConfigMapNotFound",
            Self::KeyNotFound => "KeyNotFound",
            Self::SecretNotFound => "SecretNotFound",
            Self::InvalidSecret => "InvalidSecret",
            Self::Empty => "Empty",
            Self::BadGzip => "BadGzip",
            Self::TooLarge => "TooLarge",
            Self::InvalidReference => "InvalidReference",
            Self::NotListed => "NotListed",
            Self::NotFound => "NotFound",
            Self::Unauthorized => "Unauthorized",
            Self::Unavailable => "Unavailable",
            Self::NotAPluginImage => "NotAPluginImage",
            Self::DigestMismatch => "DigestMismatch",
        }
    }

    fn may_pass(self) -> bool {
        match self {
            // Not watched: a Secret, a file, an image that is pushed after its plugin was applied.
            Self::SecretNotFound | Self::InvalidSecret | Self::NotFound | Self::Unauthorized | Self::Unavailable => {
                true
            }
            // A ConfigMap is watched; everything else is as wrong tomorrow.
            Self::ConfigMapNotFound
            | Self::KeyNotFound
            | Self::Empty
            | Self::BadGzip
            | Self::TooLarge
            | Self::InvalidReference
            | Self::NotListed
            | Self::NotAPluginImage
            | Self::DigestMismatch => false,
        }
    }
}

impl SourceError {
    pub(super) fn new(reason: Reason, field: &'static str, message: impl Into<String>) -> Self {
        Self { reason, field, message: text::cut(&message.into(), MESSAGE) }
    }

    fn of_get(field: &'static str, error: &GetError) -> Self {
        let reason = match error {
            GetError::NotListed(_) => Reason::NotListed,
            GetError::TooLarge { .. } => Reason::TooLarge,
            GetError::Unavailable { .. } => Reason::Unavailable,
        };
        Self::new(reason, field, error.to_string())
    }

    fn of_api(field: &'static str, what: &str, error: &kube::Error) -> Self {
        Self::new(Reason::Unavailable, field, format!("{what} cannot be read: {error}"))
    }
}

impl Fetcher {
    /// Gets what is allowed, and what `objects` hold.
    #[must_use]
    pub fn new(objects: Arc<dyn Objects>, allowed: Allowed) -> Self {
        let Allowed { sources, folder, cache, trust_root } = allowed;
        let (downloads, local) = (Arc::new(Semaphore::new(DOWNLOADS)), Arc::new(Semaphore::new(LOCAL)));
        Self { objects, sources, folder, cache, trust_root, downloads, local }
    }

    /// The component that is asked for, once it is known to be it.
    ///
    /// # Errors
    /// Why it is not here.
    pub async fn admit(&self, request: Request<'_>) -> Result<Admitted, Refusal> {
        if request.trust.verify.is_some() && !matches!(request.source, ClusterSource::Oci(_)) {
            let message = "needs spec.source.oci: signatures are found beside an image";
            return Err(SourceError::new(Reason::InvalidReference, "spec.verify", message).into());
        }
        let admitted = match request.source {
            ClusterSource::Oci(source) => self.oci(request, source).await?,
            ClusterSource::Http(source) => self.http(request, source).await?,
            ClusterSource::ConfigMap(source) => self.config_map(request.home, source).await?,
            ClusterSource::File(source) => self.file(source).await?,
        };
        match &request.trust.digest {
            Some(wanted) if *wanted != admitted.digest.as_str() => {
                let message = format!("is {wanted}, but what was fetched is {}", admitted.digest);
                Err(SourceError::new(Reason::DigestMismatch, "spec.digest", message).into())
            }
            _ => Ok(admitted),
        }
    }

    /// A place in memory for a component of `bytes` bytes that comes over the network.
    async fn place_for(&self, bytes: usize) -> OwnedSemaphorePermit {
        let mebibytes = u32::try_from(bytes.div_ceil(1 << 20).clamp(1, DOWNLOADS)).unwrap_or(1);
        place(&self.downloads, mebibytes).await
    }

    fn key(&self, request: &Request<'_>, manifest: Option<&Digest>) -> cache::Key {
        cache::Key::of(request, manifest, self.trust_root.as_ref().map(|root| &root.digest))
    }

    /// The component that was accepted before for the same question.
    async fn cached(&self, key: &cache::Key) -> Option<Admitted> {
        let cache = self.cache.as_ref()?;
        let place = place(&self.local, 1).await;
        let (component, digest) = cache.get(key).await?;
        Some(Admitted { component, digest, resolved: None, _place: place })
    }
}

async fn place(semaphore: &Arc<Semaphore>, places: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_many_owned(places).await.expect("no semaphore of a fetcher is ever closed")
}
