//! Turn-taking in virtual time: a table of what happens, and what is done about it.

use super::*;

/// A conversation on a clock of its own.
struct Scene {
    turns: TurnTaking,
    start: Instant,
    now: Instant,
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Scene {
    fn new() -> Self {
        let start = Instant::now();
        Self { turns: TurnTaking::new(&Behaviour::default()), start, now: start }
    }

    /// A conversation whose greeting of 2 s was heard.
    fn greeted() -> Self {
        let mut scene = Self::new();
        scene.turns.handle_start(scene.now);
        scene.agent_speaks(1, 2_000);
        scene.hears_all(1, 2_000);
        scene.actions();
        scene
    }

    /// Lets time pass, with every deadline on the way.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while let Some(at) = self.turns.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            let before = self.turns.poll_timeout();
            self.turns.handle_timeout(self.now);
            assert_ne!(before, self.turns.poll_timeout(), "a deadline that was handled must go away");
        }
        self.now = end;
    }

    fn agent_speaks(&mut self, turn: u32, audio_ms: u64) {
        self.turns.handle_audio_sent(turn, audio_ms, self.now);
        self.turns.handle_turn_complete(turn, false, self.now);
    }

    fn hears_all(&mut self, turn: u32, counter_ms: u64) {
        self.pass(ms(2_000));
        self.turns.handle_mark(turn, counter_ms, self.now);
    }

    fn caller_begins(&mut self) {
        self.turns.handle_speech_began(self.now - ms(100), self.now);
    }

    /// The caller falls silent, as noticed 200 ms later, and speech-to-text answers 100 ms after that.
    fn caller_ends(&mut self, text: &str) {
        self.pass(ms(200));
        self.turns.handle_speech_ended(self.now - ms(200), self.now);
        let Some((utterance, flush)) = self.actions().into_iter().find_map(|action| match action {
            Action::Flush { utterance, flush } => Some((utterance, flush)),
            _ => None,
        }) else {
            panic!("no flush")
        };
        self.pass(ms(100));
        self.turns.handle_transcript(utterance, flush, text, self.now);
    }

    fn caller_says(&mut self, text: &str) {
        self.caller_begins();
        self.pass(ms(1_000));
        self.caller_ends(text);
        self.pass(ms(1_200));
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.turns.poll_action()).collect()
    }

    fn elapsed_ms(&self) -> u128 {
        (self.now - self.start).as_millis()
    }
}

fn replies(actions: &[Action]) -> Vec<(u32, &str, bool)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Reply { turn, text, replaces, .. } => Some((*turn, text.as_str(), *replaces)),
            _ => None,
        })
        .collect()
}

fn lines(actions: &[Action]) -> Vec<Line> {
    actions
        .iter()
        .filter_map(|action| if let Action::Say { line, .. } = action { Some(*line) } else { None })
        .collect()
}

#[test]
fn the_greeting_is_spoken_when_the_call_is_answered() {
    let mut scene = Scene::new();
    scene.turns.handle_start(scene.now);
    assert_eq!(scene.actions(), [Action::Say { turn: 1, line: Line::Greeting }]);
}

#[test]
fn a_whole_sentence_is_answered_half_a_second_after_its_end() {
    let mut scene = Scene::greeted();
    scene.caller_begins();
    scene.pass(ms(1_000));
    scene.caller_ends("Are you open on Friday?");
    let end = scene.now - ms(300);
    assert!(replies(&scene.actions()).is_empty());
    assert_eq!(scene.turns.poll_timeout(), Some(end + ms(500)));
    scene.pass(ms(200));
    assert_eq!(replies(&scene.actions()), [(2, "Are you open on Friday?", false)]);
}

#[test]
fn a_pause_inside_a_sentence_is_no_end() {
    let mut scene = Scene::greeted();
    scene.caller_begins();
    scene.pass(ms(500));
    scene.caller_ends("My name is.");
    scene.pass(ms(500));
    scene.caller_begins();
    scene.pass(ms(600));
    assert!(replies(&scene.actions()).is_empty());
    scene.caller_ends("My name is Anna.");
    scene.pass(ms(300));
    assert_eq!(replies(&scene.actions()), [(2, "My name is Anna.", false)]);
}

#[test]
fn a_transcript_of_an_earlier_silence_is_ignored() {
    let mut scene = Scene::greeted();
    scene.caller_begins();
    scene.turns.handle_speech_ended(scene.now, scene.now);
    scene.caller_begins();
    scene.turns.handle_speech_ended(scene.now, scene.now);
    scene.turns.handle_transcript(1, 1, "Old words.", scene.now);
    scene.pass(ms(1_000));
    assert!(replies(&scene.actions()).is_empty());
    scene.turns.handle_transcript(1, 2, "New words.", scene.now);
    assert_eq!(replies(&scene.actions()), [(2, "New words.", false)]);
}

