//! The health checks for Argo CD and Flux, over one table of statuses: one verdict from both.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sluice_gitops::{
    ArgoCd, Flux,
    Health::{self, Degraded, Healthy, Progressing, Suspended},
    Progress,
};

/// Rule; status in short (see [`status`]) at generation 2; verdict; what Argo CD shows.
type Row = (&'static str, &'static str, Health, &'static str);

const WAITS: &str = "waits for the operator";
const CHANGED: &str = "the spec has changed";
const APPROVAL: &str = "waits for approval: annotate with gateway-operator.konghq.com/promote-when-ready=true";

#[rustfmt::skip]
const DATA_PLANE: &[Row] = &[
    ("no status", "", Progressing, WAITS),
    ("Ready is missing", "AcceptedExtensions=True/Accepted@2", Progressing, WAITS),
    ("live is starting", "Ready=False/WaitingToBecomeReady@2", Progressing, "WaitingToBecomeReady: why"),
    ("live is unknown", "Ready=Unknown/Lost@2", Progressing, "Lost: why"),
    ("live is ready", "Ready=True/Ready@2", Healthy, ""),
    ("live is of an older spec", "Ready=True/Ready@1", Progressing, CHANGED),
    ("the spec is invalid", "Ready=False/ValidationFailed@2", Degraded, "ValidationFailed: why"),
    ("an older spec was invalid", "Ready=False/ValidationFailed@1", Progressing, "ValidationFailed: why"),
    ("live cannot be had", "Ready=False/UnableToProvision@2", Degraded, "UnableToProvision: why"),
    ("stalled", "Ready=True/Ready@2 Stalled=True/InvalidSpec@2", Degraded, "InvalidSpec: why"),
    ("not stalled", "Ready=True/Ready@2 Stalled=False/Fine@2", Healthy, ""),
    ("stalled by an older spec", "Ready=True/Ready@2 Stalled=True/InvalidSpec@1", Healthy, ""),
    ("stalled before an edit is seen", "Ready=True/Ready@1 Stalled=True/InvalidSpec@1", Progressing, CHANGED),
    ("stalled while live is starting", "Ready=False/WaitingToBecomeReady@2 Stalled=True/InvalidSpec@2", Degraded, "InvalidSpec: why"),
    ("stalled beside an older rollout", "Ready=True/Ready@1 RolledOut=False/AwaitingPromotion@1 Stalled=True/InvalidSpec@2", Degraded, "InvalidSpec: why"),
    ("reconciling", "Ready=True/Ready@2 Reconciling=True/Repairing@2", Progressing, "Repairing: why"),
    ("not reconciling", "Ready=True/Ready@2 Reconciling=False/Done@2", Healthy, ""),
    ("reconciling at rest", "Ready=True/Ready@2 RolledOut=False/WaitingForChange@2 Reconciling=True/Repairing@2", Progressing, "Repairing: why"),
    ("reconciling while a person is awaited", "Ready=True/Ready@1 RolledOut=False/AwaitingPromotion@2 Reconciling=True/Upgrading@2", Suspended, APPROVAL),
    ("reconciling does not hide a refusal", "Ready=True/Ready@1 RolledOut=False/GatesHeld@2 Reconciling=True/Upgrading@2", Degraded, "GatesHeld: why"),
    ("at rest", "Ready=True/Ready@2 RolledOut=False/WaitingForChange@2", Healthy, ""),
    ("at rest before an edit is seen", "Ready=True/Ready@1 RolledOut=False/WaitingForChange@1", Progressing, CHANGED),
    ("the preview is starting", "Ready=True/Ready@1 RolledOut=False/Progressing@2", Progressing, "Progressing: why"),
    ("gates are at work", "Ready=True/Ready@1 RolledOut=False/RunningGates@2", Progressing, "RunningGates: why"),
    ("the preview does not answer", "Ready=True/Ready@1 RolledOut=False/PreviewUnreachable@2", Progressing, "PreviewUnreachable: why"),
    ("a gate said no", "Ready=True/Ready@1 RolledOut=False/GatesFailed@2", Degraded, "GatesFailed: why"),
    ("a gate said no to an older spec", "Ready=True/Ready@1 RolledOut=False/GatesFailed@1", Progressing, CHANGED),
    ("a gate said no, and live is not ready", "Ready=False/WaitingToBecomeReady@1 RolledOut=False/GatesFailed@2", Degraded, "GatesFailed: why"),
    ("a gate could not say", "Ready=True/Ready@1 RolledOut=False/GatesHeld@2", Degraded, "GatesHeld: why"),
    ("too late", "Ready=True/Ready@1 RolledOut=False/DeadlineExceeded@2", Degraded, "DeadlineExceeded: why"),
    ("a person is awaited", "Ready=True/Ready@1 RolledOut=False/AwaitingPromotion@2", Suspended, APPROVAL),
    ("awaited for an older spec", "Ready=True/Ready@1 RolledOut=False/AwaitingPromotion@1", Progressing, CHANGED),
    ("awaited, and live is not ready", "Ready=False/WaitingToBecomeReady@1 RolledOut=False/AwaitingPromotion@2", Progressing, "WaitingToBecomeReady: why"),
    ("traffic is moving", "Ready=True/Ready@1 RolledOut=False/PromotionInProgress@2", Progressing, "PromotionInProgress: why"),
    ("traffic is moving, without a word", "Ready=True/Ready@1 RolledOut=False/PromotionInProgress@2~", Progressing, "PromotionInProgress"),
    ("judged behind the live Services", "Ready=True/Ready@1 RolledOut=False/VerifyingPromotion@2", Progressing, "VerifyingPromotion: why"),
    ("traffic has moved", "Ready=True/Ready@2 RolledOut=True/PromotionDone@2", Healthy, ""),
    ("traffic was moved back", "Ready=True/Ready@1 RolledOut=False/PromotionFailed@2", Degraded, "PromotionFailed: why"),
    ("rolled back", "Ready=True/Ready@1 RolledOut=False/RolledBack@2", Degraded, "RolledBack: why"),
    ("aborted", "Ready=True/Ready@1 RolledOut=False/Aborted@2", Degraded, "Aborted: why"),
    ("given up", "Ready=True/Ready@1 RolledOut=False/Failed@2", Degraded, "Failed: why"),
];

#[rustfmt::skip]
const GATE_PLUGIN: &[Row] = &[
    ("no status", "", Progressing, WAITS),
    ("usable", "Ready=True/Ready@2", Healthy, ""),
    ("usable before an edit is seen", "Ready=True/Ready@1", Progressing, WAITS),
    ("no component", "Ready=False/NotAComponent@2", Degraded, "NotAComponent: why"),
    ("no component before an edit is seen", "Ready=False/NotAComponent@1", Progressing, WAITS),
    ("its ConfigMap may be coming", "Ready=False/ConfigMapNotFound@2", Progressing, "ConfigMapNotFound: why"),
    ("its Secret may be coming", "Ready=False/SecretNotFound@2", Progressing, "SecretNotFound: why"),
    ("its image may be coming", "Ready=False/NotFound@2", Progressing, "NotFound: why"),
    ("its signature may be coming", "Ready=False/NotSigned@2", Progressing, "NotSigned: why"),
    ("its registry is down", "Ready=False/Unavailable@2", Progressing, "Unavailable: why"),
    ("its registry is down, and the one before is run", "Ready=True/Replacing@2", Progressing, "Replacing: why"),
    ("revoked", "Ready=False/Revoked@2", Degraded, "Revoked: why"),
];

#[rustfmt::skip]
const PROMOTION_POLICY: &[Row] = &[
    ("no status", "", Progressing, WAITS),
    ("accepted", "Accepted=True/Accepted@2", Healthy, ""),
    ("accepted before an edit is seen", "Accepted=True/Accepted@1", Progressing, WAITS),
    ("wrong settings", "Accepted=False/InvalidSettings@2", Degraded, "InvalidSettings: why"),
    ("wrong settings before an edit is seen", "Accepted=False/InvalidSettings@1", Progressing, WAITS),
    ("its plugin may be coming", "Accepted=False/PluginNotFound@2", Progressing, "PluginNotFound: why"),
    ("its plugin may be compiling", "Accepted=False/PluginNotReady@2", Progressing, "PluginNotReady: why"),
];

#[rustfmt::skip]
const PROMOTION: &[Row] = &[
    ("no status", "", Progressing, WAITS),
    ("starting", "Staging", Progressing, "why"),
    ("judged", "Judging", Progressing, "why"),
    ("refused", "Refused", Degraded, "why"),
    ("awaiting approval", "Waiting", Suspended, "why"),
    ("awaiting approval, without a word", "Waiting~", Suspended, "Waiting"),
    ("moving", "Switching", Progressing, "why"),
    ("draining", "Draining", Progressing, "why"),
    ("rejected", "Rejected", Degraded, "why"),
    ("done", "Promoted", Healthy, "why"),
    ("another one is wanted", "Superseded", Healthy, "why"),
    ("the old one is wanted", "Reverted", Healthy, "why"),
    ("moved back", "Failed", Degraded, "why"),
    ("rolled back", "RolledBack", Degraded, "why"),
    ("aborted", "Aborted", Degraded, "why"),
];

#[test]
fn argo_cd_and_flux_agree_on_every_status() {
    let (argo, flux) = (ArgoCd::read(manifest("argocd.yaml")), Flux::read(manifest("flux.yaml")));
    let crds = sluice::api::crds();
    assert_eq!((argo.count(), flux.count()), (crds.len(), crds.len()), "one check for each kind");
    for crd in crds {
        let (group, kind) = (crd.spec.group, crd.spec.names.kind);
        let api_version = format!("{group}/{}", crd.spec.versions[0].name);
        let rows = match kind.as_str() {
            "DataPlane" => DATA_PLANE,
            "GatePlugin" | "ClusterGatePlugin" => GATE_PLUGIN,
            "PromotionPolicy" | "ClusterPromotionPolicy" => PROMOTION_POLICY,
            "Promotion" => PROMOTION,
            other => panic!("no rows for {other}"),
        };
        for (rule, short, health, message) in rows {
            let mut object = json!({ "apiVersion": api_version, "kind": kind, "metadata": { "generation": 2 } });
            if !short.is_empty() {
                object["status"] = status(short);
            }
            let shown = argo.check(&group, &kind, &object);
            assert_eq!((shown.status, shown.message.as_str()), (*health, *message), "Argo CD: {kind}, {rule}");
            let expected = match health {
                Healthy | Suspended => Progress::Current,
                Progressing => Progress::InProgress,
                Degraded => Progress::Failed,
            };
            assert_eq!(flux.check(&api_version, &kind, &object), expected, "Flux: {kind}, {rule}");
        }
    }
}

/// `Type=Status/Reason@observedGeneration ...`, or the phase of a Promotion. Each says "why", or with a `~` nothing.
fn status(short: &str) -> Value {
    if !short.contains('=') {
        return match short.strip_suffix('~') {
            Some(phase) => json!({ "phase": phase }),
            None => json!({ "phase": short, "message": "why" }),
        };
    }
    let (rollout, conditions): (Vec<_>, Vec<_>) =
        short.split(' ').map(condition).partition(|condition| condition["type"] == "RolledOut");
    let mut status = json!({ "conditions": conditions });
    if !rollout.is_empty() {
        status["rollout"] = json!({ "conditions": rollout });
    }
    status
}

fn condition(short: &str) -> Value {
    let (type_, rest) = short.split_once('=').unwrap();
    let (status, rest) = rest.split_once('/').unwrap();
    let (reason, generation) = rest.split_once('@').unwrap();
    let (generation, message) = generation.strip_suffix('~').map_or((generation, "why"), |generation| (generation, ""));
    let generation: i64 = generation.parse().unwrap();
    json!({ "type": type_, "status": status, "reason": reason, "message": message, "observedGeneration": generation })
}

fn manifest(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/health").join(name);
    serde_norway::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
