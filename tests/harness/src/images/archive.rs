//! An image as one archive: a manifest, a config and a single layer.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::folder;

/// An image in the making.
pub struct Image {
    reference: String,
    layer: Builder<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
}

/// What the image's containers start with.
#[derive(Default)]
pub struct Config<'a> {
    /// The program and its arguments.
    pub entrypoint: &'a [&'a str],
    /// `NAME=value`.
    pub env: &'a [&'a str],
    /// A user's number; root if empty.
    pub user: &'a str,
}

impl Image {
    /// An empty image. The reference is a full one: the node completes `kong:3.9` to `docker.io/library/kong:3.9`.
    pub fn new(reference: &str) -> Self {
        Self { reference: reference.to_owned(), layer: Builder::new(Vec::new()), folders: BTreeSet::new() }
    }

    /// Adds a file of this machine, links followed.
    pub fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode();
        self.file(to, &bytes, mode & 0o777)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        self.folders_above(path)?;
        let mut header = header(EntryType::Regular, mode);
        header.set_size(bytes.len() as u64);
        Ok(self.layer.append_data(&mut header, path, bytes)?)
    }

    /// Adds an empty folder that anyone may write to.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        self.folders_above(path)?;
        self.folders.insert(path.into());
        Ok(self.layer.append_data(&mut header(EntryType::Directory, 0o1777), path, std::io::empty())?)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.folders_above(path)?;
        Ok(self.layer.append_link(&mut header(EntryType::Symlink, 0o777), path, to)?)
    }

    /// Writes the archive and returns where it is.
    pub fn write(self, config: &Config<'_>) -> Result<PathBuf> {
        let layer = self.layer.into_inner()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": config.entrypoint, "Env": config.env, "User": config.user },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let manifest = json!([{ "Config": "config.json", "RepoTags": [self.reference], "Layers": ["layer.tar"] }]);

        fs::create_dir_all(folder())?;
        let path = folder().join(format!("{}.tar", self.reference.replace(['/', ':'], "_")));
        let mut archive = Builder::new(File::create(&path)?);
        for (name, bytes) in [
            ("manifest.json", manifest.to_string().as_bytes()),
            ("config.json", config.to_string().as_bytes()),
            ("layer.tar", &layer),
        ] {
            let mut header = header(EntryType::Regular, 0o644);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes)?;
        }
        archive.finish()?;
        Ok(path)
    }

    /// A folder that no entry names would belong to root alone.
    fn folders_above(&mut self, path: &str) -> Result<()> {
        let above: Vec<&Path> =
            Path::new(path).ancestors().skip(1).filter(|folder| folder.parent().is_some()).collect();
        for folder in above.into_iter().rev() {
            if self.folders.insert(folder.to_owned()) {
                self.layer.append_data(&mut header(EntryType::Directory, 0o755), folder, std::io::empty())?;
            }
        }
        Ok(())
    }
}

/// No times and no owners: the same files make the same image.
fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
