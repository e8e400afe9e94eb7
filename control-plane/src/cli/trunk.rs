//! `tandem trunk …`: how trunks stand, and what is agreed with them.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tandem_api::v1::trunk_service_client::TrunkServiceClient;
use tandem_api::v1::{CheckStep, CheckTrunkRequest, GetTrunkRequest, ListTrunksRequest, Trunk};

use super::client::{ClientError, Service, ServiceArgs, print_json};
use super::print::say;
use crate::http::view;
use crate::settings::Layers;

/// `tandem trunk`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem trunk list
  tandem trunk show carrier
  tandem trunk check carrier                       OPTIONS, password, registration; no call
  tandem trunk check carrier --to +4930123456      and one call of about ten seconds, which may cost money

`check` exits with 0 only when no step has failed. The API key is read from TANDEM_API_KEY.")]
pub struct TrunkArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(subcommand)]
    verb: TrunkVerb,
}

#[derive(Debug, Subcommand)]
enum TrunkVerb {
    /// All trunks: do they answer, are we registered?
    List,
    /// One trunk
    Show {
        /// As tandem.toml names it
        name: String,
    },
    /// Tries what a call needs, step by step, and shows what the trunk sees of us
    Check {
        /// As tandem.toml names it
        name: String,
        /// A number or SIP URI that answers, for the steps that need a call
        #[arg(long, value_name = "NUMBER")]
        to: Option<String>,
    },
}

impl TrunkArgs {
    /// Asks the service and prints what it says. `false`: a step of the check has failed.
    pub async fn run(self, layers: &Layers) -> Result<bool, ClientError> {
        let service = Service::connect(&self.service, layers).await?;
        let mut client = TrunkServiceClient::new(service.channel());
        let json = self.service.is_json();
        match self.verb {
            TrunkVerb::List => {
                let answer = client.list_trunks(service.request(ListTrunksRequest {})?).await;
                let trunks = answer.map_err(|status| service.refused(status))?.into_inner().trunks;
                if json {
                    print_json(&json!({ "trunks": trunks.iter().map(trunk_json).collect::<Vec<_>>() }));
                } else {
                    print_list(&trunks);
                }
                Ok(true)
            }
            TrunkVerb::Show { name } => {
                let answer = client.get_trunk(service.request(GetTrunkRequest { name })?).await;
                let trunk = answer.map_err(|status| no_trunk(&service, status))?.into_inner();
                if json {
                    print_json(&trunk_json(&trunk))
                } else {
                    print_trunk(&trunk)
                }
                Ok(true)
            }
            TrunkVerb::Check { name, to } => {
                let request = CheckTrunkRequest { name, to: to.unwrap_or_default() };
                let answer = client.check_trunk(service.request(request)?).await;
                let mut steps = answer.map_err(|status| no_trunk(&service, status))?.into_inner();
                let mut is_good = true;
                let mut all = Vec::new();
                while let Some(step) = steps.message().await.map_err(|status| service.refused(status))? {
                    is_good &= step.verdict != "fail";
                    if json { all.push(step_json(&step)) } else { print_step(&step) }
                }
                if json {
                    print_json(&json!({ "passed": is_good, "steps": all }));
                }
                Ok(is_good)
            }
        }
    }
}

/// A trunk that is not there is no call that is not there.
fn no_trunk(service: &Service, status: tonic::Status) -> ClientError {
    match status.code() {
        tonic::Code::NotFound => ClientError::NoTrunk(status.message().to_owned()),
        _ => service.refused(status),
    }
}

fn print_list(trunks: &[Trunk]) {
    say!("{:20}  {:9}  {:>7}  {:13}  address", "trunk", "state", "rtt", "registration");
    for trunk in trunks {
        let health = trunk.health.clone().unwrap_or_default();
        let registration =
            trunk.registration.as_ref().map_or("-", |registration| registration.state.as_str());
        let rtt = if health.rtt_ms > 0.0 { format!("{:.0} ms", health.rtt_ms) } else { "-".to_owned() };
        let address = if trunk.address.is_empty() { "(it only calls us)" } else { &trunk.address };
        say!("{:20}  {:9}  {rtt:>7}  {registration:13}  {address}", trunk.name, health.state);
    }
}

fn print_trunk(trunk: &Trunk) {
    say!("trunk         {}", trunk.name);
    say!("address       {}", if trunk.address.is_empty() { "-" } else { &trunk.address });
    say!("account       {}", if trunk.account.is_empty() { "-" } else { &trunk.account });
    say!(
        "failover      {}",
        if trunk.failover.is_empty() { "-".to_owned() } else { trunk.failover.join(", ") }
    );
    if let Some(health) = &trunk.health {
        let since =
            view::timestamp(health.since_ms).map(|since| format!(" since {since}")).unwrap_or_default();
        say!("state         {}{since}", health.state);
        if health.rtt_ms > 0.0 {
            say!("answers in    {:.1} ms", health.rtt_ms);
        }
        if !health.detail.is_empty() {
            say!("trouble       {}", health.detail);
        }
    }
    let Some(registration) = &trunk.registration else {
        say!("registration  none: it has no [trunk.registration] table");
        return;
    };
    say!("registration  {}", registration.state);
    if !registration.detail.is_empty() {
        say!("trouble       {}", registration.detail);
    }
    for (name, at_ms) in [("until", registration.registered_until_ms), ("next", registration.next_ms)] {
        if let Some(at) = view::timestamp(at_ms) {
            say!("{name:13} {at}");
        }
    }
}

fn print_step(step: &CheckStep) {
    say!("{:7}  {:14}  {} ({} ms)", step.verdict, step.name, step.detail, step.took_ms);
    if !step.advice.is_empty() {
        say!("{:7}  {:14}  → {}", "", "", step.advice);
    }
}

fn trunk_json(trunk: &Trunk) -> Value {
    let health = trunk.health.clone().unwrap_or_default();
    let registration = trunk.registration.as_ref().map(|registration| {
        json!({
            "state": registration.state,
            "detail": registration.detail,
            "sipStatus": registration.sip_status,
            "nextMs": registration.next_ms,
            "registeredUntilMs": registration.registered_until_ms,
        })
    });
    json!({
        "name": trunk.name,
        "address": trunk.address,
        "account": trunk.account,
        "failover": trunk.failover,
        "health": {
            "state": health.state,
            "detail": health.detail,
            "rttMs": health.rtt_ms,
            "sinceMs": health.since_ms,
        },
        "registration": registration,
    })
}

fn step_json(step: &CheckStep) -> Value {
    json!({
        "name": step.name,
        "verdict": step.verdict,
        "detail": step.detail,
        "advice": step.advice,
        "tookMs": step.took_ms,
    })
}
