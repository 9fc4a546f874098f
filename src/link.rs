//! How the binary is linked. A build script, and no part of the library.

#[expect(clippy::print_stdout, reason = "this is how cargo is told")]
fn main() {
    println!("cargo:rerun-if-changed=src/link.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        // The loader reads every relocation when the process starts, and what was read stays in memory: packed they are a
        // few kilobytes instead of megabytes. glibc knows them from 2.36 on.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // Code that is made for many types is often the same for several: once is enough, on disk and in memory.
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
