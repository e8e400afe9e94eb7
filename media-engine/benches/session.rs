//! A session without kernel: nanoseconds for a caller's packet in and one packet out to him, over ever more sessions.
//!
//! With one session everything lies in the nearest cache. With a thousand each visit finds its session's memory gone, as an
//! engine does: the difference is what the size of a session costs.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use media_engine::leg::agent::{AgentParameters, CallInfo};
use media_engine::leg::rtp::{Direction, Rtcp, RtpParameters};
use media_engine::session::bridge::SoundParameters;
use media_engine::session::speech::SpeechParameters;
use media_engine::session::{Session, SessionParameters};
use tandem_audio::format::{Codec, Ptime};
use tandem_rtp::latch::Latching;
use tandem_rtp::units::PayloadType;

const PTIME: Duration = Duration::from_millis(20);

fn open(number: u64, source: SocketAddr, now: Instant) -> Session {
    let rtp = RtpParameters {
        remote: Some(source),
        codec: Some(Codec::Pcmu),
        payload_type: PayloadType::PCMU,
        ptime: Ptime::MS_20,
        event_payload_type: PayloadType::new(101),
        direction: Direction::SendReceive,
        latching: Latching::Auto,
        rtcp: Rtcp::Mux,
        srtp: None,
        secure: None,
        sound: SoundParameters {
            comfort_noise_payload_type: PayloadType::new(13),
            ..SoundParameters::default()
        },
    };
    let parameters = SessionParameters {
        call: CallInfo::default(),
        rtp,
        stream: None,
        agent: AgentParameters::Echo,
        media_timeout: Duration::from_hours(1),
        max_session: None,
        seed: number,
        since_epoch: Duration::ZERO,
        identity: None,
        speech: SpeechParameters::default(),
    };
    let mut session = match Session::new(parameters, now) {
        Ok(session) => session,
        Err(reason) => panic!("{reason}"),
    };
    session.start(now + PTIME / 2, now);
    session
}

fn echo(c: &mut Criterion) {
    let mut group = c.benchmark_group("echo");
    for sessions in [1_u64, 100, 1_000] {
        let source = SocketAddr::from(([127, 0, 0, 1], 4_000));
        #[allow(clippy::disallowed_methods)]
        let mut now = Instant::now();
        let mut all: Vec<Session> = (0..sessions).map(|number| open(number, source, now)).collect();
        let mut number = 0_u16;
        let mut datagram = [0x55; 172];
        datagram[..12].fill(0);
        datagram[0] = 0x80;
        let mut out = [0; 1_472];
        group.throughput(Throughput::Elements(sessions));
        group.bench_function(BenchmarkId::from_parameter(sessions), |b| {
            b.iter(|| {
                number = number.wrapping_add(1);
                datagram[2..4].copy_from_slice(&number.to_be_bytes());
                datagram[4..8].copy_from_slice(&(u32::from(number) * 160).to_be_bytes());
                for session in &mut all {
                    session.handle_datagram(source, black_box(&datagram), now);
                    black_box((session.poll_event(), session.poll_timeout()));
                }
                now += PTIME;
                for session in &mut all {
                    while let Some(transmit) = session.poll_transmit(now, &mut out) {
                        black_box((transmit, &out));
                    }
                    black_box((session.poll_event(), session.poll_timeout()));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, echo);
criterion_main!(benches);
