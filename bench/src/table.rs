//! The report as a table for people.
use std::fmt::{self, Display, Formatter};

use crate::distribution::Summary;
use crate::report::{OTHERS_WARNING_PERCENT, Report, STEAL_WARNING_PERCENT};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        writeln!(f)?;
        match run.command.as_str() {
            "setup" => {
                row(f, "setup", format_args!("{} at {}/s for {} s", run.target, run.cps, run.duration_s))?
            }
            "idle" => row(
                f,
                "idle",
                format_args!(
                    "{} calls to {}, read after {} s of quiet",
                    run.concurrent, run.target, run.duration_s
                ),
            )?,
            "floor" => row(
                f,
                "floor",
                format_args!("bare UDP echo, {} calls, {} s", run.concurrent, run.duration_s),
            )?,
            "bridge" => row(
                f,
                "bridges",
                format_args!(
                    "{} through {}, {} s of {}",
                    run.concurrent, run.target, run.duration_s, run.codec
                ),
            )?,
            _ => row(
                f,
                "calls",
                format_args!("{} to {}, {} s of {}", run.concurrent, run.target, run.duration_s, run.codec),
            )?,
        }
        self.signalling(f)?;
        self.media(f)?;
        self.processors(f)?;
        self.memory(f)?;
        if self.idle.is_some() {
            return Ok(());
        }
        self.instrument(f)
    }
}

fn row(f: &mut Formatter<'_>, name: &str, value: impl Display) -> fmt::Result {
    writeln!(f, "  {name:<12} {value}")
}

fn percentiles(f: &mut Formatter<'_>, name: &str, ms: &Summary) -> fmt::Result {
    row(
        f,
        name,
        format_args!(
            "p50 {:.2}  p95 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
            ms.p50, ms.p95, ms.p99, ms.p999, ms.max
        ),
    )
}

impl Report {
    fn signalling(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(calls) = &self.calls {
            row(
                f,
                "",
                format_args!(
                    "{} attempted, {} established, {} failed",
                    calls.attempted, calls.established, calls.failed
                ),
            )?;
            for (cause, count) in &calls.failures {
                row(f, "", format_args!("  {count} × {cause}"))?;
            }
        }
        if let Some(drops) = self.drops.filter(|drops| *drops > 0) {
            row(f, "", format_args!("  {drops} sockets closed before their call was ended"))?;
        }
        if let Some(agent) = &self.agent {
            row(
                f,
                "agent",
                format_args!(
                    "{} calls on {} connections, {} frames heard{}",
                    agent.calls,
                    agent.connections,
                    agent.frames,
                    if agent.broken { ", a connection broke the protocol" } else { "" }
                ),
            )?;
            for (way, ms) in [("caller to agent", &agent.hears_ms), ("agent to caller", &agent.answers_ms)] {
                if let Some(ms) = ms {
                    row(
                        f,
                        "",
                        format_args!(
                            "  {way}: p50 {}, p99 {}, p99.9 {} ms, of {} bursts",
                            ms.p50, ms.p99, ms.p999, ms.count
                        ),
                    )?;
                }
            }
        }
        if let Some(setup) = &self.setup {
            row(
                f,
                "",
                format_args!(
                    "{} attempted, {} failed, {:.1} completed a second, {} own retransmissions{}",
                    setup.attempted,
                    setup.failed,
                    setup.per_second,
                    setup.retransmits,
                    if setup.media { "" } else { ", without media" }
                ),
            )?;
            for (cause, count) in &setup.failures {
                row(f, "", format_args!("  {count} × {cause}"))?;
            }
        }
        if let Some(setup_ms) = &self.setup_ms {
            percentiles(f, "set-up", setup_ms)?;
        }
        Ok(())
    }

    fn media(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(rtp) = &self.rtp {
            row(
                f,
                "RTP",
                format_args!(
                    "{} sent, {} received, {} lost, {} duplicated, {} reordered",
                    rtp.sent, rtp.received, rtp.lost, rtp.duplicated, rtp.reordered
                ),
            )?;
            for (count, what) in [
                (rtp.silent_streams, "calls in which nothing came"),
                (rtp.window_missing, "packets missing against one each 20 ms"),
                (rtp.target_kernel_drops, "datagrams dropped by the kernel at the target's ports"),
                (rtp.foreign, "datagrams of another kind"),
                (rtp.ssrc_changes, "changes of SSRC"),
            ] {
                if count > 0 {
                    row(f, "", format_args!("  {count} {what}"))?;
                }
            }
        }
        if let Some(audio) = &self.audio {
            row(
                f,
                "audio",
                format_args!(
                    "{} frames back, {} lost, {} filled in by the target, {} repeated",
                    audio.returned, audio.lost, audio.filled, audio.repeated
                ),
            )?;
        }
        if let Some(s) = &self.schedule_ms {
            row(
                f,
                "schedule",
                format_args!(
                    "off by p50 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
                    s.p50, s.p99, s.p999, s.max
                ),
            )?;
            if let (Some(timer), Some(rest)) = (&s.timer, s.p999_less_timer) {
                row(
                    f,
                    "",
                    format_args!(
                        "  a bare timer on core {} ({}) in the same run: p99.9 {:.2} ms; without it p99.9 {rest:.2} ms",
                        timer.core, timer.priority, timer.deviation_ms.p999
                    ),
                )?;
            }
        }
        if let Some(jitter) = &self.jitter_ms {
            percentiles(f, "jitter", jitter)?;
        }
        if let Some(trip) = &self.round_trip_ms {
            percentiles(f, "round trip", &trip.ms)?;
            row(f, "", format_args!("  of {} {}s", trip.ms.count, trip.by))?;
        }
        if let Some(mos) = &self.mos {
            row(f, "MOS", format_args!("{:.2} mean, {:.2} min (E-model)", mos.mean, mos.min))?;
        }
        Ok(())
    }

