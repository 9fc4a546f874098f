//! PURE. DataPlane and matching policies -> Intent. What cannot be granted is a `Refusal` in it: a fact that names
//! the field, never an error that stops the pass.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt,
    core::{Selector as LabelMatch, SelectorExt},
};

use crate::{
    api::{
        DataPlane,
        dataplane::{self, PROMOTE_WHEN_READY, SERVICE_SELECTOR_OVERRIDE, ServiceType},
        promotionpolicy::{ApprovalRule, PolicyRules, defaults},
    },
    model::{
        Gate, Ingress, Intent, Owner, Policies, Refusal, Rules, Scale, Strategy, Wish, gate::OF_CLUSTER,
        grants::Ceilings,
    },
};

/// Reads what a DataPlane and the policies that match it ask for.
#[must_use]
pub fn read(dataplane: &DataPlane, policies: &Policies, validate_images: bool, ceilings: &Ceilings) -> Intent {
    let deployment = &dataplane.spec.deployment;
    let strategy = match deployment.rollout.as_ref().and_then(|rollout| rollout.strategy.blue_green.as_ref()) {
        Some(_) => Strategy::BlueGreen,
        None => Strategy::InPlace,
    };
    let selector_override = selector_override(dataplane);
    let budget = dataplane.spec.resources.as_ref().and_then(|resources| resources.pod_disruption_budget.as_ref());
    Intent {
        owner: Owner {
            name: dataplane.name_any(),
            namespace: dataplane.namespace().unwrap_or_default(),
            uid: dataplane.uid().unwrap_or_default(),
            generation: dataplane.metadata.generation.unwrap_or_default(),
            resource_version: dataplane.resource_version().unwrap_or_default(),
        },
        strategy,
        wanted: unsupported(dataplane)
            .or_else(|| overridden(strategy, &selector_override))
            .map_or_else(|| wish(dataplane, validate_images), Err),
        scale: scale(deployment),
        disruption_budget: budget.and_then(|budget| budget.spec.as_ref()).map(|spec| serde_json::json!(spec)),
        ingress: ingress(dataplane, strategy, selector_override),
        // Byte for byte, as with Kong: `True` or `1` approve nothing.
        approved: dataplane.annotations().get(PROMOTE_WHEN_READY).is_some_and(|value| value == "true"),
        rules: rules(dataplane, policies, ceilings),
        ceilings: ceilings.clone(),
    }
}

/// The ingress Service as the user asks for it.
fn asked(dataplane: &DataPlane) -> Option<&dataplane::Ingress> {
    dataplane.spec.network.as_ref()?.services.as_ref()?.ingress.as_ref()
}

fn ingress(
    dataplane: &DataPlane,
    strategy: Strategy,
    selector_override: Option<Result<BTreeMap<String, String>, String>>,
) -> Ingress {
    let asked = asked(dataplane);
    Ingress {
        type_: asked.map_or(ServiceType::default(), |ingress| ingress.type_).as_str(),
        annotations: asked.and_then(|ingress| ingress.annotations.clone()).unwrap_or_default(),
        name: asked.and_then(|ingress| ingress.name.clone()).filter(|name| !name.is_empty()),
        external_traffic_policy: asked
            .and_then(|ingress| ingress.external_traffic_policy)
            .map(|policy| policy.as_str()),
        // With blue/green it is refused: it would select the Pods of both sides.
        selector_override: selector_override.and_then(Result::ok).filter(|_| strategy == Strategy::InPlace),
    }
}

