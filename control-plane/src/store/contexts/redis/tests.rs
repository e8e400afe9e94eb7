//! Against real Redis servers, started here on free ports: one alone, a cluster, a pair under a sentinel.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::super::spool::Spool;
use super::super::suite::{self, Bed};
use super::*;

/// A server that is slower than this to start is not going to.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// A redis-server of ours; dropped, it is killed.
struct Server {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
}

/// One below those that the kernel gives to others, with the one ten thousand above, where a cluster's servers talk.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let port = rand::random_range(10_000..22_000);
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

fn spawn(folder: &Path, port: u16, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server: `make test` installs it (Debian package redis-server)")
}

impl Server {
    async fn start(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        for _ in 0..10 {
            let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
            let process = spawn(folder.path(), port, &arguments);
            let mut server = Self { process, port, folder, arguments: arguments.clone() };
            if server.is_up().await {
                return server;
            }
            // Somebody else took the port meanwhile.
        }
        panic!("redis-server {arguments:?} does not start");
    }

    /// Waits until it answers; false if it has ended.
    async fn is_up(&mut self) -> bool {
        let end = Instant::now() + STARTS_WITHIN;
        loop {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            let answer = self.cli(&["PING"]);
            if answer.contains("PONG") || answer.contains("NOAUTH") {
                return self.process.try_wait().unwrap().is_none();
            }
            assert!(Instant::now() < end, "redis-server does not start: {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn cli(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// On the same port, without its memory.
    async fn revive(&mut self) {
        self.process = spawn(self.folder.path(), self.port, &self.arguments);
        assert!(self.is_up().await, "its port was taken");
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn contexts(url: &str) -> Arc<RedisContexts> {
    Arc::new(RedisContexts::new(&RedisUrl::parse(url).unwrap()).unwrap())
}

/// Time passes by shortening the life of every key by so much.
struct Aged<'a> {
    store: Arc<RedisContexts>,
    servers: &'a [Server],
}

impl Bed for Aged<'_> {
    type Store = RedisContexts;
    fn store(&self) -> Arc<RedisContexts> {
        self.store.clone()
    }
    async fn pass(&self, time: Duration) {
        let age = "for _, key in ipairs(redis.call('KEYS', '*')) do
                       local left = redis.call('PTTL', key)
                       if left < 0 then error('a key that never ends: ' .. key) end
                       if left <= tonumber(ARGV[1]) then redis.call('DEL', key)
                       else redis.call('PEXPIRE', key, left - ARGV[1]) end
                   end
                   return 'aged'";
        for server in self.servers {
            let answer = server.cli(&["EVAL", age, "0", &ms(time).to_string()]);
            assert!(answer.contains("aged"), "{answer}");
        }
    }
}

#[tokio::test]
async fn redis_store_keeps_the_semantics() {
    let server = Server::start(&[]).await;
    suite::all(&Aged { store: contexts(&server.url()), servers: &[server] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_who_take_one_claim_at_once_one_gets_it_a_thousand_times() {
    let server = Server::start(&[]).await;
    suite::races(&Aged { store: contexts(&server.url()), servers: &[server] }, 1_000).await;
}

#[tokio::test]
async fn ports_are_leased_once_rest_and_end_with_their_engine() {
    let server = Server::start(&[]).await;
    let store = Arc::new(contexts(&server.url()));
    let bed = Aged { store: contexts(&server.url()), servers: std::slice::from_ref(&server) };
    let lease = async || store.lease_port("e1", Duration::from_secs(300)).await.unwrap();
    assert_eq!(lease().await, Leased::NoPool);
    let ttl = Duration::from_secs(15);
    let ports: Vec<u16> = (0..50).map(|n| 20_000 + 2 * n).collect();
    assert!(store.offer_ports("e1", &ports, "{}", ttl).await.unwrap());
    assert!(!store.offer_ports("e1", &ports, "{}", ttl).await.unwrap(), "it is kept");
    // Fifty at once get fifty, in no order; one more gets none.
    let takers: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.lease_port("e1", Duration::from_secs(300)).await.unwrap() })
        })
        .collect();
    let mut leased = Vec::new();
    for taker in takers {
        let Leased::Port(port) = taker.await.unwrap() else { panic!("there are enough") };
        leased.push(port);
    }
    leased.sort_unstable();
    assert_eq!(leased, ports);
    assert_eq!(lease().await, Leased::Dry);
    // The one that has been free for longest comes first.
    store.rest_ports("e1", &[20_008], Duration::ZERO).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.rest_ports("e1", &[20_002], Duration::ZERO).await.unwrap();
    store.rest_ports("e1", &[20_004], Duration::from_secs(2)).await.unwrap();
    assert_eq!([lease().await, lease().await], [Leased::Port(20_008), Leased::Port(20_002)]);
    assert_eq!(lease().await, Leased::Dry, "a closed one rests");
    bed.pass(ttl).await;
    assert_eq!(lease().await, Leased::NoPool, "its engine is not heard any more");
    assert_eq!(store.lease_port("e2", ttl).await.unwrap(), Leased::NoPool);
}

#[tokio::test]
async fn password_of_the_url_opens_a_protected_server() {
    let server = Server::start(&["--requirepass", "hunter2"]).await;
    let without = contexts(&server.url()).get(Uuid::new_v4()).await.unwrap_err();
    assert!(matches!(&without, ContextError::Unreachable(why) if !why.contains("hunter2")), "{without}");
    let with = contexts(&format!("redis://:hunter2@127.0.0.1:{}", server.port));
    assert_eq!(with.get(Uuid::new_v4()).await.unwrap(), None);
}

#[tokio::test]
async fn encrypted_server_is_spoken_to_if_its_authority_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let port = free_port();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let tls = [
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-auth-clients",
        "no",
    ];
    let _server = Server::start(&tls).await;
    let url = RedisUrl::parse(&format!("rediss://localhost:{port}")).unwrap();
    let stranger = RedisContexts::new(&url).unwrap().get(Uuid::new_v4()).await;
    assert!(matches!(stranger, Err(ContextError::Unreachable(_))), "{stranger:?}");
    let trusting = RedisContexts::new(&url.trusting(certified.cert.pem().into_bytes())).unwrap();
    assert_eq!(trusting.get(Uuid::new_v4()).await.unwrap(), None);
}

#[tokio::test]
async fn cluster_keeps_the_semantics() {
    let node = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let servers = [Server::start(&node).await, Server::start(&node).await, Server::start(&node).await];
    let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
    for (server, (first, last)) in servers.iter().zip(slots) {
        assert!(server.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]).contains("OK"));
        server.cli(&["CLUSTER", "MEET", "127.0.0.1", &servers[0].port.to_string()]);
    }
    let end = Instant::now() + STARTS_WITHIN;
    while !servers.iter().all(|server| {
        let info = server.cli(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
    }) {
        assert!(Instant::now() < end, "the cluster does not come together");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = format!("redis-cluster://127.0.0.1:{},127.0.0.1:{}", servers[0].port, servers[1].port);
    let bed = Aged { store: contexts(&url), servers: &servers };
    suite::all(&bed).await;
    let incarnation = bed.store.incarnation().await.unwrap();
    assert_eq!(incarnation.split(' ').count(), 3, "{incarnation}");
}

/// Waits for the store to answer; gives how it answers.
async fn answers(store: &RedisContexts, within: Duration) {
    let end = Instant::now() + within;
    while let Err(error) = store.get(Uuid::new_v4()).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn sentinel_leads_to_the_server_that_took_over() {
    let mut master = Server::start(&[]).await;
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("sentinel.conf");
    let port = free_port();
    let watch = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
        master.port
    );
    std::fs::write(&config, watch).unwrap();
    let process = Command::new("redis-server")
        .arg(&config)
        .args(["--sentinel"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut sentinel = Server { process, port, folder, arguments: Vec::new() };
    assert!(sentinel.is_up().await);
    let end = Instant::now() + STARTS_WITHIN;
    while !sentinel.cli(&["SENTINEL", "REPLICAS", "main"]).contains(&replica.port.to_string()) {
        assert!(Instant::now() < end, "the sentinel does not find the replica");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let store = contexts(&format!("redis-sentinel://127.0.0.1:{port}/main"));
    let (context, ringing) = (suite::context(), Mint::fresh(Duration::ZERO));
    store.put(context.clone(), Some(ringing)).await.unwrap();
    let before = store.incarnation().await.unwrap();
    while !replica.cli(&["DBSIZE"]).contains('3') {
        assert!(Instant::now() < end, "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    master.kill();
    answers(&store, Duration::from_secs(30)).await;
    assert_eq!(store.get(context.call_id).await.unwrap(), Some(context));
    assert_ne!(store.incarnation().await.unwrap(), before);
    // It may have been taken from the old server in its last moment.
    assert_eq!(store.take(ringing.claim).await.unwrap(), None);
    let minted = Mint::fresh(Duration::ZERO);
    store.put(suite::context(), Some(minted)).await.unwrap();
    assert!(store.take(minted.claim).await.unwrap().is_some());
}

/// Stops a server in its tracks: it is there, and does not answer.
fn signal(server: &Server, name: &str) {
    let done = Command::new("kill").args([name, &server.process.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[tokio::test]
async fn server_that_falls_silent_is_given_up_and_found_again() {
    let server = Server::start(&[]).await;
    let store = contexts(&server.url());
    let context = suite::context();
    store.put(context.clone(), None).await.unwrap();
    let before = store.link.generation();
    signal(&server, "-STOP");
    let silent = store.get(context.call_id).await;
    assert!(matches!(silent, Err(ContextError::Unreachable(_))), "{silent:?}");
    signal(&server, "-CONT");
    answers(&store, Duration::from_secs(10)).await;
    assert_eq!(store.get(context.call_id).await.unwrap(), Some(context));
    assert!(store.link.generation() > before, "by another connection");
}

#[tokio::test]
async fn call_that_could_not_be_minted_leaves_nothing_behind() {
    let server = Server::start(&[]).await;
    let store = contexts(&server.url());
    let (spool, writing) = Spool::new(store.clone());
    let writing = tokio::spawn(writing);
    let (given_up, mint) = (suite::context(), Mint::fresh(Duration::ZERO));
    // Whoever asked has gone before the store has answered.
    let minting = spool.mint(given_up.clone(), mint);
    assert!(tokio::time::timeout(Duration::ZERO, minting).await.is_err());
    until(|| spool.pending() == 0).await;
    // What was on its way may have come in between; the last word is that it is over.
    spool.finish(given_up.call_id);
    until(|| spool.pending() == 0).await;
    assert_eq!(store.take(mint.claim).await.unwrap(), None);
    spool.close();
    writing.await.unwrap();
}

#[tokio::test]
async fn server_that_is_away_refuses_claims_and_comes_back_without_a_restart_of_ours() {
    let mut server = Server::start(&[]).await;
    let store = contexts(&server.url());
    let mint = Mint::fresh(Duration::ZERO);
    store.put(suite::context(), Some(mint)).await.unwrap();
    server.kill();
    let began = Instant::now();
    let away = store.take(mint.claim).await;
    assert!(matches!(away, Err(ContextError::Unreachable(_))), "{away:?}");
    assert!(began.elapsed() < ANSWER_WITHIN + Duration::from_secs(1), "{:?}", began.elapsed());
    server.revive().await;
    answers(&store, Duration::from_secs(10)).await;
    assert_eq!(store.take(mint.claim).await.unwrap(), None, "its memory is gone, and the claim with it");
}

#[tokio::test]
async fn records_of_live_calls_survive_a_server_that_loses_its_memory() {
    let mut server = Server::start(&[]).await;
    let store = contexts(&server.url());
    let (spool, writing) = Spool::new(store.clone());
    let writing = tokio::spawn(writing);
    let [talking, minted, ended, later] = [(); 4].map(|()| suite::context());
    spool.put(talking.clone());
    spool.mint(minted.clone(), Mint::fresh(Duration::ZERO)).await.unwrap();
    spool.put(ended.clone());
    until(|| spool.pending() == 0).await;
    assert_eq!(store.get(talking.call_id).await.unwrap(), Some(talking.clone()));

    server.kill();
    spool.finish(ended.call_id);
    spool.put(later.clone());
    until(|| spool.failures() > 0).await;
    assert!(
        spool.mint(suite::context(), Mint::fresh(Duration::ZERO)).await.is_err(),
        "a new call is refused"
    );
    server.revive().await;
    until(|| spool.pending() == 0 && spool.restored() == 2).await;
    for live in [&talking, &minted, &later] {
        assert_eq!(store.get(live.call_id).await.unwrap().as_ref(), Some(live));
    }
    assert_eq!(store.get(ended.call_id).await.unwrap(), None, "finished and forgotten");
    spool.close();
    writing.await.unwrap();
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "not so in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
