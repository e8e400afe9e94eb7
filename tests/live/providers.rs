//! Calls through telephony providers, in and out, with the contexts in a real Redis that is killed and comes back in the middle.

use std::time::Duration;

use tandem_api::v1::Call as Record;
use tandem_tests::provider::course::Event;
use tandem_tests::provider::{Call, Callbacks, Callee, Fake, Provider, Settings};
use tandem_tests::redis::Redis;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(10);
/// Seconds of what is said.
const SAID_S: f64 = 2.0;
/// The way there and back, at 8 kHz: the longest chunks are Exotel's.
const DELAY_MAX: usize = 4_000;
/// Root mean square of nothing, but for a codec's noise.
const QUIET: f64 = 50.0;
const CALLER: &str = "+14155550142";
const CALLEE: &str = "+14155550177";

struct World {
    redis: Redis,
    fake: Fake,
    stack: Stack,
    settings: Settings,
}

impl World {
    async fn of(provider: Provider) -> anyhow::Result<Self> {
        Self::with(provider, |_| {}).await
    }

    async fn with(provider: Provider, change: impl FnOnce(&mut Settings)) -> anyhow::Result<Self> {
        let redis = Redis::start()?;
        let mut stack = Stack::prepare_configured("", &[("TANDEM_REDIS_URL", &redis.url())])?;
        let ports = stack.ports();
        let mut settings = Settings::demo(provider, &format!("http://127.0.0.1:{}", ports.http));
        settings.audiosocket = Some(([127, 0, 0, 1], ports.engine_audiosocket).into());
        change(&mut settings);
        let fake = Fake::start(settings.clone()).await?;
        stack.configure(&tables(&stack, &settings, &fake)?)?;
        stack.start_supervisor()?;
        Ok(Self { redis, fake, stack, settings })
    }

    /// Says something to the echo, and hears it.
    async fn talks(&self, call: &Call) -> anyhow::Result<()> {
        let rate = call.rate_hz();
        let before = settled(call).await;
        let said = sound::sweep(rate, SAID_S);
        call.say(&said);
        let heard = call.heard_samples(before + said.len() * 9 / 10, SOON).await?;
        // Piece by piece: the engine wins back what a stall has delayed by leaving out a millisecond here and there.
        let pieces: Vec<(f64, usize)> = said
            .chunks_exact(rate as usize / 5)
            .enumerate()
            .map(|(n, piece)| {
                let from = before + n * piece.len();
                sound::resemblance(piece, &heard[from.min(heard.len())..], DELAY_MAX * rate as usize / 8_000)
            })
            .collect();
        let told: Vec<String> =
            pieces.iter().map(|(r, delay)| format!("{r:.2} at {}", delay * 1_000 / rate as usize)).collect();
        println!(
            "{}: resemblance and delay in ms of each 200 ms: {}",
            self.settings.provider.name(),
            told.join(", ")
        );
        let good = pieces.iter().filter(|(r, _)| *r > 0.8).count();
        // What was said last may not have come back yet.
        anyhow::ensure!(good * 10 >= pieces.len() * 8, "no echo: {told:?}, {:?}", call.notes());
        Ok(())
    }

    fn check(&self, call: &Call) -> anyhow::Result<()> {
        let violations = call.violations();
        anyhow::ensure!(violations.is_empty(), "the provider would not have let pass: {violations:?}");
        Ok(())
    }
}

/// What has been heard when nothing more comes, or only silence, as on an AudioSocket.
async fn settled(call: &Call) -> usize {
    let mut len = call.heard().len();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let heard = call.heard();
        if sound::loudness(&heard[len..]) < QUIET {
            return heard.len();
        }
        len = heard.len();
    }
    len
}