/// Absent where the annotation is; else what it says, or what is wrong with it in Kong's words.
fn selector_override(dataplane: &DataPlane) -> Option<Result<BTreeMap<String, String>, String>> {
    const FORMAT: &str = "expected format: key1=value,key2=value2";
    let text = dataplane.annotations().get(SERVICE_SELECTOR_OVERRIDE)?;
    if text.is_empty() {
        return Some(Err(format!("selector override empty - {FORMAT}")));
    }
    let pair = |text: &str| {
        let (key, value) = text.split_once('=')?;
        let whole = !key.is_empty() && !value.is_empty() && !value.contains('=');
        whole.then(|| (key.to_owned(), value.to_owned()))
    };
    let pairs: Option<BTreeMap<_, _>> = text.split(',').map(pair).collect();
    Some(pairs.ok_or_else(|| format!("selector override malformed - {FORMAT}")))
}

fn overridden(strategy: Strategy, selector: &Option<Result<BTreeMap<String, String>, String>>) -> Option<Refusal> {
    let message = match (selector.as_ref()?, strategy) {
        (Err(malformed), _) => malformed.clone(),
        (Ok(_), Strategy::BlueGreen) => {
            "with blue/green a selector override would let the live Services select the preview's Pods too".into()
        }
        (Ok(_), Strategy::InPlace) => return None,
    };
    Some(Refusal { field: format!("metadata.annotations[{SERVICE_SELECTOR_OVERRIDE}]"), message })
}

/// What Kong's API takes and this operator does not do.
fn unsupported(dataplane: &DataPlane) -> Option<Refusal> {
    let spec = &dataplane.spec;
    let refuse = |field: &str, what: &str| {
        let message =
            format!("{what} is not supported by this operator; remove the field, or leave this DataPlane to Kong's");
        Some(Refusal { field: field.into(), message })
    };
    if spec.extensions.as_ref().is_some_and(|extensions| !extensions.is_empty()) {
        return refuse("spec.extensions", "Konnect");
    }
    if spec.plugins_to_install.as_ref().is_some_and(|plugins| !plugins.is_empty()) {
        return refuse("spec.pluginsToInstall", "the installation of plugins from images");
    }
    if spec.network.as_ref().is_some_and(|network| network.konnect_certificate.is_some()) {
        return refuse("spec.network.konnectCertificate", "Konnect");
    }
    None
}

fn scale(deployment: &dataplane::Deployment) -> Scale {
    match (deployment.replicas, deployment.scaling.as_ref().and_then(|scaling| scaling.horizontal.as_ref())) {
        (Some(replicas), _) => Scale::Fixed(replicas),
        (None, Some(horizontal)) => {
            let mut asked = horizontal.clone();
            // The API fills in its default for none of them: an empty list would differ from it for ever.
            asked.metrics = asked.metrics.filter(|metrics| metrics.0.as_array().is_none_or(|list| !list.is_empty()));
            Scale::Horizontal { min: horizontal.min_replicas.unwrap_or(1), spec: serde_json::json!(asked) }
        }
        (None, None) => Scale::Fixed(1),
    }
}

fn wish(dataplane: &DataPlane, validate_images: bool) -> Result<Wish, Refusal> {
    let ports = asked(dataplane)
        .and_then(|ingress| ingress.ports.as_ref())
        // A Service without a port is none: an empty list asks for nothing, as with Kong.
        .filter(|ports| !ports.is_empty())
        .map_or(serde_json::Value::Null, |ports| serde_json::json!(ports));
    let template = dataplane.spec.deployment.pod_template_spec.clone().unwrap_or_default();
    let wish = Wish { pod_template: template.0, ports };
    let refuse =
        |message| Refusal { field: "spec.deployment.podTemplateSpec.spec.containers[proxy].image".into(), message };
    let image =
        wish.proxy_image().ok_or_else(|| refuse("DataPlane requires an image to be set on proxy container".into()))?;
    if validate_images && !supported(image) {
        return Err(refuse(format!("unsupported DataPlane image {image}: the tag must be a version of at least 3.0")));
    }
    Ok(wish)
}

/// A version of at least 3.0 in the tag; a digest alone says nothing and is trusted.
fn supported(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    let Some((_, tag)) = last.split_once(':') else { return digest };
    let version = tag.strip_prefix('v').unwrap_or(tag);
    let mut numbers = version.split('-').next().unwrap_or_default().split('.').map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(_))) if major >= 3)
        && numbers.all(|number| number.is_ok())
}

