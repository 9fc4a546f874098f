//! Builds the gates of this repository: a core module from the compiler, wrapped as a component.
//!
//! The modules need nothing but `wasm32-unknown-unknown`. Where rustup is, it adds that target; where the
//! distribution's Rust is, its own packages have it (Debian: `rustc-web`, `cargo-web`, `rust-web-src`,
//! `lld-19`), and the standard library is built along.

pub mod guests;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, write::GzEncoder};
use wit_component::ComponentEncoder;

/// The gates, by package name.
const GATES: [&str; 1] = ["http-smoke"];

const TARGET: &str = "wasm32-unknown-unknown";

/// The profile of the root manifest that makes them small.
const PROFILE: &str = "plugin";

/// A built gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The package's name.
    pub name: String,
    /// The component: `target/plugins/<name>.wasm`.
    pub path: PathBuf,
    /// Bytes of it.
    pub size: usize,
    /// Bytes of it, gzipped: what a ConfigMap has to hold.
    pub zipped: usize,
}

/// Builds every gate of the workspace at `root`. Quick where nothing changed.
///
/// # Errors
/// Where the compiler for the target cannot be had, a gate does not compile, or what came out is no component.
pub fn build(root: &Path) -> Result<Vec<Built>> {
    let toolchain = Toolchain::find()?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    toolchain.compile(root, &target)?;
    let components = target.join("plugins");
    fs::create_dir_all(&components).with_context(|| format!("cannot create {}", components.display()))?;
    GATES.into_iter().map(|gate| wrap(gate, &target, &components)).collect()
}

/// Who can compile for WebAssembly here.
#[derive(Debug)]
enum Toolchain {
    /// The one that runs us, with the target's standard library beside it.
    Own,
    /// Debian's, which builds the standard library from its sources.
    Debian { rustc: PathBuf, cargo: PathBuf, linker: PathBuf },
}

impl Toolchain {
    fn find() -> Result<Self> {
        if has_target() {
            return Ok(Self::Own);
        }
        // Fails where the toolchain is not rustup's or its server cannot be reached: then there is one more way.
        let added = Command::new("rustup").args(["target", "add", TARGET]).status();
        if added.is_ok_and(|status| status.success()) && has_target() {
            return Ok(Self::Own);
        }
        if let Some(debian) = Self::debian() {
            return Ok(debian);
        }
        install_packages();
        Self::debian().with_context(|| {
            format!(
                "no compiler for {TARGET}: run `rustup target add {TARGET}`, or on Debian, as root, `apt-get install {}`",
                PACKAGES.join(" ")
            )
        })
    }

    /// Debian's, where it is installed.
    fn debian() -> Option<Self> {
        let [rustc, cargo, linker] = ["/usr/bin/rustc", "/usr/bin/cargo", "/usr/bin/wasm-ld-19"].map(PathBuf::from);
        [&rustc, &cargo, &linker].iter().all(|path| path.exists()).then_some(Self::Debian { rustc, cargo, linker })
    }

    fn compile(&self, root: &Path, target: &Path) -> Result<()> {
        let mut command = match self {
            Self::Own => Command::new(cargo()),
            Self::Debian { rustc, cargo, linker } => {
                let mut command = Command::new(cargo);
                command
                    .env("RUSTC", rustc)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
                command
            }
        };
        command.current_dir(root).args(["build", "--quiet", "--locked", "--profile", PROFILE, "--target", TARGET]);
        command.arg("--target-dir").arg(target);
        if matches!(self, Self::Debian { .. }) {
            command.arg("-Zbuild-std=std,panic_abort");
        }
        for gate in GATES {
            command.args(["--package", gate]);
        }
        let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
        if !status.success() {
            bail!("{command:?} failed");
        }
        Ok(())
    }
}

/// Debian's compiler, the sources of its standard library, and a linker for WebAssembly.
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "lld-19"];

/// Tries to install them. Where that fails (not root, not Debian), what is still missing says so better than apt does.
#[expect(clippy::print_stderr, reason = "it takes minutes: whoever waits should know for what")]
fn install_packages() {
    eprintln!("rustup has no {TARGET} here; installing Debian's {}", PACKAGES.join(" "));
    let apt = |arguments: &[&str]| {
        let ended =
            Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet").args(arguments).status();
        ended.is_ok_and(|status| status.success())
    };
    let _ = apt(&["update"]) && apt(&[&["install", "--yes", "--no-install-recommends"], &PACKAGES[..]].concat());
}

/// The cargo that runs us, so that one toolchain builds everything.
fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Whether the toolchain that runs us has the target's standard library.
fn has_target() -> bool {
    let rustc = env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
    let printed = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    printed.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// Makes a component of the module the compiler left for `gate`.
fn wrap(gate: &str, target: &Path, components: &Path) -> Result<Built> {
    let module = target.join(TARGET).join(PROFILE).join(gate.replace('-', "_")).with_extension("wasm");
    let bytes = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let component = ComponentEncoder::default()
        .module(&bytes)
        .and_then(|encoder| encoder.validate(true).encode())
        .with_context(|| format!("{} is not a gate", module.display()))?;
    let path = components.join(gate).with_extension("wasm");
    // Written beside and renamed, so that a test that reads meanwhile sees a whole file.
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&unfinished, &component)
        .and_then(|()| fs::rename(&unfinished, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let zipped = zipped_size(&component)?;
    Ok(Built { name: gate.to_owned(), path, size: component.len(), zipped })
}

fn zipped_size(bytes: &[u8]) -> Result<usize> {
    let mut zip = GzEncoder::new(Vec::new(), Compression::best());
    io::copy(&mut &*bytes, &mut zip).context("cannot zip")?;
    Ok(zip.finish().context("cannot zip")?.len())
}
