//! The stand-in gateway: Debian's nginx, dressed to answer as Kong does, for a machine that cannot pull Kong's image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::packages::{fetch, libraries};
use super::{Config, Image};

/// The tags there are.
pub const TAGS: [&str; 4] = ["3.4", "3.9", "3.10", BAD];
/// The bad release: it starts, turns ready, and answers 500 on its proxy ports.
pub const BAD: &str = "3.11";

const TOOLS: [&str; 9] = ["sh", "cat", "cp", "echo", "env", "kill", "ls", "sleep", "tr"];

/// Writes the stand-in gateway's image of one tag and returns its archive.
pub fn gateway(tag: &str) -> Result<PathBuf> {
    let mut image = Image::new(&format!("docker.io/library/kong:{tag}"));
    image.copy(&fetch("busybox-static")?.join("bin/busybox"), "bin/busybox")?;
    for tool in TOOLS {
        image.link(&format!("bin/{tool}"), "busybox")?;
    }
    image.copy(&fetch("nginx")?.join("usr/sbin/nginx"), "usr/sbin/nginx")?;
    let module = "usr/lib/nginx/modules/ngx_http_headers_more_filter_module.so";
    image.copy(&fetch("libnginx-mod-http-headers-more-filter")?.join(module), module)?;
    for library in libraries("nginx")? {
        add_libraries(&mut image, &fetch(&library)?)?;
    }
    for folder in ["tmp", "run", "var/log/nginx", "var/lib/nginx"] {
        image.folder(folder)?;
    }
    image.file("etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", 0o644)?;
    image.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    image.file("usr/local/bin/kong", include_bytes!("../../standin/kong"), 0o755)?;
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    image.file("etc/kong/proxy.crt", own.cert.pem().as_bytes(), 0o644)?;
    image.file("etc/kong/proxy.key", own.signing_key.serialize_pem().as_bytes(), 0o644)?;
    let template = include_str!("../../standin/nginx.conf");
    let status = if tag == BAD { "500" } else { "404" };
    let conf = template.replace("@VERSION@", tag).replace("@STATUS@", status);
    image.file("etc/kong/nginx.conf.template", conf.as_bytes(), 0o644)?;
    image.write(&Config { entrypoint: &["/usr/local/bin/kong", "start"], ..Config::default() })
}

/// Adds a package's shared libraries and its loader, under one folder and the loader's fixed one.
fn add_libraries(image: &mut Image, package: &Path) -> Result<()> {
    let mut folders = vec![package.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                // Engines, converters and audit modules are of no use here.
                if !["engines-3", "ossl-modules", "gconv", "audit"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.starts_with("ld-linux") && path.is_file() && !path.is_symlink() {
                image.copy(&path, &format!("lib64/{name}"))?;
                image.copy(&path, &format!("lib/{name}"))?;
            } else if name.contains(".so.") && path.is_file() {
                image.copy(&path, &format!("lib/{name}"))?;
            }
        }
    }
    Ok(())
}
