//! WASI 0.2 with everything denied: guests whose toolchain imports it run, and find no environment, no files, no
//! sockets and no names. Clocks are coarse, random is handed out in small pieces, and what is written to stdout and
//! stderr is a part of the trial's log.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{
    HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use super::trial::{LINE, SharedLog};
use crate::gate::{store::State, text};

/// Resources of one guest: streams, polls, errors.
const RESOURCES: usize = 1_000;

/// Bytes of random handed over in one call.
const RANDOM: u64 = 64 << 10;

/// What both clocks are rounded to: a finer one is of use to side channels only.
const RESOLUTION: Duration = Duration::from_millis(1);

/// Bytes of stderr that explain an error: the end of it, where the exception stands.
const TAIL: usize = 2 << 10;

/// Bytes that a guest may write at once.
const PERMIT: usize = 16 << 10;

/// What WASI needs of a store.
pub(in crate::gate) struct Wasi {
    context: WasiCtx,
    pub(super) table: ResourceTable,
    stdout: Output,
    stderr: Output,
}

impl Wasi {
    /// For a trial that keeps `limit` bytes of `log`.
    pub(in crate::gate) fn new(log: &SharedLog, limit: usize) -> Self {
        let (stdout, stderr) = (Output::new("info", log, limit), Output::new("warn", log, limit));
        let context = WasiCtx::builder()
            .stdout(stdout.clone())
            .stderr(stderr.clone())
            .max_random_size(RANDOM)
            .wall_clock(Wall)
            .monotonic_clock(Monotonic(Instant::now()))
            // As they are without being said; said all the same.
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        Self { context, table, stdout, stderr }
    }

    /// Ends what was written, and hands over the end of stderr as one printable line.
    pub(in crate::gate) fn end(&self) -> String {
        self.stdout.lock().end_line();
        let mut stderr = self.stderr.lock();
        stderr.end_line();
        text::end(String::from_utf8_lossy(&stderr.tail).trim_end(), TAIL)
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

/// stdout or stderr of a guest.
#[derive(Clone)]
struct Output(Arc<Mutex<Written>>);

struct Written {
    level: &'static str,
    log: SharedLog,
    limit: usize,
    /// The line that is not ended yet, up to what a line of log may have.
    line: Vec<u8>,
    tail: Vec<u8>,
}

impl Output {
    fn new(level: &'static str, log: &SharedLog, limit: usize) -> Self {
        let written = Written { level, log: log.clone(), limit, line: Vec::new(), tail: Vec::new() };
        Self(Arc::new(Mutex::new(written)))
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    fn take(&mut self, bytes: &[u8]) {
        let end = &bytes[bytes.len().saturating_sub(TAIL)..];
        self.tail.extend_from_slice(end);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        let mut lines = bytes.split(|byte| *byte == b'\n');
        // There is a first one, even of nothing.
        self.add(lines.next().unwrap_or_default());
        for line in lines {
            self.end_line();
            self.add(line);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = LINE.saturating_sub(self.line.len()).min(bytes.len());
        self.line.extend_from_slice(&bytes[..room]);
    }

    fn end_line(&mut self) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.log.lock().push(self.limit, self.level, &String::from_utf8_lossy(&line), &[]);
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.lock().take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The time of day, rounded.
struct Wall;

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn now(&self) -> Duration {
        rounded(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

/// The time since the trial began, rounded.
struct Monotonic(Instant);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        nanoseconds(RESOLUTION)
    }

    fn now(&self) -> u64 {
        nanoseconds(rounded(self.0.elapsed()))
    }
}

fn rounded(time: Duration) -> Duration {
    Duration::new(time.as_secs(), time.subsec_millis() * 1_000_000)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_tell_whole_milliseconds() {
        assert_eq!(rounded(Duration::from_nanos(1_999_999)), RESOLUTION);
        assert_eq!(Wall.now().subsec_nanos() % 1_000_000, 0);
        assert_eq!(Monotonic(Instant::now() - Duration::from_micros(2_345)).now() % 1_000_000, 0);
    }

    #[test]
    fn what_is_written_becomes_lines_of_the_log_and_the_end_of_stderr_is_kept() {
        let log = SharedLog::default();
        let wasi = Wasi::new(&log, 1 << 10);
        wasi.stdout.lock().take(b"one\ntw");
        wasi.stderr.lock().take(b"Traceback\n");
        wasi.stdout.lock().take(b"o\n\nthree");
        assert_eq!(wasi.end(), "Traceback");
        assert_eq!(log.take_lines(), ["info one", "warn Traceback", "info two", "info three"]);
    }

    #[test]
    fn a_flood_is_cut_and_only_its_end_explains() {
        let log = SharedLog::default();
        let wasi = Wasi::new(&log, 100);
        for _ in 0..1_000 {
            wasi.stderr.lock().take(&[b'x'; 10_000]);
        }
        wasi.stderr.lock().take(b"\n\x1b[31mthe end\n");
        let explained = wasi.end();
        assert!(explained.len() <= TAIL + 3 && explained.ends_with("\\u{1b}[31mthe end"), "{explained}");
        let lines = log.take_lines();
        assert!(lines.iter().map(String::len).sum::<usize>() < 200, "{lines:?}");
    }
}
