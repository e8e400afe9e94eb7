//! The offline demo agent: a script, not a language model.
//!
//! It books a table (name, day, time), tells the opening hours, repeats itself and says goodbye. What the caller wants
//! is found by the nearest example sentence ([`IntentClassifier`]); what a booking needs is found by [`slots`].

pub mod flow;
pub mod intents;
pub mod slots;

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Dialogue, LanguageModel, LlmEvent, OUTPUT_MAX, Request};
use flow::Flow;
use intents::IntentClassifier;

/// The script as a language model.
#[derive(Clone)]
pub struct Scripted {
    classifier: Arc<dyn IntentClassifier>,
}

impl Scripted {
    /// A script that asks this classifier.
    pub fn new(classifier: Arc<dyn IntentClassifier>) -> Self {
        Self { classifier }
    }
}

impl LanguageModel for Scripted {
    fn prepare(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // Connects, and has the examples embedded; what fails here fails again, and is told, in a turn.
            let _ = self.classifier.classify("hello").await;
        })
    }

    fn open(&self) -> Box<dyn Dialogue> {
        Box::new(Conversation { classifier: self.classifier.clone(), flow: Arc::default() })
    }
}

struct Conversation {
    classifier: Arc<dyn IntentClassifier>,
    /// Where the script stands, and where it stood before the last answer.
    flow: Arc<Mutex<(Flow, Flow)>>,
}

impl Dialogue for Conversation {
    fn respond(&mut self, request: Request) -> mpsc::Receiver<LlmEvent> {
        let (events, receiver) = mpsc::channel(OUTPUT_MAX);
        let (classifier, flow) = (self.classifier.clone(), self.flow.clone());
        tokio::spawn(async move {
            let intent = match classifier.classify(&request.text).await {
                Ok(intent) => intent,
                Err(message) => {
                    // The turn may be cancelled already; so below.
                    let _ = events.send(LlmEvent::Failed { message }).await;
                    return;
                }
            };
            if events.is_closed() {
                return;
            }
            let answer = {
                let mut flow = flow.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let (current, before) = &mut *flow;
                if request.replaces {
                    *current = before.clone();
                }
                *before = current.clone();
                current.answer(&request.text, &intent)
            };
            let _ = events.send(LlmEvent::Text(answer.text)).await;
            if answer.hang_up {
                let _ = events.send(LlmEvent::HangUp).await;
            }
            let _ = events.send(LlmEvent::Done).await;
        });
        receiver
    }
}
