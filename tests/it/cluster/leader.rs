//! Several operators, of which one works: who takes over, from where, and what the one before can still do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;
use serde_json::{Value, json};
use sluice::{
    api::promotion::Verdict,
    model::names::{Role, State},
};
use sluice_harness::{
    kit::{self, Kit},
    proxy::{Proxy, Side, Write},
    wait::PATIENCE,
};

use super::{
    World,
    crash::{commit, judging, path, switches},
    smoke, verdict,
};

const LEASE: &str = "sluice-operator";

fn holder(lease: &Lease) -> Option<String> {
    Some(lease.spec.as_ref()?.holder_identity.clone().unwrap_or_default())
}

/// As an operator in a Pod of this name calls itself.
fn identity(pod: &str) -> String {
    format!("{pod}_{pod}")
}

impl<'a> World<'a> {
    /// One operator of several.
    pub(super) async fn elected(kit: &'a Kit, pod: &str) -> Result<Self> {
        let proxy = Proxy::start(&kit.cluster).await?;
        let operator = kit.elected_operator(pod, &proxy).await?;
        Ok(Self { kit, proxy, operator })
    }

    /// Waits until its operator has said this.
    async fn says(&self, what: &str) -> Result<()> {
        let said = async {
            while !std::fs::read_to_string(&self.operator.log).is_ok_and(|log| log.contains(what)) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, said).await.with_context(|| format!("no operator said {what:?}"))
    }
}

/// Waits until the operator in this Pod holds the Lease.
async fn led_by(kit: &Kit, pod: &str) -> Result<Lease> {
    let holds = |lease: Option<&Lease>| lease.and_then(holder) == Some(identity(pod));
    kit.wait::<Lease>(LEASE, &format!("be held by {pod}"), holds).await?.context("there is no Lease")
}

fn transitions(lease: &Lease) -> Option<i32> {
    lease.spec.as_ref()?.lease_transitions
}

#[test]
fn a_lease_is_handed_over_at_the_end_taken_over_from_the_dead_and_taken_up_after_a_restart() -> Result<()> {
    kit::run(async |kit| {
        kit.own_lease()?;
        let mut first = World::elected(kit, "first").await?;
        led_by(kit, "first").await?;
        let mut holders = kit.record::<Lease>(LEASE, holder);
        let second = World::elected(kit, "second").await?;
        second.says("stands by: Lease").await?;
        holders.wait_for(&identity("first"), PATIENCE).await?;
        ensure!(second.proxy.writes().iter().all(Write::is_review), "one that stands by has written");

        first.operator.terminate();
        ensure!(first.operator.ended(PATIENCE).await?.success(), "it did not end in good order");
        let lease = led_by(kit, "second").await?;
        assert_eq!(transitions(&lease), Some(1));
        holders.wait_for(&identity("second"), PATIENCE).await?;
        assert_eq!(
            holders.seen(),
            [identity("first"), String::new(), identity("second")],
            "it was given up, not waited for"
        );

        second.policy(json!([])).await?;
        second.create("kong:3.9")?;
        second.at_rest("kong:3.9").await?;
        let third = World::elected(kit, "third").await?;
        second.operator.kill().await?;
        third.image("kong:3.10").await?;
        third.approve().await?;
        let taken = led_by(kit, "third").await?;
        third.at_rest("kong:3.10").await?;

        third.operator.kill().await?;
        let again = World::elected(kit, "third").await?;
        again.image("kong:3.9").await?;
        again.approve().await?;
        again.at_rest("kong:3.9").await?;
        let lease = led_by(kit, "third").await?;
        let since = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.acquire_time.clone());
        assert_eq!((transitions(&lease), since(&lease)), (Some(2), since(&taken)), "it is the same hold");
        Ok(())
    })
}

/// Where the one that works is stopped, and what has become of it when it goes on.
struct Stop {
    name: &'static str,
    at: fn(&Write) -> bool,
    /// Whether the write has taken effect; else it is on its way, and comes when another one has finished the upgrade.
    done: bool,
    /// The attempts of the gate that count.
    attempts: i32,
}

