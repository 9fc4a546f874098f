//! Kong's own integration tests of a `DataPlane`, told again as Given, When and Then under the labels of our
//! acceptance list: a user who comes from Kong's operator finds all of it here.

mod bluegreen;
mod plain;

use bytes::Bytes;
use hyper::Response;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

/// An autoscaler's part of the spec: by CPU alone.
fn scaling(min: Option<i32>, max: i32, cpu: i32) -> Value {
    let target = json!({ "type": "Utilization", "averageUtilization": cpu });
    let metrics = json!([{ "type": "Resource", "resource": { "name": "cpu", "target": target } }]);
    let mut horizontal = json!({ "maxReplicas": max, "metrics": metrics });
    if let Some(min) = min {
        horizontal["minReplicas"] = min.into();
    }
    json!({ "horizontal": horizontal })
}

/// All Pods of a Deployment are of its newest template and available, and there are so many.
fn runs(deployment: &Deployment, replicas: i32) -> bool {
    let (Some(spec), Some(status)) = (&deployment.spec, &deployment.status) else { return false };
    let counts = [spec.replicas, status.replicas, status.updated_replicas, status.available_replicas];
    counts == [Some(replicas); 4] && status.observed_generation == deployment.metadata.generation
}

/// The answer of a gateway that has no routes.
fn no_route(answer: &Response<Bytes>) -> bool {
    answer.status() == 404 && String::from_utf8_lossy(answer.body()).contains("no Route matched")
}
