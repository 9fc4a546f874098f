//! What strangers write, and what has to hold of it whatever they write: one function for each target of `tests/fuzz`, which
//! takes any bytes and panics where a promise is broken. In tests and under a fuzzer only.
//!
//! | target | bytes of |
//! |---|---|
//! | `component` | a plugin: checked, compiled, linked, asked what it is |
//! | `answer` | a guest: its verdicts, descriptions, schemas, problems, logs, links |
//! | `image` | a registry: manifests, configurations, signatures, challenges, redirects; a tenant: names of images |
//! | `authority` | a guest that asks for a target: what is sent, and who is dialled; a tenant that asks for a host outside |
//!
//! Targets have no format of their own: the same bytes stand in every place they can come to. So seeds are what strangers
//! really write, as files that people can read.

pub use crate::{
    gate::fuzzing::{answer, authority, component},
    gateplugin::fuzzing::image,
};

/// A stranger's words on their way to people: on one line, nothing that a terminal or a reader obeys, and about `limit`
/// bytes, beside what the last character is escaped as and what shows the cut.
#[track_caller]
pub(crate) fn assert_shown(text: &str, limit: usize) {
    const BEYOND: usize = "\\u{2028}\u{2026}".len();
    assert!(text.len() <= limit + BEYOND, "{} bytes, not {limit}: {text:?}", text.len());
    let obeyed = |character: char| {
        character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(obeyed), "{text:?}");
}

/// Text of any bytes, and the first line of it with what is left.
pub(crate) fn lines(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// The corpora that fuzzing left, minimised, and what else is worth a file.
#[cfg(test)]
mod tests {
    use std::{fs, panic, path::Path};

    #[track_caller]
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "nothing in {}", folder.display());
        let broken = files.iter().filter(|file| {
            let bytes = fs::read(file).unwrap();
            panic::catch_unwind(|| run(&bytes)).is_err()
        });
        let broken: Vec<_> = broken.collect();
        assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn any_bytes_as_a_component() {
        replay("component", super::component);
    }

    #[test]
    fn any_bytes_as_a_guests_answer() {
        replay("answer", super::answer);
    }

    #[test]
    fn any_bytes_of_a_registry() {
        replay("image", super::image);
    }

    #[test]
    fn any_bytes_as_who_is_asked() {
        replay("authority", super::authority);
    }
}
