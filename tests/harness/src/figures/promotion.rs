//! `promotion`: what users lose while a gateway is upgraded, and moved back, under them, on real Pods.
//!
//! | row | what |
//! |---|---|
//! | `requests` | of users of the live ingress Service at its address in the cluster: a third over new connections, a third over kept ones, a third over HTTP/2 |
//! | `lost` | of those, what an honest client calls an error ([`load`](crate::load) says what that is) |
//! | `retried` | of those, sent once more because the server closed a kept connection that they were on their way over |
//! | `longest_gap_ms` | the longest time that one user was without an answer |
//! | `rollback_ms_p50` | `spec.decision.rollback` sent -> both live Services seen back at the replaced side |
//! | `old_side_over_delay_s_max` | `status.switchedAt` of the Promotion -> the replaced Deployment seen gone, less `scaleDownDelaySeconds` |
//! | `old_side_over_delay_s_min` | the same, the earliest: before its time is over it may not go |
//! | `model_states`, `mutants_found` | what [`model`] measures |
//!
//! Each promotion is approved with its patch. A rollback is one that has arrived, and is moved back while the replaced side
//! stands; what comes next is another release.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::gateways::{self, LIVE_DEPLOYMENTS, SELECTOR, dataplanes, is_promoted, promotions, reason};
use super::model;
use super::row::{Row, count, percentile};
use crate::cluster::Cluster;
use crate::http;
use crate::install::{self, Build};
use crate::kit::{self, Kit};
use crate::load::{Gateway, Load, Tallies, Tally};
use crate::progress::Step;
use crate::wait::{PATIENCE, wait};

/// How many promotions, and how many that are moved back.
const PROMOTIONS: usize = 100;
const ROLLBACKS: usize = 20;
/// How long the replaced side lives on.
const DELAY: Duration = Duration::from_secs(2);
/// The gateway.
const NAME: &str = "bluegreen";
/// What it is upgraded to, in turn; it is created with the second one.
const IMAGES: [&str; 3] = ["kong:3.10", "kong:3.9", "kong:3.4"];
/// Which Services traffic comes by.
const LIVE_SERVICES: &str = "gateway-operator.konghq.com/dataplane-service-state=live";

/// Measures all rows.
pub fn measure() -> Result<Vec<Row>> {
    let cluster = Cluster::default();
    let measured = cluster.with_it_up(|| {
        install::without_operator(&cluster, Build::Optimised)?;
        kit::run_on(&cluster, async |kit| series(kit, Entrance::Service, PROMOTIONS, ROLLBACKS).await)
    })?;
    let mut rows = tally_rows(&measured.users, Some(0.0));
    let (back, early, late) = (
        percentile(&measured.rollbacks, 50),
        percentile(&measured.over_delay, 0),
        percentile(&measured.over_delay, 100),
    );
    // Now: the model takes its time.
    println!("      moved back in {back:.0} ms, replaced sides gone {early:.2} to {late:.2} s after their delay");
    rows.push(Row::at_most("rollback_ms_p50", back, "ms", 1_000.0));
    rows.push(Row::at_most("old_side_over_delay_s_max", late, "s", 2.0));
    rows.push(Row::at_least("old_side_over_delay_s_min", early, "s", 0.0));
    rows.extend(model::measure()?);
    Ok(rows)
}

/// What the users of a Service get for some time.
pub fn users(service: &str, time: Duration) -> Result<Vec<Row>> {
    let (namespace, name) = service.split_once('/').context("a Service is named NAMESPACE/NAME")?;
    let cluster = Cluster::default();
    let users = cluster.inside(|| async {
        let services: Api<Service> = Api::namespaced(cluster.client().await?, namespace);
        let load = Load::start(&cluster, Gateway::in_cluster(&services.get(name).await?)?);
        let step = Step::begin(&format!("users of {service}"));
        tokio::time::sleep(time).await;
        step.end(true);
        load.stop().await
    })?;
    Ok(tally_rows(&users, None))
}

