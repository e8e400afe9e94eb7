//! `[[trunk]]` and `[[phone]]` of tandem.toml become [`Trunk`]s and [`Phone`]s, or a list of what is wrong.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tandem_audio::format::Codec;
use tandem_sdp::SrtpPolicy;
use tandem_sip::Uri;

use super::inbound::{DidPattern, DidSource, Inbound, Route};
use super::outbound::{NumberFormat, Outbound, Redirects, Template};
use super::policy::{
    Addresses, HeaderRules, Health, HoldOffer, Latching, ReferIn, Registration, Reliable, SessionTimer,
    SrtpRules, TlsIdentity, TransferPolicy,
};
use super::{Phone, SipCredential, Trunk, Trunks};
use crate::call::negotiation::codec_name;
use crate::settings::section::{Section, Source};
use crate::store::declared::{ID_EXPECTED, Tenants, is_id};

/// Octets of a phone's password: its digest can be listened to and tried against a dictionary.
const PASSWORD_MIN: usize = 8;

/// Reads both arrays of tables; mistakes are left in `source`.
pub fn read(source: &Source<'_>, tables: &toml::Table, tenants: &Tenants) -> Trunks {
    let mut trunks: Vec<Trunk> = Vec::new();
    for mut section in Section::all(source, "trunk", "name", tables.get("trunk").cloned()) {
        let trunk = read_trunk(&mut section, tenants);
        if trunks.iter().any(|other| other.name == trunk.name) {
            section.wrong("there are two of them: give each a name of its own");
            continue;
        }
        trunks.push(trunk);
    }
    check_conflicts(source, &trunks);
    check_failover(source, &trunks);
    let mut phones: Vec<Phone> = Vec::new();
    for mut section in Section::all(source, "phone", "user", tables.get("phone").cloned()) {
        let Some(phone) = read_phone(&mut section, tenants) else { continue };
        if phones.iter().any(|other| other.user == phone.user) {
            section.wrong("there are two of them: users are unique, whosever they are");
            continue;
        }
        phones.push(phone);
    }
    Trunks::new(trunks, phones)
}

fn read_trunk(section: &mut Section<'_>, tenants: &Tenants) -> Trunk {
    let name = section.needed("name", ID_EXPECTED).filter(|name| {
        if !is_id(name) {
            section.wrong(format!("\"name\" is not {ID_EXPECTED}"));
        }
        is_id(name)
    });
    let inbound = read_inbound(section);
    let country_code = inbound.country_code.clone();
    let trunk = Trunk {
        name: name.unwrap_or_default().into(),
        tenant_id: tenants.of_section(section).unwrap_or_default(),
        credential: read_credential(section),
        inbound,
        outbound: Outbound { country_code, ..read_outbound(section) },
        registration: read_registration(section),
        health: read_health(section),
        transfer: read_transfer(section),
        headers: read_header_rules(section),
        session_timer: read_session_timer(section),
        reliable: section.choice("reliable", RELIABLE).unwrap_or_default(),
        hold: section.choice("hold", HOLD).unwrap_or_default(),
        is_dtmf_by_info: section.choice("dtmf", DTMF).unwrap_or_default(),
        srtp: read_srtp(section),
        is_dtmf_inband: section.flag("dtmf_inband").unwrap_or_default(),
        latching: section.choice("latching", LATCHING).unwrap_or_default(),
        codecs: section.list("codecs", "names such as \"PCMA\", \"G722\", \"opus\"", codec),
        addresses: read_addresses(section),
    };
    check_trunk(section, &trunk);
    trunk
}

const LATCHING: &[(&str, Latching)] =
    &[("auto", Latching::Auto), ("strict", Latching::Strict), ("off", Latching::Off)];
