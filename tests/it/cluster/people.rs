//! What people decide on a real cluster: who may, what is on record of it, and what comes of it.

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice::api::{
    DataPlane, Promotion, PromotionPolicy,
    dataplane::PROMOTE_WHEN_READY,
    promotion::{Act, GateOutcome, Verdict},
};
use sluice_harness::{
    kit::{self, Kit},
    wait::PATIENCE,
};

use super::{World, smoke};

/// Somebody, and their own view of the test's namespace.
struct Person {
    name: String,
    promotions: Api<Promotion>,
    dataplanes: Api<DataPlane>,
}

impl Person {
    async fn of(kit: &Kit, name: &str, role: &str) -> Result<Self> {
        let (client, name) = kit.person(name, role).await?;
        Ok(Self::with(kit, client, name))
    }

    fn with(kit: &Kit, client: Client, name: String) -> Self {
        let promotions = Api::namespaced(client.clone(), &kit.namespace);
        Self { name, promotions, dataplanes: Api::namespaced(client, &kit.namespace) }
    }

    /// Changes the spec of an upgrade.
    async fn patch(&self, promotion: &str, spec: Value) -> kube::Result<Promotion> {
        let body = Patch::Merge(json!({ "spec": spec }));
        self.promotions.patch(promotion, &PatchParams::default(), &body).await
    }

    /// Decides under their own name.
    async fn decide(&self, promotion: &str, mut decision: Value) -> Result<()> {
        decision["by"] = self.name.as_str().into();
        self.patch(promotion, json!({ "decision": decision })).await?;
        Ok(())
    }

    async fn annotate(&self) -> kube::Result<DataPlane> {
        let body = Patch::Merge(json!({ "metadata": { "annotations": { PROMOTE_WHEN_READY: "true" } } }));
        self.dataplanes.patch(super::NAME, &PatchParams::default(), &body).await
    }

    async fn image(&self, image: &str) -> kube::Result<DataPlane> {
        let path = "/spec/deployment/podTemplateSpec/spec/containers/0/image";
        let body = json!([{ "op": "replace", "path": path, "value": image }]);
        let patch = Patch::Json::<()>(serde_json::from_value(body).map_err(kube::Error::SerdeError)?);
        self.dataplanes.patch(super::NAME, &PatchParams::default(), &patch).await
    }
}

/// Why the API refuses something; it has to.
fn refusal<K: std::fmt::Debug>(answer: kube::Result<K>) -> Result<String> {
    match answer {
        Err(kube::Error::Api(status)) => Ok(format!("{}: {}", status.reason, status.message)),
        Err(error) => Err(error).context("no answer"),
        Ok(taken) => bail!("taken: {taken:?}"),
    }
}

/// Installs the roles and policies that are shipped, and waits until those of the test's namespace are in force.
async fn separate(kit: &Kit) -> Result<()> {
    for file in ["users.yaml", "admission.yaml"] {
        let file = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        kit.kubectl(&["apply", "--filename", &file])?;
    }
    kit.kubectl(&["label", "namespace", &kit.namespace, "sluice.dev/separate-approval=true"])?;
    let forged = json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Promotion", "metadata": { "name": "forged" },
        "spec": { "dataPlane": "bluegreen", "revision": "v1-0", "generation": 1 },
    });
    let forged: Promotion = serde_json::from_value(forged)?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let enforced = async { while kit.api::<Promotion>().create(&dry, &forged).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, enforced).await.context("the policies are not enforced")
}

