//! Text written by a guest or another stranger on its way to people: bounded, on one line, and nothing a terminal obeys.

/// `text` on one line, control characters shown as escapes, cut to about `limit` bytes with `…` at the end.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if out.len() >= limit {
            out.push('…');
            break;
        }
        push(&mut out, character);
    }
    out
}

/// The end of `text`, shown like that and at most `limit` bytes long beside the `…` before it.
pub(super) fn end(text: &str, limit: usize) -> String {
    let mut out = String::new();
    text.chars().for_each(|character| push(&mut out, character));
    let beyond = out.ceil_char_boundary(out.len().saturating_sub(limit));
    if beyond > 0 {
        out.replace_range(..beyond, "…");
    }
    out
}

fn push(out: &mut String, character: char) {
    if character.is_control() || is_layout(character) {
        out.extend(character.escape_default());
    } else {
        out.push(character);
    }
}

/// Characters that end a line or reorder what people read.
fn is_layout(character: char) -> bool {
    matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A reason code as Kubernetes conditions take it: a CamelCase word of at most 64 letters and digits.
pub(super) fn is_code(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_uppercase())
        && text.chars().all(|character| character.is_ascii_alphanumeric())
}

/// The name or unit of a measurement: at most 32 letters, digits and `_ - . / %`.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 32 && text.chars().all(|character| character.is_ascii_alphanumeric() || "_-./%".contains(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_within_the_limit_stays_as_it_is_and_longer_text_is_cut() {
        assert_eq!(cut("12345", 5), "12345");
        assert_eq!(cut("123456", 5), "12345…");
    }

    #[test]
    fn the_end_of_a_text_is_kept_whole() {
        assert_eq!(end("12345", 5), "12345");
        assert_eq!(end("123456", 5), "…23456");
        assert_eq!(end("aüb", 2), "…b");
        assert_eq!(end("a\n", 5), "a\\n");
    }

    #[test]
    fn what_a_terminal_or_a_reader_would_obey_is_escaped() {
        assert_eq!(cut("a\r\n\u{1b}[2J\u{2028}\u{202e}b", 100), "a\\r\\n\\u{1b}[2J\\u{2028}\\u{202e}b");
    }

    #[test]
    fn codes_are_words() {
        assert!(is_code("LatencyAboveThreshold") && is_code("H2"));
        for wrong in ["", "latency", "Latency above", "A\n", "1A", &"A".repeat(65)] {
            assert!(!is_code(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn measurements_have_plain_names() {
        assert!(is_name("p99") && is_name("req/s") && is_name(""));
        assert!(!is_name("a\"b") && !is_name("a\nb") && !is_name(&"a".repeat(33)));
    }
}
