//! What the caller wants, by the nearest example sentence (MiniLM embeddings in the local-voice process).

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::Mutex;

use crate::local_voice::{Frame, LocalVoice, Socket, error_message};

/// A wish that the script knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wish {
    /// Book a table.
    Book,
    /// Hear the opening hours.
    Hours,
    /// Hear the last sentence again.
    Repeat,
    /// End the call.
    Goodbye,
    /// Agree.
    Yes,
    /// Disagree.
    No,
    /// Speak to a person.
    Person,
    /// Hear what the agent can do.
    Help,
}

/// Examples of each wish. The names are what goes to the classifier and back.
const EXAMPLES: &[(Wish, &str, &[&str])] = &[
    (
        Wish::Book,
        "book",
        &[
            "I would like to book a table",
            "Can I make a reservation?",
            "I want to reserve a table for tonight",
            "Do you have a table free on Saturday?",
            "A table for two, please",
            "I would like to change my booking",
        ],
    ),
    (
        Wish::Hours,
        "hours",
        &[
            "What are your opening hours?",
            "When do you open?",
            "How late are you open?",
            "Are you open on Sunday?",
            "When do you close?",
        ],
    ),
    (
        Wish::Repeat,
        "repeat",
        &[
            "Could you repeat that please?",
            "Say that again",
            "Pardon?",
            "I did not hear you",
            "What did you say?",
            "Sorry, what was that?",
        ],
    ),
    (
        Wish::Goodbye,
        "goodbye",
        &[
            "Goodbye",
            "Thank you, goodbye",
            "Bye bye",
            "That is all, thank you",
            "No thanks, that was everything",
            "Okay, see you then",
        ],
    ),
    (Wish::Yes, "yes", &["Yes", "Yes, please", "That is right", "Correct"]),
    (Wish::No, "no", &["No", "No, that is wrong", "No, thank you", "Not really", "No, that's it"]),
    (
        Wish::Person,
        "person",
        &["Can I talk to a person?", "I want to speak to a human", "Connect me to somebody, please"],
    ),
    (
        Wish::Help,
        "help",
        &["What can you do?", "Help", "Who are you?", "How does this work?", "What is this?"],
    ),
];

/// Below this the nearest example is not near enough.
const SCORE_MIN: f64 = 0.47;

/// What was found, if anything was near enough.
pub type Intent = Option<Wish>;

/// Finds the wish in a sentence.
pub trait IntentClassifier: Send + Sync {
    /// The wish; an error is for the log.
    fn classify<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<Intent, String>>;
}

/// MiniLM in the local-voice process: one connection, one question at a time (a question takes about 10 ms).
#[derive(Debug)]
pub struct LocalIntents {
    voice: LocalVoice,
    connection: Mutex<Option<(Socket, u32)>>,
}

impl LocalIntents {
    /// Connects at the first question.
    pub fn new(voice: LocalVoice) -> Self {
        Self { voice, connection: Mutex::new(None) }
    }

    async fn ask(&self, text: &str) -> Result<Intent, String> {
        let mut connection = self.connection.lock().await;
        // Taken out: when this future is dropped half-way, so is the connection with its unread answer.
        let (mut socket, last) = match connection.take() {
            Some(open) => open,
            None => (self.connect().await?, 0),
        };
        let id = last.wrapping_add(1);
        let intent = question(&mut socket, id, text).await?;
        *connection = Some((socket, id));
        Ok(intent)
    }

    async fn connect(&self) -> Result<Socket, String> {
        let mut socket = self.voice.connect("/v1/intents").await.map_err(|error| error.to_string())?;
        let intents: BTreeMap<&str, &[&str]> =
            EXAMPLES.iter().map(|(_, name, examples)| (*name, *examples)).collect();
        let examples = json!({"event": "examples", "intents": intents});
        socket.send_json(&examples).await.map_err(|error| error.to_string())?;
        match socket.next().await {
            Some(Frame::Json(event)) if event["event"] == "ready" => Ok(socket),
            Some(Frame::Json(event)) => Err(error_message(&event)),
            _ => Err("local-voice closed the stream".into()),
        }
    }
}

async fn question(socket: &mut Socket, id: u32, text: &str) -> Result<Intent, String> {
    let classify = json!({"event": "classify", "id": id, "text": text});
    socket.send_json(&classify).await.map_err(|error| error.to_string())?;
    match socket.next().await {
        Some(Frame::Json(event)) if event["event"] == "intent" && event["id"] == id => {
            let name = event["intent"].as_str().unwrap_or_default();
            let near = event["score"].as_f64().is_some_and(|score| score >= SCORE_MIN);
            let found = EXAMPLES.iter().find(|(_, known, _)| *known == name);
            Ok(found.filter(|_| near).map(|(wish, _, _)| *wish))
        }
        Some(Frame::Json(event)) => Err(error_message(&event)),
        _ => Err("local-voice closed the stream".into()),
    }
}

impl IntentClassifier for LocalIntents {
    fn classify<'a>(&'a self, text: &'a str) -> BoxFuture<'a, Result<Intent, String>> {
        Box::pin(async move {
            if text.trim().is_empty() {
                return Ok(None);
            }
            match self.ask(text).await {
                Ok(intent) => Ok(intent),
                // The process may have been started again since the last question: once more, freshly connected.
                Err(_) => self.ask(text).await,
            }
        })
    }
}
