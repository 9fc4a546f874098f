//! `sluice crds`.

use super::Failure;
use crate::api;

/// Every custom resource definition, as one YAML stream.
pub(super) fn yaml() -> Result<String, Failure> {
    let mut yaml = String::from("# Generated from the Rust types by `sluice crds`. Do not edit.\n");
    for crd in api::crds() {
        yaml.push_str("---\n");
        yaml.push_str(
            &serde_norway::to_string(&crd)
                .map_err(|error| Failure::new("a custom resource definition cannot be written as YAML", error))?,
        );
    }
    Ok(yaml)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definitions_in_deploy_are_those_of_the_types() {
        let shipped = include_str!("../../deploy/crds/crds.yaml");
        let generated = super::yaml().expect("YAML");
        assert!(
            shipped == generated,
            "deploy/crds/crds.yaml is stale: run `cargo run -- crds > deploy/crds/crds.yaml`"
        );
    }
}
