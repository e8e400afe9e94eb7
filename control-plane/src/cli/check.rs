//! `tandem check`: would this configuration start, and if not, what to change?

use std::process::ExitCode;

use crate::config::{Config, Database, SipListen};
use crate::settings::Layers;

/// Prints what was understood, or what is wrong; touches no socket and no database.
pub(super) fn run(layers: &Layers) -> ExitCode {
    for (name, nearest) in layers.unknown_variables() {
        println!("warning  {name} is read by no program; did you mean {nearest}?");
    }
    let config = match Config::from_layers(layers) {
        Ok(config) => config,
        Err(error) => {
            println!("wrong    {error}");
            return ExitCode::FAILURE;
        }
    };
    match layers.path() {
        Some(path) => println!("file     {}", path.display()),
        None => println!("file     none: defaults, environment and flags"),
    }
    let sip: Vec<String> = config.sip_listen.iter().map(SipListen::to_string).collect();
    println!("sip      {} ({})", sip.join(", "), layers.origin("sip_listen"));
    println!("http     {} ({})", config.http_listen, layers.origin("http_listen"));
    match &config.database {
        Database::File(path) => println!("database {} (sqlite)", path.display()),
        Database::Memory => println!("database in memory: everything is forgotten at the end"),
    }
    println!("engines  {} ({})", config.engines.join(", "), layers.origin("engines"));
    println!(
        "limits   {} calls, {} s a call",
        config.limits.calls_max,
        config.limits.call_duration_max.as_secs()
    );
    if config.service_token.is_none() {
        println!("note     no service token: only processes on this machine may write conversations");
    }
    println!("ok       this configuration would start");
    ExitCode::SUCCESS
}
