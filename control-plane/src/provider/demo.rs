//! The credentials of `--demo`: well-known, so that webhooks can be tried with the providers' own SDKs. `Config` has checked that
//! every listener is on loopback.

use serde_json::{Value, json};

use super::file::{Credential, Credentials};
use super::{FormError, Values, find};

/// Whose they are.
const TENANT: &str = "demo";
/// The number on each.
const PHONE: &str = "+15005550006";

/// Adds them, each deployed to every demo assistant.
///
/// # Errors
/// A form has changed, and these do not fit it any more.
pub fn deploy(credentials: &mut Credentials) -> Result<(), Vec<FormError>> {
    let demo: [(&str, Value); 4] = [
        (
            "twilio",
            json!({ "account_sid": "AC000000000000000000000000000000de", "account_token": "demo-twilio-auth-token" }),
        ),
        (
            "vonage",
            json!({
                "application_id": "00000000-0000-4000-8000-0000000000de",
                "api_key": "demo1234",
                "signature_secret": "demo-vonage-signature-secret",
            }),
        ),
        (
            "exotel",
            json!({
                "account_sid": "demo",
                "client_id": "demo-exotel",
                "client_secret": "demo-exotel-token",
                "region": "in",
                "webhook_user": "demo-exotel",
                "webhook_password": "demo-exotel-token",
            }),
        ),
        // Its dialplans show the demo key.
        ("asterisk", json!({})),
    ];
    for (name, fields) in demo {
        let (Some(provider), Value::Object(fields)) = (find(name), fields) else { continue };
        let values = Values::from_json(provider.form, &fields)?;
        let account = (provider.open)(&values).map_err(|error| vec![error])?;
        let credential = Credential {
            name: format!("demo-{name}").into(),
            tenant_id: TENANT.into(),
            provider,
            values,
            account,
            calls_per_second: 1.0,
            calls_max: None,
        };
        credentials.deploy(credential, PHONE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_credentials_fit_their_forms() {
        let mut credentials = Credentials::default();
        deploy(&mut credentials).unwrap();
        for provider in ["twilio", "vonage", "exotel", "asterisk"] {
            let found: Vec<_> = credentials.leading_to(provider, "echo").collect();
            assert_eq!(found.len(), 1, "{provider}");
            assert_eq!(found[0].phone, PHONE);
        }
    }
}
