use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::tts::{INPUT_MAX, OUTPUT_MAX};

/// The test's hand on a model's answers and a voice's requests.
struct Stage {
    pipeline: Pipeline,
    /// One sender an answer, in order of the requests.
    answers: Arc<Mutex<Vec<mpsc::Sender<LlmEvent>>>>,
    asked: mpsc::Receiver<TtsInput>,
    voice: mpsc::Sender<TtsEvent>,
}

struct FakeDialogue(Arc<Mutex<Vec<mpsc::Sender<LlmEvent>>>>);

impl Dialogue for FakeDialogue {
    fn respond(&mut self, _: Request) -> mpsc::Receiver<LlmEvent> {
        let (answer, receiver) = mpsc::channel(8);
        self.0.lock().unwrap().push(answer);
        receiver
    }
}

fn stage() -> Stage {
    let answers = Arc::default();
    let (input, asked) = mpsc::channel(INPUT_MAX);
    let (voice, output) = mpsc::channel(OUTPUT_MAX);
    let dialogue = Box::new(FakeDialogue(Arc::clone(&answers)));
    let pipeline = Pipeline::new(dialogue, TtsStream { input, output }, SpeechCache::default());
    Stage { pipeline, answers, asked, voice }
}

fn request() -> Request {
    Request { history: Vec::new(), text: "Hi.".into(), replaces: false }
}

fn id(turn: u32, sentence: u16) -> SpeechId {
    SpeechId { turn, sentence }
}

impl Stage {
    async fn model(&self, event: LlmEvent) {
        let answer = self.answers.lock().unwrap().last().unwrap().clone();
        answer.send(event).await.unwrap();
    }

    async fn voiced(&self, id: SpeechId) {
        self.voice.send(TtsEvent::Audio { id, pcm: Bytes::from_static(&[0; 64]) }).await.unwrap();
        self.voice.send(TtsEvent::Done { id }).await.unwrap();
    }

    /// Lets the pipeline work until it has nothing to do; what came out.
    async fn settle(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Ok(output) = tokio::time::timeout(Duration::from_millis(20), self.pipeline.next()).await {
            outputs.push(output);
        }
        outputs
    }

