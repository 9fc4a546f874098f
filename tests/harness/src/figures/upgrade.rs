//! `upgrade`: one upgrade on real Pods, counted and timed; and what rest costs.
//!
//! | row | what |
//! |---|---|
//! | `rss_one_mb` | resident memory of the operator with one DataPlane at rest and no plugin, `VmRSS` |
//! | `writes_per_upgrade`, `reads_per_upgrade` | no policy matches; from the patch until the replaced side is gone and it rests |
//! | `writes_per_gated_upgrade`, `reads_per_gated_upgrade` | the same with one gate, `http-smoke` |
//! | `unexpected_conflicts` | 409 to writes that did not ask for it, in everything before and the series |
//! | `first_try_passes` | of a series of gated upgrades, those whose gate passed at its first attempt |
//! | `pod_ready_to_verdict_ms_p50` | same series: a watch saw the candidate's Pod ready -> a watch saw the gate's Pass |
//! | `pod_ready_to_verdict_ms_p99` | the same, the slowest but one of a hundred |
//! | `promotion_over_pod_ready_ms` | same series, median: the Pod seen ready -> both live Services seen switched |
//! | `requests_at_rest_20s` | requests of any kind in 20 s of rest with 50 DataPlanes, on the simulated cluster |
//!
//! Writes and reads are the operator's own, from the audit log; Events and Leases are counted apart.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{DynamicObject, ListParams};

use super::gateways::{self, SELECTOR, dataplanes, promotions, reason, rests};
use super::row::{Row, count, percentile};
use super::scale;
use super::seen::FirstSeen;
use super::tally::Tally;
use crate::audit::Audit;
use crate::cluster::Cluster;
use crate::install::{self, Build, cargo};
use crate::kit::{self, Kit};
use crate::progress::{Step, step};
use crate::wait::{PATIENCE, wait};
use crate::{command, workspace};

/// The DataPlane that is upgraded.
const NAME: &str = "bluegreen";
/// Upgrades in a row.
const SERIES: usize = 100;
/// What it is upgraded to, in turn.
const IMAGES: [&str; 2] = ["kong:3.10", "kong:3.9"];

/// Measures all rows.
pub fn measure() -> Result<Vec<Row>> {
    step("gates built", || command::run(cargo().arg("plugins")).map(drop))?;
    let cluster = Cluster::default();
    let mut rows = cluster.with_it_up(|| {
        install::without_operator(&cluster, Build::Optimised)?;
        kit::run_on(&cluster, upgrades)
    })?;
    let simulated = Cluster::simulated();
    rows.push(simulated.with_it_up(|| scale::rest(&simulated))?);
    Ok(rows)
}

async fn upgrades(kit: &Kit) -> Result<Vec<Row>> {
    let whole = Audit::now(&kit.cluster)?;
    let operator = kit.unwatched_operator().await?;
    gateways::create(kit, NAME)?;
    gateways::rest(kit, NAME).await?;
    let mut rows = vec![Row::at_most("rss_one_mb", operator.memory()?, "MiB", 30.0)];

    gateways::told(kit, 1).await?;
    let free = counted(kit, "upgrade where no policy matches", IMAGES[0], 2).await?;
    rows.push(Row::at_most("writes_per_upgrade", count(free.writes()), "writes", 22.0));
    rows.push(Row::at_most("reads_per_upgrade", count(free.reads()), "reads", 2.0));

    gate(kit).await?;
    let gated = counted(kit, "upgrade with a gate", IMAGES[1], 3).await?;
    rows.push(Row::at_most("writes_per_gated_upgrade", count(gated.writes()), "writes", 27.0));
    rows.push(Row::at_most("reads_per_gated_upgrade", count(gated.reads()), "reads", 2.0));

    let audit = Audit::now(&kit.cluster)?;
    let series = Series::run(kit).await?;
    Tally::since(&audit)?.print(SERIES);
    let conflicts = Tally::since(&whole)?.unexpected_conflicts();
    rows.push(Row::at_most("unexpected_conflicts", count(conflicts), "writes", 0.0));
    rows.push(Row::at_least("first_try_passes", count(series.first_try), "of 100", count(SERIES)));
    rows.push(Row::at_most("pod_ready_to_verdict_ms_p50", percentile(&series.verdict, 50), "ms", 300.0));
    rows.push(Row::reported("pod_ready_to_verdict_ms_p99", percentile(&series.verdict, 99), "ms"));
    rows.push(Row::at_most("promotion_over_pod_ready_ms", percentile(&series.switch, 50), "ms", 500.0));
    Ok(rows)
}

/// One upgrade, approved with its patch, until it rests and has said so for the given time; what it took, which is also
/// printed.
async fn counted(kit: &Kit, name: &str, image: &str, rests: usize) -> Result<Tally> {
    let step = Step::begin(name);
    let audit = Audit::now(&kit.cluster)?;
    let now = dataplanes(kit).get(NAME).await?;
    gateways::upgrade(kit, &now, image).await?;
    let rested = gateways::rest(kit, NAME).await;
    step.end(rested.is_ok());
    rested?;
    gateways::told(kit, rests).await?;
    let tally = Tally::since(&audit)?;
    tally.print(1);
    Ok(tally)
}

