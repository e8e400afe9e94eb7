//! The agent as configured: its vendors, its lines, its record. One for the process, shared by all conversations.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Behaviour, Config};
use crate::llm::LanguageModel;
use crate::llm::openai::{ClientError, OpenAi};
use crate::llm::scripted::Scripted;
use crate::llm::scripted::intents::LocalIntents;
use crate::local_voice::{LocalVoice, Supervisor};
use crate::record::{RecordError, Recorder, Writer};
use crate::sentence;
use crate::stt::SpeechToText;
use crate::stt::local::LocalStt;
use crate::tts::TextToSpeech;
use crate::tts::cache::SpeechCache;
use crate::tts::local::LocalTts;
use crate::turn::Line;

/// Why the agent cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The record of what was said.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The language model.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// One vendor of each kind.
#[derive(Clone)]
pub struct Vendors {
    /// Speech-to-text.
    pub stt: Arc<dyn SpeechToText>,
    /// Language model.
    pub llm: Arc<dyn LanguageModel>,
    /// Text-to-speech.
    pub tts: Arc<dyn TextToSpeech>,
}

/// What a conversation needs.
pub struct Agent {
    /// The vendors.
    pub vendors: Vendors,
    /// The lines that are synthesised already.
    pub cache: SpeechCache,
    /// Lines and patience.
    pub behaviour: Behaviour,
    /// Where messages go; `None`: nowhere.
    pub recorder: Option<Recorder>,
    ready: watch::Receiver<bool>,
}

/// What must be ended when the agent ends.
#[derive(Debug)]
pub struct Backstage {
    voice: Supervisor,
    writer: Writer,
}

impl Agent {
    /// An agent of these vendors, ready at once, without a record.
    pub fn with_vendors(vendors: Vendors, behaviour: Behaviour) -> Self {
        let (_, ready) = watch::channel(true);
        Self { vendors, cache: SpeechCache::default(), behaviour, recorder: None, ready }
    }

    /// The agent of a configuration. It is ready when the models are loaded and its lines are synthesised.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn start(config: &Config) -> Result<(Self, Backstage), AgentError> {
        let (recorder, writer) = Recorder::start(&config.control_url, config.service_token.as_ref())?;
        let (voice, supervisor) = LocalVoice::start(config.local_voice.clone());
        let llm: Arc<dyn LanguageModel> = match &config.llm {
            Some(llm) => Arc::new(OpenAi::new(llm.clone())?),
            None => Arc::new(Scripted::new(Arc::new(LocalIntents::new(voice.clone())))),
        };
        let vendors = Vendors {
            stt: Arc::new(LocalStt { voice: voice.clone() }),
            llm,
            tts: Arc::new(LocalTts { voice: voice.clone() }),
        };
        let (ready_out, ready) = watch::channel(false);
        let cache = SpeechCache::default();
        let agent = Self {
            vendors: vendors.clone(),
            cache: cache.clone(),
            behaviour: config.behaviour.clone(),
            recorder: Some(recorder),
            ready,
        };
        let lines: Vec<String> = LINES.iter().flat_map(|line| agent.sentences(*line)).collect();
        tokio::spawn(follow(voice, vendors, cache, lines, ready_out));
        Ok((agent, Backstage { voice: supervisor, writer }))
    }

    /// Can a conversation begin?
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// A line's sentences.
    pub fn sentences(&self, line: Line) -> Vec<String> {
        let behaviour = &self.behaviour;
        sentence::split(match line {
            Line::Greeting => &behaviour.greeting,
            Line::Idle => &behaviour.idle_message,
            Line::IdleGoodbye => &behaviour.idle_goodbye,
            Line::MaxSession => &behaviour.max_session_message,
            Line::Error => &behaviour.error_message,
        })
    }
}

impl Backstage {
    /// Ends the child and writes the record to its end. Every [`Agent`] must be gone.
    pub async fn end(self) {
        tokio::join!(self.voice.end(), self.writer.drain());
    }
}

const LINES: [Line; 5] = [Line::Greeting, Line::Error, Line::Idle, Line::IdleGoodbye, Line::MaxSession];

/// Ready while the models are up and the vendors prepared.
async fn follow(
    voice: LocalVoice,
    vendors: Vendors,
    cache: SpeechCache,
    lines: Vec<String>,
    ready: watch::Sender<bool>,
) {
    while voice.wait_up().await {
        let missing = cache.warm(vendors.tts.as_ref(), &lines).await;
        vendors.llm.prepare().await;
        if missing > 0 {
            tracing::warn!(missing, "some lines could not be synthesised beforehand");
        }
        ready.send_replace(voice.is_up());
        tokio::select! {
            gone = voice.wait_down() => if !gone { return },
            () = ready.closed() => return,
        }
        ready.send_replace(false);
    }
}
