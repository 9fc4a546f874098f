//! The test kit on a running cluster: what the operator's own tests lean on.

#![allow(clippy::unwrap_used)]

/// By this name `cargo verify` knows what needs the cluster.
mod cluster {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::Result;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Client, Config};
    use serde_json::json;
    use sluice_harness::audit::Audit;
    use sluice_harness::kit::{self, Kit};
    use sluice_harness::proxy::{Proxy, Side};
    use sluice_harness::wait::PATIENCE;

    #[test]
    fn a_history_holds_every_value_in_order() -> Result<()> {
        kit::run(async |kit| {
            let maps = kit.api::<ConfigMap>();
            maps.create(&PostParams::default(), &map("a", "one")).await?;
            let mut history = kit.record("a", |map: &ConfigMap| map.data.as_ref()?.get("value").cloned());
            history.wait_for("one", PATIENCE).await?;
            maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({ "data": { "value": "two" } }))).await?;
            history.wait_for("two", PATIENCE).await?;
            assert_eq!(history.seen(), ["one", "two"]);
            Ok(())
        })
    }

    #[test]
    fn a_failed_test_returns_its_error() {
        let outcome = kit::run(async |kit| {
            kit.wait::<ConfigMap>("absent", "exist", |map| map.is_none()).await?;
            anyhow::bail!("wanted")
        });
        assert_eq!(outcome.unwrap_err().to_string(), "wanted");
    }

    #[test]
    fn the_proxy_counts_writes_and_passes_answers_on() -> Result<()> {
        kit::run(async |kit| {
            let (proxy, client) = proxied(kit).await?;
            let audit = Audit::now(&kit.cluster)?;
            let maps: Api<ConfigMap> = Api::namespaced(client, &kit.namespace);
            maps.create(&PostParams::default(), &map("a", "one")).await?;
            maps.get("a").await?;
            maps.delete("a", &Default::default()).await?;

            let path = format!("/api/v1/namespaces/{}/configmaps", kit.namespace);
            let writes: Vec<_> = proxy.writes().into_iter().map(|write| (write.method, write.path)).collect();
            assert_eq!(writes, [("POST".to_owned(), path.clone()), ("DELETE".to_owned(), format!("{path}/a"))]);

            let ours = audit.requests()?.into_iter().filter(|request| request.is_from(&kit.namespace, "default"));
            let kinds: Vec<_> = ours.map(|request| request.kind()).collect();
            assert_eq!(kinds, ["create configmaps", "get configmaps", "delete configmaps"]);
            Ok(())
        })
    }

    #[test]
    fn a_trap_springs_on_its_side_of_the_write() -> Result<()> {
        kit::run(async |kit| {
            for (name, side, exists) in [("before", Side::Before, false), ("after", Side::After, true)] {
                let (proxy, client) = proxied(kit).await?;
                let sprung = Arc::new(AtomicBool::new(false));
                let spring = Arc::clone(&sprung);
                let caught = proxy.trap(
                    side,
                    |number, write| number == 2 && write.path.ends_with("/configmaps"),
                    move || spring.store(true, Ordering::SeqCst),
                );

                let maps: Api<ConfigMap> = Api::namespaced(client, &kit.namespace);
                maps.create(&PostParams::default(), &map(&format!("{name}-first"), "")).await?;
                assert!(!sprung.load(Ordering::SeqCst));
                maps.create(&PostParams::default(), &map(name, "")).await.unwrap_err();
                assert!(sprung.load(Ordering::SeqCst));
                assert_eq!(caught.await?.json()["metadata"]["name"], name);
                assert_eq!(kit.api::<ConfigMap>().get_opt(name).await?.is_some(), exists);
            }
            Ok(())
        })
    }

    /// A proxy, and a client behind it with the token of a ServiceAccount that may edit the namespace.
    async fn proxied(kit: &Kit) -> Result<(Proxy, Client)> {
        let binding = format!("--serviceaccount={}:default", kit.namespace);
        // The second proxy of a test finds it there.
        let _ = kit.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", &binding]);
        let proxy = Proxy::start(&kit.cluster).await?;
        let token = kit.kubectl(&["create", "token", "default"])?;
        let kubeconfig = Kubeconfig::from_yaml(&proxy.kubeconfig(token.trim()))?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok((proxy, Client::try_from(config)?))
    }

    fn map(name: &str, value: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
            data: Some([("value".to_owned(), value.to_owned())].into()),
            ..Default::default()
        }
    }
}