fn tables(stack: &Stack, settings: &Settings, fake: &Fake) -> anyhow::Result<String> {
    let Settings { account, secret, key, webhook_secret, webhook_user, number, .. } = settings;
    let api_url = fake.api_url();
    let fields = match settings.provider {
        Provider::Twilio => {
            format!("account_sid = '{account}'\naccount_token = '{secret}'\napi_url = '{api_url}'")
        }
        Provider::Vonage => {
            let pem = stack.file("vonage.pem", secret)?;
            format!(
                "application_id = '{account}'\napi_key = '{key}'\nprivate_key_file = '{}'\n\
                 signature_secret = '{webhook_secret}'\napi_url = '{api_url}'",
                pem.display()
            )
        }
        Provider::Exotel => format!(
            "account_sid = '{account}'\nclient_id = '{key}'\nclient_secret = '{secret}'\nregion = 'in'\n\
             webhook_user = '{webhook_user}'\nwebhook_password = '{webhook_secret}'\napi_url = '{api_url}'"
        ),
        Provider::Asterisk => {
            format!(
                "ari_url = '{api_url}'\nari_user = '{account}'\nari_password = '{secret}'\ntrunk = 'carrier'"
            )
        }
        Provider::Telnyx => format!(
            "api_key = '{secret}'\npublic_key = '{}'\nconnection_id = '{key}'\napi_url = '{api_url}'",
            fake.public_key()
        ),
        Provider::Plivo => format!("auth_id = '{account}'\nauth_token = '{secret}'\napi_url = '{api_url}'"),
    };
    Ok(format!(
        "[credential.real]\nprovider = '{}'\ntenant = 'demo'\ncalls_per_second = 100\n{fields}\n\
         [[deployment]]\ncredential = 'real'\nphone = '{number}'\ntransfer_targets = ['+1415']\n",
        settings.provider.name()
    ))
}

fn reason(record: &Record) -> String {
    record.ending.clone().unwrap_or_default().reason
}

