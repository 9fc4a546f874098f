//! The policies that may concern a DataPlane, of either kind, as they were read in one moment.

use std::{collections::BTreeMap, sync::Arc};

use crate::api::{ClusterPromotionPolicy, PromotionPolicy};

/// Policies that may concern the DataPlanes of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// Those of the namespace.
    pub own: Vec<Arc<PromotionPolicy>>,
    /// Those of the cluster; none for an operator that works in chosen namespaces.
    pub cluster: Option<OfCluster>,
}

/// Policies of the cluster, and what they choose a namespace by.
#[derive(Clone, Debug, Default)]
pub struct OfCluster {
    /// All of them.
    pub policies: Vec<Arc<ClusterPromotionPolicy>>,
    /// The labels of the namespace; none while they are not known.
    pub labels: Option<BTreeMap<String, String>>,
}

impl From<Vec<PromotionPolicy>> for Policies {
    fn from(own: Vec<PromotionPolicy>) -> Self {
        Self { own: own.into_iter().map(Arc::new).collect(), cluster: None }
    }
}
