//! Commands over one stream, and a second leg that two phones are bridged by.

use tandem_api::engine::v1::command_request::Command;
use tandem_api::engine::v1::command_response::Outcome;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// The stream of a control plane.
struct Stream {
    out: mpsc::Sender<proto::CommandRequest>,
    answers: tonic::Streaming<proto::CommandResponse>,
}

impl Stream {
    async fn open(client: &mut Client) -> Self {
        let (out, requests) = mpsc::channel(16);
        let answers = client.commands(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Self { out, answers }
    }

    async fn send(&self, number: u64, command: Command) {
        self.out.send(proto::CommandRequest { number, command: Some(command) }).await.unwrap();
    }

    async fn answer(&mut self) -> (u64, Outcome) {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.next()).await;
        let answer = answer.expect("an answer comes").expect("the stream goes on").unwrap();
        (answer.number, answer.outcome.unwrap())
    }
}

#[test]
fn commands_of_one_stream_are_answered_under_their_numbers() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _alive = engine;
            let phone = Phone::new();
            let mut stream = Stream::open(&mut client).await;
            stream.send(7, Command::Open(open("a", &phone, echo()))).await;
            let (number, Outcome::Opened(opened)) = stream.answer().await else { panic!("opened") };
            assert!(number == 7 && opened.agent_ready);
            let nobody =
                |session_id: &str| proto::StartSessionRequest { session_id: session_id.into(), early: false };
            stream.send(8, Command::Start(nobody("nobody"))).await;
            stream.send(9, Command::Start(nobody("a"))).await;
            let mut both = [stream.answer().await, stream.answer().await];
            both.sort_by_key(|(number, _)| *number);
            let (8, Outcome::Refused(refusal)) = &both[0] else { panic!("{both:?}") };
            assert_eq!(refusal.code, Code::NotFound as u32);
            assert!(matches!(both[1], (9, Outcome::Started(_))), "{both:?}");
            assert_eq!(phone.receive().payload, [0xFF; 160]);
            // A command that a later control plane knows and this engine does not.
            stream.out.send(proto::CommandRequest { number: 10, command: None }).await.unwrap();
            let (10, Outcome::Refused(refusal)) = stream.answer().await else { panic!("refused") };
            assert_eq!(refusal.code, Code::Unimplemented as u32);
            // The stream goes, the session stays.
            drop(stream);
            close(&mut client, "a").await;
        },
    );
}

#[test]
fn bridged_phones_hear_each_other_and_the_agent_again_after_that() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _alive = engine;
            let (caller, desk) = (Phone::new(), Phone::new());
            let opened = client.open_session(open("a", &caller, echo())).await.unwrap().into_inner();
            start(&mut client, "a").await;
            let add = proto::AddLegRequest {
                session_id: "a".into(),
                rtp: open("x", &desk, echo()).rtp,
                role: proto::LegRole::Bridge.into(),
                caller_rings: false,
            };
            let leg = client.add_leg(add.clone()).await.unwrap().into_inner();
            assert_ne!(leg.local_port, opened.local_port);
            let twice = client.add_leg(add).await.unwrap_err();
            assert_eq!(twice.code(), Code::AlreadyExists);
            let (caller_port, desk_port) = (opened.local_port as u16, leg.local_port as u16);
            let (caller, desk, at_caller, at_desk) = tokio::task::spawn_blocking(move || {
                std::thread::scope(|scope| {
                    let caller_talks = scope.spawn(|| caller.talk(caller_port, 60));
                    let desk_talks = scope.spawn(|| desk.talk(desk_port, 60));
                    let (at_caller, at_desk) = (caller_talks.join().unwrap(), desk_talks.join().unwrap());
                    (caller.port(), desk.port(), at_caller, at_desk)
                })
            })
            .await
            .unwrap();
            assert_ne!(caller, desk);
            for heard in [&at_caller, &at_desk] {
                assert!(heard.windows(2).all(|pair| pair[1].sequence == pair[0].sequence.wrapping_add(1)));
                let sound =
                    heard.iter().filter(|packet| packet.payload.iter().any(|code| *code != 0xFF)).count();
                assert!(sound >= 40, "{sound} packets of sound of 60");
            }
            let remove = proto::RemoveLegRequest { session_id: "a".into() };
            let stats = client.remove_leg(remove.clone()).await.unwrap().into_inner().stats.unwrap();
            assert_eq!((stats.rtp_received, stats.rtp_lost), (60, 0));
            assert_eq!(client.remove_leg(remove).await.unwrap_err().code(), Code::NotFound);
            assert_eq!(close(&mut client, "a").await.rtp_received, 60);
        },
    );
}
