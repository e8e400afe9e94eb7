//! The whole agent with its offline models and the recorded caller, in real time, as an engine would run it.
//!
//! It runs when the models are installed (`TANDEM_LOCAL_VOICE_PYTHON` or `.venv` at the root); `make test` installs
//! them. Without them it says so and passes, or fails when `TANDEM_TEST_REQUIRE_LOCAL_VOICE=1`.

#![allow(clippy::unwrap_used)]

mod engine;
mod record;

use std::path::Path;
use std::time::Duration;

use engine::Engine;
use serde_json::Value;
use tandem_api::v1::Message;
use tokio::sync::oneshot;
use voice_agent::config::LocalVoiceConfig;
use voice_agent::{Config, Server};

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

const LOG: &str = "warn,voice_agent=debug,local_voice=info";

/// One set of models at a time: they take both cores.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Is there an interpreter with the models?
fn models() -> Option<LocalVoiceConfig> {
    let mut local_voice = LocalVoiceConfig::default();
    if let Ok(python) = std::env::var("TANDEM_LOCAL_VOICE_PYTHON") {
        local_voice.python = python.into();
    }
    if local_voice.python.exists() {
        return Some(local_voice);
    }
    let missing = format!(
        "the offline models are not installed ({} is missing): see voice-agent/local-voice/README.md",
        local_voice.python.display()
    );
    assert!(std::env::var("TANDEM_TEST_REQUIRE_LOCAL_VOICE").as_deref() != Ok("1"), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

struct Talker {
    addr: std::net::SocketAddr,
    control: record::ControlPlane,
    shutdown: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

async fn talker(local_voice: LocalVoiceConfig) -> Talker {
    // The first test of the binary installs it.
    let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter(LOG).try_init();
    let control = record::ControlPlane::start().await;
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        control_url: control.url.clone(),
        local_voice,
        ..Config::default()
    };
    let server = Server::bind(config).await.unwrap();
    let addr = server.local_addr();
    let (shutdown, stopped) = oneshot::channel();
    let served = tokio::spawn(async move { server.serve(async { drop(stopped.await) }).await.unwrap() });
    Talker { addr, control, shutdown, served }
}

impl Talker {
    /// A call, when the models are loaded.
    async fn call(&self, call_id: &str) -> Engine {
        let mut last = None;
        for _ in 0..600 {
            match Engine::dial(self.addr, call_id).await {
                Ok(engine) => return engine,
                Err(error) => last = Some(error.to_string()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the agent is not ready: {last:?}");
    }

    /// The same over a link, as an engine reaches it.
    async fn call_on_link(&self, call_id: &str) -> Engine {
        let mut last = None;
        for _ in 0..600 {
            match Engine::dial_link(self.addr, call_id).await {
                Ok(engine) => return engine,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the agent is not ready: {last:?}");
    }

    async fn end(self) {
        self.shutdown.send(()).unwrap();
        tokio::time::timeout(SECONDS(15), self.served).await.unwrap().unwrap();
    }
}

/// Lower-case words, to compare what was said with what was understood.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\''))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Words that must be changed, added or left out to come from one to the other (Levenshtein).
fn word_errors(said: &[String], understood: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=understood.len()).collect();
    for (i, word) in said.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in understood.iter().enumerate() {
            let changed = diagonal + usize::from(word != other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[understood.len()]
}

fn script() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/script.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Waits until the agent has begun and has been silent for this long.
async fn agent_turn(engine: &mut Engine, what: &str) {
    assert!(engine.until(SECONDS(15), Engine::hears).await, "the agent did not speak: {what}");
    let silent =
        |engine: &Engine| engine.heard_at.is_some_and(|at| at.elapsed() > Duration::from_millis(900));
    assert!(engine.until(SECONDS(30), silent).await, "the agent did not finish: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_caller_books_a_table() {
    let Some(local_voice) = models() else { return };
    let _alone = ALONE.lock().await;
    let talker = talker(local_voice).await;
    let mut engine = talker.call_on_link("live-booking").await;
    let answered = std::time::Instant::now();
    assert!(engine.until(SECONDS(5), Engine::hears).await, "no greeting, closed: {}", engine.closed);
    let greeting_ms = answered.elapsed().as_millis();
    agent_turn(&mut engine, "greeting").await;

    let script = script();
    let steps = script["steps"].as_array().unwrap();
    let mut latencies_ms = Vec::new();
    for step in steps {
        let said = step["say"].as_str().unwrap();
        engine.say(said);
        assert!(engine.until(SECONDS(10), |engine| !engine.is_saying()).await);
        let silent_since = engine.said_at.unwrap();
        agent_turn(&mut engine, said).await;
        latencies_ms.push((engine.heard_since.unwrap() - silent_since).as_millis());
    }
    assert!(engine.until(SECONDS(10), |engine| engine.hangup.is_some()).await, "the agent did not hang up");
    engine.stop().await;

    let messages = talker.control.messages(1 + 2 * steps.len()).await;
    talker.end().await;
    report(&messages, greeting_ms, &latencies_ms);
    let of =
        |role: &str| messages.iter().filter(|m| m.role == role).map(|m| m.text.clone()).collect::<Vec<_>>();
    let (caller, agent) = (of("caller"), of("agent"));
    let (mut errors, mut total) = (0, 0);
    for (step, understood) in steps.iter().zip(&caller) {
        let said = words(step["text"].as_str().unwrap());
        errors += word_errors(&said, &words(understood));
        total += said.len();
    }
    println!("word errors of the caller's lines: {errors} of {total}");
    assert!(errors * 10 <= total, "{errors} of {total} words wrong: {caller:?}");
    for expected in [
        "What is your name?",
        "For which day",
        "At what time",
        "I have booked a table for Anna Miller, on Friday at 7 PM.",
        "from noon to 10 PM",
        "See you on Friday. Goodbye.",
    ] {
        assert!(agent.iter().any(|text| text.contains(expected)), "{expected:?} is not in {agent:?}");
    }
    assert!(messages.iter().all(|message| !message.interrupted));
    // Generous: other tests may have both cores. The report above has the figures.
    assert!(latencies_ms.iter().all(|ms| *ms < 6_000), "{latencies_ms:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_caller_interrupts_and_the_agent_outlives_its_models() {
    let Some(local_voice) = models() else { return };
    let _alone = ALONE.lock().await;
    let talker = talker(local_voice).await;
    let mut engine = talker.call("live-interruption").await;
    assert!(engine.until(SECONDS(5), |engine| engine.heard_ms > 1_500).await, "no greeting");
    engine.say("hours.wav");
    let began = std::time::Instant::now();
    assert!(engine.until(SECONDS(5), |engine| engine.clears == 1).await, "no barge-in");
    println!("barge-in: clear {} ms after the first sample of speech", began.elapsed().as_millis());
    let heard_ms = engine.heard_ms;
    assert!(engine.until(SECONDS(10), |engine| engine.heard_ms > heard_ms + 500).await, "no answer");
    engine.stop().await;
    let messages = talker.control.messages(3).await;
    assert!(messages[0].interrupted && messages[0].text.starts_with("Hello,"), "{:?}", messages[0]);
    assert!(messages[0].text.len() < 60, "{:?}", messages[0]);
    assert!(messages[1].text.to_lowercase().contains("opening hours"), "{:?}", messages[1]);

    let killed = std::process::Command::new("kill").args(["-9", &models_pid()]).status().unwrap();
    assert!(killed.success());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut engine = talker.call("live-after-restart").await;
    assert!(engine.until(SECONDS(5), Engine::hears).await, "no greeting after the models were started again");
    engine.stop().await;
    talker.end().await;
}

/// The process of the models: our only child that runs server.py.
fn models_pid() -> String {
    let us = std::process::id().to_string();
    let found = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).find(|entry| {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let ours =
            read("stat").rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1).map(|ppid| ppid == us));
        ours == Some(true) && read("cmdline").contains("server.py")
    });
    found.unwrap().file_name().into_string().unwrap()
}

fn report(messages: &[Message], greeting_ms: u128, latencies_ms: &[u128]) {
    println!("greeting heard {greeting_ms} ms after the start event");
    println!("answer heard after the caller's last sample: {latencies_ms:?} ms");
    for message in messages {
        println!("{:>6} {}: {}", message.role, message.turn, message.text);
        if let Some(timing) = message.timing.filter(|timing| timing.first_audio_sent_ms > 0) {
            println!(
                "       end decided {} | transcript {} | first words {} | first audio {} | sent {} ms",
                timing.end_of_speech_ms,
                timing.stt_final_ms,
                timing.llm_first_token_ms,
                timing.tts_first_audio_ms,
                timing.first_audio_sent_ms
            );
        }
    }
}
