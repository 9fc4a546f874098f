//! `sluice:gate/trial`: what a gate may know of the upgrade, and what it leaves behind besides its verdict.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;
use wasmtime::Result;

use crate::{
    gate::{store::State, text},
    model::{
        grants::Side,
        trial::{Denial, Link, Measurement},
    },
};

/// Bytes of one line of log, fields included.
pub(super) const LINE: usize = 4 << 10;

/// Fields of one line, and bytes of each.
const FIELDS: usize = 32;
const FIELD: usize = 256;

/// Bytes of a link's title and of its URL.
const TITLE: usize = 64;
const URL: usize = 512;

/// Denied names kept, and bytes of each: enough to see what a gate is after.
const DENIALS: usize = 8;
const DENIED_NAME: usize = 128;

/// What a gate left behind so far. All of it is bounded.
#[derive(Debug, Default)]
pub(in crate::gate) struct Record {
    pub(in crate::gate) measurements: Vec<Measurement>,
    pub(in crate::gate) links: Vec<Link>,
    pub(in crate::gate) valid_for: Option<Duration>,
    pub(in crate::gate) denials: Vec<Denial>,
    pub(in crate::gate) answered: Vec<String>,
    pub(in crate::gate) log: SharedLog,
    pub(in crate::gate) requests: u32,
    pub(in crate::gate) unverified_tls: bool,
}

impl Record {
    /// Keeps a measurement, the last value of a name. Says so where it is not kept.
    pub(super) fn measure(&mut self, measurement: Measurement, limit: usize) -> Result<(), &'static str> {
        let numbers = [Some(measurement.value), measurement.threshold];
        if measurement.name.is_empty() || !text::is_name(&measurement.name) || !text::is_name(&measurement.unit) {
            Err("its name or unit is not made of letters, digits and _-./%")
        } else if numbers.iter().flatten().any(|number| !number.is_finite()) {
            Err("its value is not a finite number")
        } else if let Some(same) = self.measurements.iter_mut().find(|kept| kept.name == measurement.name) {
            *same = measurement;
            Ok(())
        } else if self.measurements.len() < limit {
            self.measurements.push(measurement);
            Ok(())
        } else {
            Err("there are too many")
        }
    }

    /// Keeps a link. Says so where it is not kept: a page is shown to people, so it has to be one.
    pub(super) fn link(&mut self, link: Link, limit: usize) -> Result<(), &'static str> {
        let web = link.url.starts_with("https://") || link.url.starts_with("http://");
        if !web || link.url.len() > URL || !link.url.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err("it is no http or https URL of at most 512 visible ASCII characters")
        } else if self.links.len() >= limit {
            Err("there are too many")
        } else {
            self.links.push(link);
            Ok(())
        }
    }

    /// Remembers that `name` was asked for and refused.
    pub(super) fn deny(&mut self, name: &str) {
        let name = text::cut(name, DENIED_NAME);
        if let Some(known) = self.denials.iter_mut().find(|known| known.target == name) {
            known.count = known.count.saturating_add(1);
        } else if self.denials.len() < DENIALS {
            self.denials.push(Denial { target: name, count: 1 });
        }
    }

    /// Remembers an endpoint that answered.
    pub(super) fn answered(&mut self, endpoint: &str) {
        if !endpoint.is_empty() && !self.answered.iter().any(|known| known == endpoint) {
            self.answered.push(endpoint.to_owned());
        }
    }
}

/// The log of a trial, held by its store and by the guest's stdout and stderr.
#[derive(Clone, Debug, Default)]
pub(in crate::gate) struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    pub(in crate::gate) fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines. Nothing is left in it.
    pub(in crate::gate) fn take_lines(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).into_lines()
    }
}

/// Lines up to a number of bytes; what is beyond is counted.
#[derive(Debug, Default)]
pub(in crate::gate) struct Log {
    lines: Vec<String>,
    bytes: usize,
    cut: usize,
    cut_bytes: usize,
}

