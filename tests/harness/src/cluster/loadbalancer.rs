//! Gives every Service of type LoadBalancer an address, as a cloud would; kube-proxy then serves it.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};
use serde_json::json;

/// The network the addresses come from: 10.97.0.0/16.
const NETWORK: u32 = u32::from_be_bytes([10, 97, 0, 0]);
const ADDRESSES: u32 = 0xffff;

/// Runs until the cluster is stopped.
pub async fn run(client: Client) -> Result<()> {
    let services: Api<Service> = Api::all(client.clone());
    let mut events = std::pin::pin!(watcher::watcher(services, watcher::Config::default()).default_backoff());
    let mut given = HashMap::new();
    loop {
        match events.try_next().await {
            Ok(Some(Event::InitApply(service) | Event::Apply(service))) => {
                if let Err(error) = serve(&client, &mut given, &service).await {
                    // Not lost: the Service's next event, or the next listing, brings it here again.
                    eprintln!("{}/{}: {error:#}", service.namespace().unwrap_or_default(), service.name_any());
                }
            }
            Ok(Some(Event::Delete(service))) => {
                given.remove(&service.uid());
            }
            Ok(Some(Event::Init | Event::InitDone)) => {}
            Ok(None) => return Ok(()),
            Err(error) => eprintln!("watching Services: {error}"),
        }
    }
}

async fn serve(client: &Client, given: &mut HashMap<Option<String>, Ipv4Addr>, service: &Service) -> Result<()> {
    let wanted = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    match (wanted, address(service)) {
        (true, Some(address)) => {
            given.insert(service.uid(), address);
        }
        (true, None) => {
            let address = lowest_free(given).context("every address of 10.97.0.0/16 is given")?;
            publish(client, service, &json!([{ "ip": address }])).await?;
            given.insert(service.uid(), address);
        }
        (false, Some(_)) => {
            publish(client, service, &json!([])).await?;
            given.remove(&service.uid());
        }
        (false, None) => {}
    }
    Ok(())
}

fn address(service: &Service) -> Option<Ipv4Addr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

fn lowest_free(given: &HashMap<Option<String>, Ipv4Addr>) -> Option<Ipv4Addr> {
    (1..ADDRESSES)
        .map(|host| Ipv4Addr::from(NETWORK | host))
        .find(|address| !given.values().any(|taken| taken == address))
}

async fn publish(client: &Client, service: &Service, ingress: &serde_json::Value) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), &service.namespace().unwrap_or_default());
    let patch = json!({ "status": { "loadBalancer": { "ingress": ingress } } });
    services.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}
