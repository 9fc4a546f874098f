//! JSON Schemas of plugins. They are untrusted input: bounded before they are compiled, and never fetched.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use super::text;
use crate::model::trial::Problem;

/// Bytes of a schema as text. The largest sensible one seen has 8 KiB.
const SIZE: usize = 64 << 10;

/// Nodes of a schema once its references are written out. References that double themselves turn a kilobyte
/// into more checks than a lifetime has.
const EXPANDED: usize = 10_000;

/// Bytes of settings as text: the other factor of the work.
const SETTINGS: usize = 64 << 10;

/// Bytes of one compiled regular expression.
const PATTERN: usize = 1 << 20;

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
        expanded(&schema, &schema, &mut Vec::new(), 0)?;
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
                pointer: error.instance_path().to_string(),
                message: text::cut(&error.to_string(), MESSAGE),
            })
            .collect()
    }
}

/// Counts the nodes below `node` with local references followed, on from `count`. Refuses references that
/// never end and everything that reads other documents.
fn expanded<'a>(root: &'a Value, node: &'a Value, open: &mut Vec<&'a str>, count: usize) -> Result<usize, String> {
    let mut count = count + 1;
    if count > EXPANDED {
        return Err(format!("the settings schema has more than {EXPANDED} nodes once its references are followed"));
    }
    match node {
        Value::Array(items) => {
            for item in items {
                count = expanded(root, item, open, count)?;
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                count = match (name.as_str(), value) {
                    ("$ref", Value::String(reference)) => {
                        if open.contains(&reference.as_str()) {
                            return Err(format!("the settings schema refers to itself through {reference:?}"));
                        }
                        let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
                        let Some(target) = target else {
                            return Err(format!("the settings schema refers to {reference:?}, which is not in it"));
                        };
                        open.push(reference);
                        let count = expanded(root, target, open, count)?;
                        open.pop();
                        count
                    }
                    // Other ways to refer; no generator of schemas for settings needs them.
                    (
                        "$dynamicRef" | "$recursiveRef" | "$id" | "id" | "$anchor" | "$dynamicAnchor",
                        Value::String(_),
                    ) => {
                        return Err(format!("the settings schema uses {name}, which is not taken"));
                    }
                    _ => expanded(root, value, open, count)?,
                };
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(count)
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
