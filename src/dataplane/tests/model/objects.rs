//! Objects as values that many states share: written once, known by hashes, never changed.

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
};

use serde_json::Value;

/// The kinds that an upgrade is made of, by their plurals in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    DataPlane,
    PromotionPolicy,
    Promotion,
    ControllerRevision,
    Deployment,
    Service,
    Secret,
    Pod,
    EndpointSlice,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::DataPlane,
        Self::PromotionPolicy,
        Self::Promotion,
        Self::ControllerRevision,
        Self::Deployment,
        Self::Service,
        Self::Secret,
        Self::Pod,
        Self::EndpointSlice,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::DataPlane => "DataPlane",
            Self::PromotionPolicy => "PromotionPolicy",
            Self::Promotion => "Promotion",
            Self::ControllerRevision => "ControllerRevision",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::Secret => "Secret",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::DataPlane => "dataplanes",
            Self::PromotionPolicy => "promotionpolicies",
            Self::Promotion => "promotions",
            Self::ControllerRevision => "controllerrevisions",
            Self::Deployment => "deployments",
            Self::Service => "services",
            Self::Secret => "secrets",
            Self::Pod => "pods",
            Self::EndpointSlice => "endpointslices",
        }
    }

    pub(super) fn version(self) -> &'static str {
        match self {
            Self::DataPlane => "gateway-operator.konghq.com/v1beta1",
            Self::PromotionPolicy | Self::Promotion => "sluice.dev/v1alpha1",
            Self::ControllerRevision | Self::Deployment => "apps/v1",
            Self::Service | Self::Secret | Self::Pod => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Whether the API counts what is asked of it.
    pub(super) fn has_generations(self) -> bool {
        match self {
            Self::DataPlane | Self::PromotionPolicy | Self::Promotion | Self::Deployment => true,
            Self::ControllerRevision | Self::Service | Self::Secret | Self::Pod | Self::EndpointSlice => false,
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    pub(super) fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }
}

/// Kind and name of an object, small enough to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    name: u16,
}

/// Names with their hashes, by number, and the numbers by name.
type Names = (Vec<(Arc<str>, u64)>, HashMap<Arc<str>, u16>);

/// A collection of what is known by its hash, in parts that are locked one by one.
pub(super) struct Sharded<C>([Mutex<C>; 64]);

impl<C: Default> Default for Sharded<C> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<C> Sharded<C> {
    /// The part for a hash.
    pub(super) fn part(&self, hash: u64) -> MutexGuard<'_, C> {
        let part = usize::try_from(hash & 63).expect("a small number");
        self.0[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All parts, one after the other.
    pub(super) fn parts(&self) -> impl Iterator<Item = MutexGuard<'_, C>> {
        self.0.iter().map(|part| part.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Sharded<HashMap<u128, Arc<T>>> {
    /// What is known by a hash; made if nothing is.
    pub(super) fn known(&self, hash: u128, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        Arc::clone(self.of(hash).entry(hash).or_insert_with(make))
    }

    /// What is known by a hash.
    pub(super) fn get(&self, hash: u128) -> Option<Arc<T>> {
        self.of(hash).get(&hash).cloned()
    }

    fn of(&self, hash: u128) -> MutexGuard<'_, HashMap<u128, Arc<T>>> {
        // Either half of it is as good.
        self.part(hash as u64)
    }
}

fn names() -> &'static RwLock<Names> {
    static NAMES: OnceLock<RwLock<Names>> = OnceLock::new();
    NAMES.get_or_init(RwLock::default)
}

impl Key {
    pub(super) fn of(kind: Kind, name: &str) -> Self {
        if let Some(name) = names().read().unwrap_or_else(PoisonError::into_inner).1.get(name) {
            return Self { kind, name: *name };
        }
        let mut names = names().write().unwrap_or_else(PoisonError::into_inner);
        let next = u16::try_from(names.0.len()).expect("few names");
        let name: Arc<str> = name.into();
        let number = *names.1.entry(Arc::clone(&name)).or_insert(next);
        if number == next {
            let hash = hash_of(name.as_bytes());
            names.0.push((name, hash));
        }
        Self { kind, name: number }
    }

    pub(super) fn name(self) -> Arc<str> {
        Arc::clone(&names().read().unwrap_or_else(PoisonError::into_inner).0[usize::from(self.name)].0)
    }

    /// The same in every run.
    pub(super) fn hash(self) -> u64 {
        mix(names().read().unwrap_or_else(PoisonError::into_inner).0[usize::from(self.name)].1, self.kind as u64)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind.as_str(), self.name())
    }
}

/// An object without its resource version.
pub(super) struct Content {
    pub(super) value: Value,
    /// What was applied last, by which a later apply knows what it has to take away.
    pub(super) applied: Value,
    /// Of everything.
    pub(super) exact: u128,
    /// Of what states are told apart by: moments count in seconds, and keys are as good as each other.
    pub(super) shape: u64,
}

impl fmt::Debug for Content {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.value)
    }
}

impl Content {
    /// The one of this value.
    pub(super) fn of(value: Value, applied: Value) -> Arc<Self> {
        static KNOWN: OnceLock<Sharded<HashMap<u128, Arc<Content>>>> = OnceLock::new();
        let text = value.to_string();
        let exact = wide(&[text.as_bytes(), applied.to_string().as_bytes()]);
        let made = || Arc::new(Self { shape: shape(&value, &text), value, applied, exact });
        KNOWN.get_or_init(Sharded::default).known(exact, made)
    }
}

/// Moments are cut to seconds: which of two microseconds is which tells no two states apart.
fn shape(value: &Value, text: &str) -> u64 {
    if value["kind"] == "Secret" || value["type"] == "kubernetes.io/tls" {
        let mut open = value.clone();
        open["data"] = Value::Null;
        open["metadata"]["annotations"] = Value::Null;
        return hash_of(open.to_string().as_bytes());
    }
    let bytes = text.as_bytes();
    let mut hasher = DefaultHasher::new();
    let mut from = 0;
    for (at, _) in text.match_indices('.') {
        // `...T08:00:00.000001Z"`
        let before = at >= 3 && bytes[at - 3] == b':' && bytes[at - 1].is_ascii_digit();
        let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if before && digits > 0 && bytes.get(at + 1 + digits) == Some(&b'Z') {
            hasher.write(&bytes[from..at]);
            from = at + 1 + digits;
        }
    }
    hasher.write(&bytes[from..]);
    hasher.finish()
}

/// What many states share and few change, with its hash.
#[derive(Debug)]
pub(super) struct Shared<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), hash: self.hash }
    }
}

impl<T> Shared<T> {
    pub(super) fn of(value: T, hash: impl Fn(&T) -> u64) -> Self {
        Self { hash: hash(&value), value: Arc::new(value) }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

pub(super) fn wide(parts: &[&[u8]]) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        hasher.finish()
    };
    u128::from(half(0)) << 64 | u128::from(half(1))
}

/// Two hashes as one, the order of them counting.
pub(super) fn mix(one: u64, other: u64) -> u64 {
    let mut hash = one ^ other.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}
