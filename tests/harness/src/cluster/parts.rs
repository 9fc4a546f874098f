//! The parts of a cluster: what each is started with.

use std::fs;
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::{API_PORT, Cluster, NODE_ADDRESS, NODE_NAME, Node, SERVICE_NETWORK, bin};
use crate::{command, images, operator};

/// Every part of a cluster with such a node, in the order of starting.
pub const fn names(node: Node) -> &'static [&'static str] {
    match node {
        Node::Real => &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "containerd",
            "kubelet",
            "kube-proxy",
            "load-balancer",
        ],
        Node::Played => &["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"],
    }
}

/// How fast the controllers may ask. The defaults (20 and 30, 50 and 100) would be what the figures measure.
const FAST: [&str; 2] = ["--kube-api-qps=1000", "--kube-api-burst=2000"];

impl Cluster {
    /// The command that is the given part.
    pub(super) fn part(&self, name: &str) -> Result<Command> {
        let arguments = match name {
            "etcd" => vec![format!("--data-dir={}", self.file("etcd"))],
            "kube-apiserver" => self.apiserver()?,
            "kube-controller-manager" => self.controller_manager(),
            "kube-scheduler" => self.scheduler(),
            "kubelet" => self.kubelet()?,
            "kube-proxy" => self.proxy(),
            "containerd" => return self.containerd(),
            "kwok" => return self.kwok(),
            _ => return self.load_balancer(),
        };
        let mut command = self.network.command(bin().join("cluster"));
        command.arg(name).args(arguments);
        Ok(command)
    }

    fn kubeconfig_flag(&self, name: &str) -> String {
        format!("--kubeconfig={}", self.certificates.file(&format!("{name}.kubeconfig")))
    }

