//! Keeps one child alive: waits for its end, says how it went, starts it again, later and later.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::child::Child;
use super::folder::Folder;
use super::spec::Spec;
use super::{UpError, say};

/// Before the first restart: at once, but for the time in which a port of the dead one may still be bound.
const DELAY_FIRST: Duration = Duration::from_millis(200);
/// Doubling ends here. A child that cannot live is tried for ever, but not more than this often.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A child that has lived so long is well again: the next restart is quick.
const WELL_AFTER: Duration = Duration::from_secs(30);
/// How often the log's length is looked at.
const LOG_CHECK: Duration = Duration::from_secs(60);

/// What the supervisor asks of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Keep,
    End { grace: Duration },
    EndNow,
}

/// A child that is kept alive.
#[derive(Debug)]
pub struct Keeper {
    /// Its name.
    pub name: &'static str,
    order: watch::Sender<Order>,
    health: watch::Receiver<Health>,
    task: JoinHandle<()>,
}

/// What is known of a kept child.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Deaths since the supervisor took charge.
    pub deaths: u32,
    /// How the last one went.
    pub last: String,
}

impl Keeper {
    /// Takes charge of a running child.
    pub fn new(spec: Arc<Spec>, folder: Folder, child: Child) -> Self {
        let (order, orders) = watch::channel(Order::Keep);
        let (report, health) = watch::channel(Health::default());
        let name = spec.name;
        let task = tokio::spawn(keep(spec, folder, child, orders, report));
        Self { name, order, health, task }
    }

    /// What is known of it now.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Ends the child, in time or by force, and waits until it is gone.
    pub async fn end(&mut self, grace: Duration) {
        self.order.send_replace(Order::End { grace });
        let _ = (&mut self.task).await;
    }

    /// Something that cuts the grace of an [`end`](Self::end) under way short.
    pub fn impatience(&self) -> Impatience {
        Impatience(self.order.clone())
    }
}

/// Cuts the grace of an ending short.
#[derive(Debug, Clone)]
pub struct Impatience(watch::Sender<Order>);

impl Impatience {
    /// The child is ended at once.
    pub fn now(&self) {
        self.0.send_replace(Order::EndNow);
    }
}

async fn keep(
    spec: Arc<Spec>,
    folder: Folder,
    first: Child,
    mut orders: watch::Receiver<Order>,
    report: watch::Sender<Health>,
) {
    let mut child = first;
    let mut backoff = Backoff::default();
    let mut began = Instant::now();
    loop {
        let how = tokio::select! {
            how = child.ended() => how,
            order = ordered(&mut orders) => return end(order, &mut orders, child, &spec, &folder).await,
            () = check_log(&spec, &folder) => continue,
        };
        report.send_modify(|health| {
            health.deaths += 1;
            health.last.clone_from(&how);
        });
        let mut delay = backoff.next(began.elapsed());
        let count = report.borrow().deaths;
        say(&format!("{} died ({how}); restart {count} in {} ms", spec.name, delay.as_millis()));
        for line in folder.log_tail(spec.name, 3) {
            say(&format!("{} | {line}", spec.name));
        }
        child = loop {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = ordered(&mut orders) => return folder.forget(spec.name),
            }
            match Child::start(&spec, &folder) {
                Ok(child) => break child,
                Err(error) => {
                    delay = backoff.next(Duration::ZERO);
                    say(&restart_failed(&error, delay));
                }
            }
        };
        began = Instant::now();
        say(&format!("{} runs again (pid {})", spec.name, child.pid()));
    }
}

fn restart_failed(error: &UpError, delay: Duration) -> String {
    format!("{error}; the next try is in {} ms", delay.as_millis())
}

/// Waits for an order other than to go on. The supervisor's own end counts as none: the child is left alone.
async fn ordered(orders: &mut watch::Receiver<Order>) -> Order {
    let order = orders.wait_for(|order| *order != Order::Keep).await.map(|order| *order);
    match order {
        Ok(order) => order,
        Err(_) => std::future::pending().await,
    }
}

