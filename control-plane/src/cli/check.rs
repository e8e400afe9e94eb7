//! `tandem check`: would this configuration start, and if not, what to change?

use std::process::ExitCode;

use super::print::say;
use crate::config::{Config, ConfigError, Database, SipListen};
use crate::settings::Layers;
use crate::sip;
use crate::sip::guard::SharedGuard;
use crate::trunk::{Inbound, ReferIn, Trunk};

/// Prints what was understood, or what is wrong; touches no socket and no database.
pub(super) fn run(layers: &Layers) -> ExitCode {
    for (name, nearest) in layers.unknown_variables() {
        say!("warning  {name} is read by no program; did you mean {nearest}?");
    }
    let config = match Config::from_layers(layers) {
        Ok(config) => config,
        Err(ConfigError::Tables(errors)) => {
            errors.iter().for_each(|error| say!("wrong    {error}"));
            return ExitCode::FAILURE;
        }
        Err(error) => {
            say!("wrong    {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = sip::check(&config.sip(SharedGuard::default())) {
        say!("wrong    {error}");
        return ExitCode::FAILURE;
    }
    match layers.path() {
        Some(path) => say!("file     {}", path.display()),
        None => say!("file     none: defaults, environment and flags"),
    }
    let sip: Vec<String> = config.sip_listen.iter().map(SipListen::to_string).collect();
    say!("sip      {} ({})", sip.join(", "), layers.origin("sip_listen"));
    say!("http     {} ({})", config.http_listen, layers.origin("http_listen"));
    match &config.database {
        Database::File(path) => say!("database {} (sqlite)", path.display()),
        Database::Memory => say!("database in memory: everything is forgotten at the end"),
    }
    say!("engines  {} ({})", config.engines.join(", "), layers.origin("engines"));
    say!(
        "limits   {} calls, {} s a call",
        config.limits.calls_max,
        config.limits.call_duration_max.as_secs()
    );
    tables(&config).iter().for_each(|line| say!("{line}"));
    if config.service_token.is_none() {
        say!("note     no service token: only processes on this machine may write conversations");
    }
    say!("ok       this configuration would start");
    ExitCode::SUCCESS
}

/// What the tables say, a line each, and what is strange about them. No secret is among it.
fn tables(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for tenant in &config.declared.tenants {
        let keys: Vec<&str> = tenant.keys.iter().map(|(id, _)| id.as_str()).collect();
        let keys = if keys.is_empty() { "no key".to_owned() } else { format!("keys {}", keys.join(", ")) };
        lines.push(format!("tenant   {} \"{}\": {keys}", tenant.tenant_id, tenant.name));
    }
    for assistant in &config.declared.assistants {
        let (tenant, id, kind) = (&assistant.tenant_id, &assistant.assistant_id, &assistant.kind);
        lines.push(format!("assist.  {id} of {tenant}: {kind}"));
    }
    config.trunks.iter().for_each(|trunk| lines.extend(trunk_lines(trunk)));
    let mut phones: Vec<_> = config.trunks.phones().collect();
    phones.sort_by(|a, b| a.user.cmp(&b.user));
    for phone in phones {
        let reaches = match &phone.assistant_id {
            Some(assistant) => format!("reaches {assistant}"),
            None => "reaches the assistant that it dials".to_owned(),
        };
        let (user, tenant) = (&phone.user, &phone.tenant_id);
        lines.push(format!("phone    {user} of {tenant}: {reaches}, {} contacts", phone.contacts_max));
    }
    for credential in config.credentials.iter() {
        let form = credential.provider.form;
        lines.push(format!("credent. {} of {}: {}", credential.name, credential.tenant_id, form.title));
        let fields = credential.values.shown(form);
        lines.extend(fields.iter().map(|(name, shown)| format!("           {name:<23} {shown}")));
    }
    for deployment in config.credentials.deployments() {
        let (name, provider) = (&deployment.credential.name, deployment.provider());
        let whom = deployment.assistant_id.as_deref().unwrap_or("every assistant");
        let phone = if deployment.phone.is_empty() { "no number of its own" } else { &deployment.phone };
        lines.push(format!("deploy.  {name} ({provider}) to {whom}: {phone}"));
        let base = config.public_url.clone().unwrap_or_else(|| format!("http://{}", config.http_listen));
        let assistant = deployment.assistant_id.as_deref().unwrap_or("ASSISTANT");
        let path = if deployment.places_calls() { format!("{provider}/call") } else { provider.to_owned() };
        lines.push(format!("           webhook                 {base}/v1/telephony/{path}/{assistant}"));
        let tenant_id = &deployment.credential.tenant_id;
        if let Some(id) = &deployment.assistant_id
            && !config.declared.has_assistant(tenant_id, id)
            && !config.demo
        {
            lines.push(format!(
                "note     deployment of {name}: assistant {id} of {tenant_id} is not in this file; the database must have it"
            ));
        }
    }
    if !config.credentials.deployments().is_empty() && !config.demo {
        match config.public_url.as_deref() {
            None => lines.push(
                "note     no public_url: providers must reach http_listen at its own address".to_owned(),
            ),
            Some(url) if url.starts_with("http://") => {
                lines.push(
                    "note     public_url is not https: providers send webhooks in the clear, if at all"
                        .to_owned(),
                );
            }
            Some(_) => {}
        }
    }
    for (owner, tenant, assistant) in config.trunks.assistants() {
        if !config.declared.has_assistant(&tenant, &assistant) && !config.demo {
            lines.push(format!(
                "note     {owner}: assistant {assistant} of {tenant} is not in this file; the database must have it"
            ));
        }
    }
    lines
}

fn trunk_lines(trunk: &Trunk) -> Vec<String> {
    let mut lines = vec![format!("trunk    {} of {}", trunk.name, trunk.tenant_id)];
    let mut line = |text: String| lines.push(format!("           {text}"));
    if let Some(hop) = trunk.credential.next_hop() {
        let user = trunk.credential.user().unwrap_or_else(|| "nobody".to_owned());
        let digest = match (&trunk.credential.sip_password, &trunk.credential.sip_realm) {
            (None, _) => "no password".to_owned(),
            (Some(_), None) => "password for any realm".to_owned(),
            (Some(_), Some(realm)) => format!("password for realm {realm}"),
        };
        line(format!("calls to     {} as {user}, {digest}", hop.as_str()));
        let outbound = &trunk.outbound;
        line(format!(
            "             {} calls/s, {} calls at once, rings {} s",
            outbound.calls_per_second,
            outbound.calls_max.map_or("unlimited".to_owned(), |max| max.to_string()),
            outbound.ring_timeout.as_secs()
        ));
        if !outbound.failover.is_empty() {
            line(format!("             then {}", outbound.failover.join(", ")));
        }
    }
    inbound_lines(&trunk.inbound).into_iter().for_each(&mut line);
    if trunk.registration.is_wanted {
        line(format!("registers    every {} s at most", trunk.registration.expires.as_secs()));
    }
    if let Some(timer) = trunk.session_timer {
        line(format!("session      refreshed within {} s, not below {} s", timer.expires_s, timer.min_se_s));
    }
    if trunk.transfer.refer_in == ReferIn::SameTrunk {
        line("transfer     the trunk may send our calls elsewhere (REFER)".to_owned());
    }
    if let Some(host) = &trunk.addresses.advertised_host {
        line(format!("sees us as   {host}"));
    }
    lines
}

fn inbound_lines(inbound: &Inbound) -> Vec<String> {
    let mut sources: Vec<String> = inbound.allow.iter().map(ToString::to_string).collect();
    sources.extend(inbound.tls_client.iter().map(|name| format!("certificate {name}")));
    if sources.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        format!("calls from   {}", sources.join(", ")),
        format!(
            "             {} calls/s, {} calls at once, then {}",
            inbound.calls_per_second,
            inbound.calls_max.map_or("unlimited".to_owned(), |max| max.to_string()),
            if inbound.busy_when_full { 486 } else { 503 }
        ),
    ];
    for route in &inbound.routes {
        lines.push(format!("             {} -> {}", route.did, route.assistant_id));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn summary_shows_every_table_and_no_secret() {
        let text = "[[tenant]]\nid = 'acme'\n[[tenant.key]]\nid = 'ops'\nkey = 'hunter2-hunter2-hunter2'\n\
                    [[assistant]]\nid = 'desk'\nagent = 'echo'\n\
                    [[phone]]\nuser = '200'\npassword = 'hunter2-hunter2'\nassistant = 'desk'\n\
                    [[trunk]]\nname = 'carrier'\nsip_uri = 'sip:42@carrier.example'\nsip_password = 'hunter2'\n\
                    [trunk.inbound]\nallow = ['192.0.2.0/28']\n[[trunk.inbound.route]]\ndid = '+4930*'\n\
                    assistant = 'nobody'\n\
                    [credential.main]\nprovider = 'plivo'\nauth_id = 'MA1'\nauth_token = 'hunter2'\n\
                    [[deployment]]\ncredential = 'main'\nassistant = 'dsk'\n";
        let layers = Layers::default().with_file(Path::new("tandem.toml"), text).unwrap();
        let config = Config::from_layers(&layers).unwrap();
        let lines = tables(&config).join("\n");
        for said in [
            "tenant   acme \"acme\": keys ops",
            "assist.  desk of acme: echo",
            "trunk    carrier of acme",
            "calls to     sip:carrier.example as 42, password for any realm",
            "calls from   192.0.2.0/28",
            "4930* -> nobody",
            "phone    200 of acme: reaches desk, 4 contacts",
            "assistant nobody of acme is not in this file",
            "webhook                 http://127.0.0.1:8080/v1/telephony/plivo/call/dsk",
            "assistant dsk of acme is not in this file",
            "no public_url",
            "credent. main of acme: Plivo",
            "auth_id                 MA1",
            "auth_token              (set)",
        ] {
            assert!(lines.contains(said), "{said} is not in\n{lines}");
        }
        assert!(!lines.contains("hunter2"));
    }
}
