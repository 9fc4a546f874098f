//! Compiling in a child, and the cache of what it made.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use sluice::{
    gate::{Cache, Capacity, Compiler, GateHost as _, Key, LocalGateHost, Workshop},
    model::trial::{Blame, Digest, LoadError, Scheme, Trial},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::{
    Asks, PATIENCE, assert_blames, assert_passes, candidate, component, contract, fixture, heard, module,
    process::{SLUICE, process},
    run, text, trial,
};

/// No program.
const NOBODY: &str = "/nonexistent";

/// A folder with a key, and a place for artifacts.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key"), [7; 32]).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A host that has its plugins compiled by `program`. Each is another process as far as plugins go.
    fn host(&self, program: impl Into<PathBuf>) -> LocalGateHost {
        let cache = Cache::open(self.0.path(), Key::read(&self.path("key")).unwrap(), 64 << 20).unwrap();
        let capacity = Capacity { trials: 4.try_into().unwrap(), threads: 2.try_into().unwrap() };
        LocalGateHost::start(capacity, Compiler::Child(Box::new(Workshop::new(program.into(), cache)))).unwrap()
    }

    fn artifacts(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("artifacts")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// The compiler, behind a script that does `first` before.
    fn compiler_after(&self, first: &str) -> PathBuf {
        let script = self.path("compiler");
        let text = format!("#!/bin/sh\n{first}\nexec {SLUICE} \"$@\"\n");
        // Written by somebody else: a file that this process has open for writing, or a fork of it, cannot be run.
        let write = ["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""];
        assert!(Command::new("/bin/sh").args(write).arg(&script).arg(text).status().unwrap().success());
        script
    }
}

#[tokio::test]
async fn what_a_child_compiled_is_run_and_kept_for_the_owner_alone() {
    let folder = Folder::new();
    assert_passes(&run(&folder.host(SLUICE), fixture("good", &[]), |_| {}).await);
    let [artifact] = folder.artifacts().try_into().expect("one artifact and nothing unfinished");
    assert_eq!(fs::metadata(&artifact).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(fs::metadata(folder.path("artifacts")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_fresh_pool_takes_the_place_of_the_one_before_and_loses_nobody() {
    let folder = Folder::new();
    let host = folder.host(SLUICE);
    let (asks, good) = (Asks::default().gate(), fixture("good", &[]));
    assert_passes(&run(&host, good.clone(), |_| {}).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = candidate(Scheme::Http, &[listener.local_addr().unwrap()]);
    let asking = |trial: &mut Trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![target];
    };
    let under_way = async { assert_eq!(heard(&run(&host, asks, asking).await), "answered") };
    let renewed = async {
        let (mut asked, _) = listener.accept().await.unwrap();
        assert!(host.renew().await);
        assert_passes(&host.run(trial(&Digest::of(&good))).await);
        asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nanswered").await.unwrap();
        asked
    };
    let ((), _asked) = tokio::join!(under_way, renewed);

    host.unload(&Digest::of(&good)).await;
    assert!(host.renew().await);
    assert_blames(&host.run(trial(&Digest::of(&good))).await, Blame::PluginNotReady);
}

#[tokio::test]
async fn a_pool_whose_plugins_code_is_not_kept_stays() {
    let folder = Folder::new();
    let (host, good) = (folder.host(SLUICE), fixture("good", &[]));
    assert_passes(&run(&host, good.clone(), |_| {}).await);
    folder.artifacts().iter().for_each(|artifact| fs::remove_file(artifact).unwrap());
    assert!(!host.renew().await);
    assert_passes(&host.run(trial(&Digest::of(&good))).await);
}

#[tokio::test]
async fn after_a_restart_a_plugin_is_ready_without_a_compiler() {
    let folder = Folder::new();
    let good = fixture("good", &[]);
    assert_passes(&run(&folder.host(SLUICE), good.clone(), |_| {}).await);
    assert_passes(&run(&folder.host(NOBODY), good.clone(), |_| {}).await);
    // Another key did not make it.
    fs::write(folder.path("key"), [8; 32]).unwrap();
    unstarted(&folder.host(NOBODY), good).await;
    assert_eq!(folder.artifacts(), [] as [PathBuf; 0]);
}

/// It was not in the cache, and there is no compiler.
async fn unstarted(host: &LocalGateHost, bytes: Bytes) {
    let error = host.load(bytes).await.expect_err("nobody to compile it");
    assert!(matches!(&error, LoadError::Unavailable(why) if why.contains("cannot be started")), "{error:?}");
}

#[tokio::test]
async fn a_child_gets_no_environment_and_failures_are_remembered() {
    let folder = Folder::new();
    let (runs, environment) = (folder.path("runs"), folder.path("environment"));
    let first = format!("echo run >> {}; cat /proc/$$/environ > {}", runs.display(), environment.display());
    let host = folder.host(folder.compiler_after(&first));
    let wrong = Bytes::from_static(b"\0asm\x0d\0\x01\0wrong");
    let error = host.load(wrong.clone()).await.expect_err("no component");
    assert!(matches!(error, LoadError::NotAComponent(_)), "{error:?}");
    assert_eq!(host.load(wrong).await.expect_err("no component"), error);
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    assert_eq!(fs::read_to_string(environment).unwrap(), "");
    assert_eq!(folder.artifacts(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_child_that_is_killed_costs_its_plugin_and_says_why() {
    let folder = Folder::new();
    for (first, words) in [
        ("kill -KILL $$", "memory was short"),
        ("kill -XCPU $$", "60 s of CPU time"),
        ("kill -XFSZ $$", "256 MiB of code"),
        ("kill -ABRT $$", "768 MiB of memory"),
        ("echo broken >&2; exit 3", "broken"),
    ] {
        let host = folder.host(folder.compiler_after(first));
        let error = host.load(fixture("good", &[])).await.expect_err("killed");
        assert!(matches!(&error, LoadError::CompileFailed(why) if why.contains(words)), "{error:?}");
    }
    // A child that cannot even begin is this machine's fault, not the plugin's.
    let host = folder.host(folder.compiler_after("echo no limits here >&2; exit 1"));
    let error = host.load(fixture("good", &[])).await.expect_err("not begun");
    assert!(matches!(&error, LoadError::Unavailable(why) if why.contains("no limits here")), "{error:?}");
    assert_eq!(folder.artifacts(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_host_without_room_for_its_pool_runs_the_same_plugins() {
    // With 8 GiB there is no room for a pool, which takes 4 for each memory.
    let ((report, refused), said) = process("ulimit -v 8388608", PATIENCE, async |host, _| {
        let loaded = host.load(fixture("good", &[])).await.unwrap();
        (host.run(trial(&loaded.digest)).await, host.load(five_memories()).await.expect_err("five memories"))
    })
    .await;
    assert_passes(&report);
    assert!(said.contains("no pool for 64 trials at once"), "{said}");
    let wanted = LoadError::TooLarge("the plugin needs 5 memories, at most 4 are given".into());
    assert_eq!(refused, wanted);
}

#[tokio::test]
async fn threat_07_what_a_memory_bomb_took_is_given_back() {
    let bomb = fixture("memories", &[("pages", "480")]);
    let ((before, after), said) = process(":", PATIENCE, async |host, proc| {
        let digest = host.load(bomb).await.unwrap().digest;
        let bombs = || futures::future::join_all((0..16).map(|_| host.run(trial(&digest))));
        bombs().await;
        let before = proc.resident();
        for _ in 0..10 {
            bombs().await.iter().for_each(|report| assert_blames(report, Blame::MemoryLimit));
        }
        (before, proc.resident())
    })
    .await;
    assert!(!said.contains("no pool"), "{said}");
    // 160 bombs of 60 MiB each.
    assert!(after < before + (32 << 20), "{before} {after}");
}

/// Many functions, none of them remarkable: a plugin that takes a compiler more than a second.
fn heavy() -> Bytes {
    let body = "(local.set 0 (i32.add (local.get 0) (i32.const 1)))".repeat(1_000);
    let functions = format!("(func (param i32) {body})").repeat(400);
    component(&module("good", &[]).replacen("(memory", &format!("{functions}\n(memory"), 1), &contract())
}

#[tokio::test]
async fn what_a_plugin_costs_to_compile_is_paid_by_the_child_alone() {
    let heavy = heavy();
    // All of the client's work is done on this thread.
    let mine = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let ((host, child, controller), _) = process(":", PATIENCE, async |host, proc| {
        let ((host_before, child_before), before) = (proc.cpu(), mine());
        let digest = host.load(heavy).await.unwrap().digest;
        let ((host_after, child_after), after) = (proc.cpu(), mine());
        assert_passes(&host.run(trial(&digest)).await);
        // A hundred ticks are a second.
        let ticks = |ticks: u64| Duration::from_millis(10 * ticks);
        (ticks(host_after - host_before), ticks(child_after - child_before), after - before)
    })
    .await;
    assert!(child > Duration::from_secs(1), "{child:?}: too light to show anything");
    assert!(host * 10 < child && controller * 10 < child, "{host:?} {controller:?} {child:?}");
}

#[test]
fn a_host_that_cannot_keep_compiled_plugins_says_so_and_ends() {
    let run = |flags: &[&str]| {
        let host = Command::new(SLUICE)
            .args(["gate-host", "--health-probe-bind-address", "127.0.0.1:0", "--socket", "/nonexistent/socket"])
            .args(flags)
            .env("TMPDIR", "/nonexistent")
            .output()
            .unwrap();
        assert!(!host.status.success());
        String::from_utf8(host.stderr).unwrap()
    };
    let folder = Folder::new();
    let (cache, key) = (folder.0.path().to_str().unwrap(), folder.path("key"));
    fs::write(&key, "short").unwrap();
    for (flags, words) in [
        (vec![], "/nonexistent"),
        (vec!["--cache", "/nonexistent"], "/nonexistent/artifacts"),
        (vec!["--cache", cache, "--cache-key", key.to_str().unwrap()], "has 5 bytes, at least 32 are needed"),
    ] {
        let said = run(&flags);
        assert!(said.contains(words) && said.contains("next:") && said.contains("--cache"), "{said}");
    }
}

fn five_memories() -> Bytes {
    let memories: String = (0..5)
        .map(|number| format!("(core module $m{number} (memory 1)) (core instance (instantiate $m{number}))"))
        .collect();
    wat::parse_str(format!("(component {memories})")).unwrap().into()
}

/// What the child looks like from outside while it compiles.
#[test]
fn the_child_is_confined_before_it_compiles() {
    let bytes = huge_function(1 << 20);
    let mut child = Command::new(SLUICE)
        .args(["compile-plugin", Digest::of(&bytes).as_str()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let proc = Path::new("/proc").join(child.id().to_string());
    let began = Instant::now();
    let status = loop {
        let status = fs::read_to_string(proc.join("status")).unwrap();
        if status.contains("Seccomp:\t2") {
            break status;
        }
        assert!(began.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "{status}");
        std::thread::yield_now();
    };
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Threads:\t1"), "{status}");
    let words: Vec<Vec<_>> = limits.lines().map(|line| line.split_whitespace().collect()).collect();
    let limit = |name: &str| {
        let name: Vec<_> = name.split(' ').collect();
        let found = words.iter().find(|words| words.starts_with(&name)).unwrap();
        found[name.len()]
    };
    let wanted = [
        ("Max address space", "2147483648"),
        ("Max data size", "805306368"),
        ("Max cpu time", "60"),
        ("Max file size", "268435456"),
        ("Max open files", "16"),
        ("Max core file size", "0"),
    ];
    for (name, most) in wanted {
        assert_eq!(limit(name), most, "{name}");
    }
    let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap();
    assert!(nice.parse::<i32>().unwrap() >= 10, "{nice}");
}

/// A component of one module with one function of about so many bytes, each of them an instruction.
fn huge_function(size: usize) -> Bytes {
    let body = "(local.set 0 (i32.add (local.get 0) (i32.const 1)))".repeat(size / 7);
    wat::parse_str(format!("(component (core module (func (local i32) {body})))")).unwrap().into()
}

/// What is expensive to compile, in the ways that the format has.
fn hostile() -> Vec<(&'static str, Bytes)> {
    let component = |text: String| Bytes::from(wat::parse_str(format!("(component {text})")).unwrap());
    let locals = "(func (local i64) ".to_owned() + &"(local i64)".repeat(49_999) + ")";
    let branches = "(block ".repeat(900) + "(br_table 0 1 2 3 4 5 6 7 (i32.const 1))" + &")".repeat(900);
    let nested = "(component ".repeat(80) + &")".repeat(80);
    vec![
        ("a function of 7.6 MB", huge_function(7_600_000)),
        ("fifty thousand locals in each of many functions", component(format!("(core module {})", locals.repeat(100)))),
        ("a million functions", component(format!("(core module {})", "(func)".repeat(1_000_000)))),
        ("a thousand modules", component("(core module (func))".repeat(1_000))),
        ("deep blocks", component(format!("(core module {})", format!("(func {branches})").repeat(500)))),
        ("deep components", component(nested)),
    ]
}

#[tokio::test]
async fn threat_15_what_is_expensive_to_compile_costs_a_child_and_its_neighbours_go_on() {
    let folder = Folder::new();
    let host = folder.host(SLUICE);
    let good = host.load(fixture("good", &[])).await.unwrap().digest;
    for (name, bytes) in hostile() {
        let began = Instant::now();
        let load = host.load(bytes);
        tokio::pin!(load);
        let mut judged = 0;
        let refused = loop {
            tokio::select! {
                biased;
                refused = &mut load => break refused,
                report = host.run(trial(&good)) => {
                    assert_passes(&report);
                    judged += 1;
                }
            }
        };
        let error = refused.expect_err(name);
        assert!(began.elapsed() < Duration::from_secs(130), "{name}");
        assert!(judged > 0, "{name}: {error:?}");
    }
}

#[tokio::test]
async fn threat_17_what_is_not_what_the_compiler_made_is_never_mapped() {
    let folder = Folder::new();
    let good = fixture("good", &[]);
    run(&folder.host(SLUICE), good.clone(), |_| {}).await;
    let [artifact] = folder.artifacts().try_into().unwrap();
    let bytes = fs::read(&artifact).unwrap();
    let put = |bytes: &[u8]| {
        let _ = fs::remove_file(&artifact);
        fs::write(&artifact, bytes).unwrap();
    };
    // A bit of each part: the header, the code, the tables behind it, the MAC.
    let host = folder.host(NOBODY);
    for position in (0..bytes.len()).step_by(bytes.len() / 50).chain([bytes.len() - 1]) {
        let mut changed = bytes.clone();
        changed[position] ^= 1;
        put(&changed);
        unstarted(&host, good.clone()).await;
        assert!(!artifact.exists(), "what was changed is deleted");
    }
    for changed in [&bytes[..bytes.len() - 1], &bytes[1..], &[bytes.as_slice(), b"x"].concat(), &[], b"short"] {
        put(changed);
        unstarted(&host, good.clone()).await;
    }
    // Where it lies is no matter, what it is called is.
    let elsewhere = folder.path("elsewhere");
    fs::write(&elsewhere, &bytes).unwrap();
    symlink(&elsewhere, &artifact).unwrap();
    unstarted(&host, good.clone()).await;
    put(&bytes);
    let other = fixture("wait", &[]);
    let name = artifact.file_name().unwrap().to_str().unwrap().to_owned();
    let hex = |bytes: &Bytes| Digest::of(bytes).as_str().replace(':', "-");
    fs::rename(&artifact, artifact.with_file_name(name.replace(&hex(&good), &hex(&other)))).unwrap();
    unstarted(&host, other).await;
    // And what was not changed is mapped.
    put(&bytes);
    assert_passes(&run(&host, good, |_| {}).await);
}

#[tokio::test]
async fn threat_17_what_another_engine_compiled_is_compiled_again() {
    let folder = Folder::new();
    let good = fixture("good", &[]);
    run(&folder.host(SLUICE), good.clone(), |_| {}).await;
    let [artifact] = folder.artifacts().try_into().unwrap();
    // As it is after a patch of the engine: its hash is the last part of the name.
    let name = artifact.file_stem().unwrap().to_str().unwrap();
    let (rest, _) = name.rsplit_once('-').unwrap();
    fs::rename(&artifact, artifact.with_file_name(format!("{rest}-0123456789abcdef.cwasm"))).unwrap();
    unstarted(&folder.host(NOBODY), good.clone()).await;
    assert_passes(&run(&folder.host(SLUICE), good, |_| {}).await);
}
