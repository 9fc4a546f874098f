//! The laws of the house that a compiler does not know.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize as _;
use serde_json::{Value, json};

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
            // What a build leaves where it was not told another place is nobody's source.
            if path.ends_with("target") {
                continue;
            }
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

/// The threats of the gate host have numbers, and every number has a test that bears it.
#[test]
fn every_threat_has_a_test() {
    const THREATS: u32 = 26;
    let code: String = ["src", "tests"].into_iter().flat_map(sources).map(|(_, text)| text).collect();
    for number in 1..=THREATS {
        assert!(code.contains(&format!("fn threat_{number:02}_")), "threat {number}");
    }
}

#[test]
fn threat_16_who_runs_foreign_code_is_deployed_with_no_rights_and_nothing_to_take() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/operator.yaml")).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap());
    let deployment = documents.into_iter().find(|one| one["kind"] == "Deployment").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"], json!({ "type": "RuntimeDefault" }));
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        assert!(pod[shared].is_null(), "{shared}");
    }
    let named = |list: &Value, name: &str| -> Value {
        let found = list.as_array().unwrap().iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let host = named(&pod["containers"], "gate-host");
    // Nothing is left to a default, and nothing said for the Pod is taken back.
    let confined = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
    });
    assert_eq!(host["securityContext"], confined);
    assert!(host["resources"]["limits"]["memory"].is_string());
    // What it sees of the world outside: two empty folders, and a word in its environment.
    for mount in host["volumeMounts"].as_array().unwrap() {
        let volume = named(&pod["volumes"], mount["name"].as_str().unwrap());
        let mut kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        assert!(kinds.all(|kind| kind == "emptyDir"), "{volume}");
    }
    assert!(host["envFrom"].is_null() && host["env"].as_array().unwrap().iter().all(|one| one["valueFrom"].is_null()));
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
