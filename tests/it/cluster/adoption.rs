//! What Kong's operator left behind, in eight states, is taken over: nothing restarts, no address changes, and an
//! upgrade goes on from where it was.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString, NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment},
        autoscaling::v2::HorizontalPodAutoscaler,
        coordination::v1::Lease,
        core::v1::{Pod, Secret, Service},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sluice::{
    api::{DataPlane, dataplane::PROMOTE_WHEN_READY},
    model::names,
};
use sluice_harness::{
    kit::{self, Kit},
    operator::LocalOperator,
    proxy::Proxy,
};

use super::{generation, rolled_out};

/// Puts a dump into the test's namespace as Kong's operator would have: by plain create and update, under its name.
struct Dump<'a> {
    kit: &'a Kit,
    name: String,
    owner: String,
}

fn kongs() -> PostParams {
    PostParams { field_manager: Some(names::KONG_MANAGER.into()), ..PostParams::default() }
}

impl<'a> Dump<'a> {
    async fn load(kit: &'a Kit, name: &str) -> Result<Self> {
        Self::load_with(kit, name, |_| {}).await
    }

    async fn load_with(kit: &'a Kit, name: &str, edit: impl Fn(&mut Value)) -> Result<Self> {
        let path = format!("{}/tests/fixtures/kong/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut objects: Vec<Value> =
            serde_norway::Deserializer::from_str(&text).map(Value::deserialize).collect::<Result<_, _>>()?;
        objects.iter_mut().for_each(edit);
        let dataplane = objects.iter().find(|object| object["kind"] == "DataPlane").context("no DataPlane")?;
        let owner = found_dataplane(kit, dataplane).await?;
        let dump = Self { kit, name: name.to_owned(), owner };
        for object in &objects {
            dump.create(object).await?;
        }
        dump.mirror(dataplane).await?;
        Ok(dump)
    }

    async fn create(&self, dumped: &Value) -> Result<()> {
        let mut object = dumped.clone();
        let metadata = object["metadata"].as_object_mut().context("metadata")?;
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
            metadata.remove(field);
        }
        metadata.insert("namespace".into(), self.kit.namespace.as_str().into());
        if let Some(owners) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) {
            owners.iter_mut().for_each(|owner| owner["uid"] = self.owner.as_str().into());
        }
        match dumped["kind"].as_str() {
            Some("Deployment") => self.post::<Deployment>(object).await,
            Some("Service") => {
                // Addresses are this cluster's to give.
                let spec = object["spec"].as_object_mut().context("spec")?;
                if spec["clusterIP"] != "None" {
                    spec.remove("clusterIP");
                    spec.remove("clusterIPs");
                }
                for port in spec["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
                    port.remove("nodePort");
                }
                self.post::<Service>(object).await
            }
            Some("Secret") => self.post::<Secret>(issued(object, &self.kit.namespace)?).await,
            Some("HorizontalPodAutoscaler") => self.post::<HorizontalPodAutoscaler>(object).await,
            Some("PodDisruptionBudget") => self.post::<PodDisruptionBudget>(object).await,
            _ => Ok(()),
        }
    }

    async fn post<K>(&self, mut object: Value) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Serialize
            + Clone
            + std::fmt::Debug,
    {
        object.as_object_mut().context("an object")?.remove("status");
        let object: K = serde_json::from_value(object)?;
        self.kit.api::<K>().create(&kongs(), &object).await?;
        Ok(())
    }

    /// The status as dumped, with the addresses of this cluster.
    async fn mirror(&self, dataplane: &Value) -> Result<()> {
        let params = PatchParams { field_manager: Some(names::KONG_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({ "status": dataplane["status"] }));
        self.kit.api::<DataPlane>().patch_status(&self.name, &params, &patch).await?;
        Ok(())
    }

    /// Waits until the Deployments with this label are available.
    async fn available(&self, state: &str) -> Result<()> {
        for deployment in self.deployments(state).await? {
            let ready = |found: Option<&Deployment>| {
                let spec = found.and_then(|found| found.spec.as_ref()?.replicas);
                found.and_then(|found| found.status.as_ref()).and_then(|status| status.available_replicas).unwrap_or(0)
                    == spec.unwrap_or(0)
            };
            self.kit.wait::<Deployment>(&deployment.name_any(), "become available", ready).await?;
        }
        Ok(())
    }

    async fn deployments(&self, state: &str) -> Result<Vec<Deployment>> {
        let labelled = ListParams::default().labels(&format!("{}={state}", names::DEPLOYMENT_STATE));
        Ok(self.kit.api::<Deployment>().list(&labelled).await?.items)
    }

    /// Load balancers give addresses when they like; what is compared has to be there.
    async fn addressed(&self) -> Result<()> {
        for service in self.kit.api::<Service>().list(&ListParams::default()).await? {
            let has = |found: Option<&Service>| {
                let balanced = found.and_then(|found| found.spec.as_ref()?.type_.as_deref()) == Some("LoadBalancer");
                let status = found.and_then(|found| found.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref());
                !balanced || status.is_some()
            };
            self.kit.wait::<Service>(&service.name_any(), "get an address", has).await?;
        }
        Ok(())
    }

    /// Waits until our operator has written down what it took over, and says that it rests.
    async fn taken_over(&self) -> Result<()> {
        for deployment in self.deployments("live").await? {
            let ours = |found: Option<&Deployment>| {
                found.is_some_and(|found| found.annotations().contains_key(names::APPLIED))
            };
            self.kit.wait::<Deployment>(&deployment.name_any(), "be taken over", ours).await?;
        }
        let records = self.kit.api::<ControllerRevision>().list(&ListParams::default()).await?.items;
        ensure!(records.iter().any(|record| record.revision == 1), "nothing is on record as promoted");
        Ok(())
    }

    async fn reason(&self, reason: &str) -> Result<()> {
        let is = |found: Option<&DataPlane>| {
            found.is_some_and(|found| {
                rolled_out(found).is_some_and(|condition| {
                    condition.reason == reason && condition.observed_generation == found.metadata.generation
                })
            })
        };
        self.kit.wait::<DataPlane>(&self.name, &format!("become {reason}"), is).await?;
        Ok(())
    }

    /// What must not change where Pods serve: the live Pods and their restarts, and everything clients hold on to.
    async fn serving(&self) -> Result<BTreeMap<String, String>> {
        let mut seen = BTreeMap::new();
        let mut live = Vec::new();
        for deployment in self.deployments("live").await? {
            live.extend(deployment.labels().get(names::SELECTOR).cloned());
            seen.insert(format!("Deployment {}", deployment.name_any()), deployment.uid().unwrap_or_default());
        }
        for pod in self.kit.api::<Pod>().list(&ListParams::default()).await? {
            if pod.labels().get(names::SELECTOR).is_some_and(|side| live.contains(side)) {
                let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
                let restarts: i32 = statuses.into_iter().flatten().map(|status| status.restart_count).sum();
                seen.insert(format!("Pod {}", pod.name_any()), format!("{:?}, {restarts} restarts", pod.uid()));
            }
        }
        seen.extend(self.addresses().await?);
        Ok(seen)
    }

    async fn addresses(&self) -> Result<BTreeMap<String, String>> {
        let services = self.kit.api::<Service>().list(&ListParams::default()).await?;
        let address = |service: &Service| {
            let spec = service.spec.clone().unwrap_or_default();
            let status = service.status.as_ref().and_then(|status| status.load_balancer.clone());
            let node_ports: Vec<_> = spec.ports.iter().flatten().map(|port| (port.port, port.node_port)).collect();
            // Of a preview only what clients may hold on to: its ports are ours to correct.
            let ports = if service.labels().get(names::SERVICE_STATE).is_some_and(|state| state == "live") {
                format!("{node_ports:?}")
            } else {
                String::new()
            };
            format!("{:?} {:?} {ports} {status:?}", service.uid(), spec.cluster_ip)
        };
        Ok(services.iter().map(|service| (format!("Service {}", service.name_any()), address(service))).collect())
    }
}

