//! A line of a figure's table: what was measured, in what, and what it must not miss.

use serde::Serialize;

/// One line of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it must reach; nothing where it is only reported.
    pub target: Option<f64>,
    /// Whether it does.
    pub ok: bool,
}

impl Row {
    /// At most so many.
    pub fn at_most(name: &'static str, value: f64, unit: &'static str, target: f64) -> Self {
        Self { name, value, unit, target: Some(target), ok: value <= target }
    }

    /// At least so many.
    pub fn at_least(name: &'static str, value: f64, unit: &'static str, target: f64) -> Self {
        Self { name, value, unit, target: Some(target), ok: value >= target }
    }

    /// However many.
    pub fn reported(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit, target: None, ok: true }
    }

    /// The line that a person reads under [`heading`].
    pub fn line(&self) -> String {
        let target = self.target.map_or_else(|| "-".to_owned(), number);
        let verdict = if self.ok { "" } else { "  MISSED" };
        format!("{:<34} {:>8} {target:>8}  {}{verdict}", self.name, number(self.value), self.unit)
    }
}

/// The line above the rows.
pub fn heading(figure: &str) -> String {
    format!("{figure:<34} {:>8} {:>8}  unit", "value", "target")
}

/// A count, which is far below what a float holds exactly.
#[allow(clippy::cast_precision_loss)]
pub fn count(number: usize) -> f64 {
    number as f64
}

/// The value that so many hundredths of them do not exceed; not a number where there are none.
pub fn percentile(values: &[f64], hundredths: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (values.len() * hundredths).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or(f64::NAN)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_target_is_met() {
        let rows = [
            (Row::at_most("writes", 22.0, "writes", 22.0), true),
            (Row::at_most("writes", 22.5, "writes", 22.0), false),
            (Row::at_most("nothing measured", f64::NAN, "ms", 300.0), false),
            (Row::at_least("passes", 100.0, "of 100", 100.0), true),
            (Row::at_least("passes", 99.0, "of 100", 100.0), false),
            (Row::reported("floor", 21.3, "s"), true),
        ];
        for (row, ok) in rows {
            assert_eq!(row.ok, ok, "{row:?}");
        }
    }

    #[test]
    fn a_line_shows_whole_numbers_whole_and_what_is_missed() {
        let line = |row: Row| row.line().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line(Row::at_most("writes", 23.0, "writes", 22.0)), "writes 23 22 writes MISSED");
        assert_eq!(line(Row::reported("floor_s", 21.318, "s")), "floor_s 21.32 - s");
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert_eq!(percentile(&[3.0, 1.0, 2.0], 50), 2.0);
        assert_eq!(percentile(&[4.0, 1.0, 3.0, 2.0], 50), 2.0);
        assert_eq!(percentile(&[4.0, 1.0, 3.0, 2.0], 99), 4.0);
        assert!(percentile(&[], 50).is_nan());
    }
}
