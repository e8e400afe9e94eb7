//! `tandem serve` and `tandem talker`: run until a signal, then end in order.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use crate::app::App;
use crate::config::Config;
use crate::settings::Layers;
use crate::telemetry;

/// Threads of the control plane. One: the tasks of a call wake each other many times, and across threads each time costs two
/// system calls. What takes long (the database, files) has threads of its own.
const CONTROL_THREADS: usize = 1;
/// Threads of the voice agent.
const TALKER_THREADS: usize = 2;

/// The control plane.
pub(super) fn serve(layers: &Layers) -> Result<ExitCode, CliError> {
    let config = Config::from_layers(layers)?;
    start_logs(layers);
    runtime(CONTROL_THREADS)?.block_on(async {
        let stopped = stopped()?;
        let app = App::start(config).await?;
        println!("tandem serve: ready on http://{}", app.http_addr());
        stopped.await;
        tracing::info!("shutting down: live calls get a BYE");
        app.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// The voice agent alone.
pub(super) fn talker(layers: &Layers) -> Result<ExitCode, CliError> {
    let config = voice_agent::Config::from_settings(|name| layers.variable(name))
        .map_err(|error| CliError::Talker(error.to_string()))?;
    start_logs(layers);
    runtime(TALKER_THREADS)?.block_on(async {
        let stopped = stopped()?;
        voice_agent::run(config, stopped).await.map_err(|error| CliError::Talker(error.to_string()))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn start_logs(layers: &Layers) {
    telemetry::start(layers.text("log").unwrap_or("info"));
    for (name, nearest) in layers.unknown_variables() {
        tracing::warn!(%name, %nearest, "a variable that no program reads; did you mean the nearest?");
    }
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)
}

/// Resolves with the first SIGINT or SIGTERM; a second one ends the process at once, as people expect.
fn stopped() -> Result<impl Future<Output = ()>, CliError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match stop.take() {
                Some(stop) => drop(stop.send(())),
                None => std::process::exit(130),
            }
        }
    });
    Ok(async move {
        // The sender lives as long as the runtime.
        let _ = stopped.await;
    })
}
