//! Debian packages, fetched and unpacked without being installed: no service starts, nothing outside changes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run;
use crate::workspace;

/// Fetches a package unless that was done before, and returns the folder that holds its files.
pub fn fetch(package: &str) -> Result<PathBuf> {
    let packages = workspace::target().join("cluster/packages");
    let folder = packages.join(package);
    if folder.exists() {
        return Ok(folder);
    }
    let work = packages.join(format!("{package}.part"));
    fs::create_dir_all(&work)?;
    download(package, &work)?;
    for archive in fs::read_dir(&work)? {
        let archive = archive?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&work))?;
            fs::remove_file(archive)?;
        }
    }
    // Renamed last: a folder of the final name is a whole one.
    fs::rename(&work, &folder)?;
    Ok(folder)
}

fn download(package: &str, into: &std::path::Path) -> Result<()> {
    let download = || run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(into));
    if download().is_ok() {
        return Ok(());
    }
    // The lists of a fresh machine are empty or old.
    run(Command::new("apt-get").args(["update", "--quiet"]))?;
    download().with_context(|| format!("cannot fetch the Debian package {package}"))?;
    Ok(())
}

/// The libraries that a package says it needs.
pub fn libraries(package: &str) -> Result<Vec<String>> {
    let depends = run(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| name.starts_with("lib") || name.starts_with("zlib")).map(str::to_owned).collect())
}
