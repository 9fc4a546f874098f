//! PURE. The Deployment of a side: Kong's defaults under the user's Pod template.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Object, merge::merge, metadata};
use crate::model::{Intent, Observed, names, plan::Side};

/// What the gateway is told unless the user says otherwise.
const ENVIRONMENT: [(&str, &str); 23] = [
    ("KONG_ADMIN_ACCESS_LOG", "/dev/stdout"),
    ("KONG_ADMIN_ERROR_LOG", "/dev/stderr"),
    ("KONG_ADMIN_GUI_ACCESS_LOG", "/dev/stdout"),
    ("KONG_ADMIN_GUI_ERROR_LOG", "/dev/stderr"),
    ("KONG_ADMIN_LISTEN", "0.0.0.0:8444 ssl reuseport backlog=16384"),
    ("KONG_ADMIN_SSL_CERT", "/var/cluster-certificate/tls.crt"),
    ("KONG_ADMIN_SSL_CERT_KEY", "/var/cluster-certificate/tls.key"),
    ("KONG_CLUSTER_CERT", "/var/cluster-certificate/tls.crt"),
    ("KONG_CLUSTER_CERT_KEY", "/var/cluster-certificate/tls.key"),
    ("KONG_CLUSTER_LISTEN", "off"),
    ("KONG_DATABASE", "off"),
    ("KONG_NGINX_ADMIN_SSL_CLIENT_CERTIFICATE", "/var/cluster-certificate/ca.crt"),
    ("KONG_NGINX_ADMIN_SSL_VERIFY_CLIENT", "on"),
    ("KONG_NGINX_ADMIN_SSL_VERIFY_DEPTH", "3"),
    ("KONG_NGINX_WORKER_PROCESSES", "2"),
    ("KONG_PLUGINS", "bundled"),
    ("KONG_PORTAL_API_ACCESS_LOG", "/dev/stdout"),
    ("KONG_PORTAL_API_ERROR_LOG", "/dev/stderr"),
    ("KONG_PORT_MAPS", "80:8000, 443:8443"),
    ("KONG_PROXY_ACCESS_LOG", "/dev/stdout"),
    ("KONG_PROXY_ERROR_LOG", "/dev/stderr"),
    ("KONG_PROXY_LISTEN", "0.0.0.0:8000 reuseport backlog=16384, 0.0.0.0:8443 http2 ssl reuseport backlog=16384"),
    ("KONG_STATUS_LISTEN", "0.0.0.0:8100"),
];

/// Renders a side's Deployment. The same side is rendered the same before and after its promotion, but for one label:
/// what was judged is what runs.
pub(super) fn render(intent: &Intent, observed: &Observed, side: &Side) -> Object {
    let owner = &intent.owner;
    let found = observed.deployment(&side.selector);
    let name =
        found.map_or_else(|| names::side(&owner.name, &owner.uid, &side.selector), |deployment| deployment.name_any());
    let mut labels = BTreeMap::from([
        (names::APP, owner.name.as_str()),
        (names::MANAGED_BY, names::DATAPLANE),
        (names::SELECTOR, side.selector.as_str()),
    ]);
    if let Some(state) = side.state {
        labels.insert(names::DEPLOYMENT_STATE, state.as_str());
    }
    let mut metadata = metadata(intent, &name, Some(&format!("dataplane-{}-", owner.name)), &labels);
    metadata["annotations"] = json!({ names::REVISION: side.wish.revision().as_str() });
    let selector = json!({ names::APP: owner.name, names::SELECTOR: side.selector.as_str() });
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": side.replicas,
            "selector": { "matchLabels": selector },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": template(intent, side),
        },
    });
    Object { name, body, only_if: None }
}