impl Log {
    pub(super) fn push(&mut self, limit: usize, level: &str, message: &str, fields: &[(String, String)]) {
        if self.cut > 0 {
            // Once cut, always cut: a log with holes misleads.
            return self.count(message.len());
        }
        let level = match level {
            "debug" | "info" | "warn" | "error" => level,
            _ => "info",
        };
        let mut line = format!("{level} {}", text::cut(message, LINE));
        for (name, value) in fields.iter().take(FIELDS) {
            if line.len() >= LINE {
                break;
            }
            line.push_str(&format!(" {}={}", text::cut(name, FIELD), text::cut(value, FIELD)));
        }
        if self.bytes + line.len() > limit {
            return self.count(line.len());
        }
        self.bytes += line.len();
        self.lines.push(line);
    }

    fn count(&mut self, bytes: usize) {
        self.cut += 1;
        self.cut_bytes = self.cut_bytes.saturating_add(bytes);
    }

    /// The lines, and a last one that says how much was cut.
    fn into_lines(mut self) -> Vec<String> {
        if self.cut > 0 {
            self.lines.push(format!("warn {} more lines were cut, {} bytes", self.cut, self.cut_bytes));
        }
        self.lines
    }
}

impl State {
    fn note(&mut self, level: &str, message: &str, fields: &[(String, String)]) {
        self.record.log.lock().push(self.trial.limits.log, level, message, fields);
    }
}

/// The functions of the interface, in the contract's order and with its names.
impl State {
    pub(in crate::gate) async fn id(&mut self) -> Result<String> {
        self.enter().await?;
        Ok(self.trial.id.clone())
    }

    pub(in crate::gate) async fn phase(&mut self) -> Result<String> {
        self.enter().await?;
        Ok(self.trial.moment.as_str().to_owned())
    }

    pub(in crate::gate) async fn manifest(&mut self, side: Side) -> Result<Option<String>> {
        self.enter().await?;
        Ok(match side {
            Side::Candidate => self.trial.candidate.clone(),
            Side::Stable => self.trial.stable.clone(),
        })
    }

    /// Name and endpoints of each.
    pub(in crate::gate) async fn targets(&mut self) -> Result<Vec<(String, Vec<String>)>> {
        self.enter().await?;
        let inside = self.trial.targets.iter().map(|target| {
            (target.name.clone(), target.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect())
        });
        let outside = self.trial.grants.egress.iter().map(|egress| (egress.target(), Vec::new()));
        Ok(inside.chain(outside).collect())
    }

