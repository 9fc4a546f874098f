//! Guests that mean harm or know no better, by the numbers of the threats. After each the same host runs a good gate.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use bytes::Bytes;
use sluice::{
    gate::{Capacity, Compiler, GateHost as _, LocalGateHost},
    model::trial::{Blame, Limits, LoadError, Outcome, Report, Scheme, Trial},
};
use tokio::net::TcpListener;

use super::{
    PATIENCE, assert_blames, assert_passes, candidate, component, contract, fixture, heard, host, module, run, text,
    trial, wasi::wasi, with_a_resource,
};

/// CPU for guests that would take for ever: enough to be seen, not enough to wait for.
const CPU: Duration = Duration::from_millis(50);

/// How late the end of a guest may come.
const LATE: Duration = Duration::from_millis(20);

/// The same gate within and beyond a limit, and then a good one.
async fn obeyed_and_violated(
    name: &str,
    word: &str,
    obeyed: &str,
    violated: &str,
    blame: Blame,
    change: impl Fn(&mut Trial),
) -> (Report, Report) {
    let host = host();
    let good = run(&host, fixture(name, &[(word, obeyed)]), &change).await;
    assert_passes(&good);
    let bad = run(&host, fixture(name, &[(word, violated)]), &change).await;
    assert_blames(&bad, blame);
    the_host_goes_on(&host).await;
    (good, bad)
}

async fn the_host_goes_on(host: &LocalGateHost) {
    assert_passes(&run(host, fixture("good", &[]), |_| {}).await);
}

/// A gate that does one thing.
fn doing(instruction: &str) -> Bytes {
    fixture("instruction", &[("instruction", instruction)])
}

fn short_of_cpu(trial: &mut Trial) {
    trial.limits.cpu = CPU;
}

const ENDLESS: &str = "(loop $again (br $again))";

#[tokio::test]
async fn threat_05_endless_loops_end_at_their_cpu_budget_wherever_they_are() {
    let host = host();
    let bulk = "(loop $again (memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536)) (br $again))";
    // Into the same memory, so that its limit is not what ends it.
    let random =
        "(loop $more (global.set $heap (i32.const 65536)) (call $random (i64.const 4096) (i32.const 1296)) (br $more))";
    let dropped = format!(
        r#"(module {} (func (export "sluice:gate/things@0.1.0#[dtor]thing") (param i32) {ENDLESS}))"#,
        body(&module("instruction", &[("instruction", "(call $drop (call $new (i32.const 0)))")]))
    );
    let reallocated = module("good", &[]).replace("(local $at i32)", &format!("(local $at i32) {ENDLESS}"));
    for (name, bytes) in [
        ("evaluate", fixture("busy_loop", &[("rounds", "0")])),
        ("bulk memory", doing(bulk)),
        ("random", wasi(random)),
        ("log", fixture("log_loop", &[("rounds", "0")])),
        ("denied requests", fixture("denied_loop", &[("rounds", "0")])),
        ("cabi_realloc", component(&reallocated, &contract())),
        ("a destructor", with_a_resource(&dropped)),
    ] {
        let report = run(&host, bytes, short_of_cpu).await;
        assert_blames(&report, Blame::CpuBudget);
        assert!(report.cost.cpu >= CPU && report.cost.cpu < CPU + LATE, "{name}: {:?}", report.cost);
        assert_eq!(report.cost.requests, 0, "{name}");
    }
    the_host_goes_on(&host).await;
}

/// The fields of a module.
fn body(module: &str) -> &str {
    module.strip_prefix("(module").and_then(|rest| rest.strip_suffix(')')).unwrap()
}

#[tokio::test]
async fn threat_05_endless_loops_before_any_trial_are_no_plugins() {
    let host = host();
    let started = format!("(module {} (func $forever {ENDLESS}) (start $forever))", body(&module("good", &[])));
    for bytes in [fixture("good", &[("describe", ENDLESS)]), component(&started, &contract())] {
        let error = host.load(bytes).await.expect_err("no description");
        assert!(matches!(&error, LoadError::BadDescription(why) if why.contains("CpuBudgetExceeded")), "{error:?}");
    }
    the_host_goes_on(&host).await;
}

