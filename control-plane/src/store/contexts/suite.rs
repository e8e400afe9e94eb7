//! What a context store must do, over any of them.

use super::*;

/// A store under test, and a way to let time pass for it.
pub(super) trait Bed {
    type Store: ContextStore + 'static;
    fn store(&self) -> Arc<Self::Store>;
    async fn pass(&self, time: Duration);
}

pub(super) fn context() -> CallContext {
    CallContext {
        call_id: Uuid::now_v7(),
        tenant_id: "t1".into(),
        assistant_id: "desk".into(),
        direction: "inbound",
        from: "+4930111".into(),
        to: "+4930222".into(),
        engine: String::new(),
        provider: Some(ProviderSide {
            name: "twilio".into(),
            credential: "main".into(),
            call_id: Some("CA1".into()),
            event_id: Uuid::new_v4(),
        }),
        arguments: [("name".to_owned(), "Zoë \"Ü\"".to_owned())].into(),
    }
}

fn mint() -> Mint {
    Mint { claim: Claim(Uuid::new_v4()), ttl: CLAIM_TTL }
}

fn owner() -> Owner {
    Owner(Uuid::new_v4())
}

const SECOND: Duration = Duration::from_secs(1);

/// All of it, but for [`races`].
pub(super) async fn all(bed: &impl Bed) {
    claim_is_taken_once_and_the_record_stays(bed).await;
    claim_expires_before_its_record(bed).await;
    claim_lives_as_long_as_it_was_given(bed).await;
    finished_call_is_found_for_its_grace_only_and_cannot_be_claimed(bed).await;
    finished_twice_lives_no_longer(bed).await;
    new_record_of_a_call_keeps_its_claim(bed).await;
    new_claim_takes_the_place_of_the_earlier_one(bed).await;
    callbacks_find_their_call_by_an_id_that_claims_nothing(bed).await;
    taken_claim_comes_back_only_after_its_connection_dropped(bed).await;
    call_that_is_over_is_not_revived(bed).await;
    record_is_restored_only_where_there_is_none(bed).await;
    call_on_sip_has_no_provider(bed).await;
    unknown_claims_and_calls_are_nothing(bed).await;
    lease_is_held_by_one_until_it_ends(bed).await;
    lease_that_has_ended_is_not_renewed_but_can_be_taken_again(bed).await;
    only_its_holder_gives_a_lease_back(bed).await;
    claim_that_is_minted_again_stays_what_it_is(bed).await;
    record_is_seen_by_its_claim_without_taking_it(bed).await;
    first_word_stays_for_its_time(bed).await;
}

async fn claim_that_is_minted_again_stays_what_it_is(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    store.put(context.clone(), Some(mint)).await.unwrap();
    store.put(context.clone(), Some(mint)).await.unwrap();
    assert_eq!(store.take(mint.claim).await.unwrap(), Some(context.clone()));
    store.put(context.clone(), Some(mint)).await.unwrap();
    assert_eq!(store.take(mint.claim).await.unwrap(), None, "it is taken");
}

async fn record_is_seen_by_its_claim_without_taking_it(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    assert_eq!(store.peek(mint.claim).await.unwrap(), None);
    assert_eq!(store.claim_of(context.call_id).await.unwrap(), None);
    store.put(context.clone(), Some(mint)).await.unwrap();
    assert_eq!(store.claim_of(context.call_id).await.unwrap(), Some(mint.claim));
    for _ in 0..2 {
        assert_eq!(store.peek(mint.claim).await.unwrap(), Some(context.clone()));
    }
    assert_eq!(store.take(mint.claim).await.unwrap(), Some(context.clone()));
    assert_eq!(store.peek(mint.claim).await.unwrap(), Some(context.clone()), "taken, and still its own");
    store.finish(context.call_id).await.unwrap();
    assert_eq!(store.peek(mint.claim).await.unwrap(), None, "its call is over");
    assert_eq!(store.claim_of(context.call_id).await.unwrap(), None);
}

async fn first_word_stays_for_its_time(bed: &impl Bed) {
    let store = bed.store();
    let say = async |name: &str, word: &str| store.first_word(name, word, TTL).await.unwrap();
    assert_eq!(say("CA1", "one").await, "one");
    assert_eq!(say("CA1", "two").await, "one");
    assert_eq!(say("CA2", "two").await, "two");
    bed.pass(TTL).await;
    assert_eq!(say("CA1", "three").await, "three");
}

async fn claim_is_taken_once_and_the_record_stays(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    assert!(store.put(context.clone(), Some(mint)).await.unwrap());
    assert_eq!(store.take(mint.claim).await.unwrap(), Some(context.clone()));
    assert_eq!(store.take(mint.claim).await.unwrap(), None);
    assert_eq!(store.get(context.call_id).await.unwrap(), Some(context));
}

