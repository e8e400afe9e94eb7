use proptest::prelude::*;
use tandem_sip::Message;

use super::*;

const HOUR_MS: i64 = 3_600_000;

pub(in crate::registration) fn request(headers: &str) -> Request {
    request_of("c1", 7, headers)
}

pub(in crate::registration) fn request_of(call_id: &str, cseq: u32, headers: &str) -> Request {
    let text = format!(
        "REGISTER sip:pbx.example SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bK1;rport\r\n\
         From: <sip:anna@pbx.example>;tag=1\r\nTo: <sip:anna@pbx.example>\r\nCall-ID: {call_id}\r\n\
         CSeq: {cseq} REGISTER\r\n{headers}\r\n"
    );
    match tandem_sip::parse::parse(text.as_bytes()) {
        Ok(Message::Request(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn wish(headers: &str) -> Result<Wish, Objection> {
    Wish::read(&request(headers), &Lifetimes::default(), false)
}

fn flow() -> Flow {
    Flow::udp(([127, 0, 0, 1], 4573).into(), ([192, 0, 2, 9], 4000).into())
}

fn origin(call_id: &str, cseq: u32) -> Origin {
    Origin { flow: flow(), is_direct: true, path: Vec::new(), call_id: call_id.into(), cseq }
}

fn contact(uri: &str, expires_s: u32) -> Contact {
    Contact { uri: Uri::parse(uri).unwrap(), expires_s, q: Q_DEFAULT, instance: None }
}

fn bind(bindings: &mut Vec<Binding>, uri: &str, expires_s: u32, origin: &Origin) -> Result<(), Objection> {
    apply(bindings, &Wish::Bind(vec![contact(uri, expires_s)]), origin, 3, 0)
}

fn uris(bindings: &[Binding]) -> Vec<&str> {
    bindings.iter().map(|binding| binding.uri.as_str()).collect()
}

#[test]
fn lifetime_is_the_contacts_then_the_headers_then_ours_and_never_too_long() {
    for (headers, expected) in [
        ("Contact: <sip:a@h>;expires=600\r\nExpires: 1200\r\n", 600),
        ("Contact: <sip:a@h>\r\nExpires: 1200\r\n", 1_200),
        ("Contact: <sip:a@h>\r\n", 3_600),
        ("Contact: <sip:a@h>;expires=99999\r\n", 7_200),
        ("Contact: <sip:a@h>;expires=4294967296\r\n", 7_200),
        ("Contact: <sip:a@h>;expires=0\r\n", 0),
    ] {
        let Wish::Bind(contacts) = wish(headers).unwrap() else { panic!("{headers}") };
        assert_eq!(contacts[0].expires_s, expected, "{headers}");
    }
}

#[test]
fn phone_behind_a_nat_is_told_to_come_back_sooner() {
    let request = request("Contact: <sip:a@10.0.0.9>;expires=3600\r\n");
    let Wish::Bind(contacts) = Wish::read(&request, &Lifetimes::default(), true).unwrap() else { panic!() };
    assert_eq!(contacts[0].expires_s, 60);
}

#[test]
fn brief_lifetime_is_refused_with_the_least_we_grant() {
    let refused = wish("Contact: <sip:a@h>;expires=30\r\n").unwrap_err();
    assert_eq!(refused, Objection::TooBrief { asked_s: 30, min_s: 60 });
    assert_eq!(refused.status(), 423);
}

#[test]
fn wildcard_stands_alone_and_with_expires_0() {
    assert_eq!(wish("Contact: *\r\nExpires: 0\r\n"), Ok(Wish::RemoveAll));
    for headers in [
        "Contact: *\r\n",
        "Contact: *\r\nExpires: 60\r\n",
        "Contact: *, <sip:a@h>\r\nExpires: 0\r\n",
        "Contact: <sip:a@h>\r\nContact: *\r\nExpires: 0\r\n",
    ] {
        assert_eq!(wish(headers), Err(Objection::Wildcard), "{headers}");
    }
}

#[test]
fn what_cannot_be_read_is_400() {
    for headers in [
        "Contact: <sip:a@h>;expires=soon\r\n",
        "Contact: <sip:a@h>;q=2\r\n",
        "Contact: <sip:a@h>;q=0.1234\r\n",
        "Contact: <tel:+1555>\r\n",
    ] {
        assert_eq!(wish(headers).map_err(|why| why.status()), Err(400), "{headers}");
    }
}

#[test]
fn several_contacts_with_q_and_instance_are_read() {
    let wish = wish(
        "Contact: <sip:a@h>;q=0.5, \"A\" <sip:b@h;transport=tcp>;q=1.000;+sip.instance=\"<urn:uuid:1>\";reg-id=2\r\n",
    );
    let Wish::Bind(contacts) = wish.unwrap() else { panic!() };
    assert_eq!([contacts[0].q, contacts[1].q], [500, 1_000]);
    assert_eq!(contacts[1].instance, Some(Instance { id: "<urn:uuid:1>".into(), reg_id: 2 }));
}

#[test]
fn request_with_too_many_contacts_is_refused() {
    let list: Vec<String> = (0..=CONTACTS_A_REQUEST_MAX).map(|n| format!("<sip:a{n}@h>")).collect();
    assert_eq!(wish(&format!("Contact: {}\r\n", list.join(", "))).unwrap_err().status(), 403);
}

#[test]
fn path_is_kept_in_order_and_a_proxy_makes_the_way_indirect() {
    let proxied = request(
        "Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bK2\r\nPath: <sip:p1;lr>, <sip:a,b@p2;lr>\r\npath: <sip:p3;lr>\r\n",
    );
    let origin = Origin::read(&proxied, flow()).unwrap();
    let path: Vec<&str> = origin.path.iter().map(|route| route.uri.as_str()).collect();
    assert_eq!(path, ["sip:p1;lr", "sip:a,b@p2;lr", "sip:p3;lr"]);
    assert!(!origin.is_direct);
    let bad = request("Path: nonsense\r\n");
    assert_eq!(Origin::read(&bad, flow()).unwrap_err().status(), 400);
}

#[test]
fn refresh_replaces_and_zero_removes() {
    let mut bindings = Vec::new();
    bind(&mut bindings, "sip:a@h", 600, &origin("c1", 1)).unwrap();
    bind(&mut bindings, "sip:b@h", 600, &origin("c2", 1)).unwrap();
    bind(&mut bindings, "sip:a@H", 900, &origin("c1", 2)).unwrap();
    assert_eq!(uris(&bindings), ["sip:b@h", "sip:a@H"]);
    bind(&mut bindings, "sip:b@h", 0, &origin("c2", 2)).unwrap();
    assert_eq!(uris(&bindings), ["sip:a@H"]);
}

#[test]
fn older_request_of_the_same_call_id_changes_nothing() {
    let mut bindings = Vec::new();
    bind(&mut bindings, "sip:a@h", 600, &origin("c1", 5)).unwrap();
    bind(&mut bindings, "sip:b@h", 600, &origin("c1", 6)).unwrap();
    let before = bindings.clone();
    for wish in [
        Wish::RemoveAll,
        Wish::Bind(vec![contact("sip:c@h", 600), contact("sip:a@h", 0)]),
        Wish::Bind(vec![contact("sip:a@h", 600)]),
    ] {
        let refused = apply(&mut bindings, &wish, &origin("c1", 5), 3, 0).unwrap_err();
        assert_eq!(refused.status(), 500);
        assert_eq!(bindings, before);
    }
    // Another Call-ID is a phone that was started again: its numbers begin anew.
    bind(&mut bindings, "sip:a@h", 600, &origin("c9", 1)).unwrap();
    apply(&mut bindings, &Wish::RemoveAll, &origin("c10", 1), 3, 0).unwrap();
    assert!(bindings.is_empty());
}

#[test]
fn phone_of_the_same_instance_replaces_its_old_address() {
    let with = |uri: &str, reg_id| {
        let instance = Some(Instance { id: "<urn:uuid:1>".into(), reg_id });
        Wish::Bind(vec![Contact { instance, ..contact(uri, 600) }])
    };
    let mut bindings = Vec::new();
    apply(&mut bindings, &with("sip:a@10.0.0.1", 1), &origin("c1", 1), 3, 0).unwrap();
    apply(&mut bindings, &with("sip:a@10.0.0.2", 1), &origin("c2", 1), 3, 0).unwrap();
    assert_eq!(uris(&bindings), ["sip:a@10.0.0.2"]);
    apply(&mut bindings, &with("sip:a@10.0.0.3", 2), &origin("c2", 2), 3, 0).unwrap();
    assert_eq!(bindings.len(), 2, "another of its flows is another binding");
}

#[test]
fn full_user_loses_what_ends_first() {
    let mut bindings = Vec::new();
    bind(&mut bindings, "sip:a@h", 900, &origin("c1", 1)).unwrap();
    bind(&mut bindings, "sip:b@h", 600, &origin("c2", 1)).unwrap();
    bind(&mut bindings, "sip:c@h", 800, &origin("c3", 1)).unwrap();
    bind(&mut bindings, "sip:d@h", 60, &origin("c4", 1)).unwrap();
    assert_eq!(uris(&bindings), ["sip:a@h", "sip:c@h", "sip:d@h"]);
}

#[test]
fn binding_ends_with_its_time() {
    let mut bindings = Vec::new();
    bind(&mut bindings, "sip:a@h", 600, &origin("c1", 1)).unwrap();
    apply(&mut bindings, &Wish::Query, &origin("c2", 1), 3, 599_999).unwrap();
    assert_eq!(bindings.len(), 1);
    apply(&mut bindings, &Wish::Query, &origin("c2", 1), 3, 600_000).unwrap();
    assert!(bindings.is_empty());
}

#[test]
fn answer_says_what_is_left() {
    let wish =
        wish("Contact: <sip:a@h>;q=0.05;expires=600;+sip.instance=\"<urn:uuid:1>\";reg-id=1\r\n").unwrap();
    let mut bindings = Vec::new();
    apply(&mut bindings, &wish, &origin("c1", 1), 3, 0).unwrap();
    let value = contact_value(&bindings[0], 1_500);
    assert_eq!(value, "<sip:a@h>;expires=599;q=0.050;+sip.instance=\"<urn:uuid:1>\";reg-id=1");
    assert!(NameAddr::parse(&value).is_ok());
}

fn any_contact() -> impl Strategy<Value = Contact> {
    (
        0..5_u8,
        prop_oneof![Just(0_u32), 60..7_200_u32],
        0..=1_000_u16,
        proptest::option::of((0..2_u8, 0..3_u32)),
    )
        .prop_map(|(host, expires_s, q, instance)| Contact {
            uri: Uri::parse(&format!("sip:a@10.0.0.{host}")).unwrap(),
            expires_s,
            q,
            instance: instance.map(|(id, reg_id)| Instance { id: format!("<urn:{id}>").into(), reg_id }),
        })
}

fn any_wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        1 => Just(Wish::Query),
        1 => Just(Wish::RemoveAll),
        8 => proptest::collection::vec(any_contact(), 1..4).prop_map(Wish::Bind),
    ]
}

proptest! {
    /// Whatever comes in whatever order: bounded, without doubles, never longer than granted, and all or nothing.
    #[test]
    fn bindings_keep_their_invariants(
        requests in proptest::collection::vec((any_wish(), 0..3_u8, 0..6_u32, 0..HOUR_MS), 1..40)
    ) {
        const MAX: usize = 4;
        let mut bindings: Vec<Binding> = Vec::new();
        let mut now_ms = 0;
        for (wish, call_id, cseq, pass_ms) in requests {
            now_ms += pass_ms / 4;
            let mut before = bindings.clone();
            before.retain(|binding| now_ms < binding.until_ms);
            let origin = origin(&format!("c{call_id}"), cseq);
            let applied = apply(&mut bindings, &wish, &origin, MAX, now_ms);
            prop_assert!(bindings.len() <= MAX);
            for (index, binding) in bindings.iter().enumerate() {
                prop_assert!(now_ms < binding.until_ms && binding.until_ms <= now_ms + 7_200_000);
                prop_assert!(bindings[..index].iter().all(|other| other.uri != binding.uri
                    || other.instance.is_some() || binding.instance.is_some()));
            }
            match (&wish, applied) {
                (_, Err(_)) | (Wish::Query, Ok(())) => prop_assert_eq!(&bindings, &before),
                (Wish::RemoveAll, Ok(())) => prop_assert!(bindings.is_empty()),
                (Wish::Bind(contacts), Ok(())) => {
                    for contact in contacts.iter().filter(|contact| contact.expires_s == 0) {
                        let mut left = bindings.iter().filter(|binding| contact.names(binding));
                        prop_assert!(left.all(|binding| is_of(binding, &origin)), "bound again by the same request");
                    }
                    let last = contacts.last().filter(|contact| contact.expires_s > 0);
                    prop_assert!(last.is_none_or(|contact| bindings.iter().any(|binding| contact.names(binding))));
                }
            }
        }
    }

    #[test]
    fn no_register_makes_the_reader_panic(headers in "[ -~]{0,200}") {
        let text = format!(
            "REGISTER sip:h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@h>;tag=1\r\nTo: <sip:a@h>\r\n\
             Call-ID: c\r\nCSeq: 1 REGISTER\r\nContact: {headers}\r\nPath: {headers}\r\n\r\n"
        );
        if let Ok(Message::Request(request)) = tandem_sip::parse::parse(text.as_bytes()) {
            let _ = Wish::read(&request, &Lifetimes::default(), true);
            let _ = Origin::read(&request, flow());
        }
    }
}
