//! Conversations over a real WebSocket and in real time, with vendors made of paper: who says what when.

#![allow(clippy::unwrap_used)]

mod engine;
mod record;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use engine::Engine;
use tandem_stream::agent::HangupAfter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use voice_agent::Server;
use voice_agent::agent::{Agent, Vendors};
use voice_agent::config::{Behaviour, LlmConfig};
use voice_agent::llm::openai::OpenAi;
use voice_agent::llm::{Dialogue, LanguageModel, LlmEvent, Request};
use voice_agent::record::Recorder;
use voice_agent::stt::{SpeechToText, SttEvent, SttInput, SttStream};
use voice_agent::tts::{TextToSpeech, TtsEvent, TtsInput, TtsStream};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// Hears the same words in whatever is said, as long as audio came.
struct PaperStt(&'static str);

impl SpeechToText for PaperStt {
    fn open(&self) -> SttStream {
        let (input, mut requests) = mpsc::channel(256);
        let (results, output) = mpsc::channel(16);
        let text = self.0;
        tokio::spawn(async move {
            let mut octets = 0;
            while let Some(request) = requests.recv().await {
                match request {
                    SttInput::Begin { .. } => octets = 0,
                    SttInput::Audio(audio) => octets += audio.len(),
                    SttInput::Flush { utterance, flush } => {
                        let text = if octets > 16_000 { text.to_owned() } else { String::new() };
                        results.send(SttEvent::Final { utterance, flush, text }).await.unwrap();
                    }
                }
            }
        });
        SttStream { input, output }
    }
}

/// Answers from a list, then hangs up.
#[derive(Clone)]
struct PaperLlm(Arc<Mutex<Vec<Request>>>, &'static [&'static str]);

impl LanguageModel for PaperLlm {
    fn open(&self) -> Box<dyn Dialogue> {
        Box::new(self.clone())
    }
}

impl Dialogue for PaperLlm {
    fn respond(&mut self, request: Request) -> mpsc::Receiver<LlmEvent> {
        let (events, receiver) = mpsc::channel(8);
        let mut requests = self.0.lock().unwrap();
        let text = self.1.get(requests.len());
        requests.push(request);
        let text_event = LlmEvent::Text(text.unwrap_or(&"Goodbye to you.").to_string());
        events.try_send(text_event).unwrap();
        if text.is_none() {
            events.try_send(LlmEvent::HangUp).unwrap();
        }
        events.try_send(LlmEvent::Done).unwrap();
        receiver
    }
}

/// 50 ms a character, 100 ms a packet.
struct PaperTts;

impl TextToSpeech for PaperTts {
    fn open(&self) -> TtsStream {
        let (input, mut requests) = mpsc::channel(16);
        let (events, output) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let TtsInput::Speak { id, text } = request else { continue };
                for _ in 0..text.len() / 2 {
                    if events.send(TtsEvent::Audio { id, pcm: Bytes::from(vec![1; 3_200]) }).await.is_err() {
                        return;
                    }
                }
                let _ = events.send(TtsEvent::Done { id }).await;
            }
        });
        TtsStream { input, output }
    }
}

struct Stage {
    addr: std::net::SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    control: record::ControlPlane,
    shutdown: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

async fn stage(answers: &'static [&'static str], max_conversations: usize) -> Stage {
    let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
    let llm = Arc::new(PaperLlm(Arc::clone(&requests), answers));
    stage_with(llm, requests, max_conversations).await
}

async fn stage_with(
    llm: Arc<dyn LanguageModel>,
    requests: Arc<Mutex<Vec<Request>>>,
    max_conversations: usize,
) -> Stage {
    let vendors = Vendors { stt: Arc::new(PaperStt("I want a table.")), llm, tts: Arc::new(PaperTts) };
    let control = record::ControlPlane::start().await;
    let behaviour = Behaviour { greeting: "Hello, caller.".into(), ..Behaviour::default() };
    let mut agent = Agent::with_vendors(vendors, behaviour);
    let token = Some(secrecy::SecretString::from("service-token".to_owned()));
    agent.recorder = Some(Recorder::start(&control.url, token.as_ref()).unwrap().0);
    let server = Server::bind_agent("127.0.0.1:0".parse().unwrap(), agent, max_conversations).await.unwrap();
    let addr = server.local_addr();
    let (shutdown, stopped) = oneshot::channel();
    let served = tokio::spawn(async move {
        server.serve(async { drop(stopped.await) }).await.unwrap();
    });
    Stage { addr, requests, control, shutdown, served }
}

