//! Numbers of bytes as Kubernetes writes them: `64Mi`, `1Gi`, `1048576`.

/// The suffixes that are understood, and what they stand for.
const UNITS: [(&str, u64); 3] = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];

/// Parses a whole number of bytes.
///
/// # Errors
/// Says what is not understood.
pub fn bytes(text: &str) -> Result<u64, String> {
    let unit = UNITS.into_iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is not a number of bytes: write 64Mi, 1Gi or 1048576"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_kubernetes_writes_them() {
        for (text, wanted) in [("0", 0), ("1048576", 1 << 20), ("8Ki", 8 << 10), ("64Mi", 64 << 20), ("2Gi", 2 << 30)] {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_bytes_is_named_in_the_error() {
        for text in ["", "Mi", "-1", "+1", "1.5Gi", "64MB", "64 Mi", "99999999999Gi"] {
            let error = bytes(text).expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