/// A policy that matches, of either kind.
struct Matching<'a> {
    /// As in evidence.
    name: String,
    of_cluster: bool,
    rules: &'a PolicyRules,
}

/// Those of the cluster first, each kind by name: evidence comes in this order.
fn matching<'a>(dataplane: &DataPlane, policies: &'a Policies) -> Vec<Matching<'a>> {
    let cluster = policies.cluster.iter().flat_map(|cluster| {
        let chooses = |selector| cluster.labels.as_ref().is_none_or(|labels| matches(selector, labels));
        cluster.policies.iter().filter(move |policy| chooses(&policy.spec.namespace_selector)).map(|policy| {
            (&policy.spec.selector, format!("{OF_CLUSTER}{}", policy.name_any()), true, &policy.spec.rules)
        })
    });
    let own = policies.own.iter().map(|policy| (&policy.spec.selector, policy.name_any(), false, &policy.spec.rules));
    let mut matching: Vec<_> = cluster
        .chain(own)
        .filter(|(selector, ..)| matches(selector, dataplane.labels()))
        .map(|(_, name, of_cluster, rules)| Matching { name, of_cluster, rules })
        .collect();
    matching.sort_by(|one, other| (!one.of_cluster, &one.name).cmp(&(!other.of_cluster, &other.name)));
    matching
}

fn rules(dataplane: &DataPlane, policies: &Policies, ceilings: &Ceilings) -> Rules {
    let matching = matching(dataplane, policies);
    let seconds = |value: i32| Duration::from_secs(u64::try_from(value).unwrap_or_default());
    let each = |of: fn(&PolicyRules) -> i32| matching.iter().map(move |policy| of(policy.rules));
    let namespace = dataplane.namespace().unwrap_or_default();
    Rules {
        policies: matching.iter().map(|policy| policy.name.clone()).collect(),
        gates: matching
            .iter()
            .flat_map(|policy| {
                policy.rules.gates.iter().map(|entry| Gate::of(&policy.name, entry, &namespace, ceilings))
            })
            .collect(),
        automatic: !matching.is_empty()
            && matching.iter().all(|policy| policy.rules.approval == ApprovalRule::Automatic),
        paused: matching.iter().find(|policy| policy.rules.paused).map(|policy| policy.name.clone()),
        // The longest life for the replaced side and the shortest patience with machines.
        scale_down_delay: seconds(
            each(|rules| rules.scale_down_delay_seconds).max().unwrap_or_else(defaults::scale_down_delay),
        ),
        progress_deadline: seconds(
            each(|rules| rules.progress_deadline_seconds).min().unwrap_or_else(defaults::progress_deadline),
        ),
    }
}

