//! Random specs of DataPlanes: everything a user may reasonably write, and nothing that the API of Pods refuses.

use serde_json::{Map, Value, json};
use sluice_harness::proptest::prelude::*;

/// A value to be drawn.
type Draw = BoxedStrategy<Value>;

/// A spec of a DataPlane.
pub fn spec() -> Draw {
    let deployment = (count(), template(), maybe(rollout()));
    let deployment = deployment.prop_map(|(count, template, rollout)| {
        let mut deployment = count;
        deployment["podTemplateSpec"] = template;
        put(&mut deployment, "rollout", rollout);
        deployment
    });
    let spec = (deployment, maybe(ingress()), maybe(budget()));
    spec.prop_map(|(deployment, ingress, budget)| {
        let mut spec = json!({ "deployment": deployment });
        put(&mut spec, "network", ingress.map(|ingress| json!({ "services": { "ingress": ingress } })));
        put(&mut spec, "resources", budget.map(|budget| json!({ "podDisruptionBudget": { "spec": budget } })));
        spec
    })
    .boxed()
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        object[field] = value;
    }
}

/// Now and then. The first thing that is tried of a spec that fails is to leave it out: not so with `prop::option`.
fn maybe(draw: Draw) -> BoxedStrategy<Option<Value>> {
    (prop::bool::weighted(0.4), draw).prop_map(|(there, value)| there.then_some(value)).boxed()
}

fn any_of<const N: usize>(values: [Value; N]) -> Draw {
    prop::sample::select(values.to_vec()).boxed()
}

fn number(range: std::ops::Range<i32>) -> Draw {
    range.prop_map(Value::from).boxed()
}

/// An object with some of these fields.
fn some<const N: usize>(fields: [(&'static str, Draw); N]) -> Draw {
    with(json!({}), fields)
}

/// An object with these fields and some of those.
fn with<const N: usize>(object: Value, fields: [(&'static str, Draw); N]) -> Draw {
    let (names, draws): (Vec<_>, Vec<_>) = fields.into_iter().map(|(name, draw)| (name, maybe(draw))).unzip();
    let filled = draws.prop_map(move |values| {
        let mut object = object.clone();
        names.iter().zip(values).for_each(|(name, value)| put(&mut object, name, value));
        object
    });
    filled.boxed()
}

fn list(draw: Draw, most: usize) -> Draw {
    prop::collection::vec(draw, 0..=most).prop_map(Value::from).boxed()
}

/// Entries that differ in their names: a list that the API merges by name.
fn named(names: &'static [&'static str], draw: fn() -> Draw) -> BoxedStrategy<Vec<Value>> {
    let chosen = prop::sample::subsequence(names.to_vec(), 0..=names.len().min(3));
    let entries = chosen.prop_flat_map(move |names| {
        names
            .into_iter()
            .map(|name| {
                draw().prop_map(move |mut entry| {
                    entry["name"] = name.into();
                    entry
                })
            })
            .collect::<Vec<_>>()
    });
    entries.boxed()
}

fn texts() -> Draw {
    let pairs = prop::collection::btree_map("[a-z]{1,5}", "[a-zA-Z0-9]{0,6}", 0..3);
    pairs.prop_map(|pairs| json!(pairs)).boxed()
}

/// How many Pods, and who says so.
fn count() -> Draw {
    let replicas = number(0..4).prop_map(|replicas| json!({ "replicas": replicas }));
    let scaling =
        (1..4, 0..4, maybe(list(metric(), 2)), maybe(behavior())).prop_map(|(min, more, metrics, behavior)| {
            let mut horizontal = json!({ "minReplicas": min, "maxReplicas": min + more });
            put(&mut horizontal, "metrics", metrics);
            put(&mut horizontal, "behavior", behavior);
            json!({ "scaling": { "horizontal": horizontal } })
        });
    let least = number(1..5).prop_map(|most| json!({ "scaling": { "horizontal": { "maxReplicas": most } } }));
    prop_oneof![Just(json!({})), replicas, scaling, least, Just(json!({ "scaling": {} }))].boxed()
}

fn metric() -> Draw {
    let average = || {
        any_of(["0.5", "500m", "1000m", "2", "1Ki"].map(|text| json!({ "type": "AverageValue", "averageValue": text })))
    };
    let percent = || (1..200).prop_map(|percent| json!({ "type": "Utilization", "averageUtilization": percent }));
    let target = || prop_oneof![average(), percent()];
    let plain = || any_of(["10", "0.1", "1e3"].map(|text| json!({ "type": "Value", "value": text })));
    prop_oneof![
        target().prop_map(|target| json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } })),
        target().prop_map(|target| json!({
            "type": "ContainerResource",
            "containerResource": { "name": "memory", "container": "proxy", "target": target },
        })),
        average().prop_map(
            |target| json!({ "type": "Pods", "pods": { "metric": { "name": "requests" }, "target": target } })
        ),
        plain().prop_map(|target| json!({
            "type": "External",
            "external": {
                "metric": { "name": "queue", "selector": { "matchLabels": { "queue": "in" } } }, "target": target,
            },
        })),
        plain().prop_map(|target| json!({
            "type": "Object",
            "object": {
                "metric": { "name": "requests" }, "target": target,
                "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "x" },
            },
        })),
    ]
    .boxed()
}