async fn get(addr: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_caller_is_greeted_heard_answered_and_the_record_tells_it() {
    let stage = stage(&["With pleasure, for when?"], 4).await;
    let mut engine = Engine::dial(stage.addr, "call-1").await.unwrap();
    assert!(engine.until(SECONDS(2), Engine::hears).await, "no greeting");
    assert!(engine.until(SECONDS(3), |engine| !engine.hears()).await);
    engine.say("book.wav");
    assert!(engine.until(SECONDS(6), |engine| !engine.is_saying() && engine.hears()).await, "no answer");
    let answered_ms = engine.said_at.unwrap().elapsed().as_millis();
    assert!(answered_ms < 1_500, "answered after {answered_ms} ms");
    assert!(engine.until(SECONDS(4), |engine| !engine.hears()).await);
    engine.say("goodbye.wav");
    assert!(engine.until(SECONDS(8), |engine| engine.hangup.is_some()).await, "no goodbye");
    assert_eq!(engine.hangup, Some(HangupAfter::Drain));
    assert!(engine.until(SECONDS(3), |engine| !engine.hears()).await);
    engine.stop().await;

    let messages = stage.control.messages(5).await;
    let told: Vec<(&str, &str, u32)> =
        messages.iter().map(|m| (m.role.as_str(), m.text.as_str(), m.turn)).collect();
    assert_eq!(
        told,
        [
            ("agent", "Hello, caller.", 1),
            ("caller", "I want a table.", 2),
            ("agent", "With pleasure, for when?", 2),
            ("caller", "I want a table.", 3),
            ("agent", "Goodbye to you.", 3),
        ]
    );
    let timing = messages[2].timing.unwrap();
    assert!((450..1_000).contains(&timing.end_of_speech_ms), "{timing:?}");
    assert!(timing.stt_final_ms > 0 && timing.stt_final_ms <= timing.end_of_speech_ms, "{timing:?}");
    assert!(timing.first_audio_sent_ms >= timing.tts_first_audio_ms, "{timing:?}");
    assert_eq!(messages[0].timing.unwrap().first_audio_sent_ms, 0);
    assert!(stage.control.tokens().iter().all(|token| token == "service-token"));
    let requests = stage.requests.lock().unwrap();
    assert_eq!(requests[1].history.len(), 3, "{:?}", requests[1].history);
}

#[tokio::test]
async fn barge_in_stops_the_agent_and_the_record_has_what_was_heard() {
    let stage = stage(&["I could tell you a very long story about each of our tables now."], 4).await;
    let mut engine = Engine::dial(stage.addr, "call-2").await.unwrap();
    assert!(engine.until(SECONDS(3), |engine| engine.heard_ms > 500 && !engine.hears()).await);
    engine.say("book.wav");
    let greeted_ms = engine.heard_ms;
    assert!(engine.until(SECONDS(6), |engine| engine.heard_ms > greeted_ms + 700).await, "no answer");
    engine.say("hours.wav");
    assert!(engine.until(SECONDS(2), |engine| engine.clears == 1).await, "no barge-in");
    let heard_ms = engine.heard_ms;
    assert!(!engine.until(Duration::from_millis(300), |engine| engine.heard_ms > heard_ms).await);
    let messages = stage.control.messages(3).await;
    let cut = &messages[2];
    assert!(cut.interrupted && u64::from(cut.heard_ms) == heard_ms - greeted_ms, "{cut:?}");
    assert!(cut.text.starts_with("I could tell") && cut.text.len() < 40, "{cut:?}");
    engine.stop().await;
}

#[tokio::test]
async fn a_language_model_that_is_not_there_is_apologised_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let llm = OpenAi::new(LlmConfig { url, model: "m".into(), key: None }).unwrap();
    let stage = stage_with(Arc::new(llm), Arc::default(), 4).await;
    let mut engine = Engine::dial(stage.addr, "call-8").await.unwrap();
    assert!(engine.until(SECONDS(3), |engine| engine.heard_ms > 500 && !engine.hears()).await);
    engine.say("book.wav");
    assert!(engine.until(SECONDS(6), |engine| !engine.is_saying() && engine.hears()).await, "no apology");
    assert!(engine.until(SECONDS(10), |engine| !engine.hears()).await);
    let messages = stage.control.messages(3).await;
    assert!(messages[2].text.starts_with("Sorry, something went wrong"), "{:?}", messages[2]);
    engine.stop().await;
}

#[tokio::test]
async fn silence_suppression_is_an_end_of_speech_too() {
    let stage = stage(&["Noted."], 4).await;
    let mut engine = Engine::dial(stage.addr, "call-3").await.unwrap();
    engine.mute();
    assert!(engine.until(SECONDS(3), |engine| engine.heard_ms > 500 && !engine.hears()).await);
    engine.say("book.wav");
    assert!(engine.until(SECONDS(6), |engine| !engine.is_saying() && engine.hears()).await, "no answer");
    engine.stop().await;
}

