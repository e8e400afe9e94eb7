//! `tandem call …` and `tandem conversation …`: gRPC clients of a running service.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_api::v1::conversation_service_client::ConversationServiceClient;
use tandem_api::v1::refusal_service_client::RefusalServiceClient;
use tandem_api::v1::talk_service_client::TalkServiceClient;
use tandem_api::v1::{
    AssistantDefinition, Call, Conversation, CreatePhoneCallRequest, DecisionStep, Ending, GetCallRequest,
    GetConversationRequest, GetRefusalRequest, HangUpCallRequest, HoldCallRequest, JoinCallRequest,
    JoinCallsRequest, JoinRole, ListCallsRequest, ListRefusalsRequest, RefusedCall, TransferCallRequest,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::print::say;
use crate::http::view;
use crate::settings::Layers;

/// Where the service is and who asks.
#[derive(Debug, Clone, Args)]
pub(super) struct ServiceArgs {
    /// The service [default: the HTTP listener of the settings]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
}

/// `tandem call`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem call list --live
  tandem call show 01938a2e-7c5b-7d6e-9f00-1234567890ab --json
  tandem call explain 01938a2e-7c5b-7d6e-9f00-1234567890ab
  tandem call refused
  tandem call hangup 01938a2e-7c5b-7d6e-9f00-1234567890ab
  tandem call place --assistant desk --credential twilio-main --to +4930222 --wait
  tandem call place --assistant desk --trunk carrier --from +4930111 --to +4930222 --arg name=Anna --wait
  tandem call transfer 01938a2e-7c5b-7d6e-9f00-1234567890ab --to +4930333
  tandem call join 01938a2e-7c5b-7d6e-9f00-1234567890ab 01938a2f-0b11-7a52-8c00-ba0987654321

The API key is read from TANDEM_API_KEY (or api_key in tandem.toml), so that it stands in no process list.
With `tandem up --demo` it is demo-key. Refused calls that are nobody's are shown to the operator: the service
token is read from TANDEM_SERVICE_TOKEN or the state folder; without one it is enough to be on the same machine.")]
pub struct CallArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(subcommand)]
    verb: CallVerb,
}

#[derive(Debug, Subcommand)]
enum CallVerb {
    /// Live calls, then past ones, newest first
    List {
        /// Only live calls
        #[arg(long)]
        live: bool,
        /// How many at most
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// One call: state, times, media
    Show {
        /// As `call list` prints it
        call_id: String,
    },
    /// Why a call was refused or ended: each rule that was asked, and what it said
    Explain {
        /// As `call list` and `call refused` print it, X-Tandem-Call-ID in the response, or call_id in the log
        call_id: String,
    },
    /// The latest calls that were refused before they were anybody's
    Refused {
        /// How many at most
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
    /// Places a call over a trunk, or by a telephony provider, and prints its id
    Place(Box<PlaceArgs>),
    /// Hands the other side of a connected call on (REFER)
    Transfer {
        /// As `call list` prints it
        call_id: String,
        /// A number or a SIP URI: a blind transfer
        #[arg(
            long,
            value_name = "NUMBER|URI",
            required_unless_present = "to_call",
            conflicts_with = "to_call"
        )]
        to: Option<String>,
        /// Another live call whose other side takes over: an attended transfer
        #[arg(long, value_name = "CALL")]
        to_call: Option<String>,
    },
    /// Calls somebody and adds them to a connected call; without --to, gives who was added another role. With another call,
    /// puts the other sides of the two through to each other, and that call ends
    Join {
        /// As `call list` prints it
        call_id: String,
        /// Another connected call
        #[arg(value_name = "OTHER_CALL_ID", conflicts_with_all = ["role", "to", "trunk"])]
        other_call_id: Option<String>,
        /// Who hears whom
        #[arg(long, value_enum, required_unless_present = "other_call_id")]
        role: Option<Role>,
        /// Whom: phone:USER is a phone that registers with us
        #[arg(long, value_name = "NUMBER|URI|phone:USER")]
        to: Option<String>,
        /// Over which trunk; the call's own if not given
        #[arg(long)]
        trunk: Option<String>,
    },
    /// Puts the other side of a connected call on hold
    Hold {
        /// As `call list` prints it
        call_id: String,
    },
    /// Takes the other side back from hold
    Resume {
        /// As `call list` prints it
        call_id: String,
    },
    /// Ends a live call with a BYE
    Hangup {
        /// As `call list` prints it
        call_id: String,
    },
}

