//! Who sends a REGISTER: its digest, and whether it speaks for the user in To (RFC 3261 §10.3, steps 3 and 4).
//!
//! Everybody hears the same 401, whether the user exists or not, so that nobody can ask which phones there are. Whoever
//! proves to be one user and registers another gets 403, and so does whoever has been wrong too often (`trunk/tries.rs`).

use std::net::IpAddr;
use std::sync::Arc;

use secrecy::ExposeSecret;
use tandem_sip::digest::{Answer, Challenger, Denied};
use tandem_sip::{HeaderName, Reply, Request};

use crate::trunk::tries::Tries;
use crate::trunk::{Phone, Trunks};

/// Checks phones.
pub struct Gate {
    challenger: Challenger,
    trunks: Trunks,
    tries: Tries,
}

/// A REGISTER that goes no further.
#[derive(Debug)]
pub struct Refused {
    /// The answer.
    pub reply: Reply,
    /// In a word, for counters.
    pub word: &'static str,
    /// Whether it was a wrong password or user: somebody may be guessing.
    pub is_guess: bool,
}

impl Gate {
    /// One realm and its phones.
    pub fn new(challenger: Challenger, trunks: Trunks) -> Self {
        Self { challenger, trunks, tries: Tries::default() }
    }

    /// The phone that has proved to be the user whom it registers.
    pub fn admit(
        &mut self,
        request: &Request,
        source: IpAddr,
        now_s: u64,
    ) -> Result<Arc<Phone>, Box<Refused>> {
        let claimed = self.claimed(request);
        if claimed.as_deref().is_some_and(|user| !self.tries.may_try(source, user, now_s)) {
            let reply = Reply::new(403).reason("Forbidden: too many wrong answers");
            return Err(Box::new(Refused { reply, word: "too_many_tries", is_guess: true }));
        }
        let trunks = &self.trunks;
        let password = |user: &str| {
            let phone = trunks.find_phone(user)?;
            Some(phone.password.expose_secret().to_owned())
        };
        let checked = self.challenger.check(request, HeaderName::Authorization, now_s, password);
        let user = checked.map_err(|denied| {
            if let (Denied::WrongPassword | Denied::UnknownUser, Some(user)) = (&denied, &claimed) {
                self.tries.wrong(source, user, now_s);
            }
            self.challenge(denied, now_s)
        })?;
        self.tries.right(source, &user, now_s);
        let speaks_for = request.head.to().uri.user();
        let phone = self.trunks.find_phone(&user).filter(|phone| speaks_for.as_deref() == Some(&*phone.user));
        phone.cloned().ok_or_else(|| {
            let reply = Reply::new(403).reason("Forbidden: To is another user than the credentials");
            Box::new(Refused { reply, word: "other_user", is_guess: false })
        })
    }

    /// The user whom its Authorization for our realm names, whoever that is.
    fn claimed(&self, request: &Request) -> Option<String> {
        let mut answers = request
            .head
            .headers()
            .all(HeaderName::Authorization)
            .filter_map(|value| Answer::parse(value).ok());
        answers.find(|answer| answer.realm == self.challenger.realm()).map(|answer| answer.username)
    }

    fn challenge(&mut self, denied: Denied, now_s: u64) -> Box<Refused> {
        let mut reply = Reply::new(401);
        for value in self.challenger.challenges(denied.is_stale(), now_s) {
            let plain = reply.clone();
            reply = reply.header("WWW-Authenticate", &value).unwrap_or(plain);
        }
        let (word, is_guess) = match denied {
            Denied::Missing => ("challenged", false),
            Denied::Malformed(_) | Denied::Algorithm => ("malformed_credentials", false),
            Denied::UnknownUser => ("unknown_user", true),
            Denied::WrongPassword => ("wrong_password", true),
            Denied::Stale | Denied::Replayed => ("stale", false),
        };
        Box::new(Refused { reply, word, is_guess })
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("realm", &self.challenger.realm()).finish_non_exhaustive()
    }
}
