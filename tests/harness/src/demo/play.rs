//! The story: a good release passes its gate and is promoted, a bad one is stopped, an old approval is worth nothing.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Options;
use super::stage::{Side, Stage, holds, rolled_out};
use crate::wait::History;
use crate::workspace;

/// What the document calls its DataPlane.
const NAME: &str = "bluegreen";
/// The release it begins with.
const FIRST: &str = "kong:3.9";
/// Not the 30 seconds of a real policy: one wants to see the end.
const SHORT_DELAY: &str = r#"{"spec":{"scaleDownDelaySeconds":3}}"#;
const ANNOTATION: &str = "gateway-operator.konghq.com/promote-when-ready";
const PREVIEW: &str = "gateway-operator.konghq.com/dataplane-service-state=preview";
/// For a reason to come: gateways start, gates run.
const LIMIT: Duration = Duration::from_secs(120);

/// Plays all three acts.
pub(super) async fn all(stage: &Stage, options: &Options) -> Result<()> {
    println!("Act 1: a good release");
    stage.step("plugin and policy applied, both usable", apply_gate(stage)).await?;
    stage.step(&format!("{NAME} created on {FIRST}, ready and at rest"), create(stage)).await?;
    stage.step("preview: Services without endpoints, no Pods", preview_is_empty(stage)).await?;
    let mut reasons = stage.reasons(NAME);
    stage
        .step(&format!("patched to {}: its gate is run", options.good), judged(stage, &mut reasons, &options.good))
        .await?;
    stage.step("nothing promoted yet: both sides answer", both_answer(stage, &options.good)).await?;
    stage.step("annotated: promoted, the old side gone", promoted(stage, &options.good)).await?;

    println!("Act 2: a bad release, approved in advance");
    stage
        .step(&format!("patched to {} and annotated at once", options.bad), patch_and_approve(stage, &options.bad))
        .await?;
    stage.step("stopped by the gate, for the gate's own reason", stopped(stage, &mut reasons)).await?;
    stage.step(&format!("live is still {}", options.good), live_is(stage, &options.good)).await?;
    stage.step("the Event and the promotions say why", explained(stage)).await?;

    println!("Act 3: another release, the old approval still there");
    let mut reasons = stage.reasons(NAME);
    stage.step(&format!("patched to {FIRST}: the stale approval is removed"), approval_voided(stage)).await?;
    stage.step("its gate passes, a person is awaited", awaiting(&mut reasons)).await?;
    stage.step("annotated: promoted, the old side gone", promoted(stage, FIRST)).await
}

async fn apply_gate(stage: &Stage) -> Result<String> {
    stage.create_namespace()?;
    stage.run(&["create", "configmap", "gates", &format!("--from-file={}", zipped_gate()?)])?;
    stage.run(&["apply", "--filename", &example("gate.yaml")])?;
    stage.run(&["patch", "promotionpolicy", "smoke", "--type=merge", "--patch", SHORT_DELAY])?;
    stage.wait_condition(stage.api("sluice.dev", "v1alpha1", "GatePlugin"), "http-smoke", "Ready").await?;
    stage.wait_condition(stage.api("sluice.dev", "v1alpha1", "PromotionPolicy"), "smoke", "Accepted").await?;
    stage.run(&["get", "gateplugins,promotionpolicies"])
}

async fn create(stage: &Stage) -> Result<String> {
    stage.run(&["apply", "--filename", &example("bluegreen.yaml")])?;
    let at_rest = |object: &_| {
        holds(object, "Ready") && rolled_out(object).is_some_and(|condition| condition["reason"] == "WaitingForChange")
    };
    stage.wait_dataplane(NAME, "come to rest", at_rest).await?;
    stage.until_answers(NAME, Side::Live, &server(FIRST)).await
}

async fn preview_is_empty(stage: &Stage) -> Result<String> {
    let services = stage.run(&["get", "services", "--selector", PREVIEW, "--output=name"])?;
    ensure!(services.lines().count() == 2, "there should be two preview Services, not: {services}");
    for service in services.lines() {
        let name = service.trim_start_matches("service/");
        let selector = format!("kubernetes.io/service-name={name}");
        let endpoints = stage.run(&[
            "get",
            "endpointslices",
            "--selector",
            &selector,
            "--output=jsonpath={.items[*].endpoints[*]}",
        ])?;
        ensure!(endpoints.is_empty(), "{service} should have no endpoints, not: {endpoints}");
    }
    let pods = stage.run(&["get", "pods", "--output=name"])?;
    ensure!(pods.lines().count() == 1, "only the live side should have a Pod, not: {pods}");
    Ok(services)
}

async fn judged(stage: &Stage, reasons: &mut History, image: &str) -> Result<String> {
    patch(stage, image)?;
    reasons.wait_for("RunningGates", LIMIT).await?;
    reasons.wait_for("AwaitingPromotion", LIMIT).await?;
    Ok(reasons.seen().join(" -> "))
}