fn template(intent: &Intent, side: &Side) -> Value {
    let owner = &intent.owner;
    let mut template = json!({
        "metadata": { "labels": { names::APP: owner.name, names::SELECTOR: side.selector.as_str() } },
        "spec": {
            "securityContext": {},
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "containers": [proxy()],
            "volumes": [{
                "name": names::CERTIFICATE_VOLUME,
                "secret": {
                    "secretName": names::side(&owner.name, &owner.uid, &side.selector),
                    "items": [
                        { "key": "tls.crt", "path": "tls.crt" },
                        { "key": "tls.key", "path": "tls.key" },
                        { "key": "ca.crt", "path": "ca.crt" },
                    ],
                },
            }],
        },
    });
    merge(&mut template, &side.wish.pod_template);
    let containers = template.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    let proxy =
        containers.and_then(|containers| containers.iter_mut().find(|container| container["name"] == names::PROXY));
    if let Some(proxy) = proxy {
        proxy["env"] = environment(&proxy["env"]);
    }
    template
}

fn proxy() -> Value {
    let port = |name: &str, number: i32| json!({ "name": name, "containerPort": number, "protocol": "TCP" });
    json!({
        "name": names::PROXY,
        "imagePullPolicy": "IfNotPresent",
        "lifecycle": { "preStop": { "exec": { "command": ["/bin/sh", "-c", "kong quit"] } } },
        "ports": [port("proxy", 8000), port("proxy-ssl", 8443), port("metrics", 8100), port("admin-ssl", 8444)],
        "readinessProbe": {
            "httpGet": { "path": "/status", "port": 8100, "scheme": "HTTP" },
            "initialDelaySeconds": 5,
            "periodSeconds": 10,
            "timeoutSeconds": 1,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
        "resources": {
            "requests": { "cpu": "100m", "memory": "20Mi" },
            "limits": { "cpu": "1", "memory": "1000Mi" },
        },
        "volumeMounts": [{
            "name": names::CERTIFICATE_VOLUME,
            "mountPath": "/var/cluster-certificate",
            "readOnly": true,
        }],
    })
}

/// The user's variables and the defaults they did not set, sorted by name as Kong sorts them.
fn environment(own: &Value) -> Value {
    let mut variables = own.as_array().cloned().unwrap_or_default();
    for (name, value) in ENVIRONMENT {
        if !variables.iter().any(|variable| variable["name"] == name) {
            variables.push(json!({ "name": name, "value": value }));
        }
    }
    variables.sort_by_key(|variable| {
        let text = |field: &str| variable[field].as_str().unwrap_or_default().to_owned();
        text("name") + &text("value")
    });
    variables.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Selector, Wish, names::State};

    fn side(state: Option<State>) -> Side {
        let template = json!({"spec": {"containers": [{
            "name": "proxy", "image": "kong:3.9",
            "env": [{"name": "KONG_LOG_LEVEL", "value": "debug"}, {"name": "KONG_DATABASE", "value": ""}],
            "readinessProbe": {"initialDelaySeconds": 1, "periodSeconds": 1},
        }]}});
        Side {
            selector: Selector::founding("uid"),
            wish: Wish { pod_template: template, ports: Value::Null },
            state,
            replicas: 2,
        }
    }

    fn rendered(state: Option<State>) -> Object {
        render(&crate::dataplane::fixtures::intent("kong:3.9"), &Observed::default(), &side(state))
    }

    #[test]
    fn promotion_changes_one_label_and_nothing_else() {
        let (preview, live) = (rendered(Some(State::Preview)), rendered(Some(State::Live)));
        let state = |object: &Object| object.body["metadata"]["labels"][names::DEPLOYMENT_STATE].clone();
        assert_eq!((state(&preview), state(&live)), (json!("preview"), json!("live")));
        assert_eq!(preview.body["spec"], live.body["spec"]);
        assert_eq!(preview.name, live.name);
    }

    #[test]
    fn the_users_template_wins_over_the_defaults() {
        let body = rendered(Some(State::Live)).body;
        let proxy = &body["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(proxy["readinessProbe"]["initialDelaySeconds"], 1);
        assert_eq!(proxy["readinessProbe"]["httpGet"]["path"], "/status");
        let variables = proxy["env"].as_array().expect("variables");
        assert_eq!(variables.len(), ENVIRONMENT.len() + 1);
        assert_eq!(
            variables.iter().find(|variable| variable["name"] == "KONG_DATABASE").map(|v| &v["value"]),
            Some(&json!(""))
        );
    }
}
