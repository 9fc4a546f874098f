//! An object as text. As a tree of typed fields a Deployment takes five times the memory, and of the thousands in a cache a
//! pass opens only its own.

use std::{borrow::Cow, fmt::Debug, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

/// A kind that is kept in a cache.
pub trait Kept:
    Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
    /// Whose it is, by name and in its own namespace; nobody's where there is no such name.
    fn owner(&self) -> Option<String>;

    /// Takes away what nobody reads.
    fn trim(&mut self) {}
}

/// An object of which only its identity and its owner are open: what its [`Resource::meta`] does not have says nothing.
#[derive(Clone, Debug)]
pub struct Packed<K> {
    metadata: ObjectMeta,
    owner: Option<Box<str>>,
    text: Box<str>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kept> Packed<K> {
    /// Trims and packs an object.
    ///
    /// # Errors
    /// Where it cannot be written as JSON.
    pub fn of(mut object: K) -> Result<Self, serde_json::Error> {
        // As large as the rest of the object, and nobody decides on it.
        object.meta_mut().managed_fields = None;
        object.trim();
        let text = serde_json::to_string(&object)?.into_boxed_str();
        let owner = object.owner().map(String::into_boxed_str);
        let ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, .. } =
            std::mem::take(object.meta_mut());
        let metadata =
            ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, ..ObjectMeta::default() };
        Ok(Self { metadata, owner, text, kind: PhantomData })
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The object.
    ///
    /// # Errors
    /// Never, unless a type does not read what it wrote.
    pub fn open(&self) -> Result<K, serde_json::Error> {
        serde_json::from_str(&self.text)
    }
}

impl<'de, K: Kept> Deserialize<'de> for Packed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(K::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<K: Kept> Resource for Packed<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    impl Kept for k8s_openapi::api::core::v1::Node {
        fn owner(&self) -> Option<String> {
            self.spec.as_ref()?.pod_cidr.clone()
        }

        fn trim(&mut self) {
            self.status = None;
        }
    }

    #[test]
    fn what_is_packed_is_what_is_opened_but_for_what_nobody_reads() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "a", "namespace": "b", "uid": "c", "labels": { "d": "e" }, "managedFields": [{ "manager": "f" }] },
            "spec": { "ports": [{ "port": 80, "targetPort": "http" }] },
        });
        let packed: Packed<Service> = serde_json::from_value(service.clone()).expect("a Service");
        let mut wanted: Service = serde_json::from_value(service).expect("a Service");
        wanted.metadata.managed_fields = None;
        assert_eq!(packed.open().expect("the same"), wanted);
        assert_eq!((packed.meta().uid.as_deref(), packed.owner()), (Some("c"), None));

        let node = json!({ "metadata": { "name": "a" }, "spec": { "podCIDR": "b" }, "status": { "phase": "c" } });
        let packed: Packed<k8s_openapi::api::core::v1::Node> = serde_json::from_value(node).expect("a Node");
        assert_eq!(packed.owner(), Some("b"));
        let node = packed.open().expect("the same");
        assert_eq!((node.spec.and_then(|spec| spec.pod_cidr).as_deref(), node.status), (Some("b"), None));
    }
}