#[test]
fn a_caller_who_goes_on_while_the_agent_thinks_is_answered_once_to_all() {
    let mut scene = Scene::greeted();
    scene.caller_says("I would like a table.");
    scene.actions();
    scene.caller_begins();
    assert!(scene.actions().contains(&Action::Cancel { turn: 2 }));
    scene.pass(ms(500));
    scene.caller_ends("On Friday.");
    scene.pass(ms(600));
    let actions = scene.actions();
    assert_eq!(replies(&actions), [(3, "I would like a table. On Friday.", true)]);
    let said: Vec<u32> = actions
        .iter()
        .filter_map(
            |action| if let Action::CallerSaid { message, .. } = action { Some(*message) } else { None },
        )
        .collect();
    assert_eq!(said, [1], "the message of before is replaced");
}

#[test]
fn barge_in_empties_the_queue_and_cuts_the_turn_to_what_was_heard() {
    let mut scene = Scene::greeted();
    scene.caller_says("What are your hours?");
    scene.actions();
    scene.agent_speaks(2, 5_000);
    scene.pass(ms(1_500));
    scene.caller_begins();
    let actions = scene.actions();
    assert_eq!(actions[..2], [Action::Clear, Action::Cancel { turn: 2 }]);
    scene.turns.handle_cleared(2_000 + 1_480, scene.now);
    let heard = Heard { turn: 2, heard_ms: 1_480, interrupted: true };
    assert_eq!(scene.actions(), [Action::AgentHeard(heard)]);
    scene.pass(ms(400));
    scene.caller_ends("And on Sunday?");
    scene.pass(ms(600));
    assert_eq!(replies(&scene.actions()), [(3, "And on Sunday?", false)]);
}

#[test]
fn late_audio_of_a_cancelled_turn_does_not_take_the_floor() {
    let mut scene = Scene::greeted();
    scene.caller_says("Hello?");
    scene.caller_begins();
    scene.actions();
    scene.turns.handle_audio_sent(2, 500, scene.now);
    scene.turns.handle_turn_complete(2, true, scene.now);
    scene.turns.handle_turn_failed(2, scene.now);
    assert!(scene.turns.is_hearing() && scene.actions().is_empty());
}

#[test]
fn a_back_channel_does_not_take_the_floor_from_the_agent() {
    for said in ["Uh-huh.", "Okay.", ""] {
        let mut scene = Scene::greeted();
        scene.caller_says("What are your hours?");
        scene.agent_speaks(2, 5_000);
        scene.pass(ms(1_000));
        scene.caller_begins();
        scene.turns.handle_cleared(3_000, scene.now);
        scene.pass(ms(300));
        scene.actions();
        scene.caller_ends(said);
        scene.pass(ms(800));
        let actions = scene.actions();
        assert!(actions.contains(&Action::Resume { turn: 3, interrupted: 2 }), "{said:?}: {actions:?}");
        assert!(replies(&actions).is_empty());
    }
}

#[test]
fn a_back_channel_is_an_answer_when_the_agent_is_silent() {
    let mut scene = Scene::greeted();
    scene.caller_says("Okay.");
    assert_eq!(replies(&scene.actions()).len(), 1);
}

#[test]
fn nothing_left_to_resume_is_listening() {
    let mut scene = Scene::greeted();
    scene.caller_says("Hours?");
    scene.agent_speaks(2, 1_000);
    scene.pass(ms(950));
    scene.caller_begins();
    scene.caller_ends("Okay.");
    scene.pass(ms(600));
    scene.turns.handle_turn_complete(3, false, scene.now);
    scene.actions();
    scene.caller_says("Friday.");
    assert_eq!(replies(&scene.actions()).len(), 1);
}

#[test]
fn a_cough_is_nothing_and_does_not_reset_the_idle_clock() {
    let mut scene = Scene::greeted();
    scene.pass(ms(20_000));
    scene.caller_begins();
    scene.pass(ms(200));
    scene.caller_ends("");
    scene.pass(ms(9_000));
    assert!(lines(&scene.actions()).is_empty());
    scene.pass(ms(1_000));
    assert_eq!(lines(&scene.actions()), [Line::Idle]);
}

#[test]
fn long_speech_without_words_is_asked_about() {
    let mut scene = Scene::greeted();
    scene.caller_begins();
    scene.pass(ms(3_000));
    scene.caller_ends("");
    scene.pass(ms(1_000));
    let actions = scene.actions();
    assert_eq!(replies(&actions), [(2, "", false)]);
    assert!(!actions.iter().any(|action| matches!(action, Action::CallerSaid { .. })));
}

