//! A component in the operator's folder: a volume of an image, where no registry can be reached.

use std::{io::Read as _, path::Path};

use bytes::Bytes;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};
use tokio::task::spawn_blocking;

use super::{Admitted, Fetcher, LARGEST, Reason, SourceError, place};
use crate::{api::gateplugin::FileSource, model::trial::Digest};

const PATH: &str = "spec.source.file.path";

impl Fetcher {
    pub(super) async fn file(&self, source: &FileSource) -> Result<Admitted, SourceError> {
        let Some(folder) = self.folder.clone() else {
            let message = "the operator has no folder of plugins; it is named with --plugin-folder";
            return Err(SourceError::new(Reason::NotListed, PATH, message));
        };
        let place = place(&self.local, 1).await;
        let path = source.path.clone();
        let read = spawn_blocking(move || {
            let component = read(&folder, &path)?;
            Ok((Digest::of(&component), component))
        });
        let (digest, component) =
            read.await.unwrap_or_else(|error| Err(SourceError::new(Reason::Unavailable, PATH, error.to_string())))?;
        Ok(Admitted { component, digest, resolved: None, _place: place })
    }
}

/// The file at `path` under `folder`. The kernel itself refuses what leads out of the folder, links included.
fn read(folder: &Path, path: &str) -> Result<Bytes, SourceError> {
    let refused = |reason, message: String| SourceError::new(reason, PATH, message);
    let failed =
        |error: &dyn std::fmt::Display| refused(Reason::Unavailable, format!("{path:?} cannot be read: {error}"));
    let folder =
        openat2(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())
            .map_err(|error| refused(Reason::Unavailable, format!("--plugin-folder {}: {error}", folder.display())))?;
    // A pipe must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(folder, path, flags, Mode::empty(), within).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => refused(Reason::NotFound, format!("there is no {path:?} in --plugin-folder")),
        Errno::XDEV | Errno::LOOP => refused(Reason::NotListed, format!("{path:?} leads out of --plugin-folder")),
        error => failed(&error),
    })?;
    let file = std::fs::File::from(file);
    if !file.metadata().map_err(|error| failed(&error))?.is_file() {
        return Err(refused(Reason::InvalidReference, format!("{path:?} is no file")));
    }
    let mut component = Vec::new();
    // One byte more than allowed, to tell the largest from the too large.
    file.take(LARGEST as u64 + 1).read_to_end(&mut component).map_err(|error| failed(&error))?;
    match component.len() {
        0 => Err(refused(Reason::Empty, format!("{path:?} is empty"))),
        size if size > LARGEST => {
            Err(refused(Reason::TooLarge, format!("{path:?} is larger than {} MiB", LARGEST >> 20)))
        }
        _ => Ok(component.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn only_what_is_in_the_folder_is_read() {
        let outside = tempfile::tempdir().expect("a folder");
        fs::write(outside.path().join("secret"), b"secret").expect("written");
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("sub")).expect("a folder");
        fs::write(folder.path().join("sub/gate.wasm"), b"\0asm").expect("written");
        fs::write(folder.path().join("empty"), b"").expect("written");
        // As the kubelet lays out a volume.
        symlink("sub/gate.wasm", folder.path().join("within")).expect("a link");
        symlink(outside.path().join("secret"), folder.path().join("absolute")).expect("a link");
        symlink(
            format!("../{}/secret", outside.path().file_name().expect("a name").display()),
            folder.path().join("relative"),
        )
        .expect("a link");
        symlink(outside.path(), folder.path().join("way")).expect("a link");
        symlink("loop", folder.path().join("loop")).expect("a link");

        let read = |path: &str| read(folder.path(), path).map_err(|error| error.reason);
        assert_eq!(read("sub/gate.wasm"), Ok(Bytes::from_static(b"\0asm")));
        assert_eq!(read("within"), Ok(Bytes::from_static(b"\0asm")));
        assert_eq!(read("none"), Err(Reason::NotFound));
        assert_eq!(read("empty"), Err(Reason::Empty));
        assert_eq!(read("sub"), Err(Reason::InvalidReference));
        for escape in ["absolute", "relative", "way/secret", "../x", "/etc/passwd", "sub/../../x", "loop"] {
            assert_eq!(read(escape), Err(Reason::NotListed), "{escape}");
        }
    }
}
