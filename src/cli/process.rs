//! What commands share that run until they are told to stop: logs, listeners, signals, and the end of all parts with one.

use std::{future::Future, net::SocketAddr};

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::telemetry::{self, LogFormat};

/// Where the gate host listens and the operator finds it, unless they are told otherwise.
pub(super) const SOCKET: &str = "/run/sluice/gate-host.sock";

/// How a process that runs on tells what it does.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// How log lines are written
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t, help_heading = "Telemetry")]
    log_format: LogFormat,

    /// What is logged: a level, or directives such as info,sluice=debug
    #[arg(long, env = "SLUICE_LOG", default_value = "info", value_name = "FILTER", help_heading = "Telemetry")]
    log: String,
}

impl Log {
    /// From here on, the process logs.
    pub(super) fn start(&self) -> Result<(), Failure> {
        telemetry::log(self.log_format, &self.log).map_err(|error| {
            Failure::new(format!("--log {:?} is not understood", self.log), error).next("write --log info,sluice=debug")
        })
    }
}

/// Where to listen: `:8080` is every address of this machine, as in Kong's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BindAddress(pub(super) Vec<SocketAddr>);

impl std::str::FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let texts = match text.strip_prefix(':') {
            // The first takes IPv4 too; the second is for machines without IPv6.
            Some(port) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
            None => vec![text.to_owned()],
        };
        let addresses: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
        addresses.map(Self).map_err(|_| "write :8080, 127.0.0.1:8080 or [::1]:8080".to_owned())
    }
}

/// Runs `work` on as many threads as there are CPUs.
pub(super) fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new("the threads of this process cannot be started", error))?;
    let ended = runtime.block_on(work);
    // The end of the process is not for a name to wait for that somebody still looks up.
    runtime.shutdown_background();
    ended
}

pub(super) async fn bind(flag: &str, address: &BindAddress) -> Result<TcpListener, Failure> {
    telemetry::bind(&address.0).await.map_err(|error| {
        Failure::new(format!("{flag} {} cannot be listened on", address.0[0]), error)
            .next(format!("name a free port with {flag}"))
    })
}

pub(super) async fn serve(
    listener: TcpListener,
    routes: axum::Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    telemetry::serve(listener, routes, shutdown).await.context("a listener broke")
}

pub(super) fn end_on_signals(shutdown: &CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "what is under way is finished, then this process ends");
        shutdown.cancel();
    });
    Ok(())
}

/// No part ends by itself: whatever does so before shutdown takes the rest with it, and the process is started afresh.
pub(super) async fn run_to_the_end(
    mut tasks: JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> Result<(), Failure> {
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        let cause = match ended {
            Ok(Ok(())) if shutdown.is_cancelled() => continue,
            Ok(Ok(())) => anyhow!("a part of it ended by itself"),
            Ok(Err(error)) => error,
            Err(panicked) => panicked.into(),
        };
        shutdown.cancel();
        failure.get_or_insert(cause);
    }
    failure.map_or(Ok(()), |cause| Err(Failure::new("this process cannot go on", cause)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_every_address() {
        let BindAddress(addresses) = ":8080".parse().expect("an address");
        assert!(addresses.iter().all(|address| address.ip().is_unspecified() && address.port() == 8080));
        assert_eq!("127.0.0.1:1".parse(), Ok(BindAddress(vec![([127, 0, 0, 1], 1).into()])));
        assert!("8080".parse::<BindAddress>().is_err());
    }

    #[tokio::test]
    async fn one_end_is_the_end_of_all() {
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Err(anyhow!("broken")) });
        let other = shutdown.clone();
        tasks.spawn(async move {
            other.cancelled().await;
            Ok(())
        });
        let failure = run_to_the_end(tasks, &shutdown).await.expect_err("a failure");
        assert!(failure.to_string().contains("broken"), "{failure}");
    }
}
