//! PURE. PromQL that a policy's author wrote and a gate fills in: parsed, confined to one namespace, written anew.
//!
//! `${parameter}` stands in quoted label values only. What a gate gives for it is put into the parsed query, so it stays
//! a label's value whatever is in it. (The parser's own visitors pass over the parameter of an aggregation: the walk here
//! does not.)

use std::{collections::BTreeSet, time::Duration};

use promql_parser::{
    label::{MatchOp, Matcher, Matchers},
    parser::{AtModifier, Expr, Offset, VectorSelector, parse},
};

/// Bytes of a query: enough for a page of PromQL, little enough that no nesting of it is deep.
const QUERY: usize = 2_048;

/// Bytes of what a gate gives for a parameter.
const VALUE: usize = 256;

/// The label that confines.
const NAMESPACE: &str = "namespace";

/// How far back a query may reach with one selector, and the finest grid it may ask for.
pub const REACH: Duration = Duration::from_secs(24 * 3600);
/// Likewise, between two points.
pub const STEP: Duration = Duration::from_secs(1);
/// Points of one series.
pub const POINTS: u128 = 1_000;

/// Reads series that no selector names.
const READS_MORE: &str = "info";

/// A query that may be asked, once its parameters are filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    query: Expr,
    parameters: BTreeSet<String>,
}

impl Template {
    /// Parses what an author wrote.
    ///
    /// # Errors
    /// Why it is no query that a gate may ask.
    pub fn parse(promql: &str) -> Result<Self, String> {
        if promql.len() > QUERY {
            return Err(format!("has {} bytes, at most {QUERY} are taken", promql.len()));
        }
        let mut query = parse(promql)?;
        let mut parameters = BTreeSet::new();
        walk(&mut query, &mut |selector| {
            for matcher in &selector.matchers.matchers {
                pieces(&matcher.value, |piece| {
                    if let Piece::Parameter(name) = piece {
                        parameters.insert(name.to_owned());
                    }
                })?;
            }
            Ok(())
        })?;
        Ok(Self { query, parameters })
    }

    /// The query for one namespace, with its parameters.
    ///
    /// # Errors
    /// Where the parameters are not exactly those that it has, or too long.
    pub fn fill(&self, namespace: &str, given: &[(String, String)]) -> Result<String, String> {
        let names: BTreeSet<_> = given.iter().map(|(name, _)| name.clone()).collect();
        if let Some(unknown) = names.difference(&self.parameters).next() {
            return Err(format!("there is no parameter {unknown:?}"));
        }
        if let Some(missing) = self.parameters.difference(&names).next() {
            return Err(format!("the parameter {missing:?} is missing"));
        }
        if names.len() < given.len() {
            return Err("a parameter is given twice".into());
        }
        if let Some((long, value)) = given.iter().find(|(_, value)| value.len() > VALUE) {
            return Err(format!("the parameter {long:?} has {} bytes, at most {VALUE} are taken", value.len()));
        }
        let mut query = self.query.clone();
        walk(&mut query, &mut |selector| {
            for matcher in &mut selector.matchers.matchers {
                fill(matcher, given)?;
            }
            selector.matchers.matchers.push(Matcher::new(MatchOp::Equal, NAMESPACE, namespace));
            Ok(())
        })?;
        let text = query.to_string();
        confined(&text, namespace)?;
        Ok(text)
    }
}

/// Reads what was written once more: nothing is asked that the parser does not take for a query of one namespace.
fn confined(text: &str, namespace: &str) -> Result<(), String> {
    let mut query = parse(text)?;
    walk(&mut query, &mut |selector| {
        let fits =
            |matcher: &Matcher| matcher.name == NAMESPACE && matcher.op == MatchOp::Equal && matcher.value == namespace;
        if selector.matchers.matchers.iter().any(fits) {
            Ok(())
        } else {
            Err("is not confined to its namespace".into())
        }
    })?;
    if query.to_string() == text { Ok(()) } else { Err("is not understood in one way only".into()) }
}

fn fill(matcher: &mut Matcher, given: &[(String, String)]) -> Result<(), String> {
    let pattern = match matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => false,
        MatchOp::Re(_) | MatchOp::NotRe(_) => true,
    };
    let mut filled = String::new();
    pieces(&matcher.value, |piece| match piece {
        Piece::Text(text) => filled.push_str(text),
        Piece::Parameter(name) => {
            let value = given.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value);
            // Within a pattern, too, it means itself and nothing else.
            if pattern { filled.push_str(&regex_lite::escape(value)) } else { filled.push_str(value) }
        }
    })?;
    matcher.value = filled;
    Ok(())
}

/// What a label's value is made of.
enum Piece<'value> {
    Text(&'value str),
    Parameter(&'value str),
}

fn pieces<'value>(value: &'value str, mut each: impl FnMut(Piece<'value>)) -> Result<(), String> {
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) =
            after.split_once('}').ok_or_else(|| format!("{value:?} opens a parameter and does not close it"))?;
        let word = |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
        if name.is_empty() || !name.chars().all(word) {
            return Err(format!("the parameter {name:?} of {value:?} is not made of letters, digits, _ and -"));
        }
        each(Piece::Text(before));
        each(Piece::Parameter(name));
        rest = behind;
    }
    each(Piece::Text(rest));
    Ok(())
}