/// An empty selector matches everything; one that cannot be read matches everything too: a typing error in a
/// selector must not let an upgrade past its gates.
fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    LabelMatch::try_from(selector.clone()).map_or(true, |selector| selector.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{ClusterPromotionPolicy, PromotionPolicy},
        model::{PluginKey, policies::OfCluster},
    };
    use serde_json::json;

    fn dataplane(image: &str) -> DataPlane {
        serde_json::from_value(json!({
            "apiVersion": "gateway-operator.konghq.com/v1beta1", "kind": "DataPlane",
            "metadata": {"name": "dp", "namespace": "ns", "labels": {"team": "a"}},
            "spec": {"deployment": {"podTemplateSpec": {"spec": {"containers": [{"name": "proxy", "image": image}]}}}},
        }))
        .expect("a DataPlane")
    }

    fn policy(name: &str, spec: serde_json::Value) -> PromotionPolicy {
        PromotionPolicy::new(name, serde_json::from_value(spec).expect("a policy"))
    }

    fn asked(policies: &Policies) -> Rules {
        read(&dataplane("kong:3.9"), policies, true, &Ceilings::default()).rules
    }

    fn names(rules: &Rules) -> Vec<&str> {
        rules.gates.iter().map(|gate| gate.name.as_str()).collect()
    }

    #[test]
    fn an_image_needs_a_version_of_at_least_three() {
        for good in [
            "kong:3.9",
            "kong:v3.9.1",
            "kong/kong-gateway:3.4.1.2-ubuntu",
            "reg.example:5000/kong:3.9",
            "kong@sha256:0f",
        ] {
            assert!(supported(good), "{good}");
        }
        for bad in ["kong:1.0", "kong:latest", "kong", "kong:3", "kong:3.x", "reg.example:5000/kong"] {
            assert!(!supported(bad), "{bad}");
        }
    }

    #[test]
    fn a_refused_image_names_the_field_and_is_accepted_where_nobody_checks() {
        let refusal =
            read(&dataplane("kong:1.0"), &Policies::default(), true, &Ceilings::default()).wanted.expect_err("refused");
        assert_eq!(refusal.field, "spec.deployment.podTemplateSpec.spec.containers[proxy].image");
        assert!(refusal.message.contains("unsupported DataPlane image kong:1.0"), "{}", refusal.message);
        assert!(read(&dataplane("kong:1.0"), &Policies::default(), false, &Ceilings::default()).wanted.is_ok());
    }

    #[test]
    fn gates_of_all_matching_policies_add_up_and_the_strictest_rule_wins() {
        let gate = |name: &str| json!({"name": name, "pluginRef": {"name": "p"}});
        let a = policy(
            "a",
            json!({"selector": {"matchLabels": {"team": "a"}}, "gates": [gate("x")], "scaleDownDelaySeconds": 5}),
        );
        let b = policy("b", json!({"selector": {}, "gates": [gate("x"), gate("y")], "progressDeadlineSeconds": 60}));
        let other = policy("c", json!({"selector": {"matchLabels": {"team": "b"}}, "gates": [gate("z")]}));
        let rules = asked(&vec![b, other, a].into());
        assert_eq!(names(&rules), ["a/x", "b/x", "b/y"]);
        assert_eq!((rules.scale_down_delay.as_secs(), rules.progress_deadline.as_secs()), (30, 60));
        assert_eq!(rules.policies, ["a", "b"]);
    }

    #[test]
    fn one_paused_policy_of_many_is_enough() {
        let policies = |paused: bool| {
            vec![policy("a", json!({"selector": {}})), policy("b", json!({"selector": {}, "paused": paused}))].into()
        };
        assert_eq!((asked(&policies(true)).paused, asked(&policies(false)).paused), (Some("b".into()), None));
    }

    #[test]
    fn one_policy_that_asks_a_person_is_enough() {
        let named = |name: &str, approval: &str| policy(name, json!({"selector": {}, "approval": approval}));
        for (policies, automatic) in [
            (vec![], false),
            (vec![named("a", "Automatic")], true),
            (vec![named("a", "Automatic"), named("b", "Automatic")], true),
            (vec![named("a", "Automatic"), named("b", "Manual")], false),
        ] {
            assert_eq!(asked(&policies.into()).automatic, automatic);
        }
    }

    /// A policy of the cluster for namespaces with a label.
    fn of_cluster(namespaces: serde_json::Value, kind: &str) -> ClusterPromotionPolicy {
        let gate = json!({"name": "x", "pluginRef": {"kind": kind, "name": "p"}});
        let spec = json!({"namespaceSelector": namespaces, "selector": {}, "gates": [gate]});
        ClusterPromotionPolicy::new("a", serde_json::from_value(spec).expect("a policy"))
    }

    #[test]
    fn policies_of_the_cluster_come_first_and_their_gates_are_no_others() {
        let gate = json!({"name": "x", "pluginRef": {"name": "p"}});
        let own = policy("a", json!({"selector": {}, "gates": [gate]}));
        let cluster = Some(OfCluster {
            policies: vec![of_cluster(json!({}), "ClusterGatePlugin").into()],
            labels: Some(BTreeMap::new()),
        });
        let rules = asked(&Policies { cluster, ..vec![own].into() });
        assert_eq!(names(&rules), ["cluster/a/x", "a/x"]);
        assert_eq!(rules.gates[0].plugin, PluginKey::of_cluster("p"));
        assert_eq!(rules.gates[1].plugin, PluginKey::of_namespace("ns", "p"));
    }

    #[test]
    fn a_namespace_is_chosen_by_its_labels_and_one_that_is_not_known_always_is() {
        let label = |team: &str| Some([("team".to_owned(), team.to_owned())].into());
        for (labels, chosen) in [(label("edge"), true), (label("other"), false), (Some([].into()), false), (None, true)]
        {
            let policies = vec![of_cluster(json!({"matchLabels": {"team": "edge"}}), "ClusterGatePlugin").into()];
            let cluster = Some(OfCluster { policies, labels: labels.clone() });
            let rules = asked(&Policies { cluster, ..Policies::default() });
            assert_eq!(!rules.policies.is_empty(), chosen, "{labels:?}");
        }
    }

    #[test]
    fn a_policy_of_the_cluster_does_not_trust_the_plugins_of_a_namespace() {
        let cluster = Some(OfCluster { policies: vec![of_cluster(json!({}), "GatePlugin").into()], labels: None });
        let rules = asked(&Policies { cluster, ..Policies::default() });
        assert!(rules.gates[0].problem.as_deref().is_some_and(|problem| problem.contains("ClusterGatePlugin")));
    }

    #[test]
    fn a_selector_that_cannot_be_read_matches_everything() {
        let broken = policy(
            "a",
            json!({"selector": {"matchExpressions": [{"key": "team", "operator": "Like", "values": ["a"]}]}}),
        );
        assert_eq!(asked(&vec![broken].into()).policies, ["a"]);
    }

    #[test]
    fn a_duration_that_cannot_be_read_is_a_problem_of_its_gate() {
        let odd = policy(
            "a",
            json!({"selector": {}, "gates": [{"name": "x", "pluginRef": {"name": "p"}, "timeout": "soon"}]}),
        );
        let rules = asked(&vec![odd].into());
        assert!(rules.gates[0].problem.as_deref().is_some_and(|problem| problem.contains("spec.gates[x].timeout")));
    }

    #[test]
    fn a_grant_beyond_the_operators_ceilings_is_a_problem_of_its_gate() {
        let gate = json!({"name": "x", "pluginRef": {"name": "p"}, "grants": {"egress": [{"name": "a", "host": "a.example.com"}]}});
        let greedy = policy("a", json!({"selector": {}, "gates": [gate]}));
        let read = |ceilings: &Ceilings| {
            read(&dataplane("kong:3.9"), &vec![greedy.clone()].into(), true, ceilings).rules.gates.remove(0)
        };
        let problem = read(&Ceilings::default()).problem.expect("a problem");
        assert!(problem.starts_with("spec.gates[x].grants.egress[a].host: "), "{problem}");
        let hosts = vec!["*.example.com".parse().expect("a pattern")];
        let gate = read(&Ceilings { hosts, ..Ceilings::default() });
        assert_eq!((gate.problem, gate.grants.egress.len()), (None, 1));
    }

    #[test]
    fn only_the_exact_word_approves() {
        let approved = |value: &str| {
            let mut dataplane = dataplane("kong:3.9");
            dataplane.annotations_mut().insert(PROMOTE_WHEN_READY.into(), value.into());
            read(&dataplane, &Policies::default(), true, &Ceilings::default()).approved
        };
        assert!(approved("true"));
        for value in ["True", "1", "false", ""] {
            assert!(!approved(value), "{value}");
        }
    }
}
