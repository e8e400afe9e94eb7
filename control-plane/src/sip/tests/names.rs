//! Names, with a real DNS server: dnsmasq on loopback. Where it is not installed these tests fail.

use std::process::{Child, Command, Stdio};

use super::*;

/// A dnsmasq that knows these records and nothing else.
struct Dns {
    child: Child,
    address: SocketAddr,
}

impl Dns {
    async fn with(records: &[String]) -> Self {
        let address = UdpSocket::bind(LOOPBACK).await.unwrap().local_addr().unwrap();
        let port = format!("--port={}", address.port());
        // Debian has it where not everybody looks.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let spawned = Command::new("dnsmasq")
            .env("PATH", path)
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", &port])
            .args(["--host-record=a.sip.test,127.0.0.1", "--local=/test/"])
            .args(records)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = spawned.expect("dnsmasq is missing: scripts/setup.sh test installs it");
        let dns = Self { child, address };
        dns.is_up().await;
        dns
    }

    /// Asks for a.sip.test until there is an answer.
    async fn is_up(&self) {
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x03sip\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
        let asking = async {
            let mut buffer = [0; 512];
            loop {
                let _ = socket.send_to(question, self.address).await;
                let answer = timeout(Duration::from_millis(100), socket.recv_from(&mut buffer)).await;
                if matches!(answer, Ok(Ok(_))) {
                    return;
                }
            }
        };
        timeout(SOON, asking).await.expect("dnsmasq answers soon");
    }

    fn settings(&self) -> SipSettings {
        SipSettings { dns: Some(self.address), ..SipSettings::default() }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn srv(service: &str, address: SocketAddr, priority: u16) -> String {
    format!("--srv-host={service},a.sip.test,{},{priority},50", address.port())
}

fn naptr(order: u16, service: &str, replacement: &str) -> String {
    format!("--naptr-record=sip.test,{order},10,s,{service},,{replacement}")
}

#[tokio::test]
async fn naptr_and_srv_lead_to_the_transport_and_the_port() {
    let mut server = shell(&[SipTransport::Udp, SipTransport::Tcp], SipSettings::default()).await;
    let records = [
        naptr(20, "SIP+D2U", "_sip._udp.sip.test"),
        naptr(10, "SIP+D2T", "_sip._tcp.sip.test"),
        srv("_sip._udp.sip.test", server.at(Transport::Udp), 1),
        srv("_sip._tcp.sip.test", server.at(Transport::Tcp), 1),
    ];
    let dns = Dns::with(&records).await;
    let client = shell(&[SipTransport::Udp], dns.settings()).await;
    client.invite("sip:a@sip.test", "v=0\r\n", None).await;
    assert_eq!(server.incoming().await.2.transport, Transport::Tcp, "its order is lower");
    client.invite("sip:a@sip.test;transport=udp", "v=0\r\n", None).await;
    assert_eq!(server.incoming().await.2.transport, Transport::Udp, "the URI decides");
}

#[tokio::test]
async fn host_that_is_down_is_passed_over_for_the_next_of_its_srv_records() {
    let mut server = shell(&[SipTransport::Tcp], SipSettings::default()).await;
    let down = TcpListener::bind(LOOPBACK).await.unwrap().local_addr().unwrap();
    let service = "_sip._tcp.sip.test";
    let records = [srv(service, down, 1), srv(service, server.at(Transport::Tcp), 2)];
    let dns = Dns::with(&records).await;
    let mut client = shell(&[SipTransport::Udp], dns.settings()).await;
    client.invite("sip:a@sip.test", "v=0\r\n", None).await;
    let (call, ..) = server.incoming().await;
    server.verbs.send(Verb::Reject(call, Reply::new(486))).await.unwrap();
    let mut placed = Vec::new();
    let ended = loop {
        match client.next().await {
            SipEvent::Placed { token: Token(8), call } => placed.push(call),
            SipEvent::Endpoint { event: Event::Ended { call, .. }, .. } => break call,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((placed.len(), placed[1]), (2, ended), "only the call that is told last has an end");
    client.invite("sip:a@sip.test", "v=0\r\n", None).await;
    server.incoming().await;
    assert_eq!(client.counters.net().failovers.load(std::sync::atomic::Ordering::Relaxed), 1, "it rests");
}

#[tokio::test]
async fn domain_that_dns_does_not_know_is_told_at_once() {
    let dns = Dns::with(&[]).await;
    let mut client = shell(&[SipTransport::Udp], dns.settings()).await;
    client.options("sip:a@nowhere.test", None).await;
    let SipEvent::NotSent { why: NotSent::Unresolved { host, why }, .. } = client.next().await else {
        panic!("it is not sent")
    };
    assert_eq!(&*host, "nowhere.test");
    assert!(why.contains("NAPTR nowhere.test") && why.contains("A, AAAA nowhere.test"), "{why}");
}
