//! A call's media session, seen from the call: which engine has it, and the commands that wait their turn.
//!
//! A call has at most one command under way, so an engine sees them in order: Open before Start before Update before
//! Close. What waits is one Start, the newest Update, one Close, what happens to a second leg, and a few words for the
//! agent: nothing else can be in the queue.

use std::collections::VecDeque;
use std::net::IpAddr;

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::tell_agent_request::What as Tell;

use super::action::EngineCommand;
use crate::media::EngineId;

/// Words for the agent that wait for their turn: digits of a burst, and how a transfer goes.
pub const TELLS_MAX: usize = 64;

/// Commands about a second leg that wait for their turn: it is added, changed a few times, and removed.
pub const LEG_COMMANDS_MAX: usize = 16;

/// What of the session exists, as far as we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No engine has been asked.
    None,
    /// Open is under way: it may or may not exist.
    Opening,
    /// It exists.
    Open,
    /// It does not exist any more, or its engine is given up.
    Closed,
}

/// Which Update of a session: its reply must be told from that of an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateNumber(u64);

/// Which command about a second leg: its reply must be told from that of an earlier one, perhaps of another leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LegNumber(u64);

/// One media session.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    engine: Option<EngineId>,
    /// Engines that were asked to open it, in order.
    tried: Vec<EngineId>,
    instance_id: String,
    local_port: u32,
    command_under_way: bool,
    /// The event stream broke while Open was under way: the next Snapshot may be older than the session.
    opened_in_outage: bool,
    start: bool,
    listen: bool,
    tells: VecDeque<Box<Tell>>,
    update: Option<(UpdateNumber, Box<engine::RtpParameters>)>,
    last_update: UpdateNumber,
    /// The Update that is under way.
    updating: Option<UpdateNumber>,
    /// About the second leg, in order.
    leg: VecDeque<(LegNumber, EngineCommand)>,
    last_leg: LegNumber,
    /// The one of them that is under way.
    leg_under_way: Option<LegNumber>,
    close: Option<&'static str>,
    open: Option<Box<engine::OpenSessionRequest>>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            phase: Phase::None,
            engine: None,
            tried: Vec::new(),
            instance_id: String::new(),
            local_port: 0,
            command_under_way: false,
            opened_in_outage: false,
            start: false,
            listen: false,
            tells: VecDeque::new(),
            update: None,
            last_update: UpdateNumber::default(),
            updating: None,
            leg: VecDeque::new(),
            last_leg: LegNumber::default(),
            leg_under_way: None,
            close: None,
            open: None,
        }
    }
}

impl Session {
    /// Which engine has it, or was asked last.
    pub fn engine(&self) -> Option<EngineId> {
        self.engine
    }

    /// Engines that were asked to open it.
    pub fn tried(&self) -> &[EngineId] {
        &self.tried
    }

    /// Which life of its engine has it.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }

