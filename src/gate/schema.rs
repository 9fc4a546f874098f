//! JSON Schemas of plugins. They are untrusted input: bounded before they are compiled, and never fetched.

use std::collections::BTreeSet;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use super::text;
use crate::model::trial::Problem;

/// Bytes of a schema as text. The largest sensible one seen has 8 KiB.
const SIZE: usize = 64 << 10;

/// Nodes of a schema once its references are written out. References that double themselves turn a kilobyte
/// into more checks than a lifetime has.
const EXPANDED: usize = 10_000;

/// Levels of a schema likewise: whoever follows them does so on the stack of a thread.
const DEPTH: usize = 128;

/// What looks at everything beside and below it once more.
const UNEVALUATED: [&str; 2] = ["unevaluatedItems", "unevaluatedProperties"];

/// Bytes of settings as text: the other factor of the work.
const SETTINGS: usize = 64 << 10;

/// Bytes of one compiled regular expression, and how many of them there may be.
const PATTERN: usize = 1 << 20;
const PATTERNS: usize = 64;

/// Problems told at once, and bytes of each.
const PROBLEMS: usize = 16;
const MESSAGE: usize = 512;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema(Validator);

impl Schema {
    /// Reads and compiles `text`.
    ///
    /// # Errors
    /// One sentence that says why it is not a schema this host takes.
    pub(super) fn compile(text: &str) -> Result<(Value, Self), String> {
        if text.len() > SIZE {
            return Err(format!("the settings schema has {} bytes, at most {SIZE} are taken", text.len()));
        }
        let schema: Value =
            serde_json::from_str(text).map_err(|error| format!("the settings schema is not JSON: {error}"))?;
        Walk::through(&schema)?;
        let validator = jsonschema::options()
            .offline()
            // Linear time: the default engine backtracks.
            .with_pattern_options(PatternOptions::regex().size_limit(PATTERN).dfa_size_limit(PATTERN))
            .build(&schema)
            .map_err(|error| {
                let message = text::cut(&error.to_string(), MESSAGE);
                format!("the settings schema is not a JSON Schema: {message}")
            })?;
        Ok((schema, Self(validator)))
    }

    /// What is wrong with `settings`, at most 16 problems.
    pub(super) fn problems(&self, settings: &Value) -> Vec<Problem> {
        if settings.to_string().len() > SETTINGS {
            let message = format!("more than {SETTINGS} bytes of settings");
            return vec![Problem { pointer: String::new(), message }];
        }
        self.0
            .iter_errors(settings)
            .take(PROBLEMS)
            .map(|error| Problem {
                pointer: text::cut(&error.instance_path().to_string(), MESSAGE),
                message: text::cut(&error.to_string(), MESSAGE),
            })
            .collect()
    }
}

/// A walk through everything that a validator made of a schema does, before there is one: with references followed, and with
/// what it does twice walked twice. Refuses what never ends, goes too deep, or reads other documents.
struct Walk<'a> {
    root: &'a Value,
    /// References that are being followed.
    open: Vec<&'a str>,
    patterns: BTreeSet<&'a str>,
    depth: usize,
    nodes: usize,
}

impl<'a> Walk<'a> {
    fn through(root: &'a Value) -> Result<(), String> {
        Self { root, open: Vec::new(), patterns: BTreeSet::new(), depth: 0, nodes: 0 }.checked(root)
    }