/// `tandem call place`.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// Who talks
    #[arg(long)]
    assistant: String,
    /// Whom to call: a number or a SIP URI
    #[arg(long, value_name = "NUMBER|URI")]
    to: String,
    /// The number that the callee sees [default: the trunk's caller id]
    #[arg(long, value_name = "NUMBER", default_value = "", hide_default_value = true)]
    from: String,
    /// Over which trunk [default: the only one]
    #[arg(long, default_value = "", hide_default_value = true)]
    trunk: String,
    /// By which credential of a telephony provider, instead of a trunk [default: the one with that --from]
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true,
        conflicts_with = "trunk"
    )]
    credential: String,
    /// Told to the agent; may be repeated
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = key_value)]
    args: Vec<(String, String)>,
    /// Kept with the call; may be repeated
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// A header of the INVITE that the trunk lets pass; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = key_value)]
    headers: Vec<(String, String)>,
    /// The same key and request again give the same call
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    /// Stay until the call is over, and fail when it was not answered
    #[arg(long)]
    wait: bool,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(|| "must be KEY=VALUE".to_owned())
}

impl From<PlaceArgs> for CreatePhoneCallRequest {
    fn from(args: PlaceArgs) -> Self {
        let assistant = AssistantDefinition { assistant_id: args.assistant, version: String::new() };
        Self {
            assistant: Some(assistant),
            metadata: args.metadata.into_iter().collect(),
            args: args.args.into_iter().collect(),
            from_number: args.from,
            to_number: args.to,
            trunk: args.trunk,
            credential: args.credential,
            headers: args.headers.into_iter().collect(),
            idempotency_key: args.idempotency_key,
            ..Self::default()
        }
    }
}

/// `tandem conversation`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tandem conversation show 01938a2e-7c5b-7d6e-9f00-1234567890ab
  tandem conversation show 01938a2e-7c5b-7d6e-9f00-1234567890ab --json")]
pub struct ConversationArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(subcommand)]
    verb: ConversationVerb,
}

#[derive(Debug, Subcommand)]
enum ConversationVerb {
    /// What was said, in order
    Show {
        /// The call's id
        call_id: String,
    },
}

/// Why the service could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no service answers at {url}: start one with `tandem up` or `tandem serve`, or name it with --url"
    )]
    Unreachable {
        /// What was tried.
        url: String,
    },
    /// Neither variable nor file has a key.
    #[error("no API key: set TANDEM_API_KEY (with `tandem up --demo` it is demo-key)")]
    NoKey,
    /// The key cannot stand in a header.
    #[error("the API key holds characters that no key has")]
    MalformedKey,
    /// The service refused the key.
    #[error("the service refuses the API key: {0}")]
    Unauthenticated(String),
    /// No such call, or another tenant's.
    #[error(
        "{0}; `tandem call list` shows the calls there are, `tandem call refused` those that were turned away"
    )]
    NotFound(String),
    /// `call place --wait`: nobody answered.
    #[error("call {call_id} was not answered: {why}")]
    NotAnswered {
        /// Which.
        call_id: String,
        /// As its ending says.
        why: String,
    },
    /// No such trunk, or another tenant's.
    #[error("{0}; `tandem trunk list` shows the trunks there are")]
    NoTrunk(String),
    /// Anything else the service said.
    #[error("the service answers {code:?}: {message}")]
    Refused {
        /// gRPC status.
        code: Code,
        /// Its text.
        message: String,
    },
}

impl ServiceArgs {
    /// For scripts?
    pub(super) fn is_json(&self) -> bool {
        self.json
    }
}

/// A connection, and what goes with each request.
pub(super) struct Service {
    channel: Channel,
    /// The tenant's key.
    key: Option<AsciiMetadataValue>,
    /// The operator's token.
    token: Option<AsciiMetadataValue>,
    url: String,
}