/// A POST whose head and body come in two pieces, as they may.
async fn post(addr: std::net::SocketAddr, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_message_in_writing_is_answered_by_the_language_model() {
    let stage = stage(&["With pleasure, for when?"], 1).await;
    let body =
        r#"{"conversationId":"c1","history":[{"role":"agent","text":"Hello."}],"text":"A table, please."}"#;
    let answer = post(stage.addr, "/v1/chat", body).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(r#"{"text":"With pleasure, for when?"}"#),
        "{answer}"
    );
    let asked = stage.requests.lock().unwrap()[0].clone();
    assert_eq!((asked.text.as_str(), asked.history.len()), ("A table, please.", 1));
    assert!(post(stage.addr, "/v1/chat", "{}").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_full_agent_refuses_with_503_and_takes_the_next_when_one_left() {
    let stage = stage(&[], 1).await;
    assert!(get(stage.addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
    assert!(get(stage.addr, "/other").await.starts_with("HTTP/1.1 404 "));
    let first = Engine::dial(stage.addr, "call-4").await.unwrap();
    let refused = Engine::dial(stage.addr, "call-5").await.err().unwrap();
    assert!(refused.to_string().contains("503"), "{refused}");
    assert!(get(stage.addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
    first.stop().await;
    let mut next = Engine::dial(stage.addr, "call-6").await;
    for _ in 0..50 {
        if next.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        next = Engine::dial(stage.addr, "call-6").await;
    }
    next.unwrap().stop().await;
}

#[tokio::test]
async fn at_shutdown_the_engine_is_told_to_hang_up_now() {
    let stage = stage(&[], 4).await;
    let mut engine = Engine::dial(stage.addr, "call-7").await.unwrap();
    assert!(engine.until(SECONDS(2), Engine::hears).await);
    stage.shutdown.send(()).unwrap();
    engine.until(SECONDS(2), |engine| engine.closed).await;
    assert_eq!(engine.hangup, Some(HangupAfter::Now));
    tokio::time::timeout(SECONDS(5), stage.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn over_a_link_the_caller_is_heard_and_interrupts_as_over_a_websocket() {
    let stage = stage(&["I could tell you a very long story about each of our tables now."], 4).await;
    let mut engine = Engine::dial_link(stage.addr, "call-9").await.unwrap();
    assert!(engine.until(SECONDS(3), |engine| engine.heard_ms > 500 && !engine.hears()).await);
    engine.say("book.wav");
    let greeted_ms = engine.heard_ms;
    assert!(engine.until(SECONDS(6), |engine| engine.heard_ms > greeted_ms + 700).await, "no answer");
    engine.say("hours.wav");
    assert!(engine.until(SECONDS(2), |engine| engine.clears == 1).await, "no barge-in");
    let heard_ms = engine.heard_ms;
    let messages = stage.control.messages(3).await;
    assert!(messages[2].interrupted && u64::from(messages[2].heard_ms) == heard_ms - greeted_ms);
    engine.stop().await;
}

#[tokio::test]
async fn a_full_agent_refuses_a_call_on_a_link_and_takes_the_next_when_one_left() {
    let stage = stage(&[], 1).await;
    let first = Engine::dial_link(stage.addr, "call-10").await.unwrap();
    let refused = Engine::dial_link(stage.addr, "call-11").await.err().unwrap();
    assert_eq!(refused, "the call was refused: too many conversations");
    first.stop().await;
    let mut next = Engine::dial_link(stage.addr, "call-12").await;
    for _ in 0..50 {
        if next.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        next = Engine::dial_link(stage.addr, "call-12").await;
    }
    next.unwrap().stop().await;
}

#[tokio::test]
async fn at_shutdown_the_calls_of_a_link_are_told_to_hang_up_now() {
    let stage = stage(&[], 4).await;
    let mut engine = Engine::dial_link(stage.addr, "call-13").await.unwrap();
    assert!(engine.until(SECONDS(2), Engine::hears).await);
    stage.shutdown.send(()).unwrap();
    engine.until(SECONDS(2), |engine| engine.closed).await;
    assert_eq!(engine.hangup, Some(HangupAfter::Now));
    tokio::time::timeout(SECONDS(5), stage.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_does_not_hurt() {
    let stage = stage(&[], 4).await;
    for nonsense in
        ["\r\n\r\n", "POST /v1/talk HTTP/1.1\r\n\r\n", "GET /v1/talk HTTP/1.1\r\n\r\n", "\u{0}\u{1}\n"]
    {
        let mut stream = TcpStream::connect(stage.addr).await.unwrap();
        stream.write_all(nonsense.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Reset or closed: both will do.
        let _ = tokio::time::timeout(SECONDS(2), stream.read_to_end(&mut answer)).await.unwrap();
    }
    assert!(get(stage.addr, "/healthz").await.starts_with("HTTP/1.1 200 "));
}
