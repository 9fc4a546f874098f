//! Every limit, obeyed and violated. After each violation the same host runs a good gate.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use sluice::{
    gate::{Capacity, GateHost as _, LocalGateHost},
    model::trial::{Blame, Limits, Outcome, Report, Scheme, Trial},
};
use tokio::net::TcpListener;

use super::{PATIENCE, assert_blames, assert_passes, candidate, fixture, host, run, text, trial};

/// CPU for guests that would take for ever: enough to be seen, not enough to wait for.
const CPU: Duration = Duration::from_millis(50);

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

fn short_of_cpu(trial: &mut Trial) {
    trial.limits.cpu = CPU;
}

#[tokio::test]
async fn an_endless_loop_ends_at_its_cpu_budget() {
    let (good, bad) = obeyed_and_violated("busy_loop", "rounds", "1000", "0", Blame::CpuBudget, short_of_cpu).await;
    assert!(good.cost.cpu < CPU && bad.cost.cpu >= CPU, "{good:?} {bad:?}");
}

#[tokio::test]
async fn an_endless_loop_of_log_calls_ends_at_its_cpu_budget_and_the_log_is_cut() {
    let (good, bad) = obeyed_and_violated("log_loop", "rounds", "3", "0", Blame::CpuBudget, |trial| {
        short_of_cpu(trial);
        trial.limits.log = 100;
    })
    .await;
    assert_eq!(good.log, ["info fine"; 3]);
    assert!(bad.log.iter().map(String::len).sum::<usize>() < 200, "{:?}", bad.log);
    assert!(bad.log.last().unwrap().contains("more lines were cut"), "{:?}", bad.log);
}

#[tokio::test]
async fn an_endless_loop_of_denied_requests_ends_at_its_cpu_budget() {
    let (good, bad) = obeyed_and_violated("denied_loop", "rounds", "3", "0", Blame::CpuBudget, short_of_cpu).await;
    assert_eq!((good.denials[0].target.as_str(), good.denials[0].count), ("fine", 3));
    assert_eq!(bad.denials.len(), 1);
    assert_eq!(bad.cost.requests, 0);
}

#[tokio::test]
async fn endless_recursion_overflows_the_guests_stack_and_not_ours() {
    obeyed_and_violated("recursion", "depth", "100", "0", Blame::StackOverflow, |_| {}).await;
}

#[tokio::test]
async fn memories_that_are_small_one_by_one_are_too_large_together() {
    let limit = Limits::default().memory;
    // Three times 20 MiB and three times 30 MiB, where 64 MiB are allowed.
    let (good, bad) = obeyed_and_violated("memories", "pages", "320", "480", Blame::MemoryLimit, |_| {}).await;
    assert!(good.cost.memory >= 60 << 20 && bad.cost.memory <= limit, "{good:?} {bad:?}");
}

#[tokio::test]
async fn tables_count_as_memory() {
    obeyed_and_violated("table", "elements", "1000", "10000", Blame::MemoryLimit, |trial| {
        // Two pages of memory, and 16 KiB for tables.
        trial.limits.memory = (128 << 10) + (16 << 10);
    })
    .await;
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
async fn a_message_over_its_limit_is_an_error() {
    let limit = Limits::default().message;
    // "Good" is four bytes of the reason.
    let (most, over) = ((limit - 4).to_string(), (limit - 3).to_string());
    obeyed_and_violated("message", "bytes", &most, &over, Blame::MessageTooLarge, |_| {}).await;
}

#[tokio::test]
async fn a_message_of_ten_megabytes_is_not_even_copied() {
    let (_, bad) = obeyed_and_violated("message", "bytes", "4", "10000000", Blame::MessageTooLarge, |_| {}).await;
    let Outcome::Error { message, .. } = bad.outcome else { unreachable!() };
    assert!(message.contains("at once"), "{message}");
}

#[tokio::test]
async fn nothing_is_left_of_an_earlier_trial() {
    let host = host();
    let bytes = fixture("once", &[]);
    for _ in 0..20 {
        assert_passes(&run(&host, bytes.clone(), |_| {}).await);
    }
}

#[tokio::test]
async fn neighbours_of_endless_loops_pass() {
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
    let host = LocalGateHost::start(capacity).unwrap();
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
async fn a_gate_that_waits_says_for_what_and_how_long() {
    let report = run(&host(), fixture("wait", &[]), |_| {}).await;
    let Outcome::Wait { reason, after } = report.outcome else { panic!("{report:?}") };
    assert_eq!((reason.code.as_str(), reason.message.as_str()), ("Good", "fine"));
    assert_eq!(after, Duration::from_millis(1500));
}