const STOPS: [Stop; 6] = [
    Stop {
        name: "the preview Deployment is on its way",
        at: |write| path(write, "deployments") && write.method == "PATCH",
        done: false,
        attempts: 1,
    },
    Stop { name: "an attempt is on its way to the record", at: judging, done: false, attempts: 1 },
    // Nobody knows how it ended: it counts, once.
    Stop { name: "an attempt is on record", at: judging, done: true, attempts: 2 },
    // And so is what the gate said, in the same write: that is lost, and counts likewise.
    Stop { name: "the commit is on its way", at: commit, done: false, attempts: 2 },
    Stop { name: "the first Service is on its way", at: switches, done: false, attempts: 1 },
    Stop {
        name: "the end of the old Deployment is on its way",
        at: |write| path(write, "deployments") && write.method == "DELETE",
        done: false,
        attempts: 1,
    },
];

#[test]
fn an_operator_that_was_stopped_in_an_upgrade_and_goes_on_after_another_one_finished_it_harms_nothing() -> Result<()> {
    kit::run(async |kit| {
        kit.own_lease()?;
        let mut leader = World::elected(kit, "pod-0").await?;
        leader.http_smoke().await?;
        leader.policy(smoke(json!({}))).await?;
        leader.create("kong:3.9")?;
        leader.at_rest("kong:3.9").await?;

        for (number, stop) in STOPS.iter().enumerate() {
            let standby = World::elected(kit, &format!("pod-{}", number + 1)).await?;
            let image = if number % 2 == 0 { "kong:3.10" } else { "kong:3.9" };
            leader = replaced(leader, standby, stop, image).await.context(stop.name)?;
        }
        Ok(())
    })
}

/// One upgrade, begun by `leader` and finished by `standby`, which is returned.
async fn replaced<'a>(mut leader: World<'a>, standby: World<'a>, stop: &Stop, image: &str) -> Result<World<'a>> {
    let before = leader.promotions().await?.iter().map(|promotion| promotion.spec.generation).max();
    let (at, stopper) = (stop.at, leader.operator.stopper());
    let (held, done) = if stop.done {
        (None, Some(leader.proxy.trap(Side::After, move |_, write| at(write), stopper)))
    } else {
        (Some(leader.proxy.hold(move |_, write| at(write), stopper)), None)
    };
    leader.image(image).await?;
    leader.approve().await?;
    let stopped = async {
        Ok::<_, anyhow::Error>(match (held, done) {
            (Some(held), _) => Some(held.await?),
            (None, Some(done)) => done.await.map(|_| None)?,
            (None, None) => None,
        })
    };
    let held = tokio::time::timeout(PATIENCE, stopped).await.context("no such write")??;
    ensure!(standby.proxy.writes().iter().all(Write::is_review), "one that stands by has written");

    standby.at_rest(image).await.context("it was not taken over")?;
    let mut promotions = standby.promotions().await?;
    promotions.retain(|promotion| Some(promotion.spec.generation) > before);
    ensure!(promotions.len() == 1, "{} upgrades instead of one", promotions.len());
    let promoted = standby.newest().await?;
    ensure!(verdict(&promoted) == Some(Verdict::Promoted), "{promoted:?}");
    let attempts = promoted.status.as_ref().and_then(|status| status.gates.first()).map(|gate| gate.attempt);
    ensure!(attempts == Some(stop.attempts), "attempts that count: {attempts:?}");
    let settled = settled(&standby).await?;

    if let Some(held) = held {
        let write = held.write.clone();
        let status = held.deliver().await?;
        ensure!(matches!(status, 404 | 409), "{} {} was answered {status}", write.method, write.path);
    }
    leader.proxy.forget();
    leader.operator.resume();
    ensure!(!leader.operator.ended(PATIENCE).await?.success(), "it ended as if nothing had been lost");
    let written = leader.proxy.writes();
    ensure!(written.is_empty(), "the one that went on has written {written:?}");
    standby.at_rest(image).await?;
    ensure!(self::settled(&standby).await? == settled, "something was written after all");
    Ok(standby)
}

/// What the live Services select, and what every Deployment is: its label and how often its spec was changed.
async fn settled(world: &World<'_>) -> Result<Vec<Value>> {
    let mut settled = Vec::new();
    for role in [Role::Admin, Role::Ingress] {
        let service = world.service(State::Live, role, "be there", |_| true).await?;
        settled.push(json!([service.name_any(), service.spec.as_ref().map(|spec| &spec.selector)]));
    }
    for one in world.deployments().await? {
        settled.push(json!([one.name_any(), one.labels(), one.metadata.generation]));
    }
    Ok(settled)
}
