//! The inner nouns. They know nobody.

pub mod trial;
