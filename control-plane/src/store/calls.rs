//! One row a call: written by [`super::writer`], read by the API.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};
use tandem_api::v1::{Call, CarrierWord, DecisionStep, Ending, MediaStats, ProviderSide};

use super::StoreError;
use crate::call::record::CallRecord;
use crate::http::view;

/// Writes the newest state of a call over what was there.
pub async fn put(connection: &mut SqliteConnection, record: &CallRecord) -> Result<(), StoreError> {
    let call = &record.call;
    sqlx::query(
        "INSERT INTO calls (call_id, tenant_id, assistant_id, direction, caller, callee, state,
                            created_ms, answered_ms, ended_ms, ending, decisions, media, origin)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         ON CONFLICT (call_id) DO UPDATE SET
             state = excluded.state, answered_ms = excluded.answered_ms, ended_ms = excluded.ended_ms,
             ending = excluded.ending, decisions = excluded.decisions, media = excluded.media,
             origin = excluded.origin",
    )
    .bind(&call.call_id)
    .bind(&*record.tenant_id)
    .bind(&call.assistant_id)
    .bind(&call.direction)
    .bind(&call.from)
    .bind(&call.to)
    .bind(&call.state)
    .bind(call.created_ms)
    .bind(call.answered_ms)
    .bind(call.ended_ms)
    .bind(call.ending.as_ref().map(view::ending).unwrap_or_default().to_string())
    .bind(serde_json::Value::from_iter(call.decisions.iter().map(view::decision)).to_string())
    .bind(call.media.as_ref().map(view::media).unwrap_or_default().to_string())
    .bind(view::origin(call).to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// One call of this tenant.
pub async fn get(pool: &SqlitePool, tenant_id: &str, call_id: &str) -> Result<Option<Call>, StoreError> {
    let row = sqlx::query("SELECT * FROM calls WHERE tenant_id = $1 AND call_id = $2")
        .bind(tenant_id)
        .bind(call_id)
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Whose call this is; for writers that are no tenant (the voice agent).
pub async fn tenant_of(pool: &SqlitePool, call_id: &str) -> Result<Option<String>, StoreError> {
    let query = sqlx::query_scalar("SELECT tenant_id FROM calls WHERE call_id = $1").bind(call_id);
    Ok(query.fetch_optional(pool).await?)
}

/// A tenant's calls, newest first, from before `before` (a call id; empty: from the newest).
pub async fn list(
    pool: &SqlitePool,
    tenant_id: &str,
    before: &str,
    limit: u32,
) -> Result<Vec<Call>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM calls WHERE tenant_id = $1 AND ($2 = '' OR call_id < $2) ORDER BY call_id DESC LIMIT $3",
    )
    .bind(tenant_id)
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter().map(read).collect()
}

/// Calls that were alive when the last process died end now: their dialogs died with it. Gives how many.
pub async fn end_unfinished(pool: &SqlitePool, ending: &Ending, now_ms: i64) -> Result<u64, StoreError> {
    let done =
        sqlx::query("UPDATE calls SET state = 'failed', ended_ms = $1, ending = $2 WHERE ended_ms = 0")
            .bind(now_ms)
            .bind(view::ending(ending).to_string())
            .execute(pool)
            .await?;
    Ok(done.rows_affected())
}

fn read(row: &SqliteRow) -> Result<Call, StoreError> {
    let call_id: String = row.try_get("call_id")?;
    let json = |column: &'static str| -> Result<serde_json::Value, StoreError> {
        let text: &str = row.try_get(column)?;
        serde_json::from_str(text).map_err(|source| StoreError::Column {
            call_id: call_id.clone(),
            column,
            source,
        })
    };
    let (ending, decisions, media) = (json("ending")?, json("decisions")?, json("media")?);
    let origin = json("origin")?;
    Ok(Call {
        assistant_id: row.try_get("assistant_id")?,
        direction: row.try_get("direction")?,
        from: row.try_get("caller")?,
        to: row.try_get("callee")?,
        state: row.try_get("state")?,
        created_ms: row.try_get("created_ms")?,
        answered_ms: row.try_get("answered_ms")?,
        ended_ms: row.try_get("ended_ms")?,
        trunk: text(&origin, "trunk"),
        bulk_id: text(&origin, "bulkId"),
        metadata: texts(&origin["metadata"]),
        provider: origin["provider"].is_object().then(|| read_provider(&origin["provider"])),
        ending: ending.is_object().then(|| read_ending(&ending)),
        decisions: decisions.as_array().into_iter().flatten().map(read_decision).collect(),
        media: media.is_object().then(|| read_media(&media)),
        call_id,
    })
}

fn read_provider(value: &serde_json::Value) -> ProviderSide {
    ProviderSide {
        name: text(value, "name"),
        credential: text(value, "credential"),
        call_id: text(value, "callId"),
        status: text(value, "status"),
        answered_by: text(value, "answeredBy"),
    }
}

// A field that an older version did not write reads as empty, as protobuf would have it.