const HOLD: &[(&str, HoldOffer)] = &[("sendonly", HoldOffer::SendOnly), ("inactive", HoldOffer::Inactive)];
/// Words of `srtp`, and whether our offers are of DTLS then.
const SRTP: &[(&str, (SrtpPolicy, bool))] = &[
    ("off", (SrtpPolicy::Off, false)),
    ("optional", (SrtpPolicy::Optional, false)),
    ("required", (SrtpPolicy::Required, false)),
    ("dtls", (SrtpPolicy::Required, true)),
];

fn read_srtp(section: &mut Section<'_>) -> SrtpRules {
    let given = section.choice("srtp", SRTP);
    SrtpRules {
        mode: given.map(|(mode, _)| mode),
        is_without_tls: section.flag("srtp_without_tls").unwrap_or_default(),
        offers_dtls: given.is_some_and(|(_, offers_dtls)| offers_dtls),
    }
}

/// The codec of a name as [`codec_name`] gives it.
fn codec(name: &str) -> Option<Codec> {
    Codec::ALL.into_iter().find(|codec| codec_name(*codec).eq_ignore_ascii_case(name))
}

const RELIABLE: &[(&str, Reliable)] =
    &[("if_required", Reliable::IfRequired), ("prefer", Reliable::Prefer), ("never", Reliable::Never)];

/// How an agent's keys go out when the trunk has not agreed on telephone-events.
const DTMF: &[(&str, bool)] = &[("rfc4733", false), ("info", true)];

fn check_trunk(section: &Section<'_>, trunk: &Trunk) {
    let has_source = !trunk.inbound.allow.is_empty() || !trunk.inbound.tls_client.is_empty();
    if trunk.credential.sip_uri.is_none() && !has_source {
        section.wrong(
            "it neither calls nor is called: give it \"sip_uri\" = \"sip:carrier.example\" for calls to it, or \
             \"allow\" = [\"203.0.113.0/28\"] in [trunk.inbound] for calls from it",
        );
    }
    if has_source && trunk.inbound.routes.is_empty() {
        section.wrong(
            "calls from it would reach nobody: add [[trunk.inbound.route]] with \"did\" = \"+4930123456\" (or \
             \"*\") and \"assistant\" = \"desk\"",
        );
    }
    if trunk.registration.is_wanted && trunk.credential.address_of_record().is_none() {
        section.wrong(
            "it cannot register: give it \"sip_uri\" = \"sip:account@carrier.example\", or \"sip_username\" beside it",
        );
    }
    if trunk.credential.sip_password.is_some() && trunk.credential.user().is_none() {
        section.wrong("\"sip_password\" without a user: give it \"sip_username\" = \"account\"");
    }
}

fn read_credential(section: &mut Section<'_>) -> SipCredential {
    let example = "\"sip:account@carrier.example;transport=tls\"";
    let sip_uri = section.explained("sip_uri", example, |text| {
        let uri = Uri::parse(text).map_err(|why| why.to_string())?;
        match (is_sip(text), uri.password()) {
            (false, _) => Err("it must begin with sip: or sips:".to_owned()),
            (true, Some(_)) => Err("the password belongs into \"sip_password_env\"".to_owned()),
            (true, None) => check_transport(&uri).map(|()| uri),
        }
    });
    let server = "a host and port such as \"sbc.carrier.example:5061\"";
    let sip_server = section.parsed("sip_server", server, |text| {
        let text = if is_sip(text) { text.to_owned() } else { format!("sip:{text}") };
        let uri = Uri::parse(&text).ok()?;
        (uri.user().is_none() && check_transport(&uri).is_ok()).then_some(uri)
    });
    SipCredential {
        sip_uri,
        sip_server,
        sip_username: section.text("sip_username", "a text such as \"account\""),
        sip_password: section.secret(["sip_password", "sip_password_env", "sip_password_file"]),
        sip_realm: section.text("sip_realm", "a text such as \"carrier.example\""),
        sip_domain: section.parsed("sip_domain", "a host such as \"ims.carrier.example\"", host),
        sip_headers: read_headers(section, "sip_headers"),
    }
}

