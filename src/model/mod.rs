//! The inner nouns. They know nobody.

pub mod certificate;
pub mod differ;
pub mod duration;
pub mod gate;
pub mod grants;
pub mod intent;
pub mod lists;
pub mod names;
pub mod observed;
pub mod plan;
pub mod plugin;
pub mod policies;
pub mod promql;
pub mod quantity;
pub mod trial;
pub mod wish;

pub use gate::Gate;
pub use intent::{Ingress, Intent, Owner, Refusal, Rules, Scale, Strategy};
pub use names::Selector;
pub use observed::Observed;
pub use plan::{Phase, Plan};
pub use plugin::PluginKey;
pub use policies::Policies;
pub use wish::{Revision, Wish};
