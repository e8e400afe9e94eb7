//! Offline text-to-speech: hibari in the local-voice process.

use std::collections::VecDeque;

use bytes::Buf;
use serde_json::json;
use tokio::sync::mpsc;

use super::{INPUT_MAX, OUTPUT_MAX, SpeechId, TextToSpeech, TtsEvent, TtsInput, TtsStream};
use crate::local_voice::{Frame, LocalVoice, Socket, error_message, number};

/// Hertz that the agent stream wants.
const SAMPLE_RATE_HZ: u32 = 16_000;

/// Opens streams to local-voice.
#[derive(Debug, Clone)]
pub struct LocalTts {
    /// The process.
    pub voice: LocalVoice,
}

impl TextToSpeech for LocalTts {
    fn open(&self) -> TtsStream {
        let (input, requests) = mpsc::channel(INPUT_MAX);
        let (events, output) = mpsc::channel(OUTPUT_MAX);
        tokio::spawn(Stream { requests, events, open: VecDeque::new(), next: 0 }.run(self.voice.clone()));
        TtsStream { input, output }
    }
}

struct Stream {
    requests: mpsc::Receiver<TtsInput>,
    events: mpsc::Sender<TtsEvent>,
    /// Requests that are not answered: the number on the wire and the sentence. Bounded by the service's queue.
    open: VecDeque<(u32, SpeechId)>,
    next: u32,
}

/// The session is gone: nobody wants audio any more.
struct SessionGone;

impl Stream {
    /// Connects at once; after a loss, when there is something to say.
    async fn run(mut self, voice: LocalVoice) {
        let mut first = None;
        loop {
            let problem = match voice.connect("/v1/tts").await {
                Ok(mut socket) => match self.pump(&mut socket, first.take()).await {
                    Ok(()) => "local-voice closed the stream".to_owned(),
                    Err(SessionGone) => return,
                },
                Err(error) => error.to_string(),
            };
            if let Some(TtsInput::Speak { id, .. }) = first.take() {
                self.open.push_back((0, id));
            }
            while let Some((_, id)) = self.open.pop_front() {
                if self.events.send(TtsEvent::Failed { id, message: problem.clone() }).await.is_err() {
                    return;
                }
            }
            first = loop {
                match self.requests.recv().await {
                    Some(speak @ TtsInput::Speak { .. }) => break Some(speak),
                    Some(TtsInput::Cancel) => {}
                    None => return,
                }
            };
        }
    }

    /// `Ok` when the connection is lost.
    async fn pump(&mut self, socket: &mut Socket, first: Option<TtsInput>) -> Result<(), SessionGone> {
        if let Some(request) = first
            && !self.send(socket, request).await
        {
            return Ok(());
        }
        loop {
            tokio::select! {
                request = self.requests.recv() => {
                    let Some(request) = request else { return Err(SessionGone) };
                    if !self.send(socket, request).await {
                        return Ok(());
                    }
                }
                frame = socket.next() => {
                    let Some(frame) = frame else { return Ok(()) };
                    if let Some(event) = self.event(frame) {
                        // Waiting here while the session is busy holds back the vendor, as it should; but a
                        // cancel must still get through, or the wait would outlast its reason.
                        self.deliver(socket, event).await?;
                    }
                }
            }
        }
    }

    async fn deliver(&mut self, socket: &mut Socket, event: TtsEvent) -> Result<(), SessionGone> {
        let events = self.events.clone();
        loop {
            tokio::select! {
                permit = events.reserve() => {
                    permit.map_err(|_| SessionGone)?.send(event);
                    return Ok(());
                }
                request = self.requests.recv() => {
                    let Some(request) = request else { return Err(SessionGone) };
                    // A lost connection shows at the next read.
                    self.send(socket, request).await;
                }
            }
        }
    }

    async fn send(&mut self, socket: &mut Socket, request: TtsInput) -> bool {
        let sent = match request {
            TtsInput::Speak { id, text } => {
                self.next = self.next.wrapping_add(1);
                self.open.push_back((self.next, id));
                let speak =
                    json!({"event": "speak", "id": self.next, "text": text, "sampleRate": SAMPLE_RATE_HZ});
                socket.send_json(&speak).await
            }
            TtsInput::Cancel => socket.send_json(&json!({"event": "cancel"})).await,
        };
        sent.is_ok()
    }

    fn event(&mut self, frame: Frame) -> Option<TtsEvent> {
        match frame {
            Frame::Binary(mut pcm) => {
                if pcm.len() < 4 {
                    return None;
                }
                let id = self.sentence(pcm.get_u32_le())?;
                Some(TtsEvent::Audio { id, pcm })
            }
            Frame::Json(event) => {
                let wire = number(&event, "id")?;
                let id = self.sentence(wire)?;
                match event["event"].as_str()? {
                    "done" => {
                        self.open.retain(|(open, _)| *open != wire);
                        Some(TtsEvent::Done { id })
                    }
                    "error" => {
                        self.open.retain(|(open, _)| *open != wire);
                        Some(TtsEvent::Failed { id, message: error_message(&event) })
                    }
                    _ => None,
                }
            }
        }
    }

    fn sentence(&self, wire: u32) -> Option<SpeechId> {
        self.open.iter().find(|(open, _)| *open == wire).map(|(_, id)| *id)
    }
}
