//! `tandem call …` and `tandem conversation …`: gRPC clients of a running service.

use clap::{Args, Subcommand};
use serde_json::json;
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_api::v1::conversation_service_client::ConversationServiceClient;
use tandem_api::v1::{
    Call, Conversation, GetCallRequest, GetConversationRequest, HangUpCallRequest, ListCallsRequest,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

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
  tandem call hangup 01938a2e-7c5b-7d6e-9f00-1234567890ab

The API key is read from TANDEM_API_KEY (or api_key in tandem.toml), so that it stands in no process list.
With `tandem up --demo` it is demo-key.")]
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
        /// As `call list` prints it
        call_id: String,
    },
    /// Ends a live call with a BYE
    Hangup {
        /// As `call list` prints it
        call_id: String,
    },
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
    #[error("{0}; `tandem call list` shows the calls there are")]
    NotFound(String),
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

/// A connection and the key that goes with each request.
pub(super) struct Service {
    channel: Channel,
    key: AsciiMetadataValue,
    url: String,
}

impl Service {
    pub(super) async fn connect(args: &ServiceArgs, layers: &Layers) -> Result<Self, ClientError> {
        let key = layers.text("api_key").ok_or(ClientError::NoKey)?;
        let mut key = AsciiMetadataValue::try_from(key).map_err(|_| ClientError::MalformedKey)?;
        key.set_sensitive(true);
        let url = args.url.clone().unwrap_or_else(|| super::service_url(layers));
        let unreachable = || ClientError::Unreachable { url: url.clone() };
        let endpoint = Channel::from_shared(url.clone()).map_err(|_| unreachable())?;
        let channel = endpoint.connect().await.map_err(|_| unreachable())?;
        Ok(Self { channel, key, url })
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", self.key.clone());
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
        let answer = client.get_call(self.request(GetCallRequest { call_id })).await;
        answer.map(tonic::Response::into_inner).map_err(|status| self.refused(status))
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
                let answer = client.list_calls(service.request(request)).await;
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
            CallVerb::Explain { call_id } => {
                let call = service.call(call_id).await?;
                if json {
                    let call = view::call(&call);
                    print_json(&json!({ "decisions": call["decisions"], "ending": call["ending"] }));
                } else {
                    print_explanation(&call);
                }
            }
            CallVerb::Hangup { call_id } => {
                let mut client = CallServiceClient::new(service.channel.clone());
                let request = service.request(HangUpCallRequest { call_id: call_id.clone() });
                client.hang_up_call(request).await.map_err(|status| service.refused(status))?;
                if json { print_json(&json!({ "callId": call_id })) } else { println!("{call_id} is ending") }
            }
        }
        Ok(())
    }
}

impl ConversationArgs {
    /// Asks the service and prints what it says.
    pub async fn run(self, layers: &Layers) -> Result<(), ClientError> {
        let service = Service::connect(&self.service, layers).await?;
        let ConversationVerb::Show { call_id } = self.verb;
        let mut client = ConversationServiceClient::new(service.channel.clone());
        let answer = client.get_conversation(service.request(GetConversationRequest { call_id })).await;
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
    println!("{value:#}");
}

fn print_calls(calls: &[Call]) {
    println!(
        "{:36}  {:12}  {:16}  {:20}  {:>8}  ended because",
        "call", "state", "assistant", "started", "duration"
    );
    for call in calls {
        let reason = call.ending.as_ref().map(|ending| ending.reason.as_str()).unwrap_or_default();
        println!(
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

fn print_call(call: &Call) {
    println!("call       {}", call.call_id);
    println!("state      {}", call.state);
    println!("assistant  {}", call.assistant_id);
    println!("direction  {}", call.direction);
    println!("from       {}", call.from);
    println!("to         {}", call.to);
    for (name, at_ms) in
        [("started", call.created_ms), ("answered", call.answered_ms), ("ended", call.ended_ms)]
    {
        println!("{name:10} {}", view::timestamp(at_ms).unwrap_or_else(|| "-".to_owned()));
    }
    if let Some(media) = &call.media {
        println!(
            "media      {} on {} port {}: {} sent, {} received, {} lost, jitter {:.1} ms",
            media.codec,
            media.engine,
            media.local_port,
            media.rtp_sent,
            media.rtp_received,
            media.rtp_lost,
            media.jitter_ms
        );
    }
    if let Some(ending) = &call.ending {
        println!("ending     {} ({}): {}", ending.reason, ending.party, ending.detail);
    }
}

fn print_explanation(call: &Call) {
    println!("call {} is {}", call.call_id, call.state);
    for step in &call.decisions {
        let verdict = if step.passed { "passed " } else { "refused" };
        println!(
            "  {verdict}  {:10}  {:22}  {}: expected {}, got {}",
            step.step, step.rule, step.field, step.expected, step.got
        );
    }
    let Some(ending) = &call.ending else {
        println!("  it has not ended");
        return;
    };
    println!("  ended by {}: {} ({})", ending.party, ending.reason, ending.detail);
    let retry = if ending.retryable { "trying again may help" } else { "trying again will not help" };
    println!("  SIP {}, Q.850 cause {}; {retry}", ending.sip_status, ending.q850_cause);
}

fn print_conversation(conversation: &Conversation) {
    println!("call {}", conversation.call_id);
    for message in &conversation.messages {
        let cut = if message.interrupted { " (interrupted)" } else { "" };
        println!("  {:6}  {}{cut}", message.role, message.text);
        if let Some(timing) = &message.timing {
            println!(
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