#[test]
fn silence_gets_two_idle_prompts_then_goodbye_and_a_hang_up() {
    let mut scene = Scene::greeted();
    let mut counter = 2_000;
    for (turn, expected) in [(2, Line::Idle), (3, Line::Idle)] {
        scene.pass(ms(29_999));
        assert!(scene.actions().is_empty());
        scene.pass(ms(1));
        assert_eq!(lines(&scene.actions()), [expected]);
        counter += 1_000;
        scene.agent_speaks(turn, 1_000);
        scene.hears_all(turn, counter);
        scene.actions();
    }
    scene.pass(ms(30_000));
    assert_eq!(lines(&scene.actions()), [Line::IdleGoodbye]);
    scene.agent_speaks(4, 1_000);
    assert_eq!(scene.actions(), [Action::HangUp { drain: true }]);
}

#[test]
fn the_idle_clock_starts_when_the_agent_was_heard_not_when_it_was_sent() {
    let mut scene = Scene::new();
    scene.turns.handle_start(scene.now);
    scene.agent_speaks(1, 20_000);
    scene.pass(ms(20_000));
    scene.turns.handle_mark(1, 20_000, scene.now);
    scene.pass(ms(29_000));
    assert_eq!(lines(&scene.actions()), [Line::Greeting]);
    scene.pass(ms(1_000));
    assert_eq!(lines(&scene.actions()), [Line::Idle]);
}

#[test]
fn an_answer_sets_the_idle_prompts_back() {
    let mut scene = Scene::greeted();
    scene.pass(ms(30_000));
    scene.agent_speaks(2, 1_000);
    scene.hears_all(2, 3_000);
    scene.caller_says("I am here.");
    scene.agent_speaks(3, 1_000);
    scene.hears_all(3, 4_000);
    scene.actions();
    for turn in [4, 5] {
        scene.pass(ms(30_000));
        assert_eq!(lines(&scene.actions()), [Line::Idle]);
        scene.agent_speaks(turn, 1_000);
        scene.hears_all(turn, u64::from(turn) * 1_000 + 1_000);
        scene.actions();
    }
}

#[test]
fn a_mark_that_never_comes_does_not_stop_the_conversation() {
    let mut scene = Scene::greeted();
    scene.caller_says("Hours?");
    scene.agent_speaks(2, 1_000);
    scene.actions();
    scene.pass(ms(4_000));
    assert_eq!(scene.actions(), [Action::AgentHeard(Heard { turn: 2, heard_ms: 1_000, interrupted: false })]);
    scene.pass(ms(30_000));
    assert_eq!(lines(&scene.actions()), [Line::Idle]);
}

#[test]
fn a_hold_stops_the_idle_clock() {
    let mut scene = Scene::greeted();
    scene.turns.handle_hold(scene.now);
    scene.pass(ms(100_000));
    assert!(scene.actions().is_empty());
    scene.turns.handle_resume(scene.now);
    scene.pass(ms(30_000));
    assert_eq!(lines(&scene.actions()), [Line::Idle]);
}

#[test]
fn after_the_maximum_session_the_agent_says_so_and_hangs_up() {
    let mut scene = Scene::greeted();
    for turn in 0..12 {
        scene.pass(ms(20_000));
        scene.caller_says("Still here.");
        scene.agent_speaks(turn + 2, 1_000);
        scene.hears_all(turn + 2, u64::from(turn) * 1_000 + 3_000);
    }
    scene.actions();
    let (left, start) = (ms(300_000) - (scene.now - scene.start), scene.start);
    scene.pass(left);
    assert_eq!(lines(&scene.actions()), [Line::MaxSession]);
    assert_eq!(scene.now, start + ms(300_000));
    scene.agent_speaks(14, 3_000);
    assert_eq!(scene.actions(), [Action::HangUp { drain: true }]);
    scene.caller_begins();
    assert!(scene.actions().is_empty(), "the last words are not interrupted");
}

#[test]
fn a_closing_line_that_never_comes_ends_the_call_all_the_same() {
    let mut scene = Scene::greeted();
    scene.turns.max_session = ms(0);
    scene.turns.session_ends = Some(scene.now);
    scene.pass(ms(0));
    assert_eq!(lines(&scene.actions()), [Line::MaxSession]);
    scene.pass(ms(60_000));
    let actions = scene.actions();
    assert!(actions.contains(&Action::HangUp { drain: false }), "{actions:?}");
    assert!(actions.contains(&Action::Close) && scene.turns.is_over());
}