fn is_sip(text: &str) -> bool {
    let scheme = text.split(':').next().unwrap_or_default();
    text.contains(':') && (scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips"))
}

fn check_transport(uri: &Uri) -> Result<(), String> {
    match uri.param("transport") {
        Some(name)
            if !["udp", "tcp", "tls", "ws", "wss"].iter().any(|known| known.eq_ignore_ascii_case(name)) =>
        {
            Err(format!("transport \"{name}\" is none of udp, tcp, tls, ws, wss"))
        }
        _ => Ok(()),
    }
}

/// A host as it stands in a URI; a bare IPv6 address gets its brackets.
fn host(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let text = match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => text.to_owned(),
    };
    let uri = Uri::parse(&format!("sip:{text}")).ok()?;
    (uri.host() == text).then_some(text)
}

/// Headers to send: names that are ours to choose, and values without control characters.
fn read_headers(section: &mut Section<'_>, key: &'static str) -> Vec<(String, String)> {
    let headers = section.texts_by_name(key, "a table such as { X-Account = \"42\" }");
    let mut kept = Vec::new();
    for (name, value) in headers {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) || !HeaderRules::may_pass(&name) {
            section.wrong(format!("\"{key}\": {name} is no header that can be chosen, such as X-Account"));
        } else if value.chars().any(char::is_control) {
            section.wrong(format!("\"{key}\": the value of {name} holds a control character"));
        } else {
            kept.push((name, value));
        }
    }
    kept
}

fn read_inbound(parent: &mut Section<'_>) -> Inbound {
    let mut section = parent.section("inbound");
    let networks = "an address or a network such as \"203.0.113.0/28\"";
    let mut allow: Vec<IpNet> = section.list("allow", networks, |text| {
        let net = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
        Some(IpNet::trunc(&net))
    });
    if allow.iter().any(|net| net.prefix_len() == 0) {
        section.wrong("\"allow\": 0.0.0.0/0 and ::/0 let everybody in: name the trunk's own networks");
        allow.retain(|net| net.prefix_len() > 0);
    }
    let country_code = section.parsed("country_code", "a country's digits such as \"49\"", |text| {
        let digits = text.strip_prefix('+').unwrap_or(text);
        let is_code = (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        is_code.then(|| digits.to_owned())
    });
    let sources = [
        ("request_uri", DidSource::RequestUri),
        ("to", DidSource::To),
        ("p_called_party_id", DidSource::PCalledPartyId),
    ];
    let mut routes: Vec<Route> = Vec::new();
    for mut route in section.sections("route") {
        let did = "a number such as \"+4930123456\", a beginning such as \"+4930*\", or \"*\" for all";
        let dids = route.list("did", did, |text| DidPattern::parse(text, country_code.as_deref()));
        let assistant = route.needed("assistant", "the id of an assistant such as \"desk\"");
        if dids.is_empty() && assistant.is_some() {
            route.wrong(format!("\"did\" is missing: {did}"));
        }
        let Some(assistant_id) = assistant.map(Arc::<str>::from) else { continue };
        for did in dids {
            if routes.iter().any(|other| other.did == did) {
                route.wrong(format!("\"did\": {did} has a route already"));
                continue;
            }
            routes.push(Route { did, assistant_id: assistant_id.clone() });
        }
    }
    let default = Inbound::default();
    Inbound {
        allow,
        tls_client: section
            .texts("tls_client", "a name in a client certificate such as \"sbc.carrier.example\""),
        routes,
        did_from: section.choice("did_from", &sources).unwrap_or_default(),
        country_code,
        calls_per_second: section.rate("calls_per_second").unwrap_or(default.calls_per_second),
        calls_max: section.integer("calls_max", 1..=100_000).map(|calls| calls as usize),
        early_media: section.seconds("early_media_seconds", 1..=180),
        busy_when_full: section.choice("when_full", &[("503", false), ("486", true)]).unwrap_or(false),
    }
}

fn read_outbound(parent: &mut Section<'_>) -> Outbound {
    let mut section = parent.section("outbound");
    let default = Outbound::default();
    let example = "\"<sip:{caller_id}@{domain}>\"";
    let formats = [
        ("as_given", NumberFormat::AsGiven),
        ("plus", NumberFormat::Plus),
        ("bare", NumberFormat::Bare),
        ("double_zero", NumberFormat::DoubleZero),
    ];
    let prefix = "a beginning of numbers such as \"+49\"";
    let number = |text: &str| {
        let digits = text.strip_prefix('+').unwrap_or(text);
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| text.to_owned())
    };
    Outbound {
        country_code: None,
        from: section.explained("from", example, Template::parse),
        pai: section.explained("pai", example, Template::parse),
        ppi: section.explained("ppi", example, Template::parse),
        caller_id: section.text("caller_id", "a number such as \"+4930123456\""),
        number_format: section.choice("number_format", &formats).unwrap_or_default(),
        numbers_allowed: section.list("numbers_allowed", prefix, number),
        numbers_denied: section.list("numbers_denied", prefix, number),
        ring_timeout: section.seconds("ring_timeout_s", 1..=300).unwrap_or(default.ring_timeout),
        redirects: section
            .choice("redirects", &[("refuse", Redirects::Refuse), ("follow", Redirects::Follow)])
            .unwrap_or_default(),
        calls_per_second: section.rate("calls_per_second").unwrap_or(default.calls_per_second),
        calls_max: section.integer("calls_max", 1..=100_000).map(|calls| calls as usize),
        calls_per_second_per_number: section.rate("calls_per_second_per_number"),
        calls_max_per_number: section
            .integer("calls_max_per_number", 1..=100_000)
            .map(|calls| calls as usize),
        is_offer_delayed: section.flag("delayed_offer").unwrap_or(default.is_offer_delayed),
        early_media: section.flag("early_media").unwrap_or(default.early_media),
        headers: read_headers(&mut section, "headers"),
        failover: section.list("failover", "the name of a trunk", |text| Some(Arc::from(text))),
    }
}