/// The DataPlane, at the generation it was dumped at: one edit further, where it had been edited.
async fn found_dataplane(kit: &Kit, dumped: &Value) -> Result<String> {
    let name = dumped["metadata"]["name"].as_str().context("a name")?;
    let mut body = json!({
        "apiVersion": dumped["apiVersion"], "kind": "DataPlane", "metadata": { "name": name }, "spec": dumped["spec"],
    });
    let image = "/spec/deployment/podTemplateSpec/spec/containers/0/image";
    if dumped["metadata"]["generation"] == 2
        && let Some(image) = body.pointer_mut(image)
    {
        *image = "kong:3.9".into();
    }
    let api = kit.api::<DataPlane>();
    let users = PostParams { field_manager: Some("kubectl-create".into()), ..PostParams::default() };
    let mut created = api.create(&users, &serde_json::from_value(body)?).await?;
    if dumped["metadata"]["generation"] == 2 {
        let edit = json!([{ "op": "replace", "path": image, "value": dumped.pointer(image) }]);
        let patch = Patch::Json::<()>(serde_json::from_value(edit)?);
        created = api.patch(name, &PatchParams::default(), &patch).await?;
    }
    ensure!(json!(created.metadata.generation) == dumped["metadata"]["generation"], "another generation");
    created.uid().context("a UID")
}

