//! temp
use std::sync::Arc;
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("crds") {
        for crd in sluice::api::crds() {
            println!("---\n{}", serde_norway::to_string(&crd)?);
        }
        return Ok(());
    }
    tracing_subscriber::fmt().with_env_filter("sluice=debug,info").init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = kube::Client::try_default().await?;
    let gates = sluice::gate::LocalGateHost::start(Default::default())?;
    let setup = sluice::dataplane::controller::Setup {
        client,
        namespace: "default".into(),
        ca_secret: "kong-operator-ca".into(),
        gates: Arc::new(gates),
        plugins: Arc::new(|_| Default::default()),
        host: format!("me-{}", std::process::id()),
        validate_images: true,
    };
    let running = sluice::dataplane::controller::start(setup, async {
        let _ = tokio::signal::ctrl_c().await;
    })
    .await?;
    running.done.await;
    Ok(())
}