/// Somebody calls, talks, loses Redis, talks on, hangs up; the next call works when Redis is back.
async fn comes_in(provider: Provider) -> anyhow::Result<()> {
    let mut world = World::of(provider).await?;
    let call = world.fake.announce(CALLER, &world.settings.number.clone()).await?;
    call.noted("media started", SOON).await?;
    world.talks(&call).await?;
    world.redis.kill()?;
    world.talks(&call).await?;
    let refused = world.fake.announce(CALLER, &world.settings.number.clone()).await;
    if let Ok(refused) = refused {
        refused.ended(SOON).await?;
        anyhow::ensure!(
            !refused.notes().iter().any(|note| note.starts_with("media started")),
            "{:?}",
            refused.notes()
        );
    }
    world.redis.restart()?;
    world.talks(&call).await?;
    call.hang_up();
    let calls = world.stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1, "{calls:?}");
    let side = calls[0].provider.clone().unwrap_or_default();
    anyhow::ensure!(calls[0].state == "ended" && reason(&calls[0]) == "hangup", "{:?}", calls[0]);
    anyhow::ensure!(side.name == provider.name() && side.call_id == call.id(), "{side:?}, not {}", call.id());
    world.check(&call)?;

    // It needs no restart.
    let mut again = None;
    for _ in 0..40 {
        if let Ok(call) = world.fake.announce(CALLER, &world.settings.number.clone()).await
            && call.noted("media started", Duration::from_secs(2)).await.is_ok()
        {
            again = Some(call);
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let Some(again) = again else {
        anyhow::bail!("no call after Redis is back\n{}", world.stack.everything_said())
    };
    world.talks(&again).await?;
    again.hang_up();
    world.stack.calls_when_over().await?;
    Ok(())
}

/// We call somebody, who picks up; Redis is killed and comes back; we hang up, and nothing is left alive there.
async fn goes_out(provider: Provider) -> anyhow::Result<()> {
    let mut world = World::of(provider).await?;
    let call_id = world.stack.places_by("real", "echo", CALLEE).await?;
    let call = world.fake.placed(1, SOON).await?;
    let started = call.noted("media started", SOON).await;
    started.map_err(|error| error.context(world.stack.everything_said()))?;
    world.talks(&call).await?;
    world.redis.kill()?;
    world.talks(&call).await?;
    world.redis.restart()?;
    world.stack.hangs_up(&call_id).await?;
    let record = world.stack.call_when_over(&call_id).await?;
    anyhow::ensure!(record.state == "ended" && reason(&record) == "operator_hangup", "{record:?}");
    let end = call.ended(SOON).await?;
    anyhow::ensure!(end == Event::Completed, "{end:?}: {:?}", call.notes());
    let side = record.provider.unwrap_or_default();
    anyhow::ensure!(side.call_id == call.id(), "{side:?}, not {}", call.id());
    anyhow::ensure!(world.fake.placed_count() == 1, "dialled {} times", world.fake.placed_count());
    world.check(&call)
}

macro_rules! each {
    ($($inbound:ident, $outbound:ident, $provider:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $inbound() -> anyhow::Result<()> {
            comes_in(Provider::$provider).await
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn $outbound() -> anyhow::Result<()> {
            goes_out(Provider::$provider).await
        }
    )*};
}

each! {
    twilio_call_comes_in_while_redis_goes_and_comes, twilio_call_goes_out_while_redis_goes_and_comes, Twilio;
    vonage_call_comes_in_while_redis_goes_and_comes, vonage_call_goes_out_while_redis_goes_and_comes, Vonage;
    exotel_call_comes_in_while_redis_goes_and_comes, exotel_call_goes_out_while_redis_goes_and_comes, Exotel;
    asterisk_call_comes_in_while_redis_goes_and_comes, asterisk_call_goes_out_while_redis_goes_and_comes, Asterisk;
    telnyx_call_comes_in_while_redis_goes_and_comes, telnyx_call_goes_out_while_redis_goes_and_comes, Telnyx;
    plivo_call_comes_in_while_redis_goes_and_comes, plivo_call_goes_out_while_redis_goes_and_comes, Plivo;
}

/// What the provider says of whom we call is in the record, in whatever order it comes.
#[tokio::test(flavor = "multi_thread")]
async fn callee_who_is_busy_or_away_ends_the_call_whatever_order_the_news_come_in() -> anyhow::Result<()> {
    for (callee, callbacks, word) in [
        (Callee::Busy, Callbacks::Twice, "busy"),
        (Callee::Busy, Callbacks::Backwards, "busy"),
        (Callee::Declines, Callbacks::Orderly, "busy"),
    ] {
        let world = World::with(Provider::Twilio, |settings| {
            (settings.callee, settings.callbacks) = (callee, callbacks);
        })
        .await?;
        let call_id = world.stack.places_by("real", "echo", CALLEE).await?;
        let record = world.stack.call_when_over(&call_id).await?;
        println!("{callee:?}, {callbacks:?}: {}", reason(&record));
        anyhow::ensure!(record.state == "failed", "{record:?}");
        anyhow::ensure!(reason(&record) == word || callee == Callee::Declines, "{record:?}");
        anyhow::ensure!(world.fake.placed_count() == 1);
    }
    Ok(())
}

/// A media socket that breaks may come back; the provider of this one does not, and the call is hung up there.
#[tokio::test(flavor = "multi_thread")]
async fn call_whose_media_socket_breaks_is_hung_up_at_the_provider() -> anyhow::Result<()> {
    let world = World::of(Provider::Twilio).await?;
    let call = world.fake.announce(CALLER, &world.settings.number.clone()).await?;
    call.noted("media started", SOON).await?;
    world.talks(&call).await?;
    call.drop_socket();
    let calls = world.stack.calls_when_over().await?;
    anyhow::ensure!(reason(&calls[0]) == "stream_lost", "{:?}", calls[0]);
    let hung_up = world.fake.requests().iter().any(|request| {
        request.form().is_some_and(|form| form.contains(&("Status".to_owned(), "completed".to_owned())))
    });
    anyhow::ensure!(hung_up, "nobody has hung up: {:?}", world.fake.requests());
    Ok(())
}