fn read_registration(parent: &mut Section<'_>) -> Registration {
    let is_there = parent.has("registration");
    let mut section = parent.section("registration");
    let default = Registration::default();
    Registration {
        is_wanted: section.flag("enabled").unwrap_or(is_there),
        expires: section.seconds("expires_s", 30..=86_400).unwrap_or(default.expires),
        contact_user: section.text("contact_user", "a user such as \"4930123456\""),
    }
}

fn read_health(parent: &mut Section<'_>) -> Health {
    let mut section = parent.section("health");
    let default = Health::default();
    Health {
        is_wanted: section.flag("enabled").unwrap_or(default.is_wanted),
        interval: section.seconds("interval_s", 5..=3_600).unwrap_or(default.interval),
        failures_max: section.integer("failures_max", 1..=100).unwrap_or(default.failures_max),
    }
}

fn read_transfer(parent: &mut Section<'_>) -> TransferPolicy {
    let mut section = parent.section("transfer");
    let default = TransferPolicy::default();
    let targets = "a beginning of numbers such as \"+49\" or a host such as \"pbx.example.com\"";
    TransferPolicy {
        refer_in: section
            .choice("refer_in", &[("decline", ReferIn::Decline), ("same_trunk", ReferIn::SameTrunk)])
            .unwrap_or_default(),
        refer_out: section.flag("refer_out").unwrap_or(default.refer_out),
        targets: section.texts("targets", targets),
        timeout: section.seconds("timeout_s", 5..=600).unwrap_or(default.timeout),
    }
}

fn read_header_rules(parent: &mut Section<'_>) -> HeaderRules {
    let mut section = parent.section("headers");
    let header = "a header that may pass, such as \"Diversion\" or \"X-*\"";
    let name = |text: &str| HeaderRules::may_pass(text).then(|| text.to_owned());
    HeaderRules {
        to_agent: section.list("to_agent", header, name),
        from_agent: section.list("from_agent", header, name),
    }
}

