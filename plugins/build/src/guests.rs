//! Gates in other languages: the templates of `plugins/templates`, built with the toolchains their lock files pin.
//!
//! Everything happens in `target/guests`: neither the templates nor the machine are changed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};

use crate::{Built, zipped_size};

/// A language that gates are written in, by its toolchain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// JavaScript run by QuickJS: the small one.
    QuickJs,
    /// JavaScript run by StarlingMonkey: the fast one.
    StarlingMonkey,
    /// CPython.
    Python,
}

impl Guest {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::QuickJs, Self::StarlingMonkey, Self::Python];

    /// The folder of its template, and the component's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::QuickJs => "js-quickjs",
            Self::StarlingMonkey => "js-starling",
            Self::Python => "python",
        }
    }

    /// The program that its toolchain is installed with.
    #[must_use]
    pub fn installer(self) -> &'static str {
        match self {
            Self::QuickJs | Self::StarlingMonkey => "npm",
            Self::Python => "python3",
        }
    }

    /// Whether this machine can have its toolchain.
    #[must_use]
    pub fn is_possible(self) -> bool {
        Command::new(self.installer()).arg("--version").output().is_ok_and(|output| output.status.success())
    }

    /// Builds its template against the contract in `wit/`. Quick where nothing changed.
    ///
    /// # Errors
    /// Where the toolchain cannot be installed, or does not take the template.
    pub fn build(self, root: &Path) -> Result<Built> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let (template, wit) = (root.join("plugins/templates").join(self.name()), root.join("wit"));
        let components = target.join("plugins");
        fs::create_dir_all(&components).with_context(|| format!("cannot create {}", components.display()))?;
        let path = components.join(self.name()).with_extension("wasm");
        if changed(&path) <= changed_below(&template)?.max(changed_below(&wit)?) {
            let work = target.join("guests").join(self.name());
            copy(&template, &work)?;
            // Written beside and renamed, so that a test that reads meanwhile sees a whole file.
            let unfinished = path.with_extension(format!("{}.part", std::process::id()));
            self.make(&work, &wit, &unfinished)
                .with_context(|| format!("{} cannot be built; it needs {}", self.name(), self.installer()))?;
            fs::rename(&unfinished, &path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Built { name: self.name().into(), path, size: bytes.len(), zipped: zipped_size(&bytes)? })
    }

    fn make(self, work: &Path, wit: &Path, component: &Path) -> Result<()> {
        let npm = || run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(work));
        let tool = |name: &str| {
            let mut command = Command::new(work.join("node_modules/.bin").join(name));
            command.current_dir(work);
            command
        };
        match self {
            Self::QuickJs => {
                npm()?;
                // Synchronous, as the contract is. WASI stays: an exception's text goes to stderr.
                let flags = ["--world", "gate", "--js", "gate.js", "--sync"];
                run(tool("componentize-qjs").args(flags).arg("--wit").arg(wit).arg("-o").arg(component))
            }
            Self::StarlingMonkey => {
                npm()?;
                // Without fetch, which would import wasi:http.
                let flags = ["gate.js", "-n", "gate", "-d", "http", "fetch-event"];
                run(tool("componentize-js").args(flags).arg("--wit").arg(wit).arg("-o").arg(component))
            }
            Self::Python => {
                let venv = work.join("venv");
                run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
                let quiet = ["install", "--quiet", "--require-hashes", "-r", "requirements.txt"];
                run(Command::new(venv.join("bin/pip")).args(quiet).current_dir(work))?;
                let mut command = Command::new(venv.join("bin/componentize-py"));
                command.current_dir(work).arg("-d").arg(wit).args(["-w", "gate", "componentize", "app", "-o"]);
                run(command.arg(component))
            }
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&said).trim_end());
    }
    Ok(())
}

/// When a file was last written; the beginning of time where there is none.
fn changed(path: &Path) -> SystemTime {
    path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn changed_below(folder: &Path) -> Result<SystemTime> {
    Ok(files(folder)?.iter().map(|file| changed(file)).max().unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Templates are flat.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    Ok(paths?.into_iter().filter(|path| path.is_file()).collect())
}

fn copy(template: &Path, work: &Path) -> Result<()> {
    fs::create_dir_all(work).with_context(|| format!("cannot create {}", work.display()))?;
    for file in files(template)? {
        let to = work.join(file.file_name().unwrap_or_default());
        fs::copy(&file, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