fn text(value: &serde_json::Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn texts(value: &serde_json::Value) -> std::collections::HashMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn number(value: &serde_json::Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

fn small(value: &serde_json::Value, key: &str) -> u32 {
    u32::try_from(number(value, key)).unwrap_or_default()
}

fn flag(value: &serde_json::Value, key: &str) -> bool {
    value[key].as_bool().unwrap_or_default()
}

fn read_ending(value: &serde_json::Value) -> Ending {
    Ending {
        party: text(value, "party"),
        reason: text(value, "reason"),
        sip_status: small(value, "sipStatus"),
        q850_cause: small(value, "q850Cause"),
        retryable: flag(value, "retryable"),
        detail: text(value, "detail"),
        carrier: value["carrier"].is_object().then(|| read_carrier(&value["carrier"])),
    }
}

fn read_carrier(value: &serde_json::Value) -> CarrierWord {
    CarrierWord {
        sip_status: small(value, "sipStatus"),
        reason_phrase: text(value, "reasonPhrase"),
        q850_cause: small(value, "q850Cause"),
        q850_text: text(value, "q850Text"),
    }
}

fn read_decision(value: &serde_json::Value) -> DecisionStep {
    DecisionStep {
        step: text(value, "step"),
        rule: text(value, "rule"),
        field: text(value, "field"),
        expected: text(value, "expected"),
        got: text(value, "got"),
        passed: flag(value, "passed"),
    }
}

fn read_media(value: &serde_json::Value) -> MediaStats {
    MediaStats {
        rtp_sent: number(value, "rtpSent"),
        rtp_received: number(value, "rtpReceived"),
        rtp_lost: number(value, "rtpLost"),
        jitter_ms: value["jitterMs"].as_f64().unwrap_or_default(),
        codec: text(value, "codec"),
        engine: text(value, "engine"),
        local_port: small(value, "localPort"),
        mos: value["mos"].as_f64(),
        round_trip_ms: value["roundTripMs"].as_f64(),
        remote_lost: number(value, "remoteLost"),
        remote_jitter_ms: value["remoteJitterMs"].as_f64().unwrap_or_default(),
        encrypted: flag(value, "encrypted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Database;
    use crate::store;

    fn record(call_id: &str, tenant_id: &str) -> CallRecord {
        let call = Call {
            call_id: call_id.to_owned(),
            assistant_id: "desk".to_owned(),
            direction: "inbound".to_owned(),
            from: "sip:anna@example.com".to_owned(),
            to: "sip:desk@tandem".to_owned(),
            state: "connected".to_owned(),
            created_ms: 1_000,
            answered_ms: 1_200,
            ..Call::default()
        };
        CallRecord { tenant_id: tenant_id.into(), call }
    }

    async fn store_all(pool: &SqlitePool, records: &[CallRecord]) {
        let mut connection = pool.acquire().await.unwrap();
        for record in records {
            put(&mut connection, record).await.unwrap();
        }
    }

    #[tokio::test]
    async fn call_reads_back_as_it_was_written_and_later_states_win() {
        let pool = store::open(&Database::Memory).await.unwrap();
        let mut record = record("c1", "t1");
        store_all(&pool, std::slice::from_ref(&record)).await;
        assert_eq!(get(&pool, "t1", "c1").await.unwrap().unwrap(), record.call);

        record.call.state = "ended".to_owned();
        record.call.ended_ms = 9_000;
        record.call.trunk = "carrier".to_owned();
        record.call.metadata.insert("order".to_owned(), "7".to_owned());
        record.call.ending = Some(Ending {
            party: "caller".to_owned(),
            reason: "hangup".to_owned(),
            sip_status: 200,
            q850_cause: 16,
            retryable: true,
            detail: "the caller hung up".to_owned(),
            carrier: Some(CarrierWord {
                sip_status: 486,
                q850_text: "busy".to_owned(),
                ..Default::default()
            }),
        });
        record.call.decisions =
            vec![DecisionStep { step: "credential".to_owned(), passed: true, ..DecisionStep::default() }];
        record.call.media =
            Some(MediaStats { rtp_sent: 400, jitter_ms: 0.25, local_port: 20_000, ..MediaStats::default() });
        store_all(&pool, std::slice::from_ref(&record)).await;
        assert_eq!(get(&pool, "t1", "c1").await.unwrap().unwrap(), record.call);
    }

    #[tokio::test]
    async fn tenant_sees_only_its_own_calls() {
        let pool = store::open(&Database::Memory).await.unwrap();
        store_all(&pool, &[record("c1", "t1"), record("c2", "t2")]).await;
        assert!(get(&pool, "t2", "c1").await.unwrap().is_none());
        let calls = list(&pool, "t2", "", 10).await.unwrap();
        assert_eq!(calls.iter().map(|call| call.call_id.as_str()).collect::<Vec<_>>(), ["c2"]);
        assert_eq!(tenant_of(&pool, "c1").await.unwrap().as_deref(), Some("t1"));
    }

    #[tokio::test]
    async fn list_goes_on_where_the_page_ended() {
        let pool = store::open(&Database::Memory).await.unwrap();
        let records: Vec<_> = ["c1", "c2", "c3"].map(|id| record(id, "t1")).into();
        store_all(&pool, &records).await;
        let first = list(&pool, "t1", "", 2).await.unwrap();
        let ids: Vec<_> = first.iter().map(|call| call.call_id.as_str()).collect();
        assert_eq!(ids, ["c3", "c2"]);
        let rest = list(&pool, "t1", "c2", 2).await.unwrap();
        assert_eq!(rest[0].call_id, "c1");
        assert_eq!(rest.len(), 1);
    }

    #[tokio::test]
    async fn calls_of_a_dead_process_are_ended_once() {
        let pool = store::open(&Database::Memory).await.unwrap();
        store_all(&pool, &[record("c1", "t1")]).await;
        let ending = Ending { reason: "control_plane_restart".to_owned(), ..Ending::default() };
        assert_eq!(end_unfinished(&pool, &ending, 5_000).await.unwrap(), 1);
        assert_eq!(end_unfinished(&pool, &ending, 6_000).await.unwrap(), 0);
        let call = get(&pool, "t1", "c1").await.unwrap().unwrap();
        assert_eq!((call.state.as_str(), call.ended_ms), ("failed", 5_000));
        assert_eq!(call.ending.unwrap().reason, "control_plane_restart");
    }
}
