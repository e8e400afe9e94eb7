//! What was said in a call, a row a message.

use sqlx::{Row, SqlitePool};
use tandem_api::v1::{Message, TurnTiming};

use super::StoreError;
use crate::http::view;

/// Messages of one call; a conversation of four hours has some two thousand. More are refused.
pub const MESSAGES_MAX: i64 = 10_000;
/// Octets of one message's text: minutes of speech. More are refused.
pub const TEXT_MAX: usize = 16_384;

/// Adds a message, or replaces the one with its id. `false`: the conversation is full.
pub async fn put(pool: &SqlitePool, call_id: &str, message: &Message) -> Result<bool, StoreError> {
    let timing = message.timing.as_ref().map(view::timing).unwrap_or_default();
    let done = sqlx::query(
        "INSERT INTO messages (call_id, message_id, turn, role, body, interrupted, started_ms, heard_ms, timing)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
         WHERE (SELECT count(*) FROM messages WHERE call_id = $1) < $10
            OR EXISTS (SELECT 1 FROM messages WHERE call_id = $1 AND message_id = $2)
         ON CONFLICT (call_id, message_id) DO UPDATE SET
             turn = excluded.turn, role = excluded.role, body = excluded.body,
             interrupted = excluded.interrupted, started_ms = excluded.started_ms,
             heard_ms = excluded.heard_ms, timing = excluded.timing",
    )
    .bind(call_id)
    .bind(&message.message_id)
    .bind(message.turn)
    .bind(&message.role)
    .bind(&message.text)
    .bind(message.interrupted)
    .bind(message.started_ms)
    .bind(message.heard_ms)
    .bind(timing.to_string())
    .bind(MESSAGES_MAX)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The messages of a call in the order in which they began.
pub async fn list(pool: &SqlitePool, call_id: &str) -> Result<Vec<Message>, StoreError> {
    let rows = sqlx::query("SELECT * FROM messages WHERE call_id = $1 ORDER BY turn, started_ms, message_id")
        .bind(call_id)
        .fetch_all(pool)
        .await?;
    rows.iter()
        .map(|row| {
            let timing: &str = row.try_get("timing")?;
            let timing: serde_json::Value = serde_json::from_str(timing).map_err(|source| {
                StoreError::Column { call_id: call_id.to_owned(), column: "timing", source }
            })?;
            Ok(Message {
                message_id: row.try_get("message_id")?,
                turn: row.try_get("turn")?,
                role: row.try_get("role")?,
                text: row.try_get("body")?,
                interrupted: row.try_get("interrupted")?,
                started_ms: row.try_get("started_ms")?,
                heard_ms: row.try_get("heard_ms")?,
                timing: timing.is_object().then(|| read_timing(&timing)),
            })
        })
        .collect()
}

fn read_timing(value: &serde_json::Value) -> TurnTiming {
    let ms = |key: &str| value[key].as_u64().and_then(|ms| u32::try_from(ms).ok()).unwrap_or_default();
    TurnTiming {
        end_of_speech_ms: ms("endOfSpeechMs"),
        stt_final_ms: ms("sttFinalMs"),
        llm_first_token_ms: ms("llmFirstTokenMs"),
        tts_first_audio_ms: ms("ttsFirstAudioMs"),
        first_audio_sent_ms: ms("firstAudioSentMs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::store;

    fn message(id: &str, turn: u32, text: &str) -> Message {
        Message {
            message_id: id.into(),
            turn,
            role: "agent".into(),
            text: text.into(),
            started_ms: 1_000,
            timing: Some(TurnTiming { first_audio_sent_ms: 640, ..TurnTiming::default() }),
            ..Message::default()
        }
    }

    #[tokio::test]
    async fn repeated_message_is_cut_to_what_the_caller_heard() {
        let pool = store::open(&Database::Memory).await.unwrap();
        assert!(put(&pool, "c1", &message("m1", 1, "Good morning, how can I help you?")).await.unwrap());
        let cut = Message { interrupted: true, heard_ms: 700, ..message("m1", 1, "Good morning") };
        assert!(put(&pool, "c1", &cut).await.unwrap());
        assert_eq!(list(&pool, "c1").await.unwrap(), [cut]);
    }

    #[tokio::test]
    async fn messages_come_in_the_order_of_turns_and_stay_with_their_call() {
        let pool = store::open(&Database::Memory).await.unwrap();
        put(&pool, "c1", &message("b", 2, "second")).await.unwrap();
        put(&pool, "c1", &message("a", 1, "first")).await.unwrap();
        put(&pool, "c2", &message("a", 1, "another call")).await.unwrap();
        let texts: Vec<_> = list(&pool, "c1").await.unwrap().into_iter().map(|m| m.text).collect();
        assert_eq!(texts, ["first", "second"]);
    }

    #[tokio::test]
    async fn full_conversation_refuses_new_messages_but_still_corrects_old_ones() {
        let pool = store::open(&Database::Memory).await.unwrap();
        sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
             INSERT INTO messages SELECT 'c1', 'm' || i, i, 'agent', '', 0, 0, 0, 'null' FROM n",
        )
        .execute(&pool)
        .await
        .unwrap();
        assert!(!put(&pool, "c1", &message("one more", 1, "x")).await.unwrap());
        assert!(put(&pool, "c1", &message("m7", 7, "corrected")).await.unwrap());
    }
}