fn behavior() -> Draw {
    let policy = (any_of([json!("Pods"), json!("Percent")]), 1..60, 1..200)
        .prop_map(|(type_, period, value)| json!({ "type": type_, "periodSeconds": period, "value": value }));
    let policies = prop::collection::vec(policy, 1..3).prop_map(Value::from).boxed();
    let rules = || {
        some([
            ("policies", policies.clone()),
            ("selectPolicy", any_of([json!("Min"), json!("Max"), json!("Disabled")])),
            ("stabilizationWindowSeconds", number(0..600)),
            ("tolerance", any_of([json!("0.05"), json!("50m"), json!("0")])),
        ])
    };
    some([("scaleUp", rules()), ("scaleDown", rules())])
}

fn rollout() -> Draw {
    any_of([
        json!({ "strategy": {} }),
        json!({ "strategy": { "blueGreen": { "promotion": {} } } }),
        json!({ "strategy": { "blueGreen": { "promotion": { "strategy": "BreakBeforePromotion" } } } }),
    ])
}

fn budget() -> Draw {
    let amount = || any_of([json!(0), json!(1), json!("50%"), json!("100%")]);
    let of = |field: &'static str| {
        let spec = move |(amount, policy)| {
            let mut spec = json!({ field: amount });
            put(&mut spec, "unhealthyPodEvictionPolicy", policy);
            spec
        };
        (amount(), maybe(any_of([json!("AlwaysAllow"), json!("IfHealthyBudget")]))).prop_map(spec)
    };
    prop_oneof![of("minAvailable"), of("maxUnavailable")].boxed()
}

fn ingress() -> Draw {
    let type_ = prop::sample::select(vec!["", "LoadBalancer", "NodePort", "ClusterIP"]);
    let claims = texts().prop_map(|mut annotations| {
        annotations["external-dns.alpha.kubernetes.io/hostname"] = "api.example".into();
        annotations
    });
    let annotations = prop_oneof![texts(), claims].boxed();
    let policy = maybe(any_of([json!("Cluster"), json!("Local")]));
    let ports = prop::option::weighted(0.6, prop::collection::vec((port(), any::<bool>()), 0..=4));
    let all = (
        type_,
        policy,
        ports,
        with(json!({}), [("name", Just(json!("edge-gateway")).boxed()), ("annotations", annotations)]),
    );
    all.prop_map(|(type_, policy, ports, mut ingress)| {
        let outside = type_ != "ClusterIP";
        if !type_.is_empty() {
            ingress["type"] = type_.into();
        }
        put(&mut ingress, "externalTrafficPolicy", policy.filter(|_| outside));
        if let Some(ports) = ports {
            let several = ports.len() > 1;
            let numbered = (0..).zip(ports).map(|(index, (mut port, node))| {
                // The API of Services wants several ports to have names.
                if several {
                    port["name"] = format!("port-{index}").into();
                }
                // Two of them are equal now and then: the first one counts.
                port["port"] = (80 + index / 2 * 7 + index % 2 * 363).into();
                if node && outside {
                    // Of the part of the range that the cluster itself does not choose from.
                    port["nodePort"] = (30_001 + index).into();
                }
                port
            });
            ingress["ports"] = numbered.collect();
        }
        ingress
    })
    .boxed()
}

