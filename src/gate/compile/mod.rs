//! From the bytes of a component to code that an engine runs.
//!
//! A compiler is the most complicated program that ever reads what a stranger wrote, and it takes all the time and
//! memory it gets. So the gate host has none: `parent` hands each component to a process of its own (`child`), which
//! can do nothing but compile, within limits; `cache` keeps what comes of it.

mod cache;
mod child;
mod parent;

use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use wasmtime::{Engine, component::Component};

pub use self::{
    cache::{Cache, CacheError, Key},
    child::{CompileError, compile},
    parent::Workshop,
};
use super::{engine::Compiles, plugin};
use crate::model::trial::{Digest, LoadError};

/// The hidden command of the child.
pub const COMMAND: &str = "compile-plugin";

/// What the child may use up. The largest toolchain seen (StarlingMonkey) needs 11 s, 460 MB, and makes 38 MB. A million
/// empty functions would take 80 s and 2 GB.
const CPU: Duration = Duration::from_secs(60);
const WALL: Duration = Duration::from_secs(120);
/// Memory of its own, which is what a container pays for, and address space.
const MEMORY: u64 = 768 << 20;
const ADDRESSES: u64 = 2 << 30;
const ARTIFACT: u64 = 256 << 20;

/// Who compiles.
#[derive(Debug)]
pub enum Compiler {
    /// This process, and nothing is kept. For the command line and for tests: a hostile component can take all of its
    /// time and memory.
    InProcess,
    /// A child for each component.
    Child(Box<Workshop>),
}

impl Compiler {
    /// Whether the engine of this process has to have a compiler.
    pub(super) fn of_engine(&self) -> Compiles {
        match self {
            Self::InProcess => Compiles::Yes,
            Self::Child(_) => Compiles::No,
        }
    }

    /// The component of `bytes`, which were checked and have the digest `digest`.
    ///
    /// # Errors
    /// Why there is none. What is wrong with the bytes is remembered, what is wrong with this machine is not.
    pub(super) async fn component(
        &self,
        engine: &Engine,
        digest: &Digest,
        bytes: Bytes,
    ) -> Result<Component, LoadError> {
        match self {
            Self::InProcess => {
                let engine = engine.clone();
                apart(move || Component::from_binary(&engine, &bytes).map_err(|error| plugin::not_compiled(&error)))
                    .await
            }
            Self::Child(workshop) => workshop.component(engine, digest, &bytes).await,
        }
    }

    /// The component of this digest, if what was compiled of it is kept.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub(super) async fn kept(&self, engine: &Engine, digest: &Digest) -> Result<Option<Component>, LoadError> {
        match self {
            Self::InProcess => Ok(None),
            Self::Child(workshop) => workshop.kept(engine, digest).await,
        }
    }
}

/// Compilers, disks and MACs are no work for the threads that run gates.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(LoadError::Unavailable(format!("the gate host failed: {error}"))))
}