fn tally_rows(users: &Tallies, may_lose: Option<f64>) -> Vec<Row> {
    for (kind, tally) in users {
        println!("      {kind:?}: {} requests, {} retried, {} lost", tally.requests, tally.retried, tally.lost);
    }
    let all = Tally::of_all(users.values());
    for why in &all.why {
        println!("      lost: {why}");
    }
    let lost = count(all.lost);
    vec![
        Row::reported("requests", count(all.requests), "requests"),
        match may_lose {
            Some(target) => Row::at_most("lost", lost, "requests", target),
            None => Row::reported("lost", lost, "requests"),
        },
        Row::reported("retried", count(all.retried), "requests"),
        Row::reported("longest_gap_ms", all.longest_gap.as_secs_f64() * 1_000.0, "ms"),
    ]
}

/// What came of promotions and rollbacks under load.
#[derive(Debug, Default)]
pub struct Measured {
    /// What users got all along.
    pub users: Tallies,
    /// Of each rollback: from the decision until both Services were back, milliseconds.
    pub rollbacks: Vec<f64>,
    /// Of each promotion: how much longer than its delay the replaced side stood, seconds.
    pub over_delay: Vec<f64>,
}

/// Where users come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// The Service's address, from inside the cluster.
    Service,
    /// A port of the node, from outside of the cluster, with `externalTrafficPolicy: Local`.
    Node,
}

/// So many promotions and rollbacks of one gateway in the kit's namespace, under load. The operator is this function's own.
pub async fn series(kit: &Kit, entrance: Entrance, promotions: usize, rollbacks: usize) -> Result<Measured> {
    let _operator = kit.unwatched_operator().await?;
    policy(kit).await?;
    gateways::create(kit, NAME)?;
    if entrance == Entrance::Node {
        let ingress = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
        let patch = Patch::Merge(json!({ "spec": { "network": { "services": { "ingress": ingress } } } }));
        dataplanes(kit).patch(NAME, &PatchParams::default(), &patch).await?;
    }
    let dataplane = gateways::rest(kit, NAME).await?;
    let live = dataplane.data["status"]["service"].as_str().context("it names no live Service")?;
    let service = kit.api::<Service>().get(live).await?;
    let gateway = match entrance {
        Entrance::Service => Gateway::in_cluster(&service)?,
        Entrance::Node => Gateway::on_node(&service)?,
    };
    http::until(&gateway.url(), PATIENCE, |answer| answer.status() == 404).await?;

    let load = Load::start(&kit.cluster, gateway);
    let step = Step::begin(&format!("{promotions} promotions and {rollbacks} rollbacks under load"));
    let mut series = Series { kit, live: IMAGES[1], wanted: IMAGES[1], measured: Measured::default() };
    let done = series.run(&step, promotions, rollbacks).await;
    step.end(done.is_ok());
    let users = load.stop().await?;
    done?;
    Ok(Measured { users, ..series.measured })
}

/// No gates, and a short life for what is replaced.
async fn policy(kit: &Kit) -> Result<()> {
    let policy = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "short" },
        "spec": { "selector": {}, "scaleDownDelaySeconds": DELAY.as_secs(), "gates": [] },
    });
    kit.apply(&policy.to_string())?;
    gateways::accepted(kit, "short").await
}

struct Series<'a> {
    kit: &'a Kit,
    /// The release that takes traffic.
    live: &'static str,
    /// The one that was asked for last.
    wanted: &'static str,
    measured: Measured,
}

