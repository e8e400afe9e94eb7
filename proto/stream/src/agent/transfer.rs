//! How an agent hands the caller on, or brings somebody in.

/// The field `mode` of a `transfer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferMode {
    /// The other side is asked to call the target itself (SIP REFER), and leaves.
    Refer,
    /// The target is called and joined to the caller; the agent stays in the call and waits.
    Bridge,
    /// The target is called and talks with the agent, while the caller hears nothing of it.
    Consult,
    /// Whom the agent has brought in is joined to the caller.
    Complete,
    /// All three talk with each other.
    Conference,
    /// Whom the agent has brought in, or calls, is hung up.
    Cancel,
}

impl TransferMode {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Refer, Self::Bridge, Self::Consult, Self::Complete, Self::Conference, Self::Cancel];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refer => "refer",
            Self::Bridge => "bridge",
            Self::Consult => "consult",
            Self::Complete => "complete",
            Self::Conference => "conference",
            Self::Cancel => "cancel",
        }
    }

    /// The one with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }

    /// Whether it needs a target; the others are about who has been brought in already.
    pub const fn names_somebody(self) -> bool {
        matches!(self, Self::Refer | Self::Bridge | Self::Consult)
    }
}