/// Installs the gate and the policy of the documentation, and waits until both can be used. The replaced side goes
/// after a second: the series is about what comes before.
async fn gate(kit: &Kit) -> Result<()> {
    let component = workspace::root().join("target/plugins/http-smoke.wasm");
    let file = format!("--from-file=http-smoke.wasm.gz={}", component.display());
    kit.kubectl(&["create", "configmap", "gates", &file])?;
    let policy = fs::read_to_string(workspace::root().join("deploy/examples/gate.yaml"))?;
    kit.apply(&policy.replace("scaleDownDelaySeconds: 30", "scaleDownDelaySeconds: 1"))?;
    gateways::accepted(kit, "smoke").await
}

/// Upgrades in a row, each approved with its patch.
#[derive(Default)]
struct Series {
    /// Whose gate passed at its first attempt.
    first_try: usize,
    /// From the Pod's readiness to the gate's verdict, milliseconds.
    verdict: Vec<f64>,
    /// From the Pod's readiness to the switch of the second live Service, milliseconds.
    switch: Vec<f64>,
}

impl Series {
    async fn run(kit: &Kit) -> Result<Self> {
        let watches = Watches::start(kit);
        let step = Step::begin("upgrades with a gate, one after the other");
        let mut series = Self::default();
        for number in 0..SERIES {
            step.note(&format!("{number} of {SERIES}, {} passed at the first try", series.first_try));
            let measured = series.one(kit, &watches, IMAGES[number % 2]).await;
            if measured.is_err() {
                step.end(false);
                return measured.map(|()| series);
            }
        }
        step.end(true);
        Ok(series)
    }

    async fn one(&mut self, kit: &Kit, watches: &Watches, image: &str) -> Result<()> {
        let now = dataplanes(kit).get(NAME).await?;
        gateways::upgrade(kit, &now, image).await?;
        let ended = |found: Option<&DynamicObject>| {
            found.is_some_and(|found| rests(found) || matches!(reason(found), Some("GatesFailed" | "GatesHeld")))
        };
        let dataplane = wait(dataplanes(kit), NAME, "end its upgrade", PATIENCE, ended).await?.context("it is gone")?;
        if !rests(&dataplane) {
            // Not promoted: nothing of it can be timed, and it is no pass.
            println!("      {}", dataplane.data["status"]["rollout"]["conditions"][0]["message"]);
            return Ok(());
        }
        let side = dataplane.data["status"]["selector"].as_str().context("it names no live side")?;
        let promotions = promotions(kit).list(&ListParams::default()).await?;
        let mut promotions = promotions.items.into_iter();
        let promotion = promotions.find(|promotion| promotion.data["status"]["commit"]["to"] == side);
        let promotion = promotion.context("no Promotion moved traffic to the live side")?;
        let gate = &promotion.data["status"]["gates"][0];
        if gate["outcome"] == "Pass" && gate["attempt"] == 1 {
            self.first_try += 1;
        }
        let ready = watches.ready_pods.at(side).context("no Pod of the live side was seen ready")?;
        let millis = |moment: Instant| moment.saturating_duration_since(ready).as_secs_f64() * 1_000.0;
        self.verdict.extend(watches.passes.at(&promotion.name_any()).map(millis));
        let switched = ["ingress", "admin"].map(|role| watches.switches.at(&format!("{role} {side}")));
        if let [Some(ingress), Some(admin)] = switched {
            self.switch.push(millis(ingress.max(admin)));
        }
        Ok(())
    }
}

/// What is watched during the series.
struct Watches {
    /// By side.
    ready_pods: FirstSeen,
    /// Of the gate, by Promotion.
    passes: FirstSeen,
    /// Of live Services, by role and side.
    switches: FirstSeen,
}

impl Watches {
    fn start(kit: &Kit) -> Self {
        let ready_pods = FirstSeen::of(kit.api::<Pod>(), |pod| {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            pod.labels().get(SELECTOR).filter(|_| ready).cloned()
        });
        let passes = FirstSeen::of(promotions(kit), |promotion| {
            (promotion.data["status"]["gates"][0]["outcome"] == "Pass").then(|| promotion.name_any())
        });
        let switches = FirstSeen::of(kit.api::<Service>(), |service| {
            let label =
                |name: &str| service.labels().get(&format!("gateway-operator.konghq.com/dataplane-service-{name}"));
            let side = service.spec.as_ref()?.selector.as_ref()?.get(SELECTOR)?;
            label("state").filter(|state| *state == "live")?;
            Some(format!("{} {side}", label("type")?))
        });
        Self { ready_pods, passes, switches }
    }
}