async fn claim_expires_before_its_record(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    store.put(context.clone(), Some(mint)).await.unwrap();
    bed.pass(CLAIM_TTL).await;
    assert_eq!(store.take(mint.claim).await.unwrap(), None);
    assert_eq!(store.get(context.call_id).await.unwrap(), Some(context));
}

async fn claim_lives_as_long_as_it_was_given(bed: &impl Bed) {
    let (store, context) = (bed.store(), context());
    let mint = Mint::fresh(Duration::from_secs(600));
    store.put(context.clone(), Some(mint)).await.unwrap();
    bed.pass(Duration::from_secs(655)).await;
    assert_eq!(store.take(mint.claim).await.unwrap(), Some(context));
}

async fn finished_call_is_found_for_its_grace_only_and_cannot_be_claimed(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    let event_id = context.provider.as_ref().unwrap().event_id;
    store.put(context.clone(), Some(mint)).await.unwrap();
    store.finish(context.call_id).await.unwrap();
    assert_eq!(store.take(mint.claim).await.unwrap(), None);
    bed.pass(GRACE - 5 * SECOND).await;
    assert!(store.get(context.call_id).await.unwrap().is_some());
    assert!(store.by_event(event_id).await.unwrap().is_some());
    bed.pass(5 * SECOND).await;
    assert_eq!(store.get(context.call_id).await.unwrap(), None);
    assert_eq!(store.by_event(event_id).await.unwrap(), None);
}

async fn finished_twice_lives_no_longer(bed: &impl Bed) {
    let (store, context) = (bed.store(), context());
    store.put(context.clone(), None).await.unwrap();
    store.finish(context.call_id).await.unwrap();
    bed.pass(GRACE - 5 * SECOND).await;
    store.finish(context.call_id).await.unwrap();
    bed.pass(5 * SECOND).await;
    assert_eq!(store.get(context.call_id).await.unwrap(), None);
}

async fn new_record_of_a_call_keeps_its_claim(bed: &impl Bed) {
    let (store, mut context, mint) = (bed.store(), context(), mint());
    assert!(store.put(context.clone(), Some(mint)).await.unwrap());
    context.engine = "engine-1".into();
    assert!(!store.put(context.clone(), None).await.unwrap(), "it was there");
    assert_eq!(store.take(mint.claim).await.unwrap(), Some(context));
}

async fn new_claim_takes_the_place_of_the_earlier_one(bed: &impl Bed) {
    let (store, context, earlier, later) = (bed.store(), context(), mint(), mint());
    store.put(context.clone(), Some(earlier)).await.unwrap();
    store.put(context.clone(), Some(later)).await.unwrap();
    assert_eq!(store.take(earlier.claim).await.unwrap(), None);
    assert_eq!(store.take(later.claim).await.unwrap(), Some(context));
}

async fn callbacks_find_their_call_by_an_id_that_claims_nothing(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    let event_id = context.provider.as_ref().unwrap().event_id;
    store.put(context.clone(), Some(mint)).await.unwrap();
    assert_eq!(store.take(Claim(event_id)).await.unwrap(), None);
    assert_eq!(store.by_event(mint.claim.0).await.unwrap(), None);
    assert_eq!(store.by_event(event_id).await.unwrap(), Some(context.clone()));
    assert_eq!(store.by_event(event_id).await.unwrap(), Some(context), "as often as wanted");
}

async fn taken_claim_comes_back_only_after_its_connection_dropped(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    let claim = mint.claim;
    store.put(context.clone(), Some(mint)).await.unwrap();
    assert_eq!(store.retake(claim).await.unwrap(), None, "nobody has taken it");
    store.dropped(claim).await.unwrap();
    assert_eq!(store.retake(claim).await.unwrap(), None, "nor has it dropped then");
    assert_eq!(store.take(claim).await.unwrap(), Some(context.clone()));
    assert_eq!(store.retake(claim).await.unwrap(), None, "its connection is up");
    // Longer than a claim lives: a call drops in its tenth minute.
    bed.pass(2 * CLAIM_TTL).await;
    store.dropped(claim).await.unwrap();
    assert_eq!(store.take(claim).await.unwrap(), None, "it is not fresh again");
    assert_eq!(store.retake(claim).await.unwrap(), Some(context.clone()));
    assert_eq!(store.retake(claim).await.unwrap(), None, "once");
    store.dropped(claim).await.unwrap();
    bed.pass(RETAKE_TTL).await;
    assert_eq!(store.retake(claim).await.unwrap(), None, "too late");
    store.dropped(claim).await.unwrap();
    store.finish(context.call_id).await.unwrap();
    assert_eq!(store.retake(claim).await.unwrap(), None, "the call is over");
}