#[test]
fn one_may_approve_and_not_edit_and_the_other_may_edit_and_not_approve() -> Result<()> {
    kit::run(async |kit| {
        separate(kit).await?;
        let world = World::gated(kit).await?;
        let approver = Person::of(kit, "jane", "sluice-promotion-approver").await?;
        let editor = Person::of(kit, "joe", "sluice-dataplane-editor").await?;
        let admin = Person::with(kit, kit.client.clone(), String::new());

        editor.image("kong:3.10").await?;
        world.reason("AwaitingPromotion").await?;
        let promotion = world.newest().await?.name_any();
        let promotion = promotion.as_str();

        let approve = |by: &str| json!({ "decision": { "approve": true, "by": by } });
        let said = refusal(editor.annotate().await)?;
        assert!(said.contains("approved by those who may patch its Promotion"), "{said}");
        let said = refusal(editor.patch(promotion, approve(&editor.name)).await)?;
        assert!(said.starts_with("Forbidden: promotions.sluice.dev"), "{said}");

        let said = refusal(approver.image("kong:3.11").await)?;
        assert!(said.starts_with("Forbidden: dataplanes.gateway-operator.konghq.com"), "{said}");
        for by in ["joe", ""] {
            let decision = if by.is_empty() { json!({ "decision": { "approve": true } }) } else { approve(by) };
            let said = refusal(approver.patch(promotion, decision).await)?;
            assert!(said.contains(&format!("set spec.decision.by to {}", approver.name)), "{said}");
        }
        let said = refusal(approver.patch(promotion, json!({ "revision": "v1-0" })).await)?;
        assert!(said.contains("what an upgrade is about never changes"), "{said}");

        // Nobody writes the record, whatever their rights.
        let status = Patch::Merge(json!({ "status": { "verdict": "Promoted" } }));
        let said = refusal(admin.promotions.patch_status(promotion, &PatchParams::default(), &status).await)?;
        assert!(said.contains("the operator's record"), "{said}");
        assert_eq!(world.live_image().await?, "kong:3.9");

        approver.decide(promotion, json!({ "approve": true, "reason": "looks good" })).await?;
        world.at_rest("kong:3.10").await?;
        let status = world.newest().await?.status.unwrap_or_default();
        let approval = status.approval.context("no approval on record")?;
        assert_eq!((approval.by.as_str(), approval.reason.as_deref()), (approver.name.as_str(), Some("looks good")));
        assert_eq!(status.commit.map(|commit| commit.approved_by).as_ref(), Some(&approver.name));
        let told = world.event("PromotionInProgress").await?;
        assert!(told.ends_with(&format!("approved by {}", approver.name)), "{told}");

        // Where approvals are not separate, the annotation is Kong's: whoever edits may set it.
        kit.kubectl(&["label", "namespace", &kit.namespace, "sluice.dev/separate-approval-"])?;
        editor.image("kong:3.9").await?;
        let annotated = async { while editor.annotate().await.is_err() {} };
        tokio::time::timeout(PATIENCE, annotated).await.context("the label is still there")?;
        world.at_rest("kong:3.9").await
    })
}

#[test]
fn an_upgrade_is_aborted_taken_up_again_judged_once_more_and_moved_back() -> Result<()> {
    kit::run(async |kit| {
        separate(kit).await?;
        let world = World::gated(kit).await?;
        let jane = Person::of(kit, "jane", "sluice-promotion-approver").await?;

        // Two gates: one says no.
        let strict = json!({ "checks": [{ "path": "/", "expect": { "status": 418 } }] });
        let gates = |settings: Value| {
            let mut gates = smoke(json!({}));
            let mut second = smoke(settings)[0].clone();
            second["name"] = "second".into();
            gates.as_array_mut().into_iter().for_each(|gates| gates.push(second.clone()));
            gates
        };
        world.policy(gates(strict)).await?;
        world.image("kong:3.10").await?;
        world.reason("GatesFailed").await?;
        let promotion = world.newest().await?.name_any();
        let promotion = promotion.as_str();

        jane.decide(promotion, json!({ "retry": ["policy/second"], "reason": "once more" })).await?;
        let judged = |found: Option<&Promotion>| {
            let status = found.and_then(|found| found.status.as_ref());
            status.is_some_and(|status| {
                status.history.len() == 1 && status.gates.iter().all(|gate| gate.finished_at.is_some())
            })
        };
        let found = kit.wait::<Promotion>(promotion, "be judged once more", judged).await?;
        let status = found.and_then(|found| found.status).unwrap_or_default();
        assert_eq!((status.history[0].name.as_str(), status.history[0].outcome), ("policy/second", GateOutcome::Fail));
        assert_eq!((status.decided[0].what, &status.decided[0].by), (Act::Retry, &jane.name));
        assert!(world.event("Decided").await?.contains("policy/second"));

        jane.decide(promotion, json!({ "abort": true, "reason": "not today" })).await?;
        let message = world.reason("Aborted").await?;
        assert!(message.contains("not today") && message.contains(promotion), "{message}");
        let gone = |found: Option<&Promotion>| found.is_some_and(|found| found.spec.decision.is_none());
        kit.wait::<Promotion>(promotion, "have lost its decision", gone).await?;

        // A longer life for what is replaced, or it would be too late.
        world.policy(gates(json!({}))).await?;
        let longer = json!({ "spec": { "scaleDownDelaySeconds": 600 } });
        let policies = kit.api::<PromotionPolicy>();
        policies.patch("policy", &PatchParams::default(), &Patch::Merge(longer)).await?;
        jane.decide(promotion, json!({ "retry": ["*"] })).await?;
        world.reason("AwaitingPromotion").await?;
        kit.wait::<Promotion>(promotion, "have lost its retry", gone).await?;
        jane.decide(promotion, json!({ "approve": true })).await?;
        world.reason("PromotionDone").await?;
        assert_eq!(world.live_image().await?, "kong:3.10");

        jane.decide(promotion, json!({ "rollback": true, "reason": "errors" })).await?;
        let message = world.reason("RolledBack").await?;
        assert!(message.contains("errors"), "{message}");
        assert_eq!(world.live_image().await?, "kong:3.9");
        let status = world.newest().await?.status.unwrap_or_default();
        let acts: Vec<_> = status.decided.iter().map(|decided| decided.what).collect();
        assert_eq!(acts, [Act::Retry, Act::Abort, Act::Reopen, Act::Rollback]);
        assert_eq!(status.verdict, Some(Verdict::RolledBack));
        Ok(())
    })
}
