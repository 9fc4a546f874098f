//! A line per step with the time it took; colour only on a terminal.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Width of the column that holds a step's name.
const NAME_WIDTH: usize = 64;

/// Runs a step and prints its line.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let step = Step::begin(name);
    let result = work();
    step.end(result.is_ok());
    result
}

/// A step whose line is begun and not yet ended.
#[must_use]
pub struct Step {
    name: String,
    began: Instant,
}

impl Step {
    /// Prints the name, so that one sees what is being waited for.
    pub fn begin(name: &str) -> Self {
        print!("  {name:<NAME_WIDTH$} ");
        // Without a newline, only a flush shows it; a closed output is found by the next line.
        let _ = stdout().flush();
        Self { name: name.to_owned(), began: Instant::now() }
    }

    /// Shows how far a long step has come; where there is no terminal the line stays as it is.
    pub fn note(&self, note: &str) {
        if stdout().is_terminal() {
            print!("\r  {:<NAME_WIDTH$} {note}", self.name);
            let _ = stdout().flush();
        }
    }

    /// Ends the line and returns the time the step took.
    pub fn end(self, ok: bool) -> Duration {
        let took = self.began.elapsed();
        if stdout().is_terminal() {
            print!("\r\x1b[K  {:<NAME_WIDTH$} ", self.name);
        }
        let verdict = if ok { paint("32", "ok") } else { paint("31", "FAILED") };
        println!("{:>7.1} s  {verdict}", took.as_secs_f64());
        took
    }
}

/// Colours a word where a person looks at it and has not asked for none.
pub fn paint(colour: &str, text: &str) -> String {
    if stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