async fn both_answer(stage: &Stage, image: &str) -> Result<String> {
    let preview = stage.until_answers(NAME, Side::Preview, &server(image)).await?;
    let live = stage.until_answers(NAME, Side::Live, &server(FIRST)).await?;
    Ok(format!("preview: {preview}\nlive:    {live}"))
}

async fn promoted(stage: &Stage, image: &str) -> Result<String> {
    approve(stage)?;
    let live = stage.until_answers(NAME, Side::Live, &server(image)).await?;
    stage.wait_dataplane(NAME, "lose its annotation", |object| !is_approved(object)).await?;
    // One Deployment for the live side, one of no Pods for the next preview; and the Pods of the live side alone.
    let pods = ["get", "pods", "--output=jsonpath={.items[*].spec.containers[*].image}"];
    stage.until_printed(&pods, |images| images == image).await?;
    let deployments = ["get", "deployments", "--output=name"];
    stage.until_printed(&deployments, |names| names.lines().count() == 2).await?;
    Ok(live)
}

async fn patch_and_approve(stage: &Stage, image: &str) -> Result<String> {
    patch(stage, image)?;
    approve(stage)?;
    Ok(String::new())
}

async fn stopped(stage: &Stage, reasons: &mut History) -> Result<String> {
    reasons.wait_for("GatesFailed", LIMIT).await?;
    let failed = |object: &_| rolled_out(object).is_some_and(|condition| condition["reason"] == "GatesFailed");
    let object = stage.wait_dataplane(NAME, "be stopped", failed).await?;
    let message = rolled_out(&object).and_then(|condition| condition["message"].as_str());
    let message = message.filter(|message| !message.is_empty()).context("the condition does not say why")?;
    Ok(format!("GatesFailed: {message}"))
}

async fn live_is(stage: &Stage, image: &str) -> Result<String> {
    stage.until_answers(NAME, Side::Live, &server(image)).await
}

async fn explained(stage: &Stage) -> Result<String> {
    let events = ["get", "events", "--field-selector=reason=GatesFailed", "--output=jsonpath={.items[*].message}"];
    let event = stage.until_printed(&events, |message| !message.is_empty()).await?;
    let promotions = stage.run(&["get", "promotions"])?;
    Ok(format!("Event: {event}\n{promotions}"))
}

async fn approval_voided(stage: &Stage) -> Result<String> {
    patch(stage, FIRST)?;
    stage.wait_dataplane(NAME, "lose its annotation", |object| !is_approved(object)).await?;
    let events = ["get", "events", "--field-selector=reason=ApprovalVoided", "--output=jsonpath={.items[*].message}"];
    Ok(format!("Event: {}", stage.until_printed(&events, |message| !message.is_empty()).await?))
}

async fn awaiting(reasons: &mut History) -> Result<String> {
    reasons.wait_for("AwaitingPromotion", LIMIT).await?;
    Ok(reasons.seen().join(" -> "))
}

/// The document's own commands.
fn patch(stage: &Stage, image: &str) -> Result<()> {
    let patch = format!(
        r#"[{{"op": "replace", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/image", "value": "{image}"}}]"#
    );
    stage.run(&["patch", "dataplane", NAME, "--type=json", "--patch", &patch]).map(drop)
}

fn approve(stage: &Stage) -> Result<()> {
    stage.run(&["annotate", "dataplane", NAME, &format!("{ANNOTATION}=true")]).map(drop)
}

fn is_approved(object: &kube::api::DynamicObject) -> bool {
    object.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(ANNOTATION))
}

/// What a release calls itself: `kong/3.10` for `kong:3.10`, whatever registry and flavour stand around it.
fn server(image: &str) -> String {
    let tag = image.rsplit(':').next().unwrap_or(image);
    format!("kong/{}", tag.split('-').next().unwrap_or(tag))
}

fn example(name: &str) -> String {
    workspace::root().join("deploy/examples").join(name).display().to_string()
}

/// The built gate, zipped as the example wants it.
fn zipped_gate() -> Result<String> {
    let plain = workspace::target().join("plugins/http-smoke.wasm");
    let bytes = fs::read(&plain).with_context(|| format!("cannot read {}", plain.display()))?;
    let zipped = plain.with_extension("wasm.gz");
    let mut encoder = GzEncoder::new(File::create(&zipped)?, Compression::best());
    encoder.write_all(&bytes)?;
    encoder.finish()?;
    Ok(zipped.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::server;

    #[test]
    fn a_release_is_known_by_its_tag() {
        assert_eq!(server("kong:3.10"), "kong/3.10");
        assert_eq!(server("example.internal:5000/kong/kong-gateway:3.10.0.1-ubuntu"), "kong/3.10.0.1");
    }
}
