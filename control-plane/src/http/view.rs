//! JSON views of the API's messages, the same for REST and for `tandem … --json`.
//!
//! Field names are the protobuf JSON names (lowerCamelCase); times are RFC 3339 beside the milliseconds.

use serde_json::{Value, json};
use tandem_api::v1::{
    BulkPhoneCall, Call, CarrierWord, Conversation, DecisionStep, Ending, MediaStats, Message, ProviderSide,
    RefusedCall, TurnTiming,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC; `None` for 0, which means "has not happened".
pub fn timestamp(epoch_ms: i64) -> Option<String> {
    if epoch_ms == 0 {
        return None;
    }
    // Whole milliseconds: nanoseconds from the database would only look precise.
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(epoch_ms) * 1_000_000).ok()?;
    at.format(&Rfc3339).ok()
}

/// One call.
pub fn call(call: &Call) -> Value {
    json!({
        "callId": call.call_id,
        "assistantId": call.assistant_id,
        "direction": call.direction,
        "from": call.from,
        "to": call.to,
        "state": call.state,
        "createdMs": call.created_ms,
        "created": timestamp(call.created_ms),
        "answeredMs": call.answered_ms,
        "answered": timestamp(call.answered_ms),
        "endedMs": call.ended_ms,
        "ended": timestamp(call.ended_ms),
        "setupMs": (call.answered_ms != 0).then(|| call.answered_ms - call.created_ms),
        "ending": call.ending.as_ref().map(ending),
        "decisions": call.decisions.iter().map(decision).collect::<Vec<_>>(),
        "media": call.media.as_ref().map(media),
        "trunk": (!call.trunk.is_empty()).then_some(&call.trunk),
        "metadata": call.metadata,
        "bulkId": (!call.bulk_id.is_empty()).then_some(&call.bulk_id),
        "provider": call.provider.as_ref().map(provider),
    })
}

/// What a telephony provider says of a call.
fn provider(provider: &ProviderSide) -> Value {
    json!({
        "name": provider.name,
        "credential": provider.credential,
        "callId": provider.call_id,
        "status": provider.status,
        "answeredBy": provider.answered_by,
    })
}

/// Where a call comes from, besides its numbers.
pub fn origin(call: &Call) -> Value {
    json!({
        "trunk": call.trunk,
        "metadata": call.metadata,
        "bulkId": call.bulk_id,
        "provider": call.provider.as_ref().map(provider),
    })
}

/// How far a bulk is.
pub fn bulk(bulk: &BulkPhoneCall) -> Value {
    json!({
        "bulkId": bulk.bulk_id,
        "total": bulk.total,
        "queued": bulk.queued,
        "active": bulk.active,
        "ended": bulk.ended,
        "createdMs": bulk.created_ms,
        "created": timestamp(bulk.created_ms),
    })
}

/// A call that was refused before it had a record.
pub fn refusal(refused: &RefusedCall) -> Value {
    json!({
        "callId": refused.call_id,
        "atMs": refused.at_ms,
        "at": timestamp(refused.at_ms),
        "tenantId": refused.tenant_id,
        "trunk": refused.trunk,
        "source": refused.source,
        "from": refused.from,
        "to": refused.to,
        "ending": refused.ending.as_ref().map(ending),
        "decisions": refused.decisions.iter().map(decision).collect::<Vec<_>>(),
    })
}

/// The figures of a call's media.
pub fn media(media: &MediaStats) -> Value {
    json!({
        "codec": media.codec,
        "engine": media.engine,
        "localPort": media.local_port,
        "rtpSent": media.rtp_sent,
        "rtpReceived": media.rtp_received,
        "rtpLost": media.rtp_lost,
        "jitterMs": media.jitter_ms,
        "mos": media.mos,
        "roundTripMs": media.round_trip_ms,
        "remoteLost": media.remote_lost,
        "remoteJitterMs": media.remote_jitter_ms,
        "encrypted": media.encrypted,
    })
}

/// Why a call ended.
pub fn ending(ending: &Ending) -> Value {
    json!({
        "party": ending.party,
        "reason": ending.reason,
        "sipStatus": ending.sip_status,
        "q850Cause": ending.q850_cause,
        "retryable": ending.retryable,
        "detail": ending.detail,
        "carrier": ending.carrier.as_ref().map(carrier),
    })
}

/// What the other side's last final response said.
pub fn carrier(word: &CarrierWord) -> Value {
    json!({
        "sipStatus": word.sip_status,
        "reasonPhrase": word.reason_phrase,
        "q850Cause": word.q850_cause,
        "q850Text": word.q850_text,
    })
}

/// One step of admission.
pub fn decision(step: &DecisionStep) -> Value {
    json!({
        "step": step.step,
        "rule": step.rule,
        "field": step.field,
        "expected": step.expected,
        "got": step.got,
        "passed": step.passed,
    })
}

/// What was said in one call.
pub fn conversation(conversation: &Conversation) -> Value {
    json!({
        "callId": conversation.call_id,
        "messages": conversation.messages.iter().map(message).collect::<Vec<_>>(),
    })
}

fn message(message: &Message) -> Value {
    json!({
        "messageId": message.message_id,
        "turn": message.turn,
        "role": message.role,
        "text": message.text,
        "interrupted": message.interrupted,
        "startedMs": message.started_ms,
        "heardMs": message.heard_ms,
        "timing": message.timing.as_ref().map(timing),
    })
}

/// Where the milliseconds of a turn went.
pub fn timing(timing: &TurnTiming) -> Value {
    json!({
        "endOfSpeechMs": timing.end_of_speech_ms,
        "sttFinalMs": timing.stt_final_ms,
        "llmFirstTokenMs": timing.llm_first_token_ms,
        "ttsFirstAudioMs": timing.tts_first_audio_ms,
        "firstAudioSentMs": timing.first_audio_sent_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_has_not_happened_is_null() {
        let view = call(&Call { created_ms: 1_763_812_800_000, ..Call::default() });
        assert_eq!(view["created"], "2025-11-22T12:00:00Z");
        assert_eq!(view["answered"], Value::Null);
        assert_eq!(view["setupMs"], Value::Null);
    }
}