/// The service token of these settings, or the one that `tandem up` has made in the state folder.
fn service_token(layers: &Layers) -> Option<String> {
    let given = layers.text("service_token").map(str::to_owned);
    given.or_else(|| {
        let folder = std::path::Path::new(layers.text("state_dir")?);
        let text = std::fs::read_to_string(folder.join("service-token")).ok()?;
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    })
}

fn header_value(text: &str) -> Result<AsciiMetadataValue, ClientError> {
    let mut value = AsciiMetadataValue::try_from(text).map_err(|_| ClientError::MalformedKey)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Service {
    pub(super) async fn connect(args: &ServiceArgs, layers: &Layers) -> Result<Self, ClientError> {
        let key = layers.text("api_key").map(header_value).transpose()?;
        let token = service_token(layers).as_deref().map(header_value).transpose()?;
        let url = args.url.clone().unwrap_or_else(|| super::service_url(layers));
        let unreachable = || ClientError::Unreachable { url: url.clone() };
        let endpoint = Channel::from_shared(url.clone()).map_err(|_| unreachable())?;
        let channel = endpoint.connect().await.map_err(|_| unreachable())?;
        Ok(Self { channel, key, token, url })
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in the tenant's name.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, ClientError> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", self.key.clone().ok_or(ClientError::NoKey)?);
        Ok(request)
    }

    /// A request of the operator, or of the tenant if the service knows no better.
    fn operator_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("x-tandem-service-token", token.clone());
        }
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.clone());
        }
        request
    }

    pub(super) fn refused(&self, status: Status) -> ClientError {
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => {
                ClientError::Unauthenticated(status.message().to_owned())
            }
            Code::NotFound => ClientError::NotFound(status.message().to_owned()),
            Code::Unavailable => ClientError::Unreachable { url: self.url.clone() },
            code => ClientError::Refused { code, message: status.message().to_owned() },
        }
    }

    async fn call(&self, call_id: String) -> Result<Call, ClientError> {
        let mut client = CallServiceClient::new(self.channel.clone());
        let answer = client.get_call(self.request(GetCallRequest { call_id })?).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(status))
    }

    async fn refusal(&self, call_id: String) -> Result<RefusedCall, ClientError> {
        let mut client = RefusalServiceClient::new(self.channel.clone());
        let answer = client.get_refusal(self.operator_request(GetRefusalRequest { call_id })).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(status))
    }

    async fn refusals(&self, limit: u32) -> Result<Vec<RefusedCall>, ClientError> {
        let mut client = RefusalServiceClient::new(self.channel.clone());
        let answer = client.list_refusals(self.operator_request(ListRefusalsRequest { limit })).await;
        answer.map(|answer| answer.into_inner().refusals).map_err(|status| self.refused(status))
    }

    /// A call's reasons, wherever they are kept: with the call, or, without one, among the refusals.
    async fn explain(&self, call_id: String, json: bool) -> Result<(), ClientError> {
        let unknown = match self.call(call_id.clone()).await {
            Ok(call) if json => {
                let call = view::call(&call);
                print_json(&json!({ "decisions": call["decisions"], "ending": call["ending"] }));
                return Ok(());
            }
            Ok(call) => {
                print_explanation(&call);
                return Ok(());
            }
            Err(why @ (ClientError::NotFound(_) | ClientError::NoKey)) => why,
            Err(why) => return Err(why),
        };
        match self.refusal(call_id).await {
            Ok(refused) if json => print_json(&view::refusal(&refused)),
            Ok(refused) => print_refusal(&refused),
            // What a tenant hears is about its calls; without a key it is about the refusals.
            Err(_) if matches!(unknown, ClientError::NotFound(_)) => return Err(unknown),
            Err(why) => return Err(why),
        }
        Ok(())
    }
}