fn read_session_timer(parent: &mut Section<'_>) -> Option<SessionTimer> {
    let is_there = parent.has("session_timer");
    let mut section = parent.section("session_timer");
    let default = SessionTimer::default();
    let timer = SessionTimer {
        expires_s: section.integer("expires_s", 90..=86_400).unwrap_or(default.expires_s),
        min_se_s: section.integer("min_se_s", 90..=86_400).unwrap_or(default.min_se_s),
    };
    if timer.min_se_s > timer.expires_s {
        section.wrong("\"min_se_s\" is above \"expires_s\": no session could be that short");
    }
    is_there.then_some(timer)
}

fn read_addresses(parent: &mut Section<'_>) -> Addresses {
    let host_expected = "a host or address without a port, such as \"203.0.113.7\"";
    let advertised_host = parent.parsed("advertised_host", host_expected, host);
    let is_there = parent.has("tls");
    let mut section = parent.section("tls");
    let identity = TlsIdentity {
        certificate: section.path("certificate", "\"trunk.pem\""),
        key: section.path("key", "\"trunk.key\""),
        ca: section.path("ca", "\"carrier-ca.pem\""),
        server_name: section.parsed("server_name", "a host such as \"sbc.carrier.example\"", host),
    };
    if identity.certificate.is_some() != identity.key.is_some() {
        section.wrong("\"certificate\" and \"key\" belong together: give both, or neither");
    }
    Addresses { advertised_host, tls: is_there.then_some(identity) }
}

fn read_phone(section: &mut Section<'_>, tenants: &Tenants) -> Option<Phone> {
    let user = section.needed("user", ID_EXPECTED);
    let is_given = ["password", "password_env", "password_file"].iter().any(|key| section.has(key));
    let password = section.secret(["password", "password_env", "password_file"]);
    if !is_given {
        section.wrong(
            "\"password_env\" is missing: the name of a variable (or \"password_file\", or \"password\")",
        );
    }
    if password
        .as_ref()
        .is_some_and(|secret| secrecy::ExposeSecret::expose_secret(secret).len() < PASSWORD_MIN)
    {
        section.wrong(format!("the password has fewer than {PASSWORD_MIN} characters: it would be guessed"));
    }
    let tenant_id = tenants.of_section(section);
    let assistant_id = section.text("assistant", "the id of an assistant such as \"desk\"");
    let contacts_max = section.integer("contacts_max", 1..=20);
    let srtp = read_srtp(section);
    let user = user?;
    if !is_id(&user) {
        section.wrong(format!("\"user\" is not {ID_EXPECTED}"));
        return None;
    }
    let default = Phone::default();
    Some(Phone {
        user: user.into(),
        password: password?,
        tenant_id: tenant_id?,
        assistant_id: assistant_id.map(Arc::from),
        contacts_max: contacts_max.map_or(default.contacts_max, |contacts| contacts as usize),
        srtp,
    })
}

/// Two trunks may share a source, and then the number decides: so no number may be routed by both.
fn check_conflicts(source: &Source<'_>, trunks: &[Trunk]) {
    for (index, one) in trunks.iter().enumerate() {
        for other in trunks[..index].iter().filter(|other| share_a_source(one, other)) {
            for route in &one.inbound.routes {
                if other.inbound.routes.iter().any(|theirs| theirs.did == route.did) {
                    source.wrong(
                        &format!("[[trunk]] \"{}\"", one.name),
                        format!(
                            "its source is also \"{}\"'s, and both route {}: a call could be either's. Give each \
                             number to one of them",
                            other.name, route.did
                        ),
                    );
                }
            }
        }
    }
}