    fn processors(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(floor) = &self.floor {
            let runs = if floor.runs.len() > 1 {
                format!(
                    " (runs {})",
                    floor.runs.iter().map(|ms| format!("{ms:.3}")).collect::<Vec<_>>().join(", ")
                )
            } else {
                String::new()
            };
            row(
                f,
                "floor",
                format_args!(
                    "{:.3} ms CPU per call-second, {:.0} calls a core{runs}",
                    floor.cpu_ms_per_call_s, floor.calls_a_core
                ),
            )?;
        }
        if let Some(engine) = &self.engine {
            if let Some(ms) = engine.cpu_ms_per_call_s {
                let ratio =
                    engine.floor_ratio.map(|ratio| format!(", {ratio:.2} × the floor")).unwrap_or_default();
                let cores = engine.calls_a_core.unwrap_or(0.0);
                row(
                    f,
                    "engine",
                    format_args!("{ms:.3} ms CPU per call-second, {cores:.0} calls a core{ratio}"),
                )?;
            }
            if let Some(bytes) = engine.memory_bytes_per_call {
                row(f, "", format_args!("  {:.1} KiB of memory a call", bytes / 1_024.0))?;
            }
            if let Some(us) = engine.cpu_us_per_call {
                row(f, "engine", format_args!("{us:.0} µs CPU a call"))?;
            }
        }
        if let Some(control) = &self.control_plane {
            if let Some(ms) = control.cpu_ms_per_call_s {
                row(f, "control", format_args!("{ms:.3} ms CPU per call-second"))?;
            }
            if let Some(us) = control.cpu_us_per_call {
                row(f, "control", format_args!("{us:.0} µs CPU a call"))?;
            }
        }
        Ok(())
    }

    fn memory(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mib = |bytes: f64| bytes / (1_024.0 * 1_024.0);
        if let Some(target) = &self.target {
            let processes = if target.processes == 1 { "process" } else { "processes" };
            row(
                f,
                "target",
                format_args!(
                    "{:.0} µs CPU a call in {} {processes}",
                    target.cpu_us_per_call, target.processes
                ),
            )?;
            let readings: Vec<String> =
                target.resident_bytes.iter().map(|bytes| format!("{:.1}", mib(*bytes))).collect();
            row(
                f,
                "",
                format_args!(
                    "  resident {:.1} MiB before, {} during, {:.1} after; {:.0} octets a call over the second half",
                    mib(target.resident_bytes_before),
                    readings.join(" "),
                    mib(target.resident_bytes_after),
                    target.resident_bytes_per_call
                ),
            )?;
        }
        if let Some(idle) = &self.idle {
            row(f, "", format_args!("{} held, {} failed", idle.held, idle.failed))?;
            for (cause, count) in &idle.failures {
                row(f, "", format_args!("  {count} × {cause}"))?;
            }
            row(f, "memory", format_args!("{:.1} KiB a call", idle.bytes_per_call / 1_024.0))?;
            let readings: Vec<String> = idle
                .readings
                .iter()
                .map(|reading| format!("{:.1} with {}", mib(reading.resident_bytes), reading.calls))
                .collect();
            row(
                f,
                "",
                format_args!(
                    "  resident MiB: {:.1} before, {}, {:.1} after",
                    mib(idle.resident_bytes_before),
                    readings.join(", "),
                    mib(idle.resident_bytes_after)
                ),
            )?;
        }
        Ok(())
    }

    /// True when the target's own work is known, and so that of others.
    fn target_is_known(&self) -> bool {
        self.engine.is_some() || self.floor.is_some() || self.target.is_some()
    }

    fn instrument(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let generator = &self.generator;
        row(
            f,
            "generator",
            format_args!(
                "{:.0} % of core {} (waited {:.1} % for it), packets late by p50 {:.2}  p99.9 {:.2}  max {:.2} ms",
                generator.cpu_percent,
                generator.core,
                generator.waited_percent,
                generator.late_ms_p50,
                generator.late_ms_p999,
                generator.late_ms_max
            ),
        )?;
        let host = &self.host;
        row(
            f,
            "host",
            format_args!(
                "{}, {:.0} % of a core for {}, {:.2} % stolen{}",
                host.machine,
                host.others_cpu_percent,
                if self.target_is_known() { "others" } else { "the target and others" },
                host.steal_percent,
                if self.run.debug_build { ", debug build" } else { "" }
            ),
        )?;
        if self.target_is_known() && host.others_cpu_percent > OTHERS_WARNING_PERCENT {
            row(f, "", "  warning: other processes ran during the measurement")?;
        }
        if host.steal_percent > STEAL_WARNING_PERCENT {
            row(f, "", "  warning: the hypervisor took time away; run again in a quieter minute")?;
        }
        if self.run.debug_build {
            row(f, "", "  warning: build with --release for figures that mean something")?;
        }
        Ok(())
    }
}

/// Why there is no report, for people.
pub fn refusal(report: &Report) -> String {
    let mut text = String::from("No report: the generator was itself the bottleneck.\n");
    for reason in &report.generator.reasons {
        text.push_str("  - ");
        text.push_str(reason);
        text.push('\n');
    }
    text.push_str("Figures from such a run would say more about this program than about the target. --report-anyway shows them.");
    text
}