impl CallArgs {
    /// Asks the service and prints what it says.
    pub async fn run(self, layers: &Layers) -> Result<(), ClientError> {
        let service = Service::connect(&self.service, layers).await?;
        let json = self.service.json;
        match self.verb {
            CallVerb::List { live, limit } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request =
                    ListCallsRequest { page_size: limit, page_token: String::new(), live_only: live };
                let answer = client.list_calls(service.request(request)?).await;
                let calls = answer.map_err(|status| service.refused(status))?.into_inner().calls;
                if json {
                    print_json(&json!({ "calls": calls.iter().map(view::call).collect::<Vec<_>>() }));
                } else {
                    print_calls(&calls);
                }
            }
            CallVerb::Show { call_id } => {
                let call = service.call(call_id).await?;
                if json { print_json(&view::call(&call)) } else { print_call(&call) }
            }
            CallVerb::Explain { call_id } => service.explain(call_id, json).await?,
            CallVerb::Refused { limit } => {
                let refusals = service.refusals(limit).await?;
                if json {
                    let refusals: Vec<_> = refusals.iter().map(view::refusal).collect();
                    print_json(&json!({ "refusals": refusals }));
                } else {
                    print_refusals(&refusals);
                }
            }
            CallVerb::Place(args) => return place(&service, *args, json).await,
            CallVerb::Transfer { call_id, to, to_call } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request = TransferCallRequest {
                    call_id: call_id.clone(),
                    to: to.unwrap_or_default(),
                    to_call_id: to_call.unwrap_or_default(),
                };
                client.transfer_call(service.request(request)?).await.map_err(|s| service.refused(s))?;
                said(&call_id, "is asked to go on", json);
            }
            CallVerb::Join { call_id, other_call_id: Some(other_call_id), .. } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request = JoinCallsRequest { call_id: call_id.clone(), other_call_id };
                client.join_calls(service.request(request)?).await.map_err(|s| service.refused(s))?;
                said(&call_id, "is joined with the other call", json);
            }
            CallVerb::Join { call_id, role, to, trunk, other_call_id: None } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request = JoinCallRequest {
                    call_id: call_id.clone(),
                    role: role.map(JoinRole::from).unwrap_or_default().into(),
                    to: to.unwrap_or_default(),
                    trunk: trunk.unwrap_or_default(),
                };
                client.join_call(service.request(request)?).await.map_err(|s| service.refused(s))?;
                said(&call_id, "brings them in", json);
            }
            CallVerb::Hold { call_id } => hold(&service, call_id, false, json).await?,
            CallVerb::Resume { call_id } => hold(&service, call_id, true, json).await?,
            CallVerb::Hangup { call_id } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request = service.request(HangUpCallRequest { call_id: call_id.clone() })?;
                client.hang_up_call(request).await.map_err(|status| service.refused(status))?;
                said(&call_id, "is ending", json);
            }
        }
        Ok(())
    }
}

/// Who hears whom.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Role {
    /// They hear both, and nobody hears them
    Listen,
    /// They hear both, and the agent hears them
    Whisper,
    /// Everybody hears everybody
    Conference,
    /// They talk with the other side, and the agent waits
    Bridge,
}

impl From<Role> for JoinRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Listen => Self::Listen,
            Role::Whisper => Self::Whisper,
            Role::Conference => Self::Conference,
            Role::Bridge => Self::Bridge,
        }
    }
}

fn said(call_id: &str, what: &str, json: bool) {
    if json { print_json(&json!({ "callId": call_id })) } else { say!("{call_id} {what}") }
}

async fn hold(service: &Service, call_id: String, resume: bool, json: bool) -> Result<(), ClientError> {
    let mut client = CallServiceClient::new(service.channel.clone());
    let request = service.request(HoldCallRequest { call_id: call_id.clone(), resume })?;
    client.hold_call(request).await.map_err(|status| service.refused(status))?;
    said(&call_id, if resume { "is taken back" } else { "is put on hold" }, json);
    Ok(())
}

/// How often a call that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

