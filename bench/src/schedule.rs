//! How far the packets of one stream stray from their own 20 ms schedule.
//!
//! An ideal sender puts packet *k* on the wire at `phase + k × ptime`. For each packet we have the kernel's arrival stamp
//! and the RTP timestamp, which says where on the schedule the sender means it to be. `arrival − timestamp / clock rate`
//! is then the phase plus that packet's error. The phase is fitted as the **median** of that difference over the measured
//! window, and the deviation of a packet is the **absolute distance from it: early counts as much as late**. The median
//! cannot be pulled by outliers; and a delay that is the same for every packet is a phase, not a deviation.
//!
//! Both clocks are this machine's when the target runs here. Against another machine the two clocks drift apart (20 ppm
//! make 0.4 ms in 20 s), which this does not take out.
//!
//! [`InterarrivalJitter`] is the other, smoothed, figure: RFC 3550 §6.4.1.
use crate::clock::Mono;
use crate::distribution::{Distribution, median};

/// Resolution of a stored deviation, nanoseconds: 32 bits then reach ± 214 s.
const UNIT_NS: i64 = 100;

/// Nanoseconds in a tick of the 8 kHz RTP clock.
const TICK_NS: i64 = 125_000;

/// Raw schedule errors of one stream over the measured window.
#[derive(Debug, Clone, Default)]
pub struct ScheduleLog {
    /// First packet: its arrival and its timestamp.
    origin: Option<(Mono, u32)>,
    last_timestamp: u32,
    /// Ticks from the origin's timestamp to the last one's.
    last_ticks: i64,
    /// `arrival − schedule` relative to the origin, in `UNIT_NS`.
    errors: Vec<i32>,
}

impl ScheduleLog {
    /// Room for a window of so many packets, so that the generator's loop does not allocate.
    pub fn with_capacity(packets: usize) -> Self {
        Self { errors: Vec::with_capacity(packets), ..Self::default() }
    }

    /// Logs a packet.
    pub fn record(&mut self, arrival: Mono, timestamp: u32) {
        let Some((first_arrival, _)) = self.origin else {
            self.origin = Some((arrival, timestamp));
            self.last_timestamp = timestamp;
            self.errors.push(0);
            return;
        };
        // The short way round: the 32 bits wrap without a special case.
        self.last_ticks += i64::from(timestamp.wrapping_sub(self.last_timestamp) as i32);
        self.last_timestamp = timestamp;
        let error_ns = arrival.signed_since(first_arrival) - self.last_ticks * TICK_NS;
        self.errors.push((error_ns / UNIT_NS).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
    }

    /// A new source (SSRC): its timestamps have nothing to do with the old ones. What was logged so far is forgotten.
    pub fn restart(&mut self) {
        self.origin = None;
        self.last_ticks = 0;
        self.errors.clear();
    }

    /// Packets logged.
    pub fn len(&self) -> usize {
        self.errors.len()
    }

    /// True when nothing was logged.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Fits the phase and adds each packet's deviation to `into`; counts those later than `too_late_ns`.
    pub fn fold(mut self, into: &mut Deviations, too_late_ns: i64) -> u64 {
        let errors = self.errors.clone();
        let Some(phase) = median(&mut self.errors) else { return 0 };
        let mut too_late = 0;
        for error in errors {
            let deviation_ns = (i64::from(error) - i64::from(phase)) * UNIT_NS;
            into.both.record_ns(deviation_ns.unsigned_abs());
            if deviation_ns >= 0 {
                into.late.record_ns(deviation_ns as u64);
            } else {
                into.early.record_ns(deviation_ns.unsigned_abs());
            }
            too_late += u64::from(deviation_ns > too_late_ns);
        }
        too_late
    }
}

/// Deviations of many streams.
#[derive(Clone, Default)]
pub struct Deviations {
    /// Absolute, the figure that is reported.
    pub both: Distribution,
    /// Only those after their time.
    pub late: Distribution,
    /// Only those before their time.
    pub early: Distribution,
}

/// Interarrival jitter of one stream (RFC 3550 §6.4.1, A.8).
#[derive(Debug, Clone, Copy, Default)]
pub struct InterarrivalJitter {
    last: Option<(Mono, u32)>,
    jitter_ns: f64,
}

impl InterarrivalJitter {
    /// Takes a packet into account.
    pub fn record(&mut self, arrival: Mono, timestamp: u32) {
        if let Some((last_arrival, last_timestamp)) = self.last {
            let ticks = i64::from(timestamp.wrapping_sub(last_timestamp) as i32);
            let transit_change = arrival.signed_since(last_arrival) - ticks * TICK_NS;
            self.jitter_ns += (transit_change.unsigned_abs() as f64 - self.jitter_ns) / 16.0;
        }
        self.last = Some((arrival, timestamp));
    }

