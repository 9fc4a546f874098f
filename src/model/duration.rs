//! Durations as Go and Kubernetes write them: `300ms`, `1m30s`.

use std::time::Duration;

/// Parses a duration.
///
/// # Errors
/// Says what is not understood.
pub fn parse(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text.parse().map_err(|error| format!("{text:?} is not a duration: {error}"))?;
    Duration::try_from(signed).map_err(|_| format!("{text:?} is negative"))
}