impl Series<'_> {
    async fn run(&mut self, step: &Step, promotions: usize, rollbacks: usize) -> Result<()> {
        for number in 1..=promotions {
            step.note(&format!("{number} of {promotions}"));
            self.promote().await.with_context(|| format!("promotion {number}"))?;
            // Spread evenly among the promotions.
            if number * rollbacks / promotions > (number - 1) * rollbacks / promotions {
                self.roll_back().await.with_context(|| format!("after promotion {number}: rollback"))?;
            }
        }
        Ok(())
    }

    /// An upgrade, until the replaced side is gone and it rests.
    async fn promote(&mut self) -> Result<()> {
        let before = self.kit.api::<Deployment>().list(&ListParams::default().labels(LIVE_DEPLOYMENTS)).await?;
        let replaced = before.items.first().context("nothing is live")?.name_any();
        let generation = self.arrive().await?;
        wait(self.kit.api::<Deployment>(), &replaced, "go", PATIENCE, |found| found.is_none()).await?;
        let gone = Timestamp::now();
        let switched = self.promotion(generation).await?.data["status"]["switchedAt"].take();
        let switched: Timestamp = switched.as_str().context("it is not on record when traffic had moved")?.parse()?;
        self.measured.over_delay.push(gone.duration_since(switched).as_secs_f64() - DELAY.as_secs_f64());
        gateways::rest(self.kit, NAME).await?;
        self.live = self.wanted;
        Ok(())
    }

    /// An upgrade that is moved back when it has arrived.
    async fn roll_back(&mut self) -> Result<()> {
        let before = dataplanes(self.kit).get(NAME).await?;
        let replaced = before.data["status"]["selector"].as_str().context("it names no live side")?.to_owned();
        let services = self.kit.api::<Service>().list(&ListParams::default().labels(LIVE_SERVICES)).await?;
        let [one, other] = &services.items[..] else { anyhow::bail!("{} live Services", services.items.len()) };
        let generation = self.arrive().await?;

        let promotion = self.promotion(generation).await?.name_any();
        let decision = json!({ "rollback": true, "by": self.name().await?, "reason": "measured" });
        let decision = Patch::Merge(json!({ "spec": { "decision": decision } }));

        let back = |service: Option<&Service>| {
            let selector = service.and_then(|service| service.spec.as_ref()?.selector.as_ref()?.get(SELECTOR));
            selector == Some(&replaced)
        };
        let returns = async |service: &Service| {
            wait(self.kit.api::<Service>(), &service.name_any(), "go back", PATIENCE, back).await
        };
        let decided = Instant::now();
        promotions(self.kit).patch(&promotion, &PatchParams::default(), &decision).await?;
        tokio::try_join!(returns(one), returns(other))?;
        self.measured.rollbacks.push(decided.elapsed().as_secs_f64() * 1_000.0);
        let rolled_back = |found: Option<&DynamicObject>| found.and_then(reason) == Some("RolledBack");
        wait(dataplanes(self.kit), NAME, "be rolled back", PATIENCE, rolled_back).await.map(drop)
    }

    /// The record of the upgrade to a generation.
    async fn promotion(&self, generation: Option<i64>) -> Result<DynamicObject> {
        let mut found = promotions(self.kit).list(&ListParams::default()).await?.items.into_iter();
        let found = found.find(|promotion| promotion.data["spec"]["generation"] == json!(generation));
        found.context("the upgrade is on no record")
    }

    /// Asks for another release, approved, until traffic has arrived there; the generation that this is.
    async fn arrive(&mut self) -> Result<Option<i64>> {
        let before = dataplanes(self.kit).get(NAME).await?;
        self.wanted = next(self.live, self.wanted).context("there is no other release")?;
        let generation = gateways::upgrade(self.kit, &before, self.wanted).await?.metadata.generation;
        let arrived = |found: Option<&DynamicObject>| found.is_some_and(is_promoted);
        wait(dataplanes(self.kit), NAME, "be promoted", PATIENCE, arrived).await?;
        Ok(generation)
    }

    /// Who this is to the apiserver: a decision bears the name of whoever writes it.
    async fn name(&self) -> Result<Value> {
        let reviews: Api<SelfSubjectReview> = self.kit.cluster_api();
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
        let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
        Ok(json!(user.context("the apiserver does not say who this is")?))
    }
}

/// A release that is neither live nor rejected.
fn next(live: &str, wanted: &str) -> Option<&'static str> {
    IMAGES.into_iter().find(|image| *image != live && *image != wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Kind;

    #[test]
    fn what_was_moved_back_is_not_asked_for_next() {
        assert_eq!(next("kong:3.9", "kong:3.9"), Some("kong:3.10"));
        assert_eq!(next("kong:3.9", "kong:3.10"), Some("kong:3.4"));
        assert_eq!(next("kong:3.10", "kong:3.10"), Some("kong:3.9"));
    }

    #[test]
    fn what_others_lose_misses_no_target() {
        let tally = Tally { requests: 10, lost: 2, ..Tally::default() };
        let users: Tallies = Kind::ALL.map(|kind| (kind, tally.clone())).into();
        let lost = |target| tally_rows(&users, target).into_iter().find(|row| row.name == "lost").expect("a row");
        assert_eq!((lost(None).value, lost(None).ok, lost(Some(0.0)).ok), (6.0, true, false));
    }
}
