//! Leases of RTP ports through the whole control plane, with a real Redis.

use control_plane::store::contexts::redis::RedisUrl;

use crate::stage::{Stage, until};
use crate::telephony::Redis;

#[tokio::test]
async fn session_gets_a_leased_port_and_without_redis_the_engine_chooses() {
    let mut redis = Redis::start().await;
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let stage = Stage::with(|config| config.redis = Some(RedisUrl::parse(&url).unwrap())).await;
    until(|| async { redis.cli(&["KEYS", "tandem:*:ports"]).contains(":ports") }).await;
    let call = stage.call("echo:demo-key").await.unwrap();
    let leased = stage.engine().leased();
    assert_eq!(leased.len(), 1);
    assert!((20_000..21_000).contains(&leased[0]) && leased[0] % 2 == 0, "{leased:?}");
    call.hang_up().await;
    let second = stage.call("echo:demo-key").await.unwrap();
    let leased = stage.engine().leased();
    assert_ne!(leased[0], leased[1], "a closed port rests");
    second.hang_up().await;
    // The engine's entry in the registry.
    let entry =
        redis.cli(&["--raw", "EVAL", "return redis.call('GET', redis.call('KEYS', '*:engine')[1])", "0"]);
    assert!(entry.contains("\"portMin\":20000"), "{entry}");

    redis.kill();
    let third = stage.call("echo:demo-key").await.unwrap();
    assert_eq!(stage.engine().leased()[2], 0, "the engine chooses");
    assert!(stage.metric("tandem_port_leases_missing_total").await >= 1.0);
    third.hang_up().await;
}