    /// Whether it may live on its engine, as far as we know.
    pub fn may_live(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open)
    }

    /// The port that the engine has opened.
    pub fn local_port(&self) -> u32 {
        self.local_port
    }

    /// Whether nothing of it is left, and no command is under way.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::None | Phase::Closed) && !self.command_under_way
    }

    /// Opens it on this engine.
    pub fn open(&mut self, engine: EngineId, request: Box<engine::OpenSessionRequest>) {
        self.engine = Some(engine);
        self.tried.push(engine);
        self.phase = Phase::Opening;
        self.open = Some(request);
    }

    /// The call is answered.
    pub fn start(&mut self) {
        self.start = true;
    }

    /// The other side may be heard before it answers. Doing it again changes nothing.
    pub fn listen(&mut self) {
        self.listen = true;
    }

    /// Something for the agent. When too much waits, the newest is dropped: the engine does not keep up, or is gone.
    pub fn tell(&mut self, what: Tell) {
        if self.tells.len() < TELLS_MAX && self.phase != Phase::Closed {
            self.tells.push_back(Box::new(what));
        }
    }

    /// Other parameters; they replace those that still wait, whose number is never answered.
    pub fn update(&mut self, rtp: engine::RtpParameters) -> UpdateNumber {
        self.last_update.0 += 1;
        self.update = Some((self.last_update, Box::new(rtp)));
        self.last_update
    }

    /// Adds a second leg, or changes it; one that is to be removed first is. `None`: too much waits already.
    pub fn change_leg(&mut self, command: EngineCommand) -> Option<LegNumber> {
        let has_room = self.leg.len() < LEG_COMMANDS_MAX && self.phase != Phase::Closed;
        has_room.then(|| {
            let number = self.next_leg();
            self.leg.push_back((number, command));
            number
        })
    }

    /// Removes the second leg, also one whose adding is under way; what else waits for it is forgotten.
    pub fn remove_leg(&mut self) {
        let waited = self.leg.iter().any(|(_, command)| matches!(command, EngineCommand::AddLeg(_)));
        // The removal of the leg before stays.
        self.leg.retain(|(_, command)| *command == EngineCommand::RemoveLeg);
        // One that was never asked for needs no removing.
        if !waited && self.phase != Phase::Closed {
            let number = self.next_leg();
            self.leg.push_back((number, EngineCommand::RemoveLeg));
        }
    }

    /// Nothing waits or is under way: what is asked next leaves at once.
    pub fn is_at_rest(&self) -> bool {
        let waits = self.start || self.listen || self.update.is_some() || self.close.is_some();
        self.phase == Phase::Open
            && !(self.command_under_way || waits)
            && self.leg.is_empty()
            && self.tells.is_empty()
    }

    /// The second leg was not removed: it is tried again before anything else is done about a leg.
    pub fn remove_leg_again(&mut self) {
        if self.phase != Phase::Closed {
            let number = self.next_leg();
            self.leg.push_front((number, EngineCommand::RemoveLeg));
        }
    }

    fn next_leg(&mut self) -> LegNumber {
        self.last_leg.0 += 1;
        self.last_leg
    }

    /// The engine has answered a command about the second leg: which.
    pub fn handle_leg(&mut self) -> Option<LegNumber> {
        self.command_under_way = false;
        self.leg_under_way.take()
    }

    /// Ends it; what waits is forgotten.
    pub fn close(&mut self, reason: &'static str) {
        (self.start, self.listen) = (false, false);
        self.leg.clear();
        self.update = None;
        self.open = None;
        self.tells.clear();
        match self.phase {
            Phase::None => self.phase = Phase::Closed,
            Phase::Opening | Phase::Open => self.close = Some(reason),
            Phase::Closed => {}
        }
    }

    /// The session ended by itself, or its engine is given up: no command can reach it.
    pub fn lose(&mut self) {
        self.phase = Phase::Closed;
        (self.start, self.listen) = (false, false);
        (self.update, self.close, self.open) = (None, None, None);
        self.leg.clear();
        self.tells.clear();
    }

    /// The engine has opened it. `None`: its address is not one.
    pub fn handle_opened(&mut self, opened: &engine::OpenSessionResponse) -> Option<(IpAddr, u16)> {
        self.command_under_way = false;
        self.phase = Phase::Open;
        self.instance_id.clone_from(&opened.instance_id);
        self.local_port = opened.local_port;
        let port = u16::try_from(opened.local_port).ok().filter(|port| *port != 0)?;
        Some((opened.local_address.parse().ok()?, port))
    }

    /// The engine has refused to open it, or did not answer. After silence it may exist nevertheless: it is closed
    /// when somebody answers there.
    pub fn handle_not_opened(&mut self, may_exist: bool) {
        self.command_under_way = false;
        if !may_exist {
            self.phase = Phase::Closed;
            self.close = None;
        }
    }

    /// The engine has answered an Update: which, and whether there was none after it.
    pub fn handle_updated(&mut self) -> Option<(UpdateNumber, bool)> {
        self.command_under_way = false;
        let number = self.updating.take()?;
        Some((number, number == self.last_update))
    }

    /// The engine has answered another command.
    pub fn handle_done(&mut self) {
        self.command_under_way = false;
    }

    /// The engine has ended it.
    pub fn handle_closed(&mut self) {
        self.command_under_way = false;
        self.lose();
    }

    /// The engine's event stream broke.
    pub fn handle_link_lost(&mut self) {
        self.opened_in_outage |= self.phase == Phase::Opening;
    }

    /// Whether a new Snapshot of its engine shows that it is lost.
    pub fn is_lost_in(&mut self, instance_id: &str, is_listed: bool) -> bool {
        let unsure = std::mem::take(&mut self.opened_in_outage) && self.phase != Phase::Closed;
        match self.phase {
            Phase::Open => self.instance_id != instance_id || !(is_listed || unsure),
            Phase::None | Phase::Opening | Phase::Closed => false,
        }
    }

    /// The next command, if none is under way.
    pub fn poll_command(&mut self) -> Option<EngineCommand> {
        if self.command_under_way || self.phase == Phase::Closed {
            return None;
        }
        let command = if let Some(request) = self.open.take() {
            EngineCommand::Open(request)
        } else if let Some(reason) = self.close.take() {
            EngineCommand::Close { reason }
        } else if let Some((number, rtp)) = self.update.take() {
            self.updating = Some(number);
            // Before Start: after a delayed offer the first packet needs an address.
            EngineCommand::Update(rtp)
        } else if std::mem::take(&mut self.start) {
            self.listen = false;
            EngineCommand::Start
        } else if std::mem::take(&mut self.listen) {
            EngineCommand::Listen
        } else if let Some((number, command)) = self.leg.pop_front() {
            self.leg_under_way = Some(number);
            command
        } else if let Some(what) = self.tells.pop_front() {
            EngineCommand::Tell(what)
        } else {
            return None;
        };
        self.command_under_way = true;
        Some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: EngineId = EngineId(0);

    fn opened() -> engine::OpenSessionResponse {
        engine::OpenSessionResponse {
            instance_id: "i1".into(),
            local_address: "127.0.0.1".into(),
            local_port: 20_000,
            ..Default::default()
        }
    }

    fn open_session() -> Session {
        let mut session = Session::default();
        session.open(A, Box::default());
        assert!(matches!(session.poll_command(), Some(EngineCommand::Open(_))));
        assert!(session.handle_opened(&opened()).is_some());
        session
    }

    #[test]
    fn commands_leave_one_at_a_time_and_in_order() {
        let mut session = open_session();
        session.start();
        session.update(engine::RtpParameters { remote_port: 1, ..Default::default() });
        session.update(engine::RtpParameters { remote_port: 2, ..Default::default() });
        let Some(EngineCommand::Update(rtp)) = session.poll_command() else { panic!("update") };
        assert_eq!(rtp.remote_port, 2);
        assert_eq!(session.poll_command(), None);
        session.handle_updated();
        assert_eq!(session.poll_command(), Some(EngineCommand::Start));
        session.handle_done();
        assert_eq!(session.poll_command(), None);
    }

    #[test]
    fn reply_to_an_update_names_it_and_says_whether_another_follows() {
        let mut session = open_session();
        let first = session.update(engine::RtpParameters::default());
        session.poll_command();
        let second = session.update(engine::RtpParameters::default());
        assert_eq!(session.handle_updated(), Some((first, false)));
        session.poll_command();
        assert_eq!(session.handle_updated(), Some((second, true)));
        assert_eq!(session.handle_updated(), None);
    }

    #[test]
    fn close_while_open_is_under_way_waits_for_its_answer() {
        let mut session = Session::default();
        session.open(A, Box::default());
        session.poll_command();
        session.close("cancelled");
        assert_eq!(session.poll_command(), None);
        assert!(!session.is_over());
        session.handle_opened(&opened());
        assert_eq!(session.poll_command(), Some(EngineCommand::Close { reason: "cancelled" }));
        session.handle_closed();
        assert!(session.is_over());
    }

    #[test]
    fn close_forgets_what_waits_and_nothing_is_closed_that_never_was() {
        let mut session = open_session();
        session.start();
        session.close("hangup");
        assert_eq!(session.poll_command(), Some(EngineCommand::Close { reason: "hangup" }));
        session.handle_closed();
        assert_eq!(session.poll_command(), None);

        let mut never = Session::default();
        never.close("draining");
        assert_eq!(never.poll_command(), None);
        assert!(never.is_over());
    }

    #[test]
    fn open_without_an_answer_is_closed_to_be_sure() {
        let mut session = Session::default();
        session.open(A, Box::default());
        session.poll_command();
        session.handle_not_opened(true);
        session.close("engine_lost");
        assert_eq!(session.poll_command(), Some(EngineCommand::Close { reason: "engine_lost" }));
    }

    #[test]
    fn snapshot_of_another_instance_or_without_the_session_means_lost() {
        assert!(open_session().is_lost_in("i2", true));
        assert!(open_session().is_lost_in("i1", false));
        assert!(!open_session().is_lost_in("i1", true));
    }

    #[test]
    fn leg_whose_adding_still_waits_is_not_asked_for_and_one_that_was_asked_for_is_removed() {
        let mut session = open_session();
        let added = session.change_leg(EngineCommand::AddLeg(Box::default()));
        assert!(added.is_some());
        session.remove_leg();
        assert_eq!(session.poll_command(), None);

        let added = session.change_leg(EngineCommand::AddLeg(Box::default()));
        assert!(matches!(session.poll_command(), Some(EngineCommand::AddLeg(_))));
        session.remove_leg();
        assert_eq!(session.handle_leg(), added);
        assert_eq!(session.poll_command(), Some(EngineCommand::RemoveLeg));
        assert_eq!(session.poll_command(), None);
        assert_ne!(session.handle_leg(), added);
        assert_eq!(session.poll_command(), None);
    }

    #[test]
    fn leg_waits_until_the_one_before_is_removed_and_that_is_tried_again_first() {
        let mut session = open_session();
        session.remove_leg();
        session.change_leg(EngineCommand::AddLeg(Box::default()));
        assert_eq!(session.poll_command(), Some(EngineCommand::RemoveLeg));
        session.handle_leg();
        session.remove_leg_again();
        // The next one is taken back meanwhile: the one before is removed all the same.
        session.remove_leg();
        session.change_leg(EngineCommand::AddLeg(Box::default()));
        assert_eq!(session.poll_command(), Some(EngineCommand::RemoveLeg));
        session.handle_leg();
        assert!(matches!(session.poll_command(), Some(EngineCommand::AddLeg(_))));
    }

    #[test]
    fn session_that_was_opened_during_an_outage_is_believed_once() {
        let mut session = Session::default();
        session.open(A, Box::default());
        session.poll_command();
        session.handle_link_lost();
        session.handle_opened(&opened());
        assert!(!session.is_lost_in("i1", false));
        assert!(session.is_lost_in("i1", false));
    }
}