#[test]
fn a_failed_turn_is_apologised_for_and_three_in_a_row_end_the_call() {
    let mut scene = Scene::greeted();
    let mut counter = 2_000;
    for turn in [2, 4] {
        scene.caller_says("Hours?");
        scene.actions();
        scene.turns.handle_turn_failed(turn, scene.now);
        assert_eq!(lines(&scene.actions()), [Line::Error]);
        counter += 1_000;
        scene.agent_speaks(turn + 1, 1_000);
        scene.hears_all(turn + 1, counter);
    }
    scene.caller_says("Hours?");
    scene.actions();
    scene.turns.handle_turn_failed(6, scene.now);
    assert!(scene.actions().contains(&Action::HangUp { drain: false }));
}

#[test]
fn speech_to_text_that_does_not_answer_is_apologised_for() {
    let mut scene = Scene::greeted();
    scene.caller_begins();
    scene.turns.handle_speech_ended(scene.now, scene.now);
    scene.pass(ms(5_999));
    assert!(lines(&scene.actions()).is_empty());
    scene.pass(ms(1));
    assert_eq!(lines(&scene.actions()), [Line::Error]);
}

#[test]
fn an_answer_that_does_not_come_is_apologised_for() {
    let mut scene = Scene::greeted();
    scene.caller_says("Hours?");
    scene.actions();
    scene.pass(ms(15_000));
    let actions = scene.actions();
    assert_eq!(actions, [Action::Cancel { turn: 2 }, Action::Say { turn: 3, line: Line::Error }]);
}

#[test]
fn a_goodbye_is_heard_before_the_hang_up() {
    let mut scene = Scene::greeted();
    scene.caller_says("Goodbye.");
    scene.actions();
    scene.turns.handle_audio_sent(2, 1_500, scene.now);
    scene.turns.handle_turn_complete(2, true, scene.now);
    assert_eq!(scene.actions(), [Action::HangUp { drain: true }]);
    scene.pass(ms(1_500));
    scene.turns.handle_mark(2, 3_500, scene.now);
    scene.turns.handle_stop(scene.now);
    assert_eq!(scene.actions(), [Action::AgentHeard(Heard { turn: 2, heard_ms: 1_500, interrupted: false })]);
    assert!(scene.turns.is_over() && scene.elapsed_ms() > 0);
}

#[test]
fn an_engine_that_does_not_hang_up_is_left() {
    let mut scene = Scene::greeted();
    scene.caller_says("Goodbye.");
    scene.turns.handle_audio_sent(2, 1_500, scene.now);
    scene.turns.handle_turn_complete(2, true, scene.now);
    scene.actions();
    scene.pass(ms(20_000));
    assert!(scene.actions().contains(&Action::Close) && scene.turns.is_over());
}

#[test]
fn a_call_that_ends_while_the_agent_speaks_is_cut_by_the_clock() {
    let mut scene = Scene::greeted();
    scene.caller_says("Hours?");
    scene.agent_speaks(2, 5_000);
    scene.pass(ms(1_000));
    scene.actions();
    scene.turns.handle_stop(scene.now);
    assert!(scene.actions().contains(&Action::AgentHeard(Heard {
        turn: 2,
        heard_ms: 1_000,
        interrupted: true
    })));
}

proptest::proptest! {
    /// Whatever happens in whatever order: no panic, deadlines go away, and the conversation ends.
    #[test]
    fn any_order_of_events_ends_in_time(events in proptest::collection::vec((0u8..12, 0u64..4_000, 0u32..6), 0..80)) {
        let mut scene = Scene::new();
        scene.turns.handle_start(scene.now);
        for (event, wait, number) in events {
            scene.pass(ms(wait));
            let now = scene.now;
            match event {
                0 => scene.turns.handle_speech_began(now, now),
                1 => scene.turns.handle_speech_ended(now, now),
                2 => scene.turns.handle_transcript(number, number, "Friday.", now),
                3 => scene.turns.handle_transcript(scene.turns.utterances, scene.turns.flushes, "okay", now),
                4 => scene.turns.handle_audio_sent(scene.turns.turns, wait, now),
                5 => scene.turns.handle_turn_complete(scene.turns.turns, number == 0, now),
                6 => scene.turns.handle_turn_failed(scene.turns.turns, now),
                7 => scene.turns.handle_mark(number, wait, now),
                8 => scene.turns.handle_cleared(wait, now),
                9 => scene.turns.handle_hold(now),
                10 => scene.turns.handle_resume(now),
                _ => scene.turns.handle_listening_failed(now),
            }
            scene.actions();
        }
        scene.turns.handle_resume(scene.now);
        scene.pass(ms(700_000));
        proptest::prop_assert!(scene.turns.is_over());
    }
}
