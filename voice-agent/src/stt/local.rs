//! Offline speech-to-text: Moonshine in the local-voice process.

use serde_json::json;
use tokio::sync::mpsc;

use super::{INPUT_MAX, OUTPUT_MAX, SpeechToText, SttEvent, SttInput, SttStream};
use crate::local_voice::{Frame, LocalVoice, Socket, error_message, number};

/// Opens streams to local-voice.
#[derive(Debug, Clone)]
pub struct LocalStt {
    /// The process.
    pub voice: LocalVoice,
}

impl SpeechToText for LocalStt {
    fn open(&self) -> SttStream {
        let (input, requests) = mpsc::channel(INPUT_MAX);
        let (results, output) = mpsc::channel(OUTPUT_MAX);
        tokio::spawn(run(self.voice.clone(), requests, results));
        SttStream { input, output }
    }
}

/// Connects, pumps; connects again at the next utterance after a loss.
async fn run(voice: LocalVoice, mut requests: mpsc::Receiver<SttInput>, results: mpsc::Sender<SttEvent>) {
    let mut first = None;
    loop {
        match voice.connect("/v1/stt").await {
            Ok(socket) => match pump(socket, first.take(), &mut requests, &results).await {
                Ended::Session => return,
                Ended::Connection => {
                    let message = "local-voice closed the stream".to_owned();
                    if results.send(SttEvent::Failed { message }).await.is_err() {
                        return;
                    }
                }
            },
            Err(error) => {
                let message = error.to_string();
                if results.send(SttEvent::Failed { message }).await.is_err() {
                    return;
                }
            }
        }
        // Half an utterance is worth nothing: wait for the next one.
        first = loop {
            match requests.recv().await {
                Some(begin @ SttInput::Begin { .. }) => break Some(begin),
                Some(_) => {}
                None => return,
            }
        };
    }
}

enum Ended {
    Session,
    Connection,
}

async fn pump(
    mut socket: Socket,
    first: Option<SttInput>,
    requests: &mut mpsc::Receiver<SttInput>,
    results: &mpsc::Sender<SttEvent>,
) -> Ended {
    if let Some(request) = first
        && !send(&mut socket, request).await
    {
        return Ended::Connection;
    }
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                None => return Ended::Session,
                Some(request) => {
                    if !send(&mut socket, request).await {
                        return Ended::Connection;
                    }
                }
            },
            frame = socket.next() => match frame {
                None => return Ended::Connection,
                Some(frame) => {
                    if let Some(event) = event(&frame)
                        && results.send(event).await.is_err()
                    {
                        return Ended::Session;
                    }
                }
            },
        }
    }
}

async fn send(socket: &mut Socket, request: SttInput) -> bool {
    let sent = match request {
        SttInput::Begin { utterance } => {
            socket.send_json(&json!({"event": "begin", "utterance": utterance})).await
        }
        SttInput::Audio(audio) => socket.send_binary(audio).await,
        SttInput::Flush { utterance, flush } => {
            socket.send_json(&json!({"event": "flush", "utterance": utterance, "id": flush})).await
        }
    };
    sent.is_ok()
}

fn event(frame: &Frame) -> Option<SttEvent> {
    let Frame::Json(event) = frame else { return None };
    let text = || event["text"].as_str().unwrap_or_default().to_owned();
    match event["event"].as_str()? {
        "partial" => Some(SttEvent::Partial { utterance: number(event, "utterance")?, text: text() }),
        "final" => Some(SttEvent::Final {
            utterance: number(event, "utterance")?,
            flush: number(event, "id")?,
            text: text(),
        }),
        // A minute of speech: what came before is transcribed all the same.
        "error" if event["code"] == "too_long" => None,
        "error" => Some(SttEvent::Failed { message: error_message(event) }),
        _ => None,
    }
}