    /// A node that an instance is checked against.
    fn checked(&mut self, node: &'a Value) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > EXPANDED {
            return Err(format!("the settings schema has more than {EXPANDED} nodes once its references are followed"));
        }
        self.below(node, Self::checked)?;
        // What was not evaluated is known when everything else was, below as well: once more.
        if UNEVALUATED.iter().any(|keyword| node.get(keyword).is_some()) {
            self.below(node, Self::evaluated)?;
        }
        Ok(())
    }

    /// A node that is asked what of an instance it evaluates: if the instance fits it, whatever its own nodes evaluate.
    fn evaluated(&mut self, node: &'a Value) -> Result<(), String> {
        self.checked(node)?;
        self.below(node, Self::evaluated)
    }

    /// Everything right below a node.
    fn below(&mut self, node: &'a Value, visit: fn(&mut Self, &'a Value) -> Result<(), String>) -> Result<(), String> {
        if self.depth == DEPTH {
            return Err(format!(
                "the settings schema is more than {DEPTH} levels deep once its references are followed"
            ));
        }
        self.depth += 1;
        match node {
            Value::Array(items) => items.iter().try_for_each(|item| visit(self, item))?,
            Value::Object(fields) => fields.iter().try_for_each(|(name, value)| self.field(name, value, visit))?,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        self.depth -= 1;
        Ok(())
    }

    fn field(
        &mut self,
        name: &'a str,
        value: &'a Value,
        visit: fn(&mut Self, &'a Value) -> Result<(), String>,
    ) -> Result<(), String> {
        match (name, value) {
            ("$ref", Value::String(reference)) => {
                if self.open.contains(&reference.as_str()) {
                    return Err(format!("the settings schema refers to itself through {reference:?}"));
                }
                let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
                let Some(target) = target else {
                    return Err(format!("the settings schema refers to {reference:?}, which is not in it"));
                };
                self.open.push(reference);
                visit(self, target)?;
                self.open.pop();
                return Ok(());
            }
            // Other ways to refer; no generator of schemas for settings needs them.
            ("$dynamicRef" | "$recursiveRef" | "$id" | "id" | "$anchor" | "$dynamicAnchor", Value::String(_)) => {
                return Err(format!("the settings schema uses {name}, which is not taken"));
            }
            ("pattern", Value::String(pattern)) => {
                self.patterns.insert(pattern);
            }
            ("patternProperties", Value::Object(fields)) => self.patterns.extend(fields.keys().map(String::as_str)),
            _ => {}
        }
        if self.patterns.len() > PATTERNS {
            return Err(format!("the settings schema has more than {PATTERNS} regular expressions"));
        }
        visit(self, value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> String {
        Schema::compile(&schema.to_string()).expect_err("a schema that is not taken")
    }

    #[test]
    fn problems_point_into_the_settings() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {"paths": {"type": "array", "items": {"$ref": "#/$defs/path"}}},
            "$defs": {"path": {"type": "string", "pattern": "^/"}},
        });
        let (_, schema) = Schema::compile(&schema.to_string()).unwrap();
        assert_eq!(schema.problems(&json!({"paths": ["/"]})), []);
        let problems = schema.problems(&json!({"paths": ["/", "x"]}));
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].pointer, "/paths/1");
        assert_eq!(schema.problems(&json!({"pahts": []})).len(), 1);
    }

    #[test]
    fn a_schema_that_refers_to_itself_for_ever_is_refused() {
        let problem = refused(&json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}));
        assert!(problem.contains("refers to itself"), "{problem}");
        let problem = refused(&json!({"properties": {"a": {"$ref": "#"}}}));
        assert!(problem.contains("refers to itself") || problem.contains("nodes"), "{problem}");
    }

    #[test]
    fn references_that_double_themselves_are_refused() {
        let mut defs = serde_json::Map::new();
        for level in 0..40 {
            let next = format!("#/$defs/a{}", level + 1);
            defs.insert(format!("a{level}"), json!({"allOf": [{"$ref": next}, {"$ref": next}]}));
        }
        defs.insert("a40".into(), json!({"type": "string"}));
        let problem = refused(&json!({"$ref": "#/$defs/a0", "$defs": defs}));
        assert!(problem.contains("nodes"), "{problem}");
    }

    /// `depth` times `around` around a schema.
    fn nested(depth: usize, around: impl Fn(Value) -> Value) -> Value {
        (0..depth).fold(json!({"properties": {"a": {"type": "number"}}}), |inner, _| around(inner))
    }

    #[test]
    fn threat_08_what_is_looked_at_twice_at_every_level_is_refused() {
        for keyword in UNEVALUATED {
            let around = |inner| json!({keyword: false, "anyOf": [inner]});
            let problem = refused(&nested(16, around));
            assert!(problem.contains("nodes"), "{problem}");
            assert!(Schema::compile(&nested(3, around).to_string()).is_ok(), "{keyword}");
        }
    }

    #[test]
    fn threat_08_references_that_lead_too_deep_are_refused() {
        let chain = |length: usize| {
            let next = |level: usize| json!({"$ref": format!("#/$defs/{}", level + 1)});
            let mut defs: serde_json::Map<_, _> = (0..length).map(|level| (level.to_string(), next(level))).collect();
            defs.insert(length.to_string(), json!({}));
            json!({"$ref": "#/$defs/0", "$defs": defs})
        };
        let problem = refused(&chain(2_000));
        assert!(problem.contains("levels deep"), "{problem}");
        assert!(Schema::compile(&chain(64).to_string()).is_ok());
    }

    #[test]
    fn threat_26_more_regular_expressions_than_memory_is_meant_for_are_refused() {
        let patterns = |count: usize| json!({"allOf": (0..count).map(|it| json!({"pattern": format!("^a.{it}")})).collect::<Vec<_>>()});
        let problem = refused(&patterns(PATTERNS + 1));
        assert!(problem.contains("regular expressions"), "{problem}");
        assert!(Schema::compile(&patterns(PATTERNS).to_string()).is_ok());
        let names: serde_json::Map<_, _> = (0..=PATTERNS).map(|it| (format!("^a.{it}"), json!({}))).collect();
        assert!(refused(&json!({"patternProperties": names})).contains("regular expressions"));
        // One of them, however often.
        assert!(Schema::compile(&json!({"allOf": vec![json!({"pattern": "^a"}); PATTERNS + 1]}).to_string()).is_ok());
    }

    #[test]
    fn nothing_outside_the_schema_is_read() {
        for reference in ["https://example.com/a.json", "file:///etc/passwd", "other.json", "#missing"] {
            let problem = refused(&json!({"$ref": reference}));
            assert!(problem.contains("which is not in it"), "{problem}");
        }
        let problem = refused(&json!({"$id": "https://example.com/a.json"}));
        assert!(problem.contains("$id"), "{problem}");
    }

    #[test]
    fn a_schema_of_the_greatest_size_is_taken_and_a_larger_one_is_not() {
        let frame = json!({"description": ""}).to_string().len();
        let sized = |bytes: usize| json!({"description": "x".repeat(bytes - frame)}).to_string();
        assert!(Schema::compile(&sized(SIZE)).is_ok());
        assert!(Schema::compile(&sized(SIZE + 1)).is_err());
    }

    #[test]
    fn settings_over_their_size_are_a_problem() {
        let (_, schema) = Schema::compile("{}").unwrap();
        assert_eq!(schema.problems(&json!("x".repeat(SETTINGS))).len(), 1);
        assert_eq!(schema.problems(&json!("x".repeat(SETTINGS - 2))).len(), 0);
    }

    #[test]
    fn threat_08_a_schema_that_is_nested_too_deep_is_refused_before_it_is_followed() {
        let nested = format!("{}{{}}{}", "{\"not\":".repeat(5_000), "}".repeat(5_000));
        let error = Schema::compile(&nested).unwrap_err();
        assert!(error.contains("recursion limit"), "{error}");
    }

    #[test]
    fn a_property_may_be_called_like_a_keyword() {
        assert!(Schema::compile(&json!({"properties": {"id": {"type": "string"}}}).to_string()).is_ok());
    }
}
