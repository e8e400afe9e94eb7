//! Two shells, or a shell and a plain client, over real sockets on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tandem_sip::message::{Body, Method, Reply};
use tandem_sip::{
    CallHandle, EndReason, Event, Flow, Headers, InviteRequest, NameAddr, NoResponse, OutgoingRequest, Uri,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::tls::tests::Authority;
use super::*;
use crate::config::SipTransport;

mod names;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const SOON: Duration = Duration::from_secs(10);

async fn shell(transports: &[SipTransport], settings: SipSettings) -> Sip {
    let listen = transports.iter().map(|&transport| SipListen { transport, address: LOOPBACK }).collect();
    let config = EndpointConfig { seed: rand::random(), ..EndpointConfig::default() };
    start(&SipSettings { listen, ..settings }, config).await.unwrap()
}

impl Sip {
    fn at(&self, transport: Transport) -> SocketAddr {
        self.listeners.iter().find(|(of, _)| *of == transport).unwrap().1
    }

    async fn next(&mut self) -> SipEvent {
        timeout(SOON, self.events.recv()).await.expect("something happens soon").expect("the shell runs")
    }

    /// The next event of the endpoint, beside what the shell itself says.
    async fn next_event(&mut self) -> (Event, Option<Arc<TlsPeer>>) {
        loop {
            if let SipEvent::Endpoint { event, peer } = self.next().await {
                return (event, peer);
            }
        }
    }

    async fn options(&self, uri: &str, trunk: Option<&str>) {
        let target = uri_of(uri);
        let request = OutgoingRequest::new(Method::Options, target.clone(), us(), Flow::UNRESOLVED);
        let destination = Destination { trunk: trunk.map(Into::into), ..Destination::to(target) };
        self.verbs.send(Verb::Request(Token(7), Box::new(request), destination)).await.unwrap();
    }

    async fn invite(&self, uri: &str, body: &str, trunk: Option<&str>) {
        let target = uri_of(uri);
        let mut invite = InviteRequest::new(target.clone(), us(), Flow::UNRESOLVED);
        invite.body = Some(Body::sdp(body));
        let destination = Destination { trunk: trunk.map(Into::into), ..Destination::to(target) };
        self.verbs.send(Verb::Invite(Token(8), Box::new(invite), destination)).await.unwrap();
    }

    /// Waits for the answer to OPTIONS: its status, or why there is none.
    async fn status(&mut self) -> Result<u16, NoResponse> {
        match self.next_event().await.0 {
            Event::Response { result, .. } => result.map(|response| response.status),
            other => panic!("{other:?}"),
        }
    }

    async fn incoming(&mut self) -> (CallHandle, Box<tandem_sip::Request>, Flow, Option<Arc<TlsPeer>>) {
        loop {
            match self.next_event().await {
                (Event::IncomingInvite { call, request, flow, .. }, peer) => {
                    return (call, request, flow, peer);
                }
                (Event::Ended { .. }, _) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn uri_of(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

fn us() -> NameAddr {
    NameAddr::new(uri_of("sip:us@127.0.0.1"))
}

fn trunk(authority: &Authority) -> TrunkIdentity {
    TrunkIdentity { ca: Some(authority.ca()), ..TrunkIdentity::new("carrier".into()) }
}

async fn tls_server(authority: &Authority, trunks: Vec<TrunkIdentity>) -> Sip {
    let tls = Some(authority.issue("server", "server", &["127.0.0.1"]));
    shell(&[SipTransport::Tls, SipTransport::Udp], SipSettings { tls, trunks, ..SipSettings::default() })
        .await
}

#[tokio::test]
async fn request_over_tls_is_answered_and_says_tls() {
    let authority = Authority::new();
    let mut server = tls_server(&authority, Vec::new()).await;
    let trunks = vec![trunk(&authority)];
    let mut client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    let address = server.at(Transport::Tls);
    client.options(&format!("sips:a@{address}"), Some("carrier")).await;
    assert_eq!(client.status().await, Ok(200));
    client.invite(&format!("sips:a@{address}"), "v=0\r\n", Some("carrier")).await;
    let (call, invite, ..) = server.incoming().await;
    let contact = invite.head.contact().unwrap().uri;
    assert_eq!((contact.scheme(), contact.param("transport")), (tandem_sip::uri::Scheme::Sips, None));
    server.verbs.send(Verb::Answer(call, Body::sdp("v=0\r\n"))).await.unwrap();
    let (Event::Answered { response, .. }, _) = client.next_event().await else { panic!("it is answered") };
    assert_eq!(response.head.contact().unwrap().uri.scheme(), tandem_sip::uri::Scheme::Sips);
    assert!(matches!(server.next_event().await.0, Event::Acknowledged { .. }));
    client.invite(&format!("sip:a@{address};transport=tls"), "v=0\r\n", Some("carrier")).await;
    let (call, invite, flow, peer) = server.incoming().await;
    assert_eq!((&*invite.head.via().transport, flow.transport, peer), ("TLS", Transport::Tls, None));
    assert_eq!(invite.head.contact().unwrap().uri.param("transport"), Some("tls"));
    server.verbs.send(Verb::Reject(call, Reply::new(486))).await.unwrap();
    let (event, _) = client.next_event().await;
    assert!(matches!(event, Event::Ended { why: EndReason::Failed { .. }, .. }), "{event:?}");
    let (ours, theirs) = (client.counters.net(), server.counters.net());
    let tls = counters::place(Transport::Tls);
    assert_eq!(ours.opened[tls].load(std::sync::atomic::Ordering::Relaxed), 1, "one connection serves both");
    assert_eq!(theirs.accepted[tls].load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn server_that_nobody_vouches_for_gets_no_request() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = tls_server(&authority, Vec::new()).await;
    let trunks = vec![trunk(&other)];
    let mut client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    let address = server.at(Transport::Tls);
    for trunk in [Some("carrier"), None] {
        client.options(&format!("sips:a@{address}"), trunk).await;
        assert_eq!(client.status().await, Err(NoResponse::Transport));
    }
    // The port is right and the authority too, but the certificate is for 127.0.0.1 and the URI says localhost.
    let trunks = vec![trunk(&authority)];
    let mut client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    client.options(&format!("sips:a@localhost:{}", address.port()), Some("carrier")).await;
    assert_eq!(client.status().await, Err(NoResponse::Transport));
    let failed = &client.counters.net().connects_failed[counters::place(Transport::Tls)];
    assert!(failed.load(std::sync::atomic::Ordering::Relaxed) >= 1);
}

#[tokio::test]
async fn trunk_proves_itself_by_its_certificate_and_a_stranger_stays_nameless() {
    let authority = Authority::new();
    let shows = TrunkIdentity { shows_certificate: true, ..trunk(&authority) };
    let mut server = tls_server(&authority, vec![shows]).await;
    let address = server.at(Transport::Tls);
    let cert = Some(authority.issue("client", "client", &["pbx.carrier.example"]));
    let known = TrunkIdentity { cert, ..trunk(&authority) };
    let stranger = Authority::new();
    let self_made = Some(stranger.issue("client", "client", &["pbx.carrier.example"]));
    let unknown = TrunkIdentity { cert: self_made, name: "other".into(), ..trunk(&authority) };
    let trunks = vec![known, unknown];
    let client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    client.invite(&format!("sips:a@{address}"), "v=0\r\n", Some("carrier")).await;
    let peer = server.incoming().await.3.expect("the certificate names it");
    assert!(peer.is("carrier", &["pbx.carrier.example"]) && !peer.is("other", &["pbx.carrier.example"]));
    client.invite(&format!("sips:a@{address}"), "v=0\r\n", Some("other")).await;
    assert_eq!(server.incoming().await.3, None, "signed by nobody that the trunk trusts");
}

#[tokio::test]
async fn handshake_that_is_none_is_counted() {
    let authority = Authority::new();
    let server = tls_server(&authority, Vec::new()).await;
    let mut stream = TcpStream::connect(server.at(Transport::Tls)).await.unwrap();
    stream.write_all(b"OPTIONS sip:a SIP/2.0\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap();
    let failed = &server.counters.net().handshakes_failed[counters::place(Transport::Tls)];
    assert_eq!(failed.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn listener_with_tls_does_not_start_without_a_certificate() {
    let listen = vec![SipListen { transport: SipTransport::Wss, address: LOOPBACK }];
    let settings = SipSettings { listen, ..SipSettings::default() };
    let error = start(&settings, EndpointConfig::default()).await.unwrap_err();
    assert!(error.to_string().contains("set TANDEM_TLS_CERT"), "{error}");
}

/// A request of a browser.
fn browser(method: &str, cseq: u32, to_tag: &str) -> String {
    format!(
        "{method} sip:echo@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/WS df7jal23ls0d.invalid;branch=z9hG4bK{cseq}{method}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:me@a.invalid>;tag=1\r\nTo: <sip:echo@127.0.0.1>{to_tag}\r\nCall-ID: c\r\n\
         CSeq: {cseq} {method}\r\nContact: <sip:me@df7jal23ls0d.invalid;transport=ws;ob>\r\nContent-Length: 0\r\n\r\n"
    )
}

async fn websocket(
    address: SocketAddr,
    subprotocol: Option<&str>,
) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, Error> {
    let mut request = format!("ws://{address}/").into_client_request().unwrap();
    if let Some(subprotocol) = subprotocol {
        request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.map(|(socket, _)| socket)
}

async fn heard(socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>) -> String {
    match timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap() {
        Message::Text(text) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn browser_calls_and_is_hung_up_over_its_own_connection() {
    let mut shell = shell(&[SipTransport::Ws], SipSettings::default()).await;
    let mut socket = websocket(shell.at(Transport::Ws), Some("foo, sip")).await.unwrap();
    socket.send(Message::text(browser("INVITE", 1, ""))).await.unwrap();
    assert!(heard(&mut socket).await.starts_with("SIP/2.0 100 "));
    let (call, _, flow, _) = shell.incoming().await;
    assert_eq!(flow.transport, Transport::Ws);
    shell.verbs.send(Verb::Answer(call, Body::sdp("v=0\r\n"))).await.unwrap();
    let answer = heard(&mut socket).await;
    assert!(answer.starts_with("SIP/2.0 200 ") && answer.contains(";transport=ws>"), "{answer}");
    let to = answer.lines().find(|line| line.starts_with("To:")).unwrap();
    let tag = &to[to.find(";tag=").unwrap()..];
    socket.send(Message::text(browser("ACK", 1, tag))).await.unwrap();
    assert!(matches!(shell.next_event().await.0, Event::Acknowledged { .. }));
    shell.verbs.send(Verb::HangUp(call, Headers::new())).await.unwrap();
    let bye = heard(&mut socket).await;
    assert!(bye.starts_with("BYE sip:me@df7jal23ls0d.invalid") && bye.contains("Via: SIP/2.0/WS "), "{bye}");
}

#[tokio::test]
async fn websocket_answers_keep_alives_and_takes_binary_messages() {
    let shell = shell(&[SipTransport::Ws], SipSettings::default()).await;
    let mut socket = websocket(shell.at(Transport::Ws), Some("sip")).await.unwrap();
    socket.send(Message::text("\r\n\r\n")).await.unwrap();
    assert_eq!(heard(&mut socket).await, "\r\n");
    socket.send(Message::binary(browser("OPTIONS", 1, "").into_bytes())).await.unwrap();
    assert!(heard(&mut socket).await.starts_with("SIP/2.0 200 "));
    socket.send(Message::Ping("x".into())).await.unwrap();
    assert_eq!(timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap(), Message::Pong("x".into()));
}

#[tokio::test]
async fn websocket_of_another_subprotocol_is_refused_with_what_to_ask_for() {
    let shell = shell(&[SipTransport::Ws], SipSettings::default()).await;
    for subprotocol in [None, Some("mqtt")] {
        let Err(Error::Http(response)) = websocket(shell.at(Transport::Ws), subprotocol).await else {
            panic!("it is refused")
        };
        assert_eq!(response.status(), 400);
    }
}

#[tokio::test]
async fn websocket_message_beyond_the_limit_closes_with_1009() {
    let shell = shell(&[SipTransport::Ws], SipSettings::default()).await;
    let mut socket = websocket(shell.at(Transport::Ws), Some("sip")).await.unwrap();
    let _ = socket.send(Message::text("x".repeat(70_000))).await;
    let closed = timeout(SOON, socket.next()).await.unwrap();
    match closed {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1009),
        other => panic!("{other:?}"),
    }
    assert_eq!(shell.counters.net().websocket_errors.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn stun_keep_alive_is_answered_at_the_sip_port() {
    let shell = shell(&[SipTransport::Udp], SipSettings::default()).await;
    let phone = UdpSocket::bind(LOOPBACK).await.unwrap();
    let request = tandem_sip::stun::binding_request([7; 12]);
    phone.send_to(&request, shell.at(Transport::Udp)).await.unwrap();
    let mut buffer = [0; 64];
    let (len, _) = timeout(SOON, phone.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!((&buffer[..2], &buffer[8..20], len), (&[1, 1][..], &[7; 12][..], 32));
}

#[tokio::test]
async fn large_request_finds_its_way_though_only_udp_is_open() {
    let mut server = shell(&[SipTransport::Udp], SipSettings::default()).await;
    let client = shell(&[SipTransport::Udp, SipTransport::Tcp], SipSettings::default()).await;
    let uri = format!("sip:a@{}", server.at(Transport::Udp));
    client.invite(&uri, &"x".repeat(2_000), None).await;
    let (_, invite, flow, _) = server.incoming().await;
    assert_eq!((flow.transport, invite.body.len()), (Transport::Udp, 2_000));
    assert_eq!(client.counters.net().failovers.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn large_request_goes_by_tcp_where_there_is_tcp() {
    let mut server = shell(&[SipTransport::Tcp], SipSettings::default()).await;
    let client = shell(&[SipTransport::Udp], SipSettings::default()).await;
    client.invite(&format!("sip:a@{}", server.at(Transport::Tcp)), &"x".repeat(2_000), None).await;
    let (_, invite, flow, _) = server.incoming().await;
    assert_eq!((flow.transport, &*invite.head.via().transport), (Transport::Tcp, "TCP"));
}

#[tokio::test]
async fn end_of_a_registrations_connection_is_told() {
    let registrar = TcpListener::bind(LOOPBACK).await.unwrap();
    let mut client = shell(&[SipTransport::Udp], SipSettings::default()).await;
    let target = uri_of(&format!("sip:{};transport=tcp", registrar.local_addr().unwrap()));
    let request = OutgoingRequest::new(Method::Register, target.clone(), us(), Flow::UNRESOLVED);
    let destination = Destination::to(target);
    client.verbs.send(Verb::Request(Token(9), Box::new(request), destination)).await.unwrap();
    let (mut stream, _) = registrar.accept().await.unwrap();
    let mut buffer = [0; 2_000];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    drop(stream);
    loop {
        if let SipEvent::FlowLost { token } = client.next().await {
            assert_eq!(token, Token(9));
            break;
        }
    }
}

#[tokio::test]
async fn server_that_hangs_up_at_once_is_a_failure_at_once_and_no_lost_registration() {
    let server = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = server.local_addr().unwrap();
    let mut client = shell(&[SipTransport::Udp], SipSettings::default()).await;
    client.options(&format!("sip:a@{address};transport=tcp"), None).await;
    let (mut stream, _) = server.accept().await.unwrap();
    assert!(stream.read(&mut [0; 2_000]).await.unwrap() > 0);
    drop(stream);
    assert_eq!(client.status().await, Err(NoResponse::Transport));
    drop(server);
    let target = uri_of(&format!("sip:{address};transport=tcp"));
    let request = OutgoingRequest::new(Method::Register, target.clone(), us(), Flow::UNRESOLVED);
    let destination = Destination::to(target);
    client.verbs.send(Verb::Request(Token(9), Box::new(request), destination)).await.unwrap();
    loop {
        match client.next().await {
            SipEvent::Sent { .. } | SipEvent::Closed { .. } => {}
            SipEvent::Endpoint { event: Event::Response { result, .. }, .. } => {
                break assert_eq!(result, Err(NoResponse::Transport));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn connection_that_dies_while_a_request_goes_by_it_is_replaced() {
    let server = TcpListener::bind(LOOPBACK).await.unwrap();
    let uri = format!("sip:a@{};transport=tcp", server.local_addr().unwrap());
    let mut client = shell(&[SipTransport::Udp], SipSettings::default()).await;
    client.options(&uri, None).await;
    let (mut old, _) = server.accept().await.unwrap();
    let mut buffer = [0; 2_000];
    let len = old.read(&mut buffer).await.unwrap();
    // The second goes by the connection that is there.
    client.options(&uri, None).await;
    let _ = old.read(&mut buffer).await.unwrap();
    drop(old);
    assert_eq!(client.status().await, Err(NoResponse::Transport), "the first had a connection of its own");
    let (mut new, _) = timeout(SOON, server.accept()).await.unwrap().unwrap();
    let again = new.read(&mut buffer).await.unwrap();
    assert!(again.abs_diff(len) < 40 && buffer.starts_with(b"OPTIONS "));
}

#[tokio::test]
async fn destination_without_an_address_is_not_sent_and_says_why() {
    let nobody = UdpSocket::bind(LOOPBACK).await.unwrap();
    let dns = Some(nobody.local_addr().unwrap());
    let mut client = shell(&[SipTransport::Udp], SipSettings { dns, ..SipSettings::default() }).await;
    for (uri, part) in [
        ("sip:a@nowhere.example", "nowhere.example cannot be resolved"),
        ("sip:a@127.0.0.1;transport=ws", "transport WS is not available"),
        ("sip:a@[::1]", "no listener of that address family"),
    ] {
        client.options(uri, None).await;
        let SipEvent::NotSent { token, why } = client.next().await else { panic!("{uri}: it is not sent") };
        assert_eq!(token, Token(7));
        assert!(why.to_string().contains(part), "{why}");
    }
    // A phone that is reached by its connection, which is gone.
    let flow = Flow::connected(Transport::Ws, LOOPBACK, LOOPBACK, tandem_sip::ConnectionId(99));
    let request = OutgoingRequest::new(Method::Options, uri_of("sip:a@b.invalid"), us(), Flow::UNRESOLVED);
    let destination = Destination { flow: Some(flow), ..Destination::to(uri_of("sip:a@b.invalid")) };
    client.verbs.send(Verb::Request(Token(7), Box::new(request), destination)).await.unwrap();
    assert!(matches!(client.next().await, SipEvent::NotSent { why: NotSent::Unreachable { .. }, .. }));
}

#[tokio::test]
async fn carrier_may_call_back_by_the_connection_that_we_have_opened() {
    let authority = Authority::new();
    let mut server = tls_server(&authority, Vec::new()).await;
    let trunks = vec![trunk(&authority)];
    let mut client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    client.invite(&format!("sips:a@{}", server.at(Transport::Tls)), "v=0\r\n", Some("carrier")).await;
    let flow = server.incoming().await.2;
    let target = uri_of("sips:us@client.invalid");
    let invite = InviteRequest::new(target.clone(), us(), Flow::UNRESOLVED);
    let destination = Destination { flow: Some(flow), ..Destination::to(target) };
    server.verbs.send(Verb::Invite(Token(3), Box::new(invite), destination)).await.unwrap();
    let peer = client.incoming().await.3.expect("we have checked its certificate");
    assert!(peer.is("carrier", &["127.0.0.1"]), "{peer:?}");
}

#[tokio::test]
async fn browser_reaches_us_over_wss_and_is_asked_for_no_certificate() {
    let authority = Authority::new();
    let tls = Some(authority.issue("server", "server", &["127.0.0.1"]));
    let trunks = vec![TrunkIdentity { shows_certificate: true, ..trunk(&authority) }];
    let settings = SipSettings { tls, trunks: trunks.clone(), ..SipSettings::default() };
    let mut shell = shell(&[SipTransport::Wss], settings).await;
    let address = shell.at(Transport::Wss);
    let trust = tls::Tls::load(None, trunks).unwrap().client(Some("carrier"));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(trust).connect(name, stream).await.unwrap();
    let mut request = format!("wss://{address}/").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "sip".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket.send(Message::text(browser("INVITE", 1, "").replace("/WS ", "/WSS "))).await.unwrap();
    let (_, invite, flow, peer) = shell.incoming().await;
    assert_eq!((flow.transport, &*invite.head.via().transport, peer), (Transport::Wss, "WSS", None));
    let trying = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(trying.to_text().unwrap().starts_with("SIP/2.0 100 "), "{trying:?}");
}

#[tokio::test]
async fn connection_that_stays_silent_is_counted_as_open_until_it_ends() {
    let shell = shell(&[SipTransport::Tcp], SipSettings::default()).await;
    let open = || shell.counters.net().open[0].load(std::sync::atomic::Ordering::Relaxed);
    let stream = TcpStream::connect(shell.at(Transport::Tcp)).await.unwrap();
    let until = |wanted: u64| async move {
        while open() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, until(1)).await.unwrap();
    drop(stream);
    timeout(SOON, until(0)).await.unwrap();
}

#[tokio::test]
async fn trunk_is_told_the_address_that_it_knows_us_by() {
    let mut server = shell(&[SipTransport::Udp], SipSettings::default()).await;
    let advertised_host = Some("sip.tandem.example".into());
    let trunks = vec![TrunkIdentity { advertised_host, ..TrunkIdentity::new("carrier".into()) }];
    let client = shell(&[SipTransport::Udp], SipSettings { trunks, ..SipSettings::default() }).await;
    let uri = format!("sip:a@{}", server.at(Transport::Udp));
    client.invite(&uri, "v=0\r\n", Some("carrier")).await;
    let (_, invite, ..) = server.incoming().await;
    assert_eq!(&*invite.head.via().host, "sip.tandem.example");
    assert_eq!(invite.head.contact().unwrap().uri.host(), "sip.tandem.example");
    client.invite(&uri, "v=0\r\n", None).await;
    assert_eq!(&*server.incoming().await.1.head.via().host, "127.0.0.1", "and others as ever");
}
