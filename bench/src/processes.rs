//! Processes under test as the kernel sees them: processor time and resident memory, by process id. The same measure for
//! every target, whether it shows metrics of its own or not.
use std::collections::HashMap;
use std::io;

use crate::clock::Mono;
use crate::host;
use crate::observe::Usage;

/// A process and those that it has started.
#[derive(Debug, Clone)]
pub struct Processes {
    pids: Vec<u32>,
}

impl Processes {
    /// This process and its descendants, as they are now: a server that works in child processes is all of them.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        host::cpu_ns_of(pid)?;
        let parents = parents();
        let mut pids = vec![pid];
        let mut next = 0;
        while let Some(parent) = pids.get(next).copied() {
            let children = parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child);
            let mut children: Vec<u32> = children.filter(|child| !pids.contains(child)).collect();
            children.sort_unstable();
            pids.append(&mut children);
            next += 1;
        }
        Ok(Self { pids })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.pids.len()
    }

    /// Processor time and resident memory of all of them. Pages that they share count once for each.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn usage(&self) -> io::Result<Usage> {
        let (mut cpu_ns, mut resident) = (0, 0);
        for &pid in &self.pids {
            cpu_ns += host::cpu_ns_of(pid)?;
            resident += resident_bytes(pid)?;
        }
        Ok(Usage { at: Mono::now(), cpu_s: cpu_ns as f64 / 1e9, resident_bytes: Some(resident as f64) })
    }
}

fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib * 1_024).ok_or_else(|| io::Error::other(format!("process {pid} shows no VmRSS")))
}

/// Each process's parent.
fn parents() -> HashMap<u32, u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // `pid (name, which may hold anything) state ppid …`
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}

/// The slope of a line through these points by least squares; 0 of fewer than two.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count.max(1.0);
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if spread == 0.0 {
        return 0.0;
    }
    points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_child_are_both_counted() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().unwrap();
        let both = Processes::of(std::process::id()).unwrap();
        assert!(both.pids.contains(&child.id()), "{both:?}");
        let usage = both.usage().unwrap();
        assert!(usage.resident_bytes.unwrap() > 500_000.0 && usage.cpu_s > 0.0, "{usage:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(both.usage().is_err(), "one is gone");
    }

    #[test]
    fn slope_is_that_of_the_line() {
        assert!((slope(&[(0.0, 1.0), (10.0, 21.0), (20.0, 41.0)]) - 2.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 5.0)]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