    /// A new source begins.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// The jitter now, nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.jitter_ns as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTIME_NS: u64 = 20_000_000;
    const START: Mono = Mono(5_000_000_000);

    /// A stream whose packet `k` comes `error_ns(k)` beside its schedule; timestamps start close to their wrap.
    fn deviations(packets: u64, error_ns: impl Fn(u64) -> i64) -> (Deviations, u64) {
        let mut log = ScheduleLog::with_capacity(packets as usize);
        for k in 0..packets {
            let arrival = Mono((START.0 + k * PTIME_NS).wrapping_add_signed(error_ns(k)));
            log.record(arrival, (u32::MAX - 800).wrapping_add(k as u32 * 160));
        }
        let mut into = Deviations::default();
        let too_late = log.fold(&mut into, 40_000_000);
        (into, too_late)
    }

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() <= 0.002 + want * 0.001, "{got} ms is not {want} ms");
    }

    #[test]
    fn perfect_stream_has_no_deviation_even_where_the_timestamp_wraps() {
        let (d, _) = deviations(1_000, |_| 0);
        assert_eq!(d.both.max_ms(), 0.0);
        assert_eq!(d.both.count(), 1_000);
    }

    #[test]
    fn constant_delay_is_a_phase_and_not_a_deviation() {
        let (d, _) = deviations(1_000, |_| 7_000_000);
        assert_eq!(d.both.max_ms(), 0.0);
    }

    #[test]
    fn one_late_packet_in_a_hundred_shows_at_p999_and_not_at_p50() {
        let (d, _) = deviations(1_000, |k| if k % 100 == 50 { 3_000_000 } else { 0 });
        near(d.both.percentile_ms(50.0), 0.0);
        near(d.both.percentile_ms(99.9), 3.0);
        near(d.late.max_ms(), 3.0);
        near(d.early.max_ms(), 0.0);
    }

    #[test]
    fn early_packet_counts_as_much_as_a_late_one() {
        let (d, _) = deviations(1_000, |k| if k == 500 { -2_000_000 } else { 0 });
        near(d.both.max_ms(), 2.0);
        near(d.early.max_ms(), 2.0);
    }

    #[test]
    fn first_packet_out_of_time_does_not_shift_the_phase() {
        let (d, _) = deviations(1_000, |k| if k == 0 { 15_000_000 } else { 0 });
        near(d.both.percentile_ms(99.0), 0.0);
        near(d.both.max_ms(), 15.0);
    }

    #[test]
    fn lost_packet_leaves_the_others_on_their_schedule() {
        let mut log = ScheduleLog::default();
        for k in (0..100).filter(|k| k % 7 != 3) {
            log.record(START + k * PTIME_NS, k as u32 * 160);
        }
        let mut into = Deviations::default();
        log.fold(&mut into, 0);
        assert_eq!(into.both.max_ms(), 0.0);
    }

    #[test]
    fn sender_that_skips_a_turn_without_skipping_the_timestamp_is_off_schedule_from_then_on() {
        let (d, _) = deviations(1_000, |k| if k >= 900 { 20_000_000 } else { 0 });
        near(d.both.percentile_ms(95.0), 20.0);
    }

    #[test]
    fn packets_too_late_for_playout_are_counted() {
        let (_, too_late) = deviations(1_000, |k| if k % 100 == 0 && k > 0 { 41_000_000 } else { 0 });
        assert_eq!(too_late, 9);
    }

    #[test]
    fn jitter_of_alternating_one_millisecond_settles_at_two() {
        let mut jitter = InterarrivalJitter::default();
        for k in 0..1_000_u64 {
            let error = if k % 2 == 0 { 1_000_000 } else { -1_000_000 };
            jitter.record(Mono((START.0 + k * PTIME_NS).wrapping_add_signed(error)), k as u32 * 160);
        }
        near(jitter.nanos() as f64 / 1e6, 2.0);
    }
}