/// A Secret whose private key is a real one again: the same names, freshly issued.
fn issued(mut secret: Value, namespace: &str) -> Result<Value> {
    let service = secret["metadata"]["labels"][names::SERVICE_SECRET].as_str().context("a Service")?.to_owned();
    let authority = KeyPair::generate()?;
    let root = CertificateParams::default().self_signed(&authority)?;
    let issuer = Issuer::from_ca_cert_pem(&root.pem(), authority)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec![format!("{service}.{namespace}.svc")])?.signed_by(&key, &issuer)?;
    secret["data"] = json!({
        "ca.crt": ByteString(root.pem().into_bytes()),
        "tls.crt": ByteString(certificate.pem().into_bytes()),
        "tls.key": ByteString(key.serialize_pem().into_bytes()),
    });
    Ok(secret)
}

async fn operator(kit: &Kit) -> Result<(Proxy, LocalOperator)> {
    let proxy = Proxy::start(&kit.cluster).await?;
    let operator = kit.operator(&proxy).await?;
    Ok((proxy, operator))
}

/// Loads a dump at rest and hands it over.
fn at_rest(name: &'static str, blue_green: bool) -> Result<()> {
    kit::run(async move |kit| {
        let dump = Dump::load(kit, name).await?;
        dump.available("live").await?;
        dump.addressed().await?;
        let before = dump.serving().await?;
        let _running = operator(kit).await?;
        dump.taken_over().await?;
        if blue_green {
            dump.reason("WaitingForChange").await?;
        }
        let rests = |found: Option<&DataPlane>| {
            found.is_some_and(|found| generation(found, "Ready") == found.metadata.generation)
        };
        kit.wait::<DataPlane>(name, "be ready", rests).await?;
        ensure!(dump.serving().await? == before, "{:#?}\nis now\n{:#?}", before, dump.serving().await?);

        // And it is ours now: an edit reaches the live side, or a preview beside it.
        let env = json!([{ "op": "add", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/env",
            "value": [{ "name": "KONG_LOG_LEVEL", "value": "debug" }] }]);
        let patch = Patch::Json::<()>(serde_json::from_value(env)?);
        kit.api::<DataPlane>().patch(name, &PatchParams::default(), &patch).await?;
        if blue_green {
            dump.reason("AwaitingPromotion").await?;
            ensure!(dump.serving().await? == before, "an upgrade touched what serves");
        }
        ensure!(
            dump.addresses().await?.iter().all(|(name, address)| before.get(name) == Some(address)),
            "an address changed"
        );
        Ok(())
    })
}

