//! WASI 0.2 as a guest finds it: all of it is there, and nothing behind it.

use bytes::Bytes;
use sluice::model::trial::{Blame, Outcome};
use tokio::net::TcpListener;

use super::{assert_blames, assert_nobody_came, assert_passes, component, contract, host, module, root, run};

/// A gate that does one thing with WASI.
pub(super) fn wasi(instruction: &str) -> Bytes {
    importing("wasi", &[("instruction", instruction)])
}

/// The component of a fixture that imports more than the contract: what is in the files beside it.
pub(super) fn importing(name: &str, words: &[(&str, &str)]) -> Bytes {
    let read = |file: String| std::fs::read_to_string(root().join("tests/fixtures/gates").join(file)).unwrap();
    let module = module(name, words);
    let module = module.replacen("(module", &format!("(module {}", read(format!("{name}_imports.wat"))), 1);
    let wit = read(format!("{name}.wit"));
    // Every interface of it, whether the fixture needs it or only one that it needs does.
    let (mut package, mut imports) = (String::new(), String::new());
    for line in wit.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("package ") {
            package = name.trim_end_matches(" {").to_owned();
        } else if let Some(name) = line.strip_prefix("interface ") {
            let (name, version) = (name.trim_end_matches(" {"), package.split_once('@').unwrap());
            imports.push_str(&format!("import {}/{name}@{};", version.0, version.1));
        }
    }
    let world = contract().replace("world gate {", &format!("world gate {{ {imports}"));
    component(&module, &format!("{world}\n{wit}"))
}

#[tokio::test]
async fn a_guest_finds_no_environment_no_arguments_and_no_files() {
    assert_passes(&run(&host(), wasi("(call $has_nothing)"), |_| {}).await);
}

#[tokio::test]
async fn threat_01_sockets_of_wasi_connect_nowhere_and_resolve_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = host();
    let connects = format!("(call $connects_nowhere (i32.const {port}))");
    assert_passes(&run(&host, wasi(&connects), |_| {}).await);
    assert_passes(&run(&host, wasi("(call $resolves_nothing)"), |_| {}).await);
    assert_nobody_came(&listener);
}

#[tokio::test]
async fn threat_25_clocks_of_wasi_tell_whole_milliseconds() {
    assert_passes(&run(&host(), wasi("(call $tells_whole_milliseconds)"), |_| {}).await);
}

#[tokio::test]
async fn random_is_handed_out_up_to_64_kib_at_once() {
    let host = host();
    let random = |bytes: u32| wasi(&format!("(call $random (i64.const {bytes}) (i32.const 1296))"));
    assert_passes(&run(&host, random(64 << 10), |_| {}).await);
    assert_blames(&run(&host, random((64 << 10) + 1), |_| {}).await, Blame::Trap);
}

#[tokio::test]
async fn stdout_and_stderr_are_lines_of_the_log_and_stderr_explains_an_error() {
    let host = host();
    let good = run(&host, wasi("(call $write_text (call $stdout)) (call $write_text (call $stderr))"), |_| {}).await;
    assert_passes(&good);
    assert_eq!(good.log, ["info first", "info boom", "warn first", "warn boom"]);
    let bad = run(&host, wasi("(call $write_text (call $stderr)) (unreachable)"), |_| {}).await;
    assert_blames(&bad, Blame::Trap);
    let Outcome::Error { message, .. } = bad.outcome else { unreachable!() };
    assert!(message.ends_with("; stderr: first\\nboom"), "{message}");
}

#[tokio::test]
async fn an_exit_is_no_verdict() {
    let report = run(&host(), wasi("(call $exit (i32.const 0))"), |_| {}).await;
    assert_blames(&report, Blame::Trap);
}

#[tokio::test]
async fn threat_09_a_flood_on_stdout_ends_at_the_cpu_budget_and_the_log_is_cut() {
    let report = run(&host(), wasi("(call $flood (call $stdout))"), |trial| {
        trial.limits.cpu = std::time::Duration::from_millis(50);
        trial.limits.log = 100;
    })
    .await;
    assert_blames(&report, Blame::CpuBudget);
    assert!(report.log.iter().map(String::len).sum::<usize>() < 200, "{:?}", report.log);
}
