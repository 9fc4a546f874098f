//! Durations as Go and Kubernetes write them: `300ms`, `1m30s`.

use std::time::Duration;

/// Parses a duration. Larger units come first (`1m30s`, not `30s1m`), and only the last one may have a fraction.
///
/// # Errors
/// Says what is not understood.
pub fn parse(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|error| format!("{text:?} is not a duration: {error}"))?;
    Duration::try_from(signed).map_err(|_| format!("{text:?} is negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, milliseconds) in
            [("0s", 0), ("300ms", 300), ("5s", 5_000), ("1.5s", 1_500), ("1m30s", 90_000), ("168h", 604_800_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_named_in_the_error() {
        for text in ["", "5", "abc", "30s1m", "5 parsecs"] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("is not a duration"), "{error}");
        }
        assert_eq!(parse("-5s"), Err("\"-5s\" is negative".into()));
    }
}