fn port() -> Draw {
    some([
        ("name", any_of([json!("http"), json!("a-b")])),
        ("targetPort", any_of([json!(8000), json!(9000), json!("proxy"), json!("proxy-ssl")])),
    ])
}

fn template() -> Draw {
    let volumes = || {
        let volume = (source(), any::<bool>(), maybe(any_of([json!("a/b"), json!("c")])));
        prop::collection::vec(volume, 0..4)
    };
    let containers = (proxy(), named(&["agent", "mesh"], sidecar), named(&["init", "warm"], initial));
    // As users of Kong's operator write it: the certificate's volume by name alone.
    let restated = prop::bool::weighted(0.2);
    let all = (containers, volumes(), restated, metadata(), pod());
    all.prop_map(|((mut proxy, sidecars, initial), volumes, restated, metadata, mut pod)| {
        let (mut declared, mut mounts) = (Vec::new(), Vec::new());
        if restated {
            declared.push(json!({ "name": "cluster-certificate" }));
            mounts.push(
                json!({ "name": "cluster-certificate", "mountPath": "/var/cluster-certificate", "readOnly": true }),
            );
        }
        for (index, (mut source, read_only, sub_path)) in volumes.into_iter().enumerate() {
            let name = format!("volume-{index}");
            let mut mount = json!({ "name": name, "mountPath": format!("/mnt/{index}") });
            if read_only {
                mount["readOnly"] = true.into();
            }
            put(&mut mount, "subPath", sub_path);
            source["name"] = name.into();
            declared.push(source);
            mounts.push(mount);
        }
        if !declared.is_empty() {
            pod["volumes"] = declared.into();
            proxy["volumeMounts"] = mounts.into();
        }
        pod["containers"] = std::iter::once(proxy).chain(sidecars).collect();
        if !initial.is_empty() {
            pod["initContainers"] = initial.into();
        }
        let mut template = json!({ "spec": pod });
        if metadata.as_object().is_some_and(|metadata| !metadata.is_empty()) {
            template["metadata"] = metadata;
        }
        template
    })
    .boxed()
}

fn metadata() -> Draw {
    some([("labels", texts()), ("annotations", texts())])
}