async fn place(service: &Service, args: PlaceArgs, json: bool) -> Result<(), ClientError> {
    let wait = args.wait;
    let mut client = TalkServiceClient::new(service.channel.clone());
    let answer = client.create_phone_call(service.request(args.into())?).await;
    let made = answer.map_err(|status| service.refused(status))?.into_inner();
    let mut call = made.call.unwrap_or_default();
    if !wait {
        if json {
            print_json(&view::call(&call))
        } else {
            say!("{}", call.call_id)
        }
        return Ok(());
    }
    let mut shown = String::new();
    loop {
        if !json && call.state != shown {
            say!("{} {}", call.call_id, call.state);
            shown.clone_from(&call.state);
        }
        if call.ended_ms != 0 && matches!(call.state.as_str(), "ended" | "failed") {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        call = service.call(call.call_id.clone()).await?;
    }
    if json {
        print_json(&view::call(&call))
    } else {
        print_call(&call)
    }
    if call.answered_ms == 0 {
        let ending = call.ending.unwrap_or_default();
        let why = format!("{} ({})", ending.reason, ending.detail);
        return Err(ClientError::NotAnswered { call_id: call.call_id, why });
    }
    Ok(())
}

impl ConversationArgs {
    /// Asks the service and prints what it says.
    pub async fn run(self, layers: &Layers) -> Result<(), ClientError> {
        let service = Service::connect(&self.service, layers).await?;
        let ConversationVerb::Show { call_id } = self.verb;
        let mut client = ConversationServiceClient::new(service.channel.clone());
        let answer = client.get_conversation(service.request(GetConversationRequest { call_id })?).await;
        let conversation = answer.map_err(|status| service.refused(status))?.into_inner();
        if self.service.json {
            print_json(&view::conversation(&conversation));
        } else {
            print_conversation(&conversation);
        }
        Ok(())
    }
}

pub(super) fn print_json(value: &serde_json::Value) {
    say!("{value:#}");
}

fn print_calls(calls: &[Call]) {
    say!(
        "{:36}  {:12}  {:16}  {:20}  {:>8}  ended because",
        "call",
        "state",
        "assistant",
        "started",
        "duration"
    );
    for call in calls {
        let reason = call.ending.as_ref().map(|ending| ending.reason.as_str()).unwrap_or_default();
        say!(
            "{:36}  {:12}  {:16}  {:20}  {:>8}  {reason}",
            call.call_id,
            call.state,
            call.assistant_id,
            view::timestamp(call.created_ms).unwrap_or_default(),
            duration(call)
        );
    }
}

fn duration(call: &Call) -> String {
    match (call.answered_ms, call.ended_ms) {
        (0, _) => "-".to_owned(),
        (_, 0) => "live".to_owned(),
        (answered, ended) => format!("{:.1} s", (ended - answered) as f64 / 1_000.0),
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn print_call(call: &Call) {
    say!("call       {}", call.call_id);
    say!("state      {}", call.state);
    say!("assistant  {}", call.assistant_id);
    say!("direction  {}", call.direction);
    say!("from       {}", call.from);
    say!("to         {}", call.to);
    if !call.trunk.is_empty() {
        say!("trunk      {}", call.trunk);
    }
    if let Some(provider) = &call.provider {
        say!(
            "provider   {} by {}, its call {}",
            provider.name,
            provider.credential,
            or_dash(&provider.call_id)
        );
        say!("there      {}", or_dash(&provider.status));
        if !provider.answered_by.is_empty() {
            say!("picked up  {}", provider.answered_by);
        }
    }
    for (name, at_ms) in
        [("started", call.created_ms), ("answered", call.answered_ms), ("ended", call.ended_ms)]
    {
        say!("{name:10} {}", view::timestamp(at_ms).unwrap_or_else(|| "-".to_owned()));
    }
    if let Some(media) = &call.media {
        say!(
            "media      {} on {} port {}: {} sent, {} received, {} lost, jitter {:.1} ms",
            media.codec,
            media.engine,
            media.local_port,
            media.rtp_sent,
            media.rtp_received,
            media.rtp_lost,
            media.jitter_ms
        );
        println!(
            "quality    MOS {}, round trip {}, the other side lost {}, {}",
            media.mos.map_or_else(|| "-".to_owned(), |mos| format!("{mos:.1}")),
            media.round_trip_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms")),
            media.remote_lost,
            if media.encrypted { "encrypted" } else { "not encrypted" }
        );
    }
    if let Some(ending) = &call.ending {
        say!("ending     {} ({}): {}", ending.reason, ending.party, ending.detail);
        if let Some(word) = &ending.carrier {
            say!("carrier    {} {}", word.sip_status, word.reason_phrase);
        }
    }
}

fn print_explanation(call: &Call) {
    say!("call {} is {}", call.call_id, call.state);
    say!("  from {} to {}", call.from, call.to);
    steps_table(&call.decisions).iter().for_each(|line| say!("{line}"));
    match &call.ending {
        Some(ending) => print_ending(ending, "ended"),
        None => say!("  it has not ended"),
    }
}

fn print_refusal(refused: &RefusedCall) {
    say!("call {} was refused at {}", refused.call_id, view::timestamp(refused.at_ms).unwrap_or_default());
    let trunk =
        if refused.trunk.is_empty() { String::new() } else { format!(" over trunk {}", refused.trunk) };
    say!("  from {} to {}, sent by {}{trunk}", refused.from, refused.to, refused.source);
    steps_table(&refused.decisions).iter().for_each(|line| say!("{line}"));
    if let Some(ending) = &refused.ending {
        print_ending(ending, "refused");
    }
}

fn print_ending(ending: &Ending, verb: &str) {
    say!("  {verb} by {}: {} ({})", ending.party, ending.reason, ending.detail);
    let retry = if ending.retryable { "trying again may help" } else { "trying again will not help" };
    say!("  SIP {}, Q.850 cause {}; {retry}", ending.sip_status, ending.q850_cause);
}

/// The steps in columns that are as wide as they must be. What a step expected stands below it only when it refused, or
/// was passed over.
fn steps_table(steps: &[DecisionStep]) -> Vec<String> {
    let width = |of: fn(&DecisionStep) -> &str, least: usize| {
        steps.iter().map(|step| of(step).chars().count()).max().unwrap_or(0).max(least)
    };
    let (step_width, rule_width) = (width(|step| &step.step, 4), width(|step| &step.rule, 4));
    let field_width = width(|step| &step.field, 5);
    let mut lines = vec![format!(
        "  {:7}  {:step_width$}  {:rule_width$}  {:field_width$}  got",
        "", "step", "rule", "field"
    )];
    for step in steps {
        let verdict = if step.passed { "passed" } else { "refused" };
        let (name, rule, field, got) = (&step.step, &step.rule, &step.field, &step.got);
        lines.push(format!(
            "  {verdict:7}  {name:step_width$}  {rule:rule_width$}  {field:field_width$}  {got}"
        ));
        if !step.passed {
            let indent = 2 + 7 + 2 + step_width + 2 + rule_width + 2 + field_width;
            lines.push(format!("  {:>indent$}  {}", "expected:", step.expected, indent = indent - 2));
        }
    }
    lines
}

fn print_refusals(refusals: &[RefusedCall]) {
    say!("{:36}  {:24}  {:22}  {:18}  {:22}  got", "call", "at", "source", "reason", "rule");
    for refused in refusals {
        let reason = refused.ending.as_ref().map(|ending| ending.reason.as_str()).unwrap_or_default();
        let step = refused.decisions.last();
        say!(
            "{:36}  {:24}  {:22}  {reason:18}  {:22}  {}",
            refused.call_id,
            view::timestamp(refused.at_ms).unwrap_or_default(),
            refused.source,
            step.map(|step| step.rule.as_str()).unwrap_or_default(),
            step.map(|step| step.got.as_str()).unwrap_or_default()
        );
    }
}

fn print_conversation(conversation: &Conversation) {
    say!("call {}", conversation.call_id);
    for message in &conversation.messages {
        let cut = if message.interrupted { " (interrupted)" } else { "" };
        say!("  {:6}  {}{cut}", message.role, message.text);
        if let Some(timing) = &message.timing {
            say!(
                "          first audio {} ms after the caller: speech end {}, text {}, words {}, voice {}",
                timing.first_audio_sent_ms,
                timing.end_of_speech_ms,
                timing.stt_final_ms,
                timing.llm_first_token_ms,
                timing.tts_first_audio_ms
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_steps_says_what_was_expected_where_it_refused() {
        let step = |step: &str, rule: &str, got: &str, passed| DecisionStep {
            step: step.into(),
            rule: rule.into(),
            field: "source".into(),
            expected: "a source of a trunk".into(),
            got: got.into(),
            passed,
        };
        let lines = steps_table(&[
            step("credential", "trunk_source", "203.0.113.5", true),
            step("assistant", "did_route", "+4389", false),
        ]);
        assert_eq!(
            lines,
            [
                "           step        rule          field   got",
                "  passed   credential  trunk_source  source  203.0.113.5",
                "  refused  assistant   did_route     source  +4389",
                "                                  expected:  a source of a trunk",
            ]
        );
    }
}
