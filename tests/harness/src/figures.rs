//! `cargo figures`: what an upgrade costs, counted at the apiserver and at the proxy in front of it.
//!
//! Each figure prints a table and writes `target/reports/NAME.json`.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Serialize;
use serde_json::json;

use crate::audit::Audit;
use crate::cluster::Cluster;
use crate::install::{self, cargo};
use crate::kit::{self, Kit};
use crate::operator;
use crate::progress::step;
use crate::proxy::{Proxy, Write};
use crate::wait::{PATIENCE, wait};
use crate::{command, workspace};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Figure {
    /// Requests of the operator for one upgrade, from the patch until the old side is gone.
    Upgrade,
}

/// One line of a table.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    target: f64,
    ok: bool,
}

/// At most so many.
fn at_most(name: &'static str, value: usize, unit: &'static str, target: usize) -> Row {
    // Counts of requests: far below what a float holds exactly.
    #[allow(clippy::cast_precision_loss)]
    Row { name, value: value as f64, unit, target: target as f64, ok: value <= target }
}

/// Measures the chosen figures, all if none is chosen; an error if one misses its target.
pub fn run(chosen: &[Figure]) -> Result<()> {
    let cluster = Cluster::default();
    let was_up = cluster.health().is_ok();
    cluster.up()?;
    let all = Figure::value_variants().iter().filter(|figure| chosen.is_empty() || chosen.contains(figure));
    let mut missed = Vec::new();
    for figure in all {
        let (name, rows) = match figure {
            Figure::Upgrade => ("upgrade", upgrade(&cluster)?),
        };
        println!("{name:<28} {:>8} {:>8}  unit", "value", "target");
        for row in &rows {
            println!(
                "{:<28} {:>8} {:>8}  {}{}",
                row.name,
                row.value,
                row.target,
                row.unit,
                if row.ok { "" } else { "  MISSED" }
            );
        }
        missed.extend(rows.iter().filter(|row| !row.ok).map(|row| row.name));
        fs::create_dir_all(workspace::reports())?;
        let path = workspace::reports().join(name).with_extension("json");
        fs::write(&path, format!("{:#}\n", json!({ "rows": rows })))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !was_up {
        cluster.down()?;
    }
    if missed.is_empty() { Ok(()) } else { bail!("targets missed: {}", missed.join(", ")) }
}

/// One upgrade where no policy matches, and one with a gate. Events and Leases are counted apart.
fn upgrade(cluster: &Cluster) -> Result<Vec<Row>> {
    step("gates built", || command::run(cargo().arg("plugins")).map(drop))?;
    install::without_operator(cluster)?;
    let mut rows = Vec::new();
    kit::run(async |kit| {
        let proxy = Proxy::start(&kit.cluster).await?;
        let _operator = kit.operator(&proxy).await?;
        kit.apply(&fs::read_to_string(workspace::root().join("deploy/examples/bluegreen.yaml"))?)?;
        reach(kit, "WaitingForChange").await?;
        let (writes, reads) = promote(kit, &proxy, "kong:3.10").await?;
        rows.push(at_most("writes_per_upgrade", writes, "writes", 22));
        rows.push(at_most("reads_per_upgrade", reads, "reads", 2));

        let gate = workspace::root().join("target/plugins/http-smoke.wasm");
        kit.kubectl(&["create", "configmap", "gates", &format!("--from-file=http-smoke.wasm.gz={}", gate.display())])?;
        let policy = fs::read_to_string(workspace::root().join("deploy/examples/gate.yaml"))?;
        kit.apply(&policy.replace("scaleDownDelaySeconds: 30", "scaleDownDelaySeconds: 1"))?;
        accepted(kit).await?;
        let (writes, reads) = promote(kit, &proxy, "kong:3.9").await?;
        rows.push(at_most("writes_per_gated_upgrade", writes, "writes", 27));
        rows.push(at_most("reads_per_gated_upgrade", reads, "reads", 2));
        Ok(())
    })?;
    Ok(rows)
}

/// Upgrades to `image`; the operator's writes and reads from the patch until it rests again.
async fn promote(kit: &Kit, proxy: &Proxy, image: &str) -> Result<(usize, usize)> {
    let audit = Audit::now(&kit.cluster)?;
    proxy.forget();
    let patch = json!([{ "op": "replace", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/image", "value": image }]);
    kit.kubectl(&["patch", "dataplane", "bluegreen", "--type=json", &format!("--patch={patch}")])?;
    kit.kubectl(&["annotate", "dataplane", "bluegreen", "gateway-operator.konghq.com/promote-when-ready=true"])?;
    reach(kit, "PromotionDone").await?;
    reach(kit, "WaitingForChange").await?;
    let counts = |write: &Write| !write.is_event() && !write.is_lease();
    let writes: Vec<_> = proxy.writes().into_iter().filter(counts).collect();
    for write in &writes {
        println!("      {} {}", write.method, write.path.rsplit("namespaces/").next().unwrap_or_default());
    }
    let own = audit.requests()?.into_iter().filter(|request| request.is_from(operator::NAMESPACE, operator::NAME));
    let reads = own.filter(|request| ["get", "list"].contains(&request.verb.as_str()));
    Ok((writes.len(), reads.count()))
}

/// Waits for the reason of `RolledOut`. By a watch: whoever blocks the thread here blocks the proxy with it.
async fn reach(kit: &Kit, reason: &str) -> Result<()> {
    let says = |found: Option<&DynamicObject>| {
        found.is_some_and(|found| found.data["status"]["rollout"]["conditions"][0]["reason"] == reason)
    };
    let api = objects(kit, "gateway-operator.konghq.com", "v1beta1", "DataPlane");
    wait(api, "bluegreen", &format!("become {reason}"), PATIENCE, says).await.map(drop)
}

/// Waits until the policy of the example can be used.
async fn accepted(kit: &Kit) -> Result<()> {
    let accepted = |found: Option<&DynamicObject>| {
        found.is_some_and(|found| found.data["status"]["conditions"][0]["status"] == "True")
    };
    let api = objects(kit, "sluice.dev", "v1alpha1", "PromotionPolicy");
    wait(api, "smoke", "be accepted", PATIENCE, accepted).await.map(drop)
}

fn objects(kit: &Kit, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(kit.client.clone(), &kit.namespace, &resource)
}
