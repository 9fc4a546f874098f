//! Whatever a user may write: it is rendered the same way twice, the API takes it, and once applied it is at rest.

use std::{collections::HashMap, fmt::Debug, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment},
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::Service,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::{
    api::DataPlane,
    dataplane::{
        apply,
        build::{self, Object, Planned},
        check, plan,
    },
    model::{
        Intent, Observed, Policies, differ,
        grants::Ceilings,
        names::{self, Role, State},
        observed::{Record, RecordData},
    },
};
use sluice_harness::kit::{self, Kit};
use sluice_harness::proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner, contextualize_config},
};

use super::{manifest_of, specs, wire};

/// How many specs are tried; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` try others.
const CASES: u32 = 48;
/// The same ones each time: a test that fails has to fail again.
const SEED: u64 = 20_261_127;
/// How many simpler specs are tried once one has failed.
const SIMPLER: usize = 200;
/// Other controllers write too, right after a write of ours: how often to look again before blaming ourselves.
const LOOKS: usize = 50;

/// What became of a spec.
#[derive(PartialEq)]
enum Outcome {
    /// The definition refuses it: none of our business.
    Refused,
    /// It holds.
    Holds,
}

#[test]
fn every_spec_is_rendered_the_same_way_twice_taken_by_the_api_and_then_at_rest() -> Result<()> {
    kit::run(async |kit| {
        // Deployments are wanted here, not their Pods.
        kit.forbid_pods().await?;

        let config = Config { cases: CASES, rng_seed: RngSeed::Fixed(SEED), ..Config::default() };
        let mut runner = TestRunner::new(contextualize_config(config));
        let (cases, specs) = (runner.config().cases, specs::spec());
        let (mut held, mut number) = (0, 0);
        let mut attempt = async |spec: &Value| {
            number += 1;
            let name = format!("case-{number}");
            let outcome = hold(kit, &name, spec).await;
            kit.clear::<DataPlane>().await?;
            kit.clear::<HorizontalPodAutoscaler>().await?;
            kit.clear::<PodDisruptionBudget>().await?;
            kit.clear::<Deployment>().await?;
            kit.clear::<Service>().await?;
            kit.clear::<ControllerRevision>().await?;
            outcome
        };
        for case in 1..=cases {
            let mut tree = specs.new_tree(&mut runner).map_err(|why| anyhow::anyhow!("{why}"))?;
            let mut failed = match attempt(&tree.current()).await {
                Ok(outcome) => {
                    held += u32::from(outcome == Outcome::Holds);
                    continue;
                }
                Err(why) => (why, tree.current()),
            };
            // What is left out can still be drawn in many ways, all of them the same spec.
            let mut known = HashMap::from([(failed.1.to_string(), true)]);
            while known.len() < SIMPLER {
                let spec = tree.current();
                let fails = match known.get(&spec.to_string()) {
                    Some(fails) => *fails,
                    None => attempt(&spec).await.map_err(|why| failed = (why, spec.clone())).is_err(),
                };
                known.insert(spec.to_string(), fails);
                if !(if fails { tree.simplify() } else { tree.complicate() }) {
                    break;
                }
            }
            bail!("case {case}: {:#}\nThe simplest spec it happens with: {:#}", failed.0, failed.1);
        }
        ensure!(held * 2 >= cases, "only {held} of {cases} specs were taken by the definition");
        Ok(())
    })
}

/// Two passes of the corridor over one DataPlane, and the API between them.
async fn hold(kit: &Kit, name: &str, spec: &Value) -> Result<Outcome> {
    let manifest = serde_json::from_value(manifest_of(name, spec))?;
    match wire(kit).create(&PostParams::default(), &manifest).await {
        Err(kube::Error::Api(status)) if status.code == 422 => return Ok(Outcome::Refused),
        created => drop(created?),
    }
    let dataplane: DataPlane = kit.api().get(name).await?;
    let intent = check::read(&dataplane, &Policies::default(), true, &Ceilings::default());
    ensure!(intent.wanted.is_ok(), "refused: {:?}", intent.wanted);

    let founding = render(&intent, &Observed::default())?;
    let mut found = look(kit, &founding).await?;
    // As if it had become ready: now it is live by record, and blue/green has a preview.
    found.records.iter_mut().for_each(|record| record.ordinal = 1);
    let settled = render(&intent, &found)?;
    for (before, after) in objects(&founding).zip(objects(&settled)) {
        ensure!(before == after, "a second pass renders it differently:\n{before:#?}\n{after:#?}");
    }
    look(kit, &settled).await?;
    Ok(Outcome::Holds)
}