    fn asked(&mut self) -> Vec<TtsInput> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

fn speak(id: SpeechId, text: &str) -> TtsInput {
    TtsInput::Speak { id, text: text.into() }
}

#[tokio::test]
async fn the_first_sentence_is_voiced_while_the_model_still_writes() {
    let mut stage = stage();
    stage.pipeline.reply(2, request());
    stage.model(LlmEvent::Text("We are open today. And we".into())).await;
    assert_eq!(stage.settle().await, [Output::FirstText { turn: 2 }]);
    assert_eq!(stage.asked(), [speak(id(2, 0), "We are open today.")]);
    stage.voiced(id(2, 0)).await;
    let outputs = stage.settle().await;
    assert!(matches!(&outputs[..], [Output::Audio { text: Some(text), .. }] if text == "We are open today."));
    stage.model(LlmEvent::Text(" like it.".into())).await;
    stage.model(LlmEvent::HangUp).await;
    stage.model(LlmEvent::Done).await;
    assert!(stage.settle().await.is_empty());
    assert_eq!(stage.asked(), [speak(id(2, 1), "And we like it.")]);
    stage.voiced(id(2, 1)).await;
    assert_eq!(stage.settle().await.last(), Some(&Output::Complete { turn: 2, hang_up: true }));
}

#[tokio::test]
async fn late_output_of_a_cancelled_turn_is_dropped_and_counted() {
    let mut stage = stage();
    stage.pipeline.say(1, vec!["Hello there, caller.".into()]);
    assert_eq!(stage.pipeline.cancel(1), ["Hello there, caller."]);
    stage.pipeline.say(2, vec!["Something else now.".into()]);
    let asked = stage.asked();
    assert_eq!(asked[1..], [TtsInput::Cancel, speak(id(2, 0), "Something else now.")]);
    stage.voiced(id(1, 0)).await;
    stage.voiced(id(2, 0)).await;
    let outputs = stage.settle().await;
    assert!(matches!(&outputs[0], Output::Audio { id: SpeechId { turn: 2, .. }, .. }), "{outputs:?}");
    assert_eq!(stage.pipeline.late(), 1);
}

#[tokio::test]
async fn a_late_answer_of_the_model_is_not_spoken() {
    let mut stage = stage();
    stage.pipeline.reply(1, request());
    stage.pipeline.reply(2, request());
    assert!(stage.answers.lock().unwrap()[0].is_closed());
}

#[tokio::test]
async fn the_model_waits_while_its_sentences_are_not_voiced() {
    let mut stage = stage();
    stage.pipeline.reply(1, request());
    for _ in 0..6 {
        stage.model(LlmEvent::Text("This is one whole sentence. ".into())).await;
    }
    stage.settle().await;
    assert_eq!(stage.asked().len(), SENTENCES_AHEAD);
    let answer = stage.answers.lock().unwrap()[0].clone();
    assert!(answer.capacity() < answer.max_capacity(), "the rest waits in the model's queue");
}

#[tokio::test]
async fn a_failed_model_or_voice_fails_the_turn() {
    let mut stage = stage();
    stage.pipeline.reply(1, request());
    stage.model(LlmEvent::Failed { message: "quota".into() }).await;
    assert_eq!(stage.settle().await, [Output::Failed { turn: 1, message: "quota".into() }]);
    stage.pipeline.say(2, vec!["Hello there, caller.".into()]);
    stage.voice.send(TtsEvent::Failed { id: id(2, 0), message: "busy".into() }).await.unwrap();
    assert_eq!(stage.settle().await, [Output::Failed { turn: 2, message: "busy".into() }]);
}

#[tokio::test]
async fn a_model_that_breaks_off_fails_the_turn() {
    let mut stage = stage();
    stage.pipeline.reply(1, request());
    stage.answers.lock().unwrap().clear();
    assert!(matches!(&stage.settle().await[..], [Output::Failed { turn: 1, .. }]));
}

#[tokio::test]
async fn nothing_to_say_is_complete_at_once() {
    let mut stage = stage();
    stage.pipeline.say(1, Vec::new());
    assert_eq!(stage.settle().await, [Output::Complete { turn: 1, hang_up: false }]);
}

#[tokio::test]
async fn known_sentences_come_from_the_cache_in_their_order() {
    /// A voice that answers each sentence with two packets.
    struct Echo;
    impl crate::tts::TextToSpeech for Echo {
        fn open(&self) -> TtsStream {
            let (input, mut requests) = mpsc::channel(INPUT_MAX);
            let (events, output) = mpsc::channel(OUTPUT_MAX);
            tokio::spawn(async move {
                while let Some(TtsInput::Speak { id, .. }) = requests.recv().await {
                    for _ in 0..2 {
                        events.send(TtsEvent::Audio { id, pcm: Bytes::from_static(&[1; 32]) }).await.unwrap();
                    }
                    events.send(TtsEvent::Done { id }).await.unwrap();
                }
            });
            TtsStream { input, output }
        }
    }
    let mut stage = stage();
    assert_eq!(stage.pipeline.cache.warm(&Echo, &["Known sentence here.".into()]).await, 0);
    stage.pipeline.say(1, vec!["New sentence here.".into(), "Known sentence here.".into()]);
    assert!(stage.settle().await.is_empty(), "the known one waits for the new one before it");
    stage.voiced(id(1, 0)).await;
    let order: Vec<u16> = stage
        .settle()
        .await
        .iter()
        .filter_map(|output| if let Output::Audio { id, .. } = output { Some(id.sentence) } else { None })
        .collect();
    assert_eq!(order, [0, 1, 1]);
}
