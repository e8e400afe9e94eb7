//! A network of a test's own: a Linux namespace in which every port is free, addresses are what the test says, and the
//! system's name server is the test's.
//!
//! ```text
//!   test ─▶ entered(…): unshare, lo up, addresses, /etc/resolv.conf ─▶ the same test again, inside ─▶ its outcome
//! ```

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::Context;

/// Says that we are inside.
const INSIDE: &str = "TANDEM_TESTS_INSIDE_NAMESPACE";
/// Set to 1, a test that needs a namespace is passed over where none can be made; else it fails.
pub const WITHOUT: &str = "TANDEM_TESTS_WITHOUT_NAMESPACES";
const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];
/// Loopback and addresses come up, the name server becomes the system's, and the test begins again.
const SCRIPT: &str = r#"set -e
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up
for address in $NAMESPACE_ADDRESSES; do ip address add "$address/32" dev lo; done
mount --bind "$NAMESPACE_RESOLV_CONF" /etc/resolv.conf
exec "$0" "$@"
"#;

/// Whether we are in a network of our own, with these addresses besides 127.0.0.1 and this name server. If not, this test
/// (by its path in its program, such as `sip_register::name`) is run once more, inside: `false` says that it has passed there.
///
/// # Errors
/// It has failed there, or no namespace can be made and [`WITHOUT`] does not allow to do without.
pub fn entered(test: &str, addresses: &[IpAddr], name_server: IpAddr) -> anyhow::Result<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(true);
    }
    let probe = Command::new("unshare").args(UNSHARE).arg("true").stdin(Stdio::null()).output();
    let probe = probe.context("unshare is missing: it comes with util-linux")?;
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        if std::env::var(WITHOUT).is_ok_and(|value| value == "1") {
            println!("passed over, since no network namespace can be made here: {why}");
            return Ok(false);
        }
        anyhow::bail!("no network namespace can be made here ({why}); {WITHOUT}=1 passes this test over");
    }
    let mut resolv_conf = tempfile::NamedTempFile::new()?;
    writeln!(resolv_conf, "nameserver {name_server}")?;
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    let status = Command::new("unshare")
        .args(UNSHARE)
        .args(["--", "sh", "-c", SCRIPT])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("NAMESPACE_ADDRESSES", addresses.join(" "))
        .env("NAMESPACE_RESOLV_CONF", resolv_conf.path())
        .stdin(Stdio::null())
        .output()?;
    let said = [status.stdout, status.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // A name that no test has would pass without running anything.
    anyhow::ensure!(status.status.success() && said.contains("1 passed"), "inside its namespace:\n{said}");
    Ok(false)
}