#[tokio::test]
async fn threat_05_neighbours_of_endless_loops_pass() {
    let host = host();
    let endless = fixture("busy_loop", &[("rounds", "0")]);
    let good = fixture("good", &[]);
    let (endless, good) = (host.load(endless).await.unwrap().digest, host.load(good).await.unwrap().digest);
    // As many loops as there are threads, with budgets nobody waits for: only preemption lets the good one in.
    let loops = (0..2).map(|_| {
        let mut trial = trial(&endless);
        trial.limits.cpu = PATIENCE;
        host.run(trial)
    });
    let loops = futures::future::join_all(loops);
    let neighbours = async {
        for _ in 0..10 {
            assert_passes(&host.run(trial(&good)).await);
        }
    };
    tokio::select! {
        biased;
        () = neighbours => {}
        ended = loops => panic!("the loops ended first: {ended:?}"),
    }
    // Dropping the loops cancelled them: all four slots are free again.
    let all = futures::future::join_all((0..8).map(|_| host.run(trial(&good)))).await;
    all.iter().for_each(assert_passes);
}

#[tokio::test]
async fn threat_07_memory_that_grows_for_ever_ends_at_its_limit() {
    let host = host();
    let grow = "(loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow $memory (i32.const 16)))))";
    let report = run(&host, doing(grow), |_| {}).await;
    assert_blames(&report, Blame::MemoryLimit);
    let limit = Limits::default().memory;
    assert!(report.cost.memory <= limit && report.cost.memory > limit - (2 << 20), "{:?}", report.cost);
    the_host_goes_on(&host).await;
}

#[tokio::test]
async fn threat_07_memories_that_are_small_one_by_one_are_too_large_together() {
    let limit = Limits::default().memory;
    // Three times 20 MiB and three times 30 MiB, where 64 MiB are allowed.
    let (good, bad) = obeyed_and_violated("memories", "pages", "320", "480", Blame::MemoryLimit, |_| {}).await;
    assert!(good.cost.memory >= 60 << 20 && bad.cost.memory <= limit, "{good:?} {bad:?}");
}

#[tokio::test]
async fn threat_07_tables_count_as_memory_and_have_an_end_of_their_own() {
    obeyed_and_violated("table", "elements", "1000", "10000", Blame::MemoryLimit, |trial| {
        // Two pages of memory, and 16 KiB for tables.
        trial.limits.memory = (128 << 10) + (16 << 10);
    })
    .await;
    // The guest is told "no", and its own assertion fails.
    obeyed_and_violated("table", "elements", "20000", "20001", Blame::Trap, |_| {}).await;
}

#[tokio::test]
async fn threat_08_endless_recursion_overflows_the_guests_stack_and_not_ours() {
    obeyed_and_violated("recursion", "depth", "100", "0", Blame::StackOverflow, |_| {}).await;
}

#[tokio::test]
async fn threat_09_a_flood_of_log_is_cut_and_nothing_in_it_is_obeyed() {
    let report = run(&host(), fixture("flood", &[("rounds", "1000")]), |trial| trial.limits.cpu = PATIENCE).await;
    assert_passes(&report);
    let bytes: usize = report.log.iter().map(String::len).sum();
    assert!(bytes < Limits::default().log + 100, "{bytes}");
    assert!(report.log.last().unwrap().contains("more lines were cut"), "{:?}", report.log.last());
    for line in &report.log {
        assert!(!line.contains(|character: char| character.is_control()), "{line:?}");
    }
    assert!(report.log[0].contains("\\n") && report.log[0].contains("\\u{1b}[2J"), "{:?}", report.log[0]);
}

#[tokio::test]
async fn threat_10_a_flood_of_measurements_is_cut() {
    let report =
        run(&host(), fixture("measure_loop", &[("count", "100000")]), |trial| trial.limits.cpu = PATIENCE).await;
    assert_passes(&report);
    assert_eq!(report.measurements.len(), Limits::default().measurements);
    let bytes: usize = report.log.iter().map(String::len).sum();
    assert!(bytes < Limits::default().log + 100, "{bytes}");
}

#[tokio::test]
async fn threat_13_what_is_handed_over_at_once_is_bounded_before_it_is_copied() {
    let host = host();
    let grown = "(if (i32.eq (i32.const -1) (memory.grow $memory (i32.const 320))) (then unreachable))";
    let log =
        |text: &str, fields: &str| doing(&format!("{grown} (call $log (i32.const 0) (i32.const 0) {text} {fields})"));
    let nothing = "(i32.const 0) (i32.const 0)";
    for (name, bytes) in [
        ("a message", log("(i32.const 65536) (i32.const 10000000)", nothing)),
        ("a million fields", log(nothing, "(i32.const 65536) (i32.const 1000000)")),
        ("a reason", fixture("message", &[("bytes", "10000000")])),
    ] {
        let report = run(&host, bytes, |_| {}).await;
        assert_blames(&report, Blame::MessageTooLarge);
        let Outcome::Error { message, .. } = report.outcome else { unreachable!() };
        assert!(message.contains("at once"), "{name}: {message}");
    }
    the_host_goes_on(&host).await;
}