/// What a live side has in every pass, live ones first.
fn objects(planned: &Planned) -> impl Iterator<Item = &Object> {
    let of_the_sides = planned.services.iter().take(2).chain(planned.deployments.iter().take(1));
    of_the_sides.chain(&planned.autoscaler).chain(&planned.budget)
}

fn render(intent: &Intent, observed: &Observed) -> Result<Planned> {
    let pass = || {
        let observed = plan::adopt::complete(intent, observed.clone());
        build::render(intent, &observed, &plan::decide(intent, &observed, Timestamp::UNIX_EPOCH))
    };
    let (once, again) = (pass(), pass());
    ensure!(format!("{once:?}") == format!("{again:?}"), "rendered twice, it differs:\n{once:#?}\n{again:#?}");
    Ok(once)
}

/// Applies everything that was planned, and returns what is there then.
async fn look(kit: &Kit, planned: &Planned) -> Result<Observed> {
    let mut observed = Observed::default();
    for object in &planned.records {
        let record: ControllerRevision = settle(kit, object).await?;
        let data = record.data.context("a record without data")?.0;
        let RecordData { wish, template } = serde_json::from_value(data)?;
        let (name, version) = (Some(record.metadata.name.unwrap_or_default()), record.metadata.resource_version);
        let revision = wish.revision();
        observed.records.push(Record { name, version, revision, wish, template, ordinal: record.revision });
    }
    for object in &planned.services {
        let service: Service = settle(kit, object).await?;
        let labels = service.labels();
        let says = |label: &str, text: &str| labels.get(label).is_some_and(|value| value == text);
        let state = if says(names::SERVICE_STATE, "live") { State::Live } else { State::Preview };
        let role = if says(names::SERVICE_TYPE, "ingress") { Role::Ingress } else { Role::Admin };
        observed.services.insert((state, role), Arc::new(service));
    }
    for object in &planned.deployments {
        observed.deployments.push(Arc::new(settle::<Deployment>(kit, object).await?));
    }
    if let Some(object) = &planned.autoscaler {
        observed.autoscalers.push(Arc::new(settle::<HorizontalPodAutoscaler>(kit, object).await?));
    }
    if let Some(object) = &planned.budget {
        observed.budgets.push(Arc::new(settle::<PodDisruptionBudget>(kit, object).await?));
    }
    Ok(observed)
}

/// Applies an object as the operator does, first without effect: then it is what it should be, and to apply it again
/// changes nothing.
async fn settle<K>(kit: &Kit, object: &Object) -> Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
{
    let api = kit.api::<K>();
    let marked = apply::marked(object);
    let mut made = marked.body.clone();
    if let Some(count) = object.count {
        made["spec"]["replicas"] = count.into();
    }
    let what = || format!("{} {}", K::kind(&()), object.name);
    let params = PatchParams::apply(names::FIELD_MANAGER).force();
    let dry = PatchParams { dry_run: true, ..params.clone() };
    api.patch(&object.name, &dry, &Patch::Apply(&made)).await.with_context(|| format!("{} was refused", what()))?;
    api.patch(&object.name, &params, &Patch::Apply(&made)).await?;
    for _ in 0..LOOKS {
        let found = api.get(&object.name).await?;
        let value = serde_json::to_value(&found)?;
        if let Some(difference) = difference("", &value, &marked.body) {
            bail!("{} was applied, but {difference}", what());
        }
        let again = api.patch(&object.name, &params, &Patch::Apply(&made)).await?;
        if again.resource_version() == found.resource_version() {
            return Ok(found);
        }
    }
    bail!("{} changes with every apply", what())
}

/// Where an object is not what it should be; none if it is.
fn difference(path: &str, found: &Value, planned: &Value) -> Option<String> {
    if differ::holds(found, planned) {
        return None;
    }
    let deeper = planned.as_object().into_iter().flatten().find_map(|(field, planned)| {
        let nothing = Value::Null;
        let (found, path) = (found.get(field).unwrap_or(&nothing), format!("{path}.{field}"));
        if differ::holds(&json!({ field: found }), &json!({ field: planned })) {
            return None;
        }
        let entry = planned.as_array().into_iter().flatten().find(|entry| {
            // In a list with keys every entry stands for itself.
            !differ::holds(&json!({ field: found }), &json!({ field: [entry] }))
        });
        difference(&path, found, planned)
            .or_else(|| Some(format!("{path} has {found}, not {}", entry.unwrap_or(planned))))
    });
    deeper.or_else(|| Some(format!("{path} has {found}, not {planned}")))
}
