//! Statistics of sessions, again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tokio_stream::StreamExt;
use tonic::Code;

use super::{close, echo, on_both, open, start};
use crate::phone::Phone;

#[test]
fn statistics_come_at_the_interval_for_one_session_or_all_and_end_with_it() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let phones = [Phone::new(), Phone::new()];
            for (id, phone) in ["a", "b"].into_iter().zip(&phones) {
                let mut request = open(id, phone, echo());
                if let Some(agent) = &mut request.agent {
                    agent.speech = Some(proto::SpeechOptions { idle_ms: 60_000, ..Default::default() });
                }
                client.open_session(request).await.unwrap();
                start(&mut client, id).await;
            }
            let request = proto::StatisticsRequest { session_id: "a".into(), interval_ms: 100 };
            let mut one = client.statistics(request).await.unwrap().into_inner();
            let all = proto::StatisticsRequest { session_id: String::new(), interval_ms: 100 };
            let mut all = client.statistics(all).await.unwrap().into_inner();

            let mut sent = Vec::new();
            while sent.len() < 4 {
                let told = one.next().await.unwrap().unwrap();
                assert!(told.last && told.sessions.len() == 1 && told.sessions[0].session_id == "a");
                let stats = told.sessions[0].stats.as_ref().unwrap();
                assert!(stats.idle_ms.is_some() && stats.caller_speaks == Some(false), "{stats:?}");
                sent.push(stats.rtp_sent);
            }
            assert!(sent.is_sorted() && sent[3] > sent[0], "{sent:?}");

            let mut intervals = 0;
            let mut seen: BTreeMap<String, u32> = BTreeMap::new();
            while intervals < 3 {
                let told = all.next().await.unwrap().unwrap();
                intervals += u32::from(told.last);
                for session in told.sessions {
                    *seen.entry(session.session_id).or_default() += 1;
                }
            }
            assert_eq!(seen, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 3)]));

            close(&mut client, "a").await;
            let end = async {
                loop {
                    if let Err(status) = one.next().await.expect("an end that says why") {
                        break status;
                    }
                }
            };
            let end = tokio::time::timeout(Duration::from_secs(5), end).await.unwrap();
            assert_eq!(end.code(), Code::NotFound);
            let again = proto::StatisticsRequest { session_id: "a".into(), interval_ms: 0 };
            assert_eq!(client.statistics(again).await.unwrap_err().code(), Code::NotFound);
            close(&mut client, "b").await;
        },
    );
}
