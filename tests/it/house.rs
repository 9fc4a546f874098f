//! The laws of the house that a compiler does not know.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        if folder.is_file() {
            found.push((folder.clone(), fs::read_to_string(&folder).unwrap()));
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
                folders.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

#[test]
fn every_file_opens_with_its_job() {
    for folder in ["src", "tests", "plugins"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{} does not open with `//!` and its job", path.display());
        }
    }
}

#[test]
fn pure_stages_contain_no_await_clock_client_or_environment() {
    let pure =
        ["dataplane/check.rs", "dataplane/plan", "dataplane/build", "dataplane/status", "cluster/leader/candidate.rs"];
    let pure = pure.map(|room| format!("src/{room}"));
    for (path, text) in pure.iter().flat_map(|room| sources(room)) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in
            [".await", "async ", "Timestamp::now", "SystemTime", "Instant::now", "Client", "std::env", "tokio::"]
        {
            assert!(!code.contains(word), "{} contains `{word}`", path.display());
        }
    }
}

#[test]
fn the_gate_room_does_not_know_kubernetes() {
    for (path, text) in sources("src/gate") {
        for word in ["kube::", "k8s_openapi"] {
            assert!(!text.contains(word), "{} contains `{word}`", path.display());
        }
    }
}

#[test]
fn stages_of_a_dataplane_do_not_know_each_other() {
    // `differ` asks `build` by which keys lists merge: one table for both directions, so that they cannot disagree.
    let allowed = [("apply", "build"), ("apply", "status"), ("build", "plan")];
    let stages = ["check", "observe", "plan", "build", "apply", "status"];
    for stage in stages {
        let room = if stage == "check" { "src/dataplane/check.rs".into() } else { format!("src/dataplane/{stage}") };
        for (path, text) in sources(&room) {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for other in stages.iter().filter(|other| **other != stage && !allowed.contains(&(stage, other))) {
                for way in
                    [format!("dataplane::{other}"), format!("super::{other}::"), format!("super::super::{other}")]
                {
                    let own_child = path.with_file_name(format!("{other}.rs")).exists();
                    assert!(own_child || !code.contains(&way), "{} knows `{way}`", path.display());
                }
            }
        }
    }
}