async fn end(order: Order, orders: &mut watch::Receiver<Order>, child: Child, spec: &Spec, folder: &Folder) {
    let grace = match order {
        Order::End { grace } => grace,
        Order::EndNow | Order::Keep => Duration::ZERO,
    };
    let pid = child.pid();
    let patience_over = async {
        let asked = orders.wait_for(|order| *order == Order::EndNow).await.is_ok();
        if !asked {
            std::future::pending::<()>().await;
        }
    };
    if !child.end(grace, patience_over).await {
        say(&format!("{} (pid {pid}) did not end in time: killed", spec.name));
    }
    folder.forget(spec.name);
}

async fn check_log(spec: &Spec, folder: &Folder) {
    tokio::time::sleep(LOG_CHECK).await;
    if let Err(error) = folder.rotate_log(spec.name) {
        tracing::warn!(%error, child = spec.name, "cannot move a log aside");
    }
}

/// How long to wait before the next restart.
#[derive(Debug, Default)]
struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    fn next(&mut self, lived: Duration) -> Duration {
        let delay = match self.last {
            Some(last) if lived < WELL_AFTER => (last * 2).min(DELAY_MAX),
            _ => DELAY_FIRST,
        };
        self.last = Some(delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Arc<Spec> {
        Arc::new(Spec {
            name: "child",
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            settings: Default::default(),
            files: Vec::new(),
            listeners: Vec::new(),
            ready: crate::up::spec::Ready::Running,
        })
    }

    async fn keeper(script: &str) -> (tempfile::TempDir, Folder, Keeper) {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let spec = shell(script);
        let (child, _) = Child::adopt_or_start(&spec, &folder, Duration::from_secs(1)).await.unwrap();
        (temp, folder.clone(), Keeper::new(spec, folder, child))
    }

    #[tokio::test]
    async fn child_that_dies_is_started_again_and_its_death_is_told() {
        let (_temp, folder, mut keeper) = keeper("echo alive; kill -9 $$").await;
        while keeper.health().deaths < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(keeper.health().last.starts_with("signal 9"), "{:?}", keeper.health());
        assert!(folder.log_tail("child", 9).len() >= 2, "one line from each life");
        keeper.end(Duration::from_secs(1)).await;
        assert_eq!(folder.record("child"), None);
    }

    #[tokio::test]
    async fn child_that_ignores_the_request_to_end_is_killed_after_the_grace() {
        let (_temp, folder, mut keeper) = keeper("trap '' TERM; echo up; while :; do sleep 1; done").await;
        while folder.log_tail("child", 1).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let identity = folder.record("child").unwrap().identity;
        let began = Instant::now();
        keeper.end(Duration::from_millis(300)).await;
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(crate::up::process::Process::find(&identity).is_none());
    }

    #[tokio::test]
    async fn impatience_cuts_the_grace_short() {
        let (_temp, folder, mut keeper) = keeper("trap '' TERM; echo up; while :; do sleep 1; done").await;
        while folder.log_tail("child", 1).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let impatience = keeper.impatience();
        let ending = keeper.end(Duration::from_secs(600));
        tokio::pin!(ending);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut ending).await.is_err());
        impatience.now();
        ending.await;
    }

    #[tokio::test]
    async fn child_outlives_its_supervisor_and_the_next_one_adopts_it() {
        let (temp, folder, keeper) = keeper("sleep 600").await;
        let left = folder.record("child").unwrap();
        drop(keeper);
        let folder = Folder::open(temp.path()).unwrap();
        let (child, found) =
            Child::adopt_or_start(&shell("sleep 600"), &folder, Duration::from_secs(1)).await.unwrap();
        assert_eq!((found, child.pid()), (crate::up::child::Found::Same, left.identity.pid));
        // Other settings: ended, and another one runs.
        let (other, found) =
            Child::adopt_or_start(&shell("sleep 601"), &folder, Duration::from_secs(1)).await.unwrap();
        assert_eq!(found, crate::up::child::Found::Other { pid: left.identity.pid });
        assert_ne!(other.pid(), left.identity.pid);
        other.end(Duration::from_secs(1), std::future::pending()).await;
    }

    #[test]
    fn restarts_come_later_and_later_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> = (0..8).map(|_| backoff.next(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    }

    #[test]
    fn child_that_lived_long_is_restarted_quickly() {
        let mut backoff = Backoff::default();
        for _ in 0..8 {
            backoff.next(Duration::ZERO);
        }
        assert_eq!(backoff.next(WELL_AFTER), DELAY_FIRST);
    }
}