async fn call_that_is_over_is_not_revived(bed: &impl Bed) {
    let (store, context, mint) = (bed.store(), context(), mint());
    store.put(context.clone(), None).await.unwrap();
    store.finish(context.call_id).await.unwrap();
    assert!(!store.put(context.clone(), Some(mint)).await.unwrap());
    assert_eq!(store.take(mint.claim).await.unwrap(), None, "it gets no claim");
    bed.pass(GRACE).await;
    assert_eq!(store.get(context.call_id).await.unwrap(), None, "nor does it live longer");
    assert!(store.put(context.clone(), None).await.unwrap(), "what is forgotten is new");
    store.finish(context.call_id).await.unwrap();
}

async fn record_is_restored_only_where_there_is_none(bed: &impl Bed) {
    let (store, older) = (bed.store(), context());
    let newer = CallContext { engine: "engine-2".into(), ..older.clone() };
    store.put(newer.clone(), None).await.unwrap();
    assert!(!store.restore(older.clone()).await.unwrap());
    assert_eq!(store.get(older.call_id).await.unwrap(), Some(newer));
    let lost = context();
    let event_id = lost.provider.as_ref().unwrap().event_id;
    assert!(store.restore(lost.clone()).await.unwrap());
    assert_eq!(store.by_event(event_id).await.unwrap(), Some(lost));
}

async fn call_on_sip_has_no_provider(bed: &impl Bed) {
    let (store, mut context) = (bed.store(), context());
    (context.provider, context.direction) = (None, "outbound");
    context.arguments.clear();
    store.put(context.clone(), None).await.unwrap();
    assert_eq!(store.get(context.call_id).await.unwrap(), Some(context));
}

async fn unknown_claims_and_calls_are_nothing(bed: &impl Bed) {
    let (store, unknown) = (bed.store(), Uuid::new_v4());
    assert_eq!(store.take(Claim(unknown)).await.unwrap(), None);
    assert_eq!(store.retake(Claim(unknown)).await.unwrap(), None);
    assert_eq!(store.get(unknown).await.unwrap(), None);
    assert_eq!(store.by_event(unknown).await.unwrap(), None);
    store.dropped(Claim(unknown)).await.unwrap();
    store.finish(unknown).await.unwrap();
}

const TTL: Duration = Duration::from_secs(30);

async fn lease_is_held_by_one_until_it_ends(bed: &impl Bed) {
    let (store, one, other) = (bed.store(), owner(), owner());
    assert!(store.acquire("trunk", one, TTL).await.unwrap());
    assert!(!store.acquire("trunk", other, TTL).await.unwrap());
    assert!(store.acquire("another trunk", other, TTL).await.unwrap());
    bed.pass(TTL / 2).await;
    assert!(store.renew("trunk", one, TTL).await.unwrap());
    bed.pass(TTL - 5 * SECOND).await;
    assert!(!store.acquire("trunk", other, TTL).await.unwrap());
    bed.pass(5 * SECOND).await;
    assert!(store.acquire("trunk", other, TTL).await.unwrap());
    assert!(!store.renew("trunk", one, TTL).await.unwrap());
    store.release("trunk", other).await.unwrap();
    store.release("another trunk", other).await.unwrap();
}

async fn lease_that_has_ended_is_not_renewed_but_can_be_taken_again(bed: &impl Bed) {
    let (store, one) = (bed.store(), owner());
    assert!(store.acquire("line", one, TTL).await.unwrap());
    bed.pass(TTL).await;
    assert!(!store.renew("line", one, TTL).await.unwrap());
    assert!(store.acquire("line", one, TTL).await.unwrap());
    assert!(store.acquire("line", one, TTL).await.unwrap(), "its holder holds it anew");
    store.release("line", one).await.unwrap();
}

async fn only_its_holder_gives_a_lease_back(bed: &impl Bed) {
    let (store, one, other) = (bed.store(), owner(), owner());
    assert!(store.acquire("post", one, TTL).await.unwrap());
    store.release("post", other).await.unwrap();
    assert!(!store.acquire("post", other, TTL).await.unwrap());
    store.release("post", one).await.unwrap();
    assert!(store.acquire("post", other, TTL).await.unwrap());
    store.release("post", other).await.unwrap();
}

/// Connections that present one token at once.
const TAKERS: usize = 50;

/// Of [`TAKERS`] that take one claim at once exactly one wins, so many rounds; then the same of a dropped claim.
pub(super) async fn races(bed: &impl Bed, rounds: usize) {
    for _ in 0..rounds {
        let (store, context, mint) = (bed.store(), context(), mint());
        store.put(context.clone(), Some(mint)).await.unwrap();
        for again in [false, true] {
            let takers: Vec<_> = (0..TAKERS)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        let got =
                            if again { store.retake(mint.claim).await } else { store.take(mint.claim).await };
                        got.unwrap().is_some()
                    })
                })
                .collect();
            let mut winners = 0;
            for taker in takers {
                winners += usize::from(taker.await.unwrap());
            }
            assert_eq!(winners, 1);
            store.dropped(mint.claim).await.unwrap();
        }
        store.finish(context.call_id).await.unwrap();
    }
}