/// Shows every selector of `query` to `see`, wherever it stands.
fn walk(query: &mut Expr, see: &mut impl FnMut(&mut VectorSelector) -> Result<(), String>) -> Result<(), String> {
    match query {
        Expr::Aggregate(aggregate) => {
            if let Some(parameter) = &mut aggregate.param {
                walk(parameter, see)?;
            }
            walk(&mut aggregate.expr, see)
        }
        Expr::Unary(unary) => walk(&mut unary.expr, see),
        Expr::Binary(binary) => {
            walk(&mut binary.lhs, see)?;
            walk(&mut binary.rhs, see)
        }
        Expr::Paren(inner) => walk(&mut inner.expr, see),
        Expr::Subquery(subquery) => {
            within(subquery.range, subquery.offset.as_ref(), subquery.at.as_ref())?;
            if subquery.step.is_some_and(|step| step < STEP) {
                return Err(format!("looks more often than every {} s", STEP.as_secs()));
            }
            walk(&mut subquery.expr, see)
        }
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(()),
        Expr::VectorSelector(selector) => select(selector, Duration::ZERO, see),
        Expr::MatrixSelector(matrix) => select(&mut matrix.vs, matrix.range, see),
        Expr::Call(call) => {
            if call.func.name == READS_MORE {
                return Err(format!("the function {READS_MORE} is not taken: it reads series that no selector names"));
            }
            call.args.args.iter_mut().try_for_each(|argument| walk(argument, see))
        }
        Expr::Extension(_) => Err("is no PromQL".into()),
    }
}

fn select(
    selector: &mut VectorSelector,
    range: Duration,
    see: &mut impl FnMut(&mut VectorSelector) -> Result<(), String>,
) -> Result<(), String> {
    within(range, selector.offset.as_ref(), selector.at.as_ref())?;
    let Matchers { or_matchers, .. } = &selector.matchers;
    if !or_matchers.is_empty() {
        return Err("`or` between label matchers is no PromQL of Prometheus".into());
    }
    see(selector)
}

fn within(range: Duration, offset: Option<&Offset>, at: Option<&AtModifier>) -> Result<(), String> {
    let offset = match offset {
        None => Duration::ZERO,
        Some(Offset::Pos(offset) | Offset::Neg(offset)) => *offset,
    };
    if range.saturating_add(offset) > REACH {
        return Err(format!("reaches back more than {} h", REACH.as_secs() / 3600));
    }
    match at {
        None | Some(AtModifier::Start | AtModifier::End) => Ok(()),
        Some(AtModifier::At(_)) => Err("a fixed time (`@`) is not taken".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(promql: &str, given: &[(&str, &str)]) -> Result<String, String> {
        let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Template::parse(promql)?.fill("shop", &given)
    }

    #[test]
    fn every_selector_is_confined_wherever_it_stands() {
        for (promql, selectors) in [
            ("up", 1),
            ("sum by (pod) (rate(errors{code=~\"5..\"}[5m])) / sum(rate(requests[5m]))", 2),
            ("topk(scalar(count(up)), down)", 2),
            ("quantile(scalar(a), b)", 2),
            ("-(up)", 1),
            ("max_over_time(rate(a[1m])[10m:1m])", 1),
            ("a offset 5m and on (pod) b unless c", 3),
            ("label_replace(a, \"x\", \"${1}\", \"y\", \"(.*)\")", 1),
            ("{__name__=\"up\"}", 1),
            ("up{namespace=\"other\"}", 1),
            ("absent(a) or vector(1)", 1),
        ] {
            let text = filled(promql, &[]).unwrap_or_else(|error| panic!("{promql}: {error}"));
            assert_eq!(text.matches("namespace=\"shop\"").count(), selectors, "{promql} became {text}");
        }
    }

    #[test]
    fn a_parameter_stays_the_value_of_its_label() {
        for (value, written) in [
            ("pod-a", "pod-a"),
            ("\"} or up{", "\\\"} or up{"),
            ("a\\", "a\\\\"),
            ("\n", "\\n"),
            ("${other}", "${other}"),
            ("'`", "'`"),
        ] {
            let text = filled("up{pod=\"${pod}\"}", &[("pod", value)]).unwrap();
            assert_eq!(text, format!("up{{namespace=\"shop\",pod=\"{written}\"}}"));
        }
    }

    #[test]
    fn within_a_pattern_a_parameter_means_itself() {
        let text = filled("up{pod=~\"${pod}-.*\"}", &[("pod", ".*|a")]).unwrap();
        assert_eq!(text, "up{namespace=\"shop\",pod=~\"\\\\.\\\\*\\\\|a-.*\"}");
    }

    #[test]
    fn parameters_are_exactly_those_of_the_query() {
        let promql = "up{pod=\"${pod}\"}";
        for (given, wanted) in [
            (vec![], "\"pod\" is missing"),
            (vec![("pod", "a"), ("job", "b")], "no parameter \"job\""),
            (vec![("pod", "a"), ("pod", "b")], "given twice"),
        ] {
            let error = filled(promql, &given).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(filled(promql, &[("pod", &"x".repeat(VALUE))]).is_ok());
        assert!(filled(promql, &[("pod", &"x".repeat(VALUE + 1))]).is_err());
    }

    #[test]
    fn what_reads_too_much_or_is_no_query_is_refused() {
        for promql in [
            "",
            "up{",
            "${metric}",
            "up{pod=\"${\"}",
            "up{pod=\"${a b}\"}",
            "rate(a[25h])",
            "a offset 25h",
            "rate(a[23h] offset 2h)",
            "max_over_time(a[10m:100ms])",
            "a @ 1600000000",
            "info(a)",
            "a{b=\"c\" or d=\"e\"}",
            &format!("a{{b=\"{}\"}}", "x".repeat(QUERY)),
        ] {
            assert!(Template::parse(promql).is_err(), "{promql}");
        }
    }
}
