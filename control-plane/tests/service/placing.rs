//! Calls that we place, from the API to the wire and back.

use std::time::Duration;

use control_plane::trunk::{SipCredential, Trunk, Trunks};
use serde_json::json;
use tandem_api::v1 as api;
use tandem_api::v1::talk_service_client::TalkServiceClient;
use tandem_sip::Uri;
use tokio::net::UdpSocket;
use tonic::{Code, Request};

use crate::stage::{KEY, Stage, post, until};

/// A stage whose only trunk leads to this socket.
async fn stage() -> (Stage, UdpSocket) {
    let carrier = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("sip:{}", carrier.local_addr().unwrap());
    let trunk = Trunk {
        name: "carrier".into(),
        tenant_id: "demo".into(),
        credential: SipCredential { sip_uri: Some(Uri::parse(&uri).unwrap()), ..SipCredential::default() },
        ..Trunk::default()
    };
    let stage = Stage::with(|config| config.trunks = Trunks::new([trunk], [])).await;
    (stage, carrier)
}

/// The next request of this method, answered with this status line.
async fn answers(carrier: &UdpSocket, method: &str, status: &str) -> String {
    let mut datagram = [0; 4_096];
    loop {
        let receive = carrier.recv_from(&mut datagram);
        let (len, from) = tokio::time::timeout(Duration::from_secs(5), receive).await.unwrap().unwrap();
        let request = String::from_utf8_lossy(&datagram[..len]).into_owned();
        if !request.starts_with(method) {
            continue;
        }
        let mut answer = format!("SIP/2.0 {status}\r\n");
        for line in request.lines().take_while(|line| !line.is_empty()) {
            let name = line.split(':').next().unwrap_or_default();
            if matches!(name, "Via" | "From" | "Call-ID" | "CSeq") {
                answer += &format!("{line}\r\n");
            } else if name == "To" {
                answer += &format!("{line};tag=carrier\r\n");
            }
        }
        answer += "Reason: Q.850;cause=17;text=\"User busy\"\r\nContent-Length: 0\r\n\r\n";
        carrier.send_to(answer.as_bytes(), from).await.unwrap();
        return request;
    }
}

#[tokio::test]
async fn call_is_queued_at_once_and_ends_with_the_carriers_words() {
    let (stage, carrier) = stage().await;
    let body = json!({
        "assistantId": "echo", "from": "+4930111", "to": "+4930222", "metadata": { "order": "7" },
        "idempotencyKey": "k1",
    });
    let made = stage.post("/v1/calls", &body.to_string()).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let call_id = made.json()["callId"].as_str().unwrap().to_owned();
    let invite = answers(&carrier, "INVITE", "486 Busy Here").await;
    assert!(invite.starts_with("INVITE sip:+4930222@127.0.0.1:"), "{invite}");
    assert!(invite.contains("<sip:+4930111@127.0.0.1>;tag="), "{invite}");
    let call = stage.until_state("failed").await;
    assert_eq!((call["callId"].as_str(), call["direction"].as_str()), (Some(&*call_id), Some("outbound")));
    assert_eq!(call["ending"]["reason"], "busy");
    assert_eq!(call["ending"]["carrier"]["q850Text"], "User busy");
    assert_eq!(call["metadata"]["order"], "7");
    // The same request again is the same call, even when that is over.
    let again = stage.post("/v1/calls", &body.to_string()).await;
    assert_eq!(again.json()["callId"], call_id.as_str());
    let other = body.to_string().replace("+4930222", "+4930333");
    assert_eq!(stage.post("/v1/calls", &other).await.status, 409);
}

#[tokio::test]
async fn wrong_fields_are_named_all_at_once() {
    let (stage, _carrier) = stage().await;
    let wrong =
        json!({ "assistantId": "nobody", "to": "sip:x@evil.example", "from": "1", "options": { "a": "b" } });
    let answer = stage.post("/v1/calls", &wrong.to_string()).await;
    assert_eq!(answer.status, 400);
    let fields: Vec<_> =
        answer.json()["fields"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect();
    for field in ["assistant.assistant_id", "to_number", "options.a"] {
        assert!(fields.iter().any(|name| name == field), "{field} in {fields:?}");
    }
    let answer = stage.post("/v1/calls", "{\"assistantId\": 7}").await;
    assert!(answer.status == 400 && answer.body.contains("assistantId"), "{}", answer.body);
    assert_eq!(post(stage.app.http_addr(), "/v1/calls", None, "{}").await.status, 401);
    assert!(stage.get("/v1/calls").await.json()["calls"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn bulk_over_grpc_shows_how_far_it_is_and_belongs_to_its_tenant() {
    let (stage, carrier) = stage().await;
    let url = format!("http://{}", stage.app.http_addr());
    let mut client = TalkServiceClient::connect(url).await.unwrap();
    let with_key = |message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-api-key", KEY.parse().unwrap());
        request
    };
    let call = api::CreatePhoneCallRequest {
        assistant: Some(api::AssistantDefinition { assistant_id: "echo".into(), version: String::new() }),
        from_number: "+4930111".into(),
        to_number: "+4930222".into(),
        ..Default::default()
    };
    let request = api::CreateBulkPhoneCallRequest { phone_calls: vec![call; 2] };
    let made = client.create_bulk_phone_call(with_key(request)).await.unwrap().into_inner();
    assert_eq!(made.calls.len(), 2);
    for _ in 0..2 {
        answers(&carrier, "INVITE", "486 Busy Here").await;
    }
    let path = format!("/v1/bulks/{}", made.bulk_id);
    until(|| async { stage.get(&path).await.json()["ended"]["busy"] == 2 }).await;
    let empty = api::CreateBulkPhoneCallRequest::default();
    let refused = client.create_bulk_phone_call(with_key(empty)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(stage.get("/v1/bulks/x").await.status, 404);
}