    fn apiserver(&self) -> Result<Vec<String>> {
        let policy = self.dir.join("audit-policy.json");
        // One line per finished request: what the tests count writes with. And what the operator sent where it may name
        // the version it decided on: only that tells a conflict it asked for from one it did not expect.
        let operator = operator::account();
        let conditional = json!([
            { "group": "", "resources": ["services"] },
            { "group": "apps", "resources": ["deployments"] },
            { "group": "gateway-operator.konghq.com", "resources": ["dataplanes/status"] },
            { "group": "sluice.dev", "resources": ["promotions/status"] },
        ]);
        let rules = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                { "level": "Request", "users": [operator], "verbs": ["patch"], "resources": conditional },
                { "level": "Request", "users": [operator], "verbs": ["delete"] },
                { "level": "Metadata" },
            ],
        });
        fs::write(&policy, rules.to_string())?;
        let certificate = |name: &str| self.certificates.file(name);
        Ok(vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            // On every address of the namespace: Pods come through the `kubernetes` Service.
            "--bind-address=0.0.0.0".into(),
            format!("--secure-port={API_PORT}"),
            format!("--advertise-address={NODE_ADDRESS}"),
            format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            format!("--client-ca-file={}", certificate("ca.crt")),
            format!("--tls-cert-file={}", certificate("apiserver.crt")),
            format!("--tls-private-key-file={}", certificate("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", certificate("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", certificate("service-accounts.key")),
            // `kubectl logs` and `exec` go through the apiserver to the kubelet.
            format!("--kubelet-certificate-authority={}", certificate("ca.crt")),
            format!("--kubelet-client-certificate={}", certificate("admin.crt")),
            format!("--kubelet-client-key={}", certificate("admin.key")),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", self.audit_log().display()),
            // Megabytes. One that begins anew half-way cannot be counted in.
            "--audit-log-maxsize=10000".into(),
        ])
    }

    fn controller_manager(&self) -> Vec<String> {
        let [qps, burst] = FAST.map(str::to_owned);
        vec![
            self.kubeconfig_flag("kube-controller-manager"),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            "--use-service-account-credentials".into(),
            format!("--root-ca-file={}", self.certificates.file("ca.crt")),
            format!("--service-account-private-key-file={}", self.certificates.file("service-accounts.key")),
            qps,
            burst,
        ]
    }

    fn scheduler(&self) -> Vec<String> {
        let [qps, burst] = FAST.map(str::to_owned);
        vec![
            self.kubeconfig_flag("kube-scheduler"),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            qps,
            burst,
        ]
    }

    fn kwok(&self) -> Result<Command> {
        let kwok = bin().join("kwok");
        let stages = self.dir.join("stages.yaml");
        fs::write(&stages, command::run(Command::new(&kwok).arg("stages"))?)?;
        let mut command = self.network.command(kwok);
        command.arg(self.kubeconfig_flag("admin")).arg("--config").arg(stages);
        command.args(["--manage-all-nodes", "--node-lease-duration-seconds=40"]);
        command.args(["--node-ip", NODE_ADDRESS, "--cidr=10.244.0.0/16"]);
        Ok(command)
    }

    fn kubelet(&self) -> Result<Vec<String>> {
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "authentication": {
                "anonymous": { "enabled": false },
                "webhook": { "enabled": true },
                "x509": { "clientCAFile": self.certificates.file("ca.crt") },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": self.certificates.file("kubelet-server.crt"),
            "tlsPrivateKeyFile": self.certificates.file("kubelet-server.key"),
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket()),
            // This machine may itself be a container: old cgroups, a limited root, somebody else's disk.
            "failCgroupV1": false,
            "failSwapOn": false,
            "featureGates": { "KubeletInUserNamespace": true },
            "localStorageCapacityIsolation": false,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            // A full disk is the developer's business, not a reason to evict or to delete images that cannot be pulled.
            "evictionHard": { "imagefs.available": "0%", "nodefs.available": "0%" },
            "imageGCHighThresholdPercent": 100,
            // Nobody answers there: without an address every Pod would get a warning, and none here needs names.
            "clusterDNS": [NODE_ADDRESS],
            "resolvConf": "",
            "podLogsDir": self.file("pod-logs"),
            "volumePluginDir": self.file("volume-plugins"),
        });
        let path = self.dir.join("kubelet.json");
        fs::write(&path, format!("{config:#}"))?;
        Ok(vec![
            self.kubeconfig_flag("kubelet"),
            format!("--config={}", path.display()),
            format!("--root-dir={}", self.file("kubelet")),
            format!("--node-ip={NODE_ADDRESS}"),
            format!("--hostname-override={NODE_NAME}"),
        ])
    }

    fn proxy(&self) -> Vec<String> {
        vec![
            self.kubeconfig_flag("kube-proxy"),
            "--proxy-mode=nftables".into(),
            format!("--hostname-override={NODE_NAME}"),
            // The limit is the machine's and may be read-only here.
            "--conntrack-max-per-core=0".into(),
        ]
    }

    fn containerd(&self) -> Result<Command> {
        let cni = self.dir.join("cni");
        fs::create_dir_all(&cni)?;
        let network = json!({
            "cniVersion": "1.0.0",
            "name": self.id,
            "plugins": [{
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.file("addresses"),
                    // .1 is the node's.
                    "ranges": [[{ "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.2", "gateway": NODE_ADDRESS }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        fs::write(cni.join("10-sluice.conflist"), format!("{network:#}"))?;
        let path = self.dir.join("containerd.toml");
        fs::write(&path, self.containerd_config())?;
        let mut command = self.network.command("containerd");
        command.arg("--config").arg(path);
        Ok(command)
    }

    fn containerd_config(&self) -> String {
        let (dir, socket, pause) = (self.dir.display(), self.containerd_socket(), images::PAUSE);
        // Unusual are: every path below the cluster's folder; no AppArmor and no lower OOM score, for which a
        // container's root has no right.
        format!(
            r#"version = 2
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{dir}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{dir}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{dir}/containerd/runc"
"#
        )
    }

    fn load_balancer(&self) -> Result<Command> {
        // By process, not by path: cargo may have put another binary there since this one was started.
        let mut command = self.network.command(format!("/proc/{}/exe", std::process::id()));
        command.args(["cluster", "load-balancer"]);
        Ok(command)
    }
}
