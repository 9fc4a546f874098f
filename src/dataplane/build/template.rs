//! PURE. The Pod template of a wish: Kong's defaults under the user's own. Rendered once, when the wish is put on record,
//! and kept there: what an operator of another version would render restarts no Pod.

use serde_json::{Value, json};

use super::merge::merge;
use crate::model::{Observed, Wish, names};

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

/// The template of a wish: as it is on record, or rendered now. Without what differs between two sides that run it (the
/// labels that tell them apart, the Secret they mount).
pub(super) fn of(observed: &Observed, wish: &Wish) -> Value {
    let record = observed.record(wish.revision().as_str()).filter(|record| record.wish == *wish);
    record.and_then(|record| record.template.clone()).unwrap_or_else(|| render(wish, &ENVIRONMENT))
}

fn render(wish: &Wish, environment: &[(&str, &str)]) -> Value {
    let mut template = json!({
        "spec": {
            "securityContext": {},
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "containers": [proxy()],
            "volumes": [{
                "name": names::CERTIFICATE_VOLUME,
                "secret": {
                    "items": [
                        { "key": "tls.crt", "path": "tls.crt" },
                        { "key": "tls.key", "path": "tls.key" },
                        { "key": "ca.crt", "path": "ca.crt" },
                    ],
                },
            }],
        },
    });
    merge(&mut template, &wish.pod_template);
    let containers = template.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    let proxy =
        containers.and_then(|containers| containers.iter_mut().find(|container| container["name"] == names::PROXY));
    if let Some(proxy) = proxy {
        proxy["env"] = variables(&proxy["env"], environment);
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
fn variables(own: &Value, defaults: &[(&str, &str)]) -> Value {
    let mut variables = own.as_array().cloned().unwrap_or_default();
    for (name, value) in defaults {
        if !variables.iter().any(|variable| variable["name"] == *name) {
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
    use crate::model::observed::Record;

    fn wish() -> Wish {
        let template = json!({"spec": {"containers": [{
            "name": "proxy", "image": "kong:3.9",
            "env": [{"name": "KONG_LOG_LEVEL", "value": "debug"}, {"name": "KONG_DATABASE", "value": ""}],
            "readinessProbe": {"initialDelaySeconds": 1, "periodSeconds": 1},
        }]}});
        Wish { pod_template: template, ports: Value::Null }
    }

    #[test]
    fn the_users_template_wins_over_the_defaults() {
        let template = of(&Observed::default(), &wish());
        let proxy = &template["spec"]["containers"][0];
        assert_eq!(proxy["readinessProbe"]["initialDelaySeconds"], 1);
        assert_eq!(proxy["readinessProbe"]["httpGet"]["path"], "/status");
        let variables = proxy["env"].as_array().expect("variables");
        assert_eq!(variables.len(), ENVIRONMENT.len() + 1);
        assert_eq!(
            variables.iter().find(|variable| variable["name"] == "KONG_DATABASE").map(|v| &v["value"]),
            Some(&json!(""))
        );
    }

    #[test]
    fn two_versions_what_another_operator_rendered_is_rendered_again_unchanged() {
        let theirs = render(&wish(), &[("KONG_NEW_DEFAULT", "of another version")]);
        assert_ne!(theirs, of(&Observed::default(), &wish()), "this version renders it differently");
        let record = Record {
            name: Some("record".into()),
            version: Some("1".into()),
            revision: wish().revision(),
            wish: wish(),
            template: Some(theirs.clone()),
            ordinal: 1,
        };
        let observed = Observed { records: vec![record], ..Observed::default() };
        assert_eq!(of(&observed, &wish()), theirs);
    }
}