fn source() -> Draw {
    let items =
        || list(any_of([json!({ "key": "a", "path": "a/b", "mode": 256 }), json!({ "key": "b", "path": "b" })]), 1);
    let downward = || json!([{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }]);
    let claim = |amount: &str| {
        json!({ "volumeClaimTemplate": { "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": amount } },
        }}})
    };
    let files = |name: &str| {
        let source = json!({ name: "x" });
        with(source, [("items", items()), ("defaultMode", number(0..511)), ("optional", switch())])
    };
    let wrapped = |field: &'static str, draw: Draw| draw.prop_map(move |source| json!({ field: source })).boxed();
    prop_oneof![
        wrapped("emptyDir", some([("medium", any_of([json!("Memory"), json!("")])), ("sizeLimit", quantity())])),
        wrapped("configMap", files("name")),
        wrapped("secret", files("secretName")),
        wrapped("downwardAPI", with(json!({ "items": downward() }), [("defaultMode", number(0..511))])),
        wrapped("hostPath", with(json!({ "path": "/srv" }), [("type", any_of([json!(""), json!("Directory")]))])),
        wrapped("persistentVolumeClaim", with(json!({ "claimName": "x" }), [("readOnly", switch())])),
        wrapped("ephemeral", any_of([claim("1Gi"), claim("1024Mi"), claim("0.5Gi")])),
        wrapped("csi", with(json!({ "driver": "x" }), [("volumeAttributes", texts()), ("readOnly", switch())])),
        wrapped("nfs", with(json!({ "server": "nfs.example.com", "path": "/srv" }), [("readOnly", switch())])),
        wrapped("image", with(json!({ "reference": "kong:3.9" }), [("pullPolicy", any_of([json!("Always")]))])),
        wrapped(
            "projected",
            any_of([
                json!({ "sources": [{ "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } }] }),
                json!({ "sources": [
                    { "serviceAccountToken": { "path": "token" } }, { "downwardAPI": { "items": downward() } },
                ]}),
                json!({ "defaultMode": 256, "sources": [
                    { "configMap": { "name": "x" } }, { "secret": { "name": "y", "optional": true } },
                ]}),
            ])
        ),
    ]
    .boxed()
}

fn switch() -> Draw {
    any::<bool>().prop_map(Value::from).boxed()
}

fn quantity() -> Draw {
    any_of([json!("64Mi"), json!("0.5Gi"), json!("1000M"), json!("1048576"), json!(1_048_576)])
}

/// Requests within limits, and limits that hold the defaults of the one that a user leaves out.
fn resources() -> Draw {
    let amounts = |amounts: &[Value]| prop::sample::select(amounts.to_vec()).boxed();
    let cpu = |more: &[Value]| amounts(&[&[json!("1000m"), json!("1.5"), json!(2)], more].concat());
    let limits = some([
        ("cpu", cpu(&[json!("2500m")])),
        ("memory", amounts(&[json!("1Gi"), json!("1.5Gi"), json!("2000000Ki"), json!(2_000_000_000)])),
        ("ephemeral-storage", quantity()),
    ]);
    let requests = some([
        ("cpu", amounts(&[json!("0.25"), json!("100m"), json!("1000m")])),
        ("memory", amounts(&[json!("0.5Gi"), json!("128Mi"), json!("100M")])),
    ]);
    some([("limits", limits), ("requests", requests)])
}

fn handler() -> Draw {
    let http = with(
        json!({ "port": 8100 }),
        [
            ("path", any_of([json!("/status"), json!("/")])),
            ("scheme", any_of([json!("HTTP"), json!("HTTPS")])),
            ("host", any_of([json!("localhost")])),
            ("httpHeaders", any_of([json!([]), json!([{ "name": "A", "value": "" }, { "name": "B", "value": "b" }])])),
        ],
    );
    prop_oneof![
        http.prop_map(|http| json!({ "httpGet": http })),
        any_of([json!({ "tcpSocket": { "port": 8000 } }), json!({ "tcpSocket": { "port": "proxy" } })]),
        any_of([json!({ "exec": { "command": ["kong", "health"] } }), json!({ "exec": { "command": ["true"] } })]),
    ]
    .boxed()
}

/// `asks` has what it is asked with; a readiness probe without it keeps the default's.
fn probe(asks: Draw, grace: bool, successes: std::ops::Range<i32>) -> Draw {
    let times = some([
        ("initialDelaySeconds", number(0..10)),
        ("periodSeconds", number(1..20)),
        ("timeoutSeconds", number(1..5)),
        ("failureThreshold", number(1..5)),
        ("successThreshold", number(successes)),
        ("terminationGracePeriodSeconds", number(1..30)),
    ]);
    let probe = (asks, times).prop_map(move |(mut probe, times)| {
        for (field, value) in times.as_object().into_iter().flatten() {
            if grace || field != "terminationGracePeriodSeconds" {
                probe[field] = value.clone();
            }
        }
        probe
    });
    probe.boxed()
}

fn asks() -> Draw {
    let grpc = any_of([json!({ "grpc": { "port": 9000 } }), json!({ "grpc": { "port": 9000, "service": "x" } })]);
    prop_oneof![3 => handler(), 1 => grpc].boxed()
}

fn lifecycle() -> Draw {
    let sleep = any_of([json!({ "sleep": { "seconds": 5 } })]);
    let hook = || prop_oneof![3 => handler(), 1 => sleep.clone()].boxed();
    some([("preStop", hook()), ("postStart", hook())])
}

fn variable() -> Draw {
    let from = |source: Value| json!({ "valueFrom": source });
    any_of([
        json!({}),
        json!({ "value": "" }),
        json!({ "value": "1" }),
        json!({ "value": "1.0" }),
        json!({ "value": "1000m" }),
        json!({ "value": "$(POD_IP):80 \"quoted\"\nand more" }),
        from(json!({ "fieldRef": { "fieldPath": "status.podIP" } })),
        from(json!({ "fieldRef": { "fieldPath": "metadata.name", "apiVersion": "v1" } })),
        from(json!({ "resourceFieldRef": { "resource": "limits.cpu" } })),
        from(json!({ "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1000m" } })),
        from(json!({ "resourceFieldRef": { "resource": "limits.memory", "divisor": "1024Ki" } })),
        from(json!({ "configMapKeyRef": { "name": "x", "key": "a", "optional": true } })),
        from(json!({ "secretKeyRef": { "name": "x", "key": "a" } })),
    ])
}

fn variables() -> Draw {
    let names = &["KONG_LOG_LEVEL", "KONG_NGINX_WORKER_PROCESSES", "KONG_PROXY_LISTEN", "POD_IP", "a.b-c"];
    named(names, variable).prop_map(Value::from).boxed()
}

fn container_security() -> Draw {
    some([
        ("allowPrivilegeEscalation", Just(json!(false)).boxed()),
        (
            "capabilities",
            any_of([json!({}), json!({ "drop": ["ALL"] }), json!({ "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] })]),
        ),
        ("readOnlyRootFilesystem", switch()),
        ("runAsNonRoot", switch()),
        ("runAsUser", number(0..2000)),
        ("seccompProfile", any_of([json!({ "type": "RuntimeDefault" })])),
    ])
}

fn common() -> Draw {
    some([
        ("env", variables()),
        (
            "envFrom",
            any_of([
                json!([]),
                json!([{ "prefix": "A_", "configMapRef": { "name": "x" } }, { "secretRef": { "name": "y" } }]),
            ]),
        ),
        ("resources", resources()),
        ("securityContext", container_security()),
        ("command", any_of([json!(["a", "b"]), json!(["a"])])),
        ("args", any_of([json!([]), json!(["--x=1"])])),
        ("imagePullPolicy", any_of([json!("Always"), json!("Never")])),
        ("lifecycle", lifecycle()),
        ("workingDir", any_of([json!("/tmp"), json!("")])),
        ("stdin", switch()),
        ("terminationMessagePolicy", any_of([json!("File"), json!("FallbackToLogsOnError")])),
    ])
}

fn probes(readiness: Draw) -> Draw {
    some([
        ("livenessProbe", probe(asks(), true, 1..2)),
        ("startupProbe", probe(asks(), true, 1..2)),
        ("readinessProbe", probe(readiness, false, 1..4)),
    ])
}

fn joined(parts: Vec<Draw>) -> Draw {
    let joined = parts.prop_map(|parts| {
        let fields = parts.into_iter().filter_map(|part| match part {
            Value::Object(fields) => Some(fields),
            _ => None,
        });
        Value::Object(fields.flatten().collect::<Map<_, _>>())
    });
    joined.boxed()
}

fn proxy() -> Draw {
    // A port of the defaults may get another name, and others may come.
    let ports = any_of([
        json!([]),
        json!([{ "containerPort": 9000 }]),
        json!([{ "containerPort": 8000, "name": "web" }, { "containerPort": 9000, "protocol": "UDP", "name": "udp" }]),
        json!([{ "containerPort": 8000, "protocol": "UDP" }]),
    ]);
    let readiness = prop_oneof![asks(), Just(json!({}))].boxed();
    let image = any_of([json!("kong:3.9"), json!("kong:3.10")]);
    let image = image.prop_map(|image| json!({ "name": "proxy", "image": image })).boxed();
    joined(vec![image, common(), probes(readiness), some([("ports", ports)])])
}

fn sidecar() -> Draw {
    joined(vec![Just(json!({ "image": "busybox:1.36" })).boxed(), common(), probes(asks())])
}

fn initial() -> Draw {
    let once = some([("env", variables()), ("resources", resources()), ("command", any_of([json!(["a"])]))]);
    // With it a container starts first and stays: Kubernetes' own sidecar.
    let stays = Just(json!({ "restartPolicy": "Always", "image": "busybox:1.36" })).boxed();
    let stays = joined(vec![stays, common(), probes(asks())]);
    prop_oneof![joined(vec![Just(json!({ "image": "busybox:1.36" })).boxed(), once]), stays].boxed()
}

fn pod() -> Draw {
    let toleration = any_of([
        json!({ "operator": "Exists" }),
        json!({ "key": "a", "operator": "Exists", "effect": "NoSchedule" }),
        json!({ "key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 30 }),
        json!({ "key": "a", "operator": "Equal", "value": "b" }),
    ]);
    let term = json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a", "b"] }] });
    let near = json!({ "labelSelector": { "matchLabels": { "app": "x" } }, "topologyKey": "kubernetes.io/hostname" });
    let affinity = some([
        (
            "nodeAffinity",
            any_of([
                json!({ "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] } }),
                json!({ "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "preference": term }] }),
            ]),
        ),
        (
            "podAntiAffinity",
            any_of([
                json!({ "requiredDuringSchedulingIgnoredDuringExecution": [near] }),
                json!({ "preferredDuringSchedulingIgnoredDuringExecution": [
                    { "weight": 100, "podAffinityTerm": near },
                ]}),
            ]),
        ),
    ]);
    let spread = any_of([
        json!([]),
        json!([{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "x" } },
        }]),
        json!([
            { "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" },
            {
                "maxSkew": 2, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {}, "matchLabelKeys": ["pod-template-hash"],
            },
        ]),
    ]);
    let security = some([
        ("fsGroup", number(0..2000)),
        ("fsGroupChangePolicy", any_of([json!("OnRootMismatch")])),
        ("runAsNonRoot", switch()),
        ("runAsUser", number(0..2000)),
        ("seccompProfile", any_of([json!({ "type": "RuntimeDefault" })])),
        ("supplementalGroups", any_of([json!([]), json!([1, 2])])),
        ("sysctls", any_of([json!([]), json!([{ "name": "net.ipv4.tcp_syncookies", "value": "1" }])])),
    ]);
    some([
        ("affinity", affinity),
        ("automountServiceAccountToken", switch()),
        (
            "dnsConfig",
            any_of([
                json!({}),
                json!({ "nameservers": ["10.96.0.10"], "options": [{ "name": "ndots", "value": "1" }] }),
            ]),
        ),
        ("dnsPolicy", any_of([json!("ClusterFirst"), json!("Default")])),
        ("enableServiceLinks", switch()),
        ("hostAliases", any_of([json!([{ "ip": "10.0.0.1", "hostnames": ["a", "b"] }])])),
        ("imagePullSecrets", any_of([json!([]), json!([{ "name": "a" }, { "name": "b" }])])),
        ("nodeSelector", texts()),
        ("priorityClassName", any_of([json!("system-node-critical")])),
        ("readinessGates", any_of([json!([]), json!([{ "conditionType": "example.com/ready" }])])),
        ("schedulerName", any_of([json!("other")])),
        ("securityContext", security),
        ("serviceAccountName", any_of([json!("gateway")])),
        ("shareProcessNamespace", switch()),
        ("terminationGracePeriodSeconds", number(10..60)),
        ("tolerations", list(toleration, 2)),
        ("topologySpreadConstraints", spread),
    ])
}