/// Loads a dump in the middle of an upgrade, hands it over, waits for `reason`, and has it promoted.
fn mid_upgrade(name: &'static str, reason: &'static str, cure: Option<&'static str>) -> Result<()> {
    kit::run(async move |kit| {
        let dump = Dump::load(kit, name).await?;
        dump.available("live").await?;
        if cure.is_none() {
            dump.available("preview").await?;
        }
        dump.addressed().await?;
        let before = dump.serving().await?;
        let preview = dump.deployments("preview").await?;
        let _running = operator(kit).await?;
        dump.taken_over().await?;
        dump.reason(reason).await?;
        ensure!(dump.serving().await? == before, "{:#?}\nis now\n{:#?}", before, dump.serving().await?);
        let goes_on = dump.deployments("preview").await?;
        ensure!(preview[0].uid() == goes_on[0].uid() && goes_on.len() == 1, "the preview Deployment was made anew");

        if let Some(image) = cure {
            let edit = json!([{ "op": "replace", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/image", "value": image }]);
            let patch = Patch::Json::<()>(serde_json::from_value(edit)?);
            kit.api::<DataPlane>().patch(name, &PatchParams::default(), &patch).await?;
            dump.reason("AwaitingPromotion").await?;
        }
        let approve = json!({ "metadata": { "annotations": { PROMOTE_WHEN_READY: "true" } } });
        kit.api::<DataPlane>().patch(name, &PatchParams::default(), &Patch::Merge(approve)).await?;
        dump.reason("PromotionDone").await?;
        ensure!(
            dump.deployments("live").await?.iter().map(ResourceExt::uid).collect::<Vec<_>>() == [preview[0].uid()],
            "another Deployment than the preview was promoted"
        );
        let addresses = dump.addresses().await?;
        ensure!(
            addresses.iter().all(|(name, address)| before.get(name) == Some(address)),
            "{addresses:#?}\nwas\n{before:#?}"
        );
        Ok(())
    })
}

#[test]
fn plain() -> Result<()> {
    at_rest("plain", false)
}

#[test]
fn rest() -> Result<()> {
    at_rest("rest", true)
}

#[test]
fn promoted() -> Result<()> {
    at_rest("promoted", true)
}

#[test]
fn clusterip() -> Result<()> {
    at_rest("clusterip", true)
}

#[test]
fn named() -> Result<()> {
    at_rest("named", false)
}

#[test]
fn awaiting() -> Result<()> {
    mid_upgrade("awaiting", "AwaitingPromotion", None)
}

#[test]
fn scaled() -> Result<()> {
    mid_upgrade("scaled", "AwaitingPromotion", None)
}

#[test]
fn progressing() -> Result<()> {
    mid_upgrade("progressing", "Progressing", Some("kong:3.10"))
}

#[test]
fn an_env_removed_from_the_spec_after_adoption_is_gone() -> Result<()> {
    kit::run(async |kit| {
        let own = json!({ "name": "TEAM", "value": "edge" });
        let dump = Dump::load_with(kit, "plain", |object| match object["kind"].as_str() {
            Some("DataPlane") => {
                object["spec"]["deployment"]["podTemplateSpec"]["spec"]["containers"][0]["env"] = json!([own])
            }
            Some("Deployment") => {
                let env = object.pointer_mut("/spec/template/spec/containers/0/env").and_then(Value::as_array_mut);
                env.into_iter().for_each(|env| env.push(own.clone()));
            }
            _ => {}
        })
        .await?;
        dump.available("live").await?;
        let before = dump.serving().await?;
        let _running = operator(kit).await?;
        dump.taken_over().await?;
        ensure!(dump.serving().await?.keys().eq(before.keys()), "Pods were restarted");
        let remove = json!([{ "op": "remove", "path": "/spec/deployment/podTemplateSpec/spec/containers/0/env" }]);
        let patch = Patch::Json::<()>(serde_json::from_value(remove)?);
        kit.api::<DataPlane>().patch("plain", &PatchParams::default(), &patch).await?;
        let gone = |found: Option<&Deployment>| {
            let template = found.and_then(|found| found.spec.as_ref()?.template.spec.as_ref());
            let mut env = template.into_iter().flat_map(|template| template.containers[0].env.iter().flatten());
            !env.any(|variable| variable.name == "TEAM")
        };
        let name = dump.deployments("live").await?[0].name_any();
        kit.wait::<Deployment>(&name, "lose the variable", gone).await?;
        Ok(())
    })
}

#[test]
fn while_kongs_operator_renews_its_lease_nothing_is_written() -> Result<()> {
    kit::run(async |kit| {
        let lease = |renewed: Timestamp| {
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": { "name": sluice::cluster::foreign::KONG_LEASE },
                "spec": { "holderIdentity": "kong-operator-0", "leaseDurationSeconds": 600, "renewTime": format!("{renewed:.6}") },
            })
        };
        let leases = kit.api::<Lease>();
        leases.create(&PostParams::default(), &serde_json::from_value(lease(Timestamp::now()))?).await?;
        let dump = Dump::load(kit, "rest").await?;
        let (proxy, _operator) = operator(kit).await?;
        let told = super::event(kit, "ForeignController").await?;
        ensure!(told.contains("kong-operator-0"), "{told}");
        let writes: Vec<_> =
            proxy.writes().into_iter().filter(|write| !write.is_event() && !write.is_review()).collect();
        ensure!(writes.is_empty(), "{writes:?}");

        leases.delete(sluice::cluster::foreign::KONG_LEASE, &Default::default()).await?;
        dump.taken_over().await?;
        dump.reason("WaitingForChange").await
    })
}
