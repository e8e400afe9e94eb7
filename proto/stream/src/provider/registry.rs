//! All providers, a line each.

use super::{Provider, asterisk, exotel, plivo, telnyx, twilio, vonage};

/// Every provider that dials us by WebSocket.
pub static PROVIDERS: [&Provider; 6] =
    [&twilio::TWILIO, &vonage::VONAGE, &exotel::EXOTEL, &asterisk::ASTERISK, &telnyx::TELNYX, &plivo::PLIVO];

/// The provider of this name, as in the path of its connection.
pub fn provider(name: &str) -> Option<&'static Provider> {
    PROVIDERS.into_iter().find(|provider| provider.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_provider_is_found_by_its_name_and_no_other() {
        for of in PROVIDERS {
            assert_eq!(provider(of.name).map(|found| found.name), Some(of.name));
            assert!(of.pacing.provider_holds_ms.is_none_or(|holds| holds > of.pacing.send_ahead_ms));
        }
        assert!(provider("Twilio").is_none() && provider("").is_none());
    }
}
