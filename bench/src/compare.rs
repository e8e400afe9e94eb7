//! The command `compare`: two reports side by side, with the ratio of each figure that both have.
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// Reads two reports and lays them side by side.
///
/// # Errors
/// When a file cannot be read or is no JSON object.
pub fn run(a: &Path, b: &Path) -> anyhow::Result<String> {
    let read = |path: &Path| -> anyhow::Result<Value> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        anyhow::ensure!(value.is_object(), "{} is no report", path.display());
        Ok(value)
    };
    Ok(side_by_side(&read(a)?, &read(b)?))
}

fn side_by_side(a: &Value, b: &Value) -> String {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    flatten("", a, &mut of_a);
    flatten("", b, &mut of_b);
    let mut text = format!("{:<36} {:>14} {:>14} {:>8}\n", "", "A", "B", "B / A");
    for (name, value) in &of_a {
        let Some((_, other)) = of_b.iter().find(|(other, _)| other == name) else { continue };
        let line = match (value.as_f64(), other.as_f64()) {
            (Some(x), Some(y)) => {
                let ratio = if x != 0.0 { format!("{:.2}", y / x) } else { "–".into() };
                format!("{name:<36} {:>14} {:>14} {ratio:>8}", number(x), number(y))
            }
            _ if value == other => continue,
            _ => format!("{name:<36} {:>14} {:>14}", plain(value), plain(other)),
        };
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Every leaf with its dotted name; lists and texts that nobody compares are left out.
fn flatten(name: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, into);
            }
        }
        Value::Null | Value::Array(_) => {}
        leaf => into.push((name.to_owned(), leaf.clone())),
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn common_figures_stand_side_by_side_with_their_ratio() {
        let a = json!({"rtp": {"sent": 100}, "mos": {"mean": 4.0}, "run": {"codec": "pcmu"}, "only": 1});
        let b = json!({"rtp": {"sent": 150}, "mos": {"mean": 4.4}, "run": {"codec": "pcma"}});
        let text = side_by_side(&a, &b);
        let line = |name: &str| {
            text.lines()
                .find(|l| l.starts_with(name))
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("rtp.sent"), "rtp.sent 100 150 1.50");
        assert_eq!(line("mos.mean"), "mos.mean 4 4.400 1.10");
        assert_eq!(line("run.codec"), "run.codec pcmu pcma");
        assert!(!text.contains("only"));
    }
}
