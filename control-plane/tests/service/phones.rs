//! A softphone registers, is called by an assistant, answers, and hangs up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use control_plane::trunk::{Phone, Trunks};
use serde_json::json;
use tandem_sip::digest::Credentials;
use tandem_sip::endpoint::OwnContact;
use tandem_sip::{
    Body, Endpoint, EndpointConfig, Event, Flow, Headers, Method, NameAddr, OutgoingRequest, Uri,
};
use tokio::net::UdpSocket;

use crate::stage::{Stage, until};

struct Softphone {
    socket: UdpSocket,
    endpoint: Endpoint,
    server: SocketAddr,
}

impl Softphone {
    async fn new(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new(EndpointConfig { seed: 3, ..EndpointConfig::default() });
        Self { socket, endpoint, server }
    }

    fn flow(&self) -> Flow {
        Flow::udp(self.socket.local_addr().unwrap(), self.server)
    }

    fn register(&mut self, password: &str, expires_s: u32) {
        let address = NameAddr::new(Uri::parse("sip:anna@pbx.example").unwrap());
        let registrar = Uri::parse("sip:pbx.example").unwrap();
        let mut request = OutgoingRequest::new(Method::Register, registrar, address.clone(), self.flow());
        request.to = Some(address);
        request.contact = Some(OwnContact { user: "anna".into(), params: format!(";expires={expires_s}") });
        request.credentials = Some(Credentials::new("anna", password));
        self.endpoint.request(request, Instant::now()).unwrap();
    }

    /// The next event.
    async fn event(&mut self) -> Event {
        let flow = self.flow();
        let mut datagram = vec![0; 65_535];
        loop {
            while let Some(transmit) = self.endpoint.poll_transmit() {
                self.socket.send_to(&transmit.bytes, transmit.flow.remote).await.unwrap();
            }
            if let Some(event) = self.endpoint.poll_event() {
                return event;
            }
            let receive = self.socket.recv_from(&mut datagram);
            if let Ok(received) = tokio::time::timeout(Duration::from_millis(100), receive).await {
                let (len, remote) = received.unwrap();
                self.endpoint.handle_input(&datagram[..len], Flow { remote, ..flow }, Instant::now());
            }
            self.endpoint.handle_timeout(Instant::now());
        }
    }

    async fn registered(&mut self) -> u16 {
        loop {
            if let Event::Response { result, .. } = self.event().await {
                return result.unwrap().status;
            }
        }
    }
}

async fn stage() -> Stage {
    let phone = Phone {
        user: "anna".into(),
        password: "secret".into(),
        tenant_id: "demo".into(),
        ..Phone::default()
    };
    Stage::with(|config| config.trunks = Trunks::new([], [phone])).await
}

#[tokio::test]
async fn registered_softphone_is_called_by_an_assistant() {
    let stage = stage().await;
    let mut phone = Softphone::new(stage.app.sip_udp_addr().unwrap()).await;
    phone.register("secret", 600);
    assert_eq!(phone.registered().await, 200);

    let body = json!({ "assistantId": "echo", "to": "phone:anna" });
    let made = stage.post("/v1/calls", &body.to_string()).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let (call, invite) = loop {
        if let Event::IncomingInvite { call, request, .. } = phone.event().await {
            break (call, request);
        }
    };
    let own = phone.socket.local_addr().unwrap();
    assert_eq!(invite.uri.as_str(), format!("sip:anna@{own}"), "the Contact it gave");
    assert_eq!(invite.head.from().uri.user().as_deref(), Some("echo"));
    let answer = Body::sdp(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n",
    );
    phone.endpoint.answer(call, answer, Instant::now()).unwrap();
    loop {
        if let Event::Acknowledged { .. } = phone.event().await {
            break;
        }
    }
    stage.until_state("connected").await;
    phone.endpoint.hang_up(call, Headers::new(), Instant::now()).unwrap();
    loop {
        if let Event::Ended { .. } = phone.event().await {
            break;
        }
    }
    stage.until_state("ended").await;
}

#[tokio::test]
async fn phone_that_is_not_registered_is_unreachable_and_another_tenants_is_unknown() {
    let stage = stage().await;
    let mut phone = Softphone::new(stage.app.sip_udp_addr().unwrap()).await;
    phone.register("guess", 600);
    assert_eq!(phone.registered().await, 401);

    let call = |to: &str| json!({ "assistantId": "echo", "to": to }).to_string();
    assert_eq!(stage.post("/v1/calls", &call("phone:anna")).await.status, 202);
    let call_of_anna = stage.until_state("failed").await;
    assert_eq!(call_of_anna["ending"]["reason"], "trunk_unreachable", "{call_of_anna}");
    let unknown = stage.post("/v1/calls", &call("phone:ben")).await;
    assert!(unknown.status == 400 && unknown.body.contains("no phone"), "{}", unknown.body);
    let metrics = stage.get("/metrics").await.body;
    assert!(metrics.contains("tandem_registrar_requests_total{result=\"wrong_password\"} 1"), "{metrics}");
    until(|| async { stage.get("/readyz").await.status == 200 }).await;
}