fn share_a_source(one: &Trunk, other: &Trunk) -> bool {
    let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    let nets = one.inbound.allow.iter().any(|a| other.inbound.allow.iter().any(|b| overlap(a, b)));
    let name = |a: &String| other.inbound.tls_client.iter().any(|b| a.eq_ignore_ascii_case(b));
    nets || one.inbound.tls_client.iter().any(name)
}

fn check_failover(source: &Source<'_>, trunks: &[Trunk]) {
    for trunk in trunks {
        for next in &trunk.outbound.failover {
            let problem = match trunks.iter().find(|other| other.name == *next) {
                None => "there is no trunk of this name",
                Some(other) if other.name == trunk.name => "that is the trunk itself",
                Some(other) if other.tenant_id != trunk.tenant_id => "that is another tenant's trunk",
                Some(_) => continue,
            };
            let table = format!("[trunk.outbound] of \"{}\"", trunk.name);
            source.wrong(&table, format!("\"failover\": \"{next}\": {problem}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::store::declared;

    fn read_text(text: &str) -> (Trunks, Vec<String>) {
        let tables: toml::Table = text.parse().unwrap();
        let environment = |name: &str| (name == "CARRIER_PASSWORD").then(|| "hunter22".to_owned());
        let source = Source::new(Path::new("tandem.toml"), &environment);
        let trunks = {
            let (_, tenants) = declared::read(&source, &tables, false);
            read(&source, &tables, &tenants)
        };
        (trunks, source.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn full_trunk_is_read_as_written() {
        let (trunks, errors) = read_text(
            r#"
            [[trunk]]
            name = "carrier"
            sip_uri = "sip:4930123@carrier.example;transport=tcp"
            sip_server = "sbc.carrier.example:5080"
            sip_username = "account"
            sip_password_env = "CARRIER_PASSWORD"
            sip_realm = "carrier"
            sip_domain = "ims.carrier.example"
            sip_headers = { X-Account = "42" }
            advertised_host = "2001:db8::7"
            reliable = "prefer"
            latching = "strict"
            [trunk.inbound]
            allow = ["203.0.113.5/28", "2001:db8::1"]
            did_from = "to"
            country_code = "+49"
            calls_max = 20
            calls_per_second = 2.5
            when_full = "486"
            [[trunk.inbound.route]]
            did = ["030123456", "+4930*"]
            assistant = "desk"
            [trunk.outbound]
            from = "<sip:{caller_id}@{domain}>"
            number_format = "plus"
            ring_timeout_s = 45
            redirects = "follow"
            [trunk.registration]
            expires_s = 300
            [trunk.session_timer]
            expires_s = 900
            "#,
        );
        assert!(errors.is_empty(), "{errors:?}");
        let trunk = trunks.find("carrier").unwrap();
        assert_eq!(
            trunk.credential.next_hop().unwrap().as_str(),
            "sip:sbc.carrier.example:5080;transport=tcp"
        );
        assert_eq!(trunk.credential.digest().unwrap().password, "hunter22");
        assert_eq!(trunk.credential.address_of_record().unwrap().as_str(), "sip:account@ims.carrier.example");
        assert_eq!(trunk.addresses.advertised_host.as_deref(), Some("[2001:db8::7]"));
        assert!(trunk.inbound.admits("203.0.113.1".parse().unwrap(), &[]), "host bits are cut off");
        assert_eq!(&*trunk.inbound.route("0049 30 123456").unwrap().assistant_id, "desk");
        assert!(trunk.inbound.busy_when_full && trunk.registration.is_wanted);
        assert_eq!(
            (trunk.outbound.ring_timeout, trunk.latching),
            (Duration::from_secs(45), Latching::Strict)
        );
        assert_eq!(trunk.session_timer, Some(SessionTimer { expires_s: 900, min_se_s: 90 }));
    }

    #[test]
    fn every_mistake_is_named_in_one_run_with_what_is_right() {
        let (_, errors) = read_text(
            r#"
            [[trunk]]
            name = "a"
            sip_uri = "carrier.example"
            sip_usrname = "x"
            sip_headers = { Via = "x" }
            latching = "loose"
            [trunk.inbound]
            allow = ["203.0.113.300", "0.0.0.0/0", "192.0.2.1"]
            [trunk.outbound]
            from = "<sip:{number}@x>"
            failover = ["b"]
            [trunk.health]
            interval_s = 1
            [[phone]]
            user = "200"
            password = "short"
            "#,
        );
        let all = errors.join("\n");
        for said in [
            "\"sip_uri\" = \"carrier.example\": ",
            "write it like \"sip:account@carrier.example;transport=tls\"",
            "unknown key \"sip_usrname\"; did you mean \"sip_username\"?",
            "Via is no header that can be chosen",
            "\"allow\": \"203.0.113.300\" is not an address or a network",
            "\"latching\" = \"loose\" is not one of \"auto\", \"strict\", \"off\"",
            "let everybody in",
            "unknown placeholder {number}",
            "\"failover\": \"b\": there is no trunk of this name",
            "\"interval_s\" = 1 is not a number from 5 to 3600",
            "calls from it would reach nobody",
            "[[phone]] \"200\": the password has fewer than 8 characters",
        ] {
            assert!(all.contains(said), "{said} is not in\n{all}");
        }
        assert!(!all.contains("short") && !all.contains("hunter"));
    }

    #[test]
    fn password_in_the_uri_is_sent_where_it_belongs() {
        let (_, errors) = read_text("[[trunk]]\nname = 'a'\nsip_uri = 'sip:x:hunter2@carrier.example'");
        assert!(errors[0].contains("the password belongs into \"sip_password_env\""), "{errors:?}");
        assert!(!errors[0].contains("hunter2"), "{errors:?}");
    }

    /// What a document shows as a file of settings.
    fn mistakes_of(text: &str) -> Vec<String> {
        let mut tables: toml::Table = text.parse().unwrap();
        tables.retain(|key, _| crate::settings::TABLES.contains(&key));
        let environment = |_: &str| Some("a-secret-of-some-length".to_owned());
        let source = Source::new(Path::new("tandem.toml"), &environment);
        {
            let (_, tenants) = declared::read(&source, &tables, false);
            read(&source, &tables, &tenants);
        }
        let errors = source.into_errors().into_iter().map(|error| error.to_string());
        // The certificates of a document are nobody's.
        errors.filter(|error| !error.contains("there is no such file")).collect()
    }

    #[test]
    fn every_example_of_the_documents_is_right() {
        let mut blocks = vec![include_str!("../../../examples/tandem.toml")];
        let document = include_str!("../../../docs/trunks.md");
        blocks.extend(document.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()));
        assert_eq!(blocks.len(), 7, "one file and six blocks");
        for block in blocks {
            let mistakes = mistakes_of(block);
            assert!(mistakes.is_empty(), "{mistakes:?}\n{block}");
        }
    }

    fn shared(first: &str, second: &str) -> Vec<String> {
        let trunk = |name: &str, allow: &str, did: &str| {
            format!(
                "[[trunk]]\nname = '{name}'\n[trunk.inbound]\nallow = ['{allow}']\n[[trunk.inbound.route]]\n\
                 did = '{did}'\nassistant = 'x'\n"
            )
        };
        let text = trunk("a", "192.0.2.0/24", first) + &trunk("b", "192.0.2.7", second);
        read_text(&text).1
    }

    #[test]
    fn trunks_of_the_same_source_must_not_route_the_same_number() {
        assert!(shared("+4930*", "+4931*").is_empty());
        assert!(shared("+4930*", "+493012345").is_empty(), "the longer match decides");
        let errors = shared("+4930*", "004930*");
        assert!(
            errors[0].contains("[[trunk]] \"b\": its source is also \"a\"'s, and both route 4930*"),
            "{errors:?}"
        );
    }
}