#[tokio::test]
async fn threat_22_nothing_is_left_for_the_next_tenant() {
    let host = host();
    let tenants = ["1", "2"].map(|tenant| fixture("residue", &[("tenant", tenant)]));
    for _ in 0..10 {
        for tenant in &tenants {
            assert_passes(&run(&host, tenant.clone(), |_| {}).await);
        }
    }
}

#[tokio::test]
async fn a_trap_is_an_error_that_names_it() {
    let (_, bad) =
        obeyed_and_violated("instruction", "instruction", "(nop)", "(unreachable)", Blame::Trap, |_| {}).await;
    let Outcome::Error { message, .. } = bad.outcome else { unreachable!() };
    assert!(message.contains("unreachable"), "{message}");
}

#[tokio::test]
async fn a_pointer_to_nowhere_is_a_trap() {
    let nowhere = "(return (call $pass_with (i32.const -8) (i32.const 100)))";
    obeyed_and_violated("instruction", "instruction", "(nop)", nowhere, Blame::Trap, |_| {}).await;
}

#[tokio::test]
async fn threat_06_a_sleep_past_the_trials_limit_ends_at_the_limit_and_costs_no_cpu() {
    let host = host();
    let sleep = |milliseconds| {
        let call = format!("(call $sleep (i32.const {milliseconds}))");
        fixture("instruction", &[("instruction", call.as_str())])
    };
    // Sleeps longer than its whole CPU budget.
    let obeyed = run(&host, sleep(100), short_of_cpu).await;
    assert_passes(&obeyed);
    assert!(obeyed.cost.wall >= Duration::from_millis(100), "{obeyed:?}");
    let violated = run(&host, sleep(600_000), |trial| trial.timeout = Duration::from_millis(100)).await;
    assert_blames(&violated, Blame::Timeout);
    the_host_goes_on(&host).await;
}

#[tokio::test]
async fn more_trials_than_slots_wait_for_their_turn() {
    let host = host();
    let sleeper = fixture("instruction", &[("instruction", "(call $sleep (i32.const 20))")]);
    let digest = host.load(sleeper).await.unwrap().digest;
    let reports = futures::future::join_all((0..20).map(|_| host.run(trial(&digest)))).await;
    reports.iter().for_each(assert_passes);
}

#[tokio::test]
async fn a_trial_that_gets_no_slot_within_its_limit_blames_the_host() {
    let capacity = Capacity { trials: NonZeroU32::MIN, threads: NonZeroUsize::MIN };
    let host = LocalGateHost::start(capacity, Compiler::InProcess).unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let asks = host.load(fixture("ask", &[])).await.unwrap().digest;
    let good = host.load(fixture("good", &[])).await.unwrap().digest;
    let occupant = host.run(Trial {
        settings: text("candidate/proxy"),
        targets: vec![candidate(Scheme::Http, &[address])],
        ..trial(&asks)
    });
    let late = async {
        // Whoever has connected has the only slot.
        let _connected = silent.accept().await.unwrap();
        host.run(Trial { timeout: Duration::from_millis(50), ..trial(&good) }).await
    };
    tokio::select! {
        ended = occupant => panic!("the occupant ended first: {ended:?}"),
        late = late => assert_blames(&late, Blame::Host),
    }
    the_host_goes_on(&host).await;
}

#[tokio::test]
async fn a_gate_that_waits_says_for_what_and_how_long_and_finds_what_it_left() {
    let host = host();
    let report = run(&host, fixture("wait", &[]), |_| {}).await;
    let Outcome::Wait { reason, after, state } = report.outcome else { panic!("{report:?}") };
    assert_eq!((reason.code.as_str(), reason.message.as_str()), ("Good", "fine"));
    assert_eq!((after, state.as_deref()), (Duration::from_millis(1500), Some(&b"fine"[..])));
    let again = run(&host, fixture("wait", &[]), |trial| trial.state = state).await;
    assert_eq!(heard(&again), "fine");
    let greedy = run(&host, fixture("wait", &[]), |trial| trial.limits.state = 3).await;
    assert_blames(&greedy, Blame::MessageTooLarge);
}