    pub(in crate::gate) async fn now(&mut self) -> Result<f64> {
        self.enter().await?;
        Ok(milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
    }

    pub(in crate::gate) async fn remaining(&mut self) -> Result<f64> {
        self.enter().await?;
        Ok(milliseconds(self.deadline.saturating_duration_since(Instant::now())))
    }

    pub(in crate::gate) async fn state(&mut self) -> Result<Option<Vec<u8>>> {
        self.enter().await?;
        Ok(self.trial.state.clone())
    }

    pub(in crate::gate) async fn sleep(&mut self, milliseconds: u32) -> Result<()> {
        self.enter().await?;
        tokio::time::sleep(Duration::from_millis(milliseconds.into())).await;
        Ok(())
    }

    pub(in crate::gate) async fn log(&mut self, level: &str, message: &str, fields: &[(String, String)]) -> Result<()> {
        self.enter().await?;
        self.note(level, message, fields);
        Ok(())
    }

    pub(in crate::gate) async fn measure(
        &mut self,
        name: String,
        value: f64,
        unit: String,
        threshold: Option<f64>,
    ) -> Result<()> {
        self.enter().await?;
        let measurement = Measurement { name: name.clone(), value, unit, threshold };
        if let Err(why) = self.record.measure(measurement, self.trial.limits.measurements) {
            self.note("warn", "a measurement was dropped", &[("name".into(), name), ("why".into(), why.into())]);
        }
        Ok(())
    }

    pub(in crate::gate) async fn valid_for(&mut self, milliseconds: u32) -> Result<()> {
        self.enter().await?;
        self.record.valid_for = Some(Duration::from_millis(milliseconds.into()));
        Ok(())
    }

    pub(in crate::gate) async fn link(&mut self, title: String, url: String) -> Result<()> {
        self.enter().await?;
        let link = Link { title: text::cut(&title, TITLE), url };
        if let Err(why) = self.record.link(link, self.trial.limits.links) {
            self.note("warn", "a link was dropped", &[("title".into(), title), ("why".into(), why.into())]);
        }
        Ok(())
    }
}

/// Whole milliseconds: a finer clock is of use to side channels only.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).floor()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(name: &str, value: f64) -> Measurement {
        Measurement { name: name.into(), value, unit: "ms".into(), threshold: None }
    }

    #[test]
    fn a_log_keeps_lines_up_to_its_limit_and_says_what_it_cut() {
        let mut log = Log::default();
        log.push(10, "info", "12345", &[]);
        assert_eq!(log.bytes, 10);
        log.push(10, "info", "", &[]);
        log.push(10, "info", "123", &[]);
        assert_eq!(log.into_lines(), ["info 12345", "warn 2 more lines were cut, 8 bytes"]);
    }

    #[test]
    fn a_line_stays_one_line_whatever_is_in_it() {
        let mut log = Log::default();
        log.push(1 << 10, "fatal\n", "a\nb", &[("k\n".into(), "v\u{1b}[0m".into())]);
        assert_eq!(log.into_lines(), ["info a\\nb k\\n=v\\u{1b}[0m"]);
    }

    #[test]
    fn the_last_value_of_a_name_wins_and_the_number_of_names_is_bounded() {
        let mut record = Record::default();
        assert_eq!(record.measure(measurement("p50", 1.0), 2), Ok(()));
        assert_eq!(record.measure(measurement("p95", 2.0), 2), Ok(()));
        assert_eq!(record.measure(measurement("p50", 3.0), 2), Ok(()));
        assert!(record.measure(measurement("p99", 4.0), 2).is_err());
        assert_eq!(record.measurements, [measurement("p50", 3.0), measurement("p95", 2.0)]);
    }

    #[test]
    fn a_measurement_that_is_no_number_or_has_no_name_is_not_kept() {
        let mut record = Record::default();
        for (name, value) in [("", 1.0), ("a b", 1.0), ("a\"", 1.0), ("a", f64::NAN), ("a", f64::INFINITY)] {
            assert!(record.measure(measurement(name, value), 8).is_err(), "{name} {value}");
        }
        assert_eq!(record.measurements, []);
    }

    #[test]
    fn links_are_pages_and_their_number_is_bounded() {
        let link = |url: &str| Link { title: "report".into(), url: url.into() };
        let mut record = Record::default();
        assert_eq!(record.link(link("https://reports.example.com/1"), 1), Ok(()));
        assert!(record.link(link("https://reports.example.com/2"), 1).is_err());
        for url in ["javascript:alert(1)", "ftp://a", "https://a b", "", &format!("https://{}", "a".repeat(512))] {
            assert!(record.link(link(url), 8).is_err(), "{url}");
        }
        assert_eq!(record.links, [link("https://reports.example.com/1")]);
    }

    #[test]
    fn denials_are_counted_by_name_and_their_names_are_bounded() {
        let mut record = Record::default();
        record.deny("localhost");
        record.deny("localhost");
        for number in 0..100 {
            record.deny(&format!("{number}\n{}", "x".repeat(1000)));
        }
        assert_eq!(record.denials[0], Denial { target: "localhost".into(), count: 2 });
        assert_eq!(record.denials.len(), DENIALS);
        assert!(record.denials.iter().all(|denial| denial.target.len() < 140 && !denial.target.contains('\n')));
    }
}
