//! `[credential.NAME]` of tandem.toml becomes [`Credential`]s, or a list of what is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::deployment::{self, Deployment};
use super::{Account, MESSENGERS, PROVIDERS, Provider, Values, find};
use crate::settings::section::{Section, Source};
use crate::store::declared::{ID_EXPECTED, Tenants, is_id};

/// One credential of the file.
#[derive(Debug, Clone)]
pub struct Credential {
    /// As `[credential.NAME]` names it.
    pub name: Arc<str>,
    /// Whose it is.
    pub tenant_id: Arc<str>,
    /// Of which provider.
    pub provider: &'static Provider,
    /// Its fields.
    pub values: Values,
    /// What can be done with it.
    pub account: Arc<dyn Account>,
    /// Calls that it may place a second.
    pub calls_per_second: f64,
    /// Calls that it may have placed at once; `None`: no limit of its own.
    pub calls_max: Option<u32>,
}

/// Calls a second that a credential may place, if nothing else is said: what new accounts of the most careful provider may.
const CALLS_PER_SECOND: f64 = 1.0;

/// Every credential of the file, by its name, and where each is deployed.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    by_name: BTreeMap<Arc<str>, Arc<Credential>>,
    deployments: Vec<Arc<Deployment>>,
}

impl Credentials {
    /// The credential of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Credential>> {
        self.by_name.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Credential> {
        self.by_name.values().map(|credential| &**credential)
    }

    /// Every deployment, in the order of the file.
    pub fn deployments(&self) -> &[Arc<Deployment>] {
        &self.deployments
    }

    /// What leads calls of this provider to an assistant of this id, of whichever tenants.
    pub fn leading_to(&self, provider: &str, assistant_id: &str) -> impl Iterator<Item = &Arc<Deployment>> {
        self.deployments
            .iter()
            .filter(move |deployment| deployment.provider() == provider && deployment.serves(assistant_id))
    }

    /// By what an assistant of this tenant may call.
    pub fn of_assistant(
        &self,
        tenant_id: &str,
        assistant_id: &str,
    ) -> impl Iterator<Item = &Arc<Deployment>> {
        self.deployments.iter().filter(move |deployment| {
            &*deployment.credential.tenant_id == tenant_id && deployment.serves(assistant_id)
        })
    }

    /// The deployment of a credential to this assistant; of several the one with this number.
    pub fn deployment_of(
        &self,
        credential: &str,
        tenant_id: &str,
        assistant_id: &str,
        number: &str,
    ) -> Option<&Arc<Deployment>> {
        let own = self.of_assistant(tenant_id, assistant_id);
        let own: Vec<_> = own.filter(|deployment| *deployment.credential.name == *credential).collect();
        own.iter().find(|deployment| is_number(&deployment.phone, number)).or(own.first()).copied()
    }

    /// With a credential of code's own making, deployed to every assistant of its tenant.
    pub fn deploy(&mut self, credential: Credential, phone: &str) {
        let credential = Arc::new(credential);
        let sample_rate = if credential.provider.form.provider == "vonage" { 16_000 } else { 8_000 };
        self.by_name.insert(credential.name.clone(), credential.clone());
        self.deployments.push(Arc::new(Deployment {
            credential,
            assistant_id: None,
            phone: phone.to_owned(),
            machine: super::rest::MachineDetection::Off,
            sample_rate,
            transfer_targets: Vec::new(),
            options: Vec::new(),
        }));
    }
}

/// Whether both are the same number, with or without their `+`.
pub fn is_number(own: &str, other: &str) -> bool {
    !own.is_empty() && own.trim_start_matches('+') == other.trim_start_matches('+')
}

/// Reads the tables; mistakes are left in `source`.
pub fn read(source: &Source<'_>, tables: &toml::Table, tenants: &Tenants) -> Credentials {
    let mut credentials = BTreeMap::new();
    for (name, mut section) in Section::by_name(source, "credential", tables.get("credential").cloned()) {
        if let Some(credential) = read_one(&name, &mut section, tenants) {
            credentials.insert(credential.name.clone(), Arc::new(credential));
        }
    }
    let all: Vec<Arc<Credential>> = credentials.values().cloned().collect();
    Credentials { by_name: credentials, deployments: deployment::read(source, tables, &all) }
}

fn read_one(name: &str, section: &mut Section<'_>, tenants: &Tenants) -> Option<Credential> {
    if !is_id(name) {
        section.wrong(format!("its name is not {ID_EXPECTED}"));
    }
    let tenant_id = tenants.of_section(section);
    let known: Vec<String> = PROVIDERS
        .iter()
        .chain(MESSENGERS)
        .map(|provider| format!("\"{}\"", provider.form.provider))
        .collect();
    let expected = format!("one of {}", known.join(", "));
    let word = section.needed("provider", &expected);
    let Some(provider) = word.as_deref().and_then(find) else {
        if let Some(word) = word {
            let names = PROVIDERS.iter().chain(MESSENGERS).map(|provider| provider.form.provider);
            let nearest = crate::settings::nearest_of(&word, names).unwrap_or_default();
            section
                .wrong(format!("\"provider\" = \"{word}\" is not {expected}; did you mean \"{nearest}\"?"));
        }
        // Which keys are right is the provider's to say.
        section.skip_rest();
        return None;
    };
    let calls_per_second = section.rate("calls_per_second").unwrap_or(CALLS_PER_SECOND);
    let calls_max = section.integer("calls_max", 1..=100_000);
    let mistakes = section.mistakes();
    let values = Values::from_section(provider.form, section);
    // What a field lacks has been said already; the module says what is wrong with all of them together.
    if section.mistakes() > mistakes {
        return None;
    }
    match (provider.open)(&values) {
        Ok(account) => {
            let (name, tenant_id) = (name.into(), tenant_id?);
            Some(Credential { name, tenant_id, provider, values, account, calls_per_second, calls_max })
        }
        Err(error) => {
            section.wrong(error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::declared;

    fn read_file(text: &str) -> (Credentials, Vec<String>) {
        let tables: toml::Table = text.parse().unwrap();
        let environment = |name: &str| (name == "TOKEN").then(|| "hunter2".to_owned());
        let source = Source::new(Path::new("tandem.toml"), &environment);
        let (_, tenants) = declared::read(&source, &tables, false);
        let credentials = read(&source, &tables, &tenants);
        (credentials, source.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn credentials_are_read_by_their_providers_forms() {
        let (credentials, errors) = read_file(
            "[credential.main]\nprovider = 'twilio'\naccount_sid = 'AC00000000000000000000000000000001'\n\
             account_token_env = 'TOKEN'\nshared_keys = { webhooks_sharedkey_1 = 'TOKEN' }\n\
             [credential.india]\nprovider = 'exotel'\naccount_sid = 'acme1'\nclient_id = 'k'\nclient_secret = 't'\n\
             region = 'in'\nallow = ['203.0.113.0/28', '2001:db8::1']\n",
        );
        assert!(errors.is_empty(), "{errors:?}");
        let main = credentials.get("main").unwrap();
        assert_eq!((main.provider.form.provider, &*main.tenant_id), ("twilio", "default"));
        let shown = main.values.shown(main.provider.form);
        assert!(shown.contains(&("account_token", "(set)".to_owned())), "{shown:?}");
        assert!(shown.contains(&("shared_keys", "webhooks_sharedkey_1".to_owned())), "{shown:?}");
        let india = credentials.get("india").unwrap();
        assert_eq!(india.values.networks("allow").len(), 2);
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    const TWILIO: &str = "[credential.main]\nprovider = 'twilio'\n\
                          account_sid = 'AC00000000000000000000000000000001'\naccount_token_env = 'TOKEN'\n";

    #[test]
    fn deployments_lead_to_one_assistant_or_to_all() {
        let (credentials, errors) = read_file(&format!(
            "{TWILIO}calls_per_second = 5\n[[deployment]]\ncredential = 'main'\nassistant = 'desk'\n\
             phone = '+15005550006'\nmachine_detection = 'until_beep'\n\
             [[deployment]]\ncredential = 'main'\nphone = '+15005550007'\n"
        ));
        assert!(errors.is_empty(), "{errors:?}");
        let phones = |assistant| {
            let found = credentials.leading_to("twilio", assistant);
            found.map(|deployment| deployment.phone.clone()).collect::<Vec<_>>()
        };
        assert_eq!(phones("desk"), ["+15005550006", "+15005550007"]);
        assert_eq!(phones("other"), ["+15005550007"]);
        assert_eq!(credentials.leading_to("vonage", "desk").count(), 0);
        assert_eq!(credentials.of_assistant("default", "desk").count(), 2);
        assert_eq!(credentials.of_assistant("another", "desk").count(), 0);
        assert_eq!(credentials.get("main").unwrap().calls_per_second, 5.0);
    }

    #[test]
    fn deployment_of_a_credential_that_is_not_there_names_those_that_are() {
        let (_, errors) = read_file(&format!("{TWILIO}[[deployment]]\ncredential = 'mian'\napp_ids = '1'\n"));
        let said = errors.join("\n");
        assert!(said.contains("\"credential\" = \"mian\" is not a credential of this file: main"), "{said}");
        assert!(said.contains("unknown key \"app_ids\"; did you mean \"app_id\"?"), "{said}");
        let (_, errors) =
            read_file("[credential.main]\nprovider = 'twilio'\n[[deployment]]\ncredential = 'main'\n");
        assert!(!errors.is_empty() && !errors.join(" ").contains("[[deployment]]"), "{errors:?}");
    }

    #[test]
    fn mistakes_name_the_table_the_key_and_the_nearest_known_one() {
        let (credentials, errors) = read_file(
            "[credential.main]\nprovider = 'twilio'\naccount_sid = 'AC1'\nacount_token = 'hunter2'\n\
             [credential.other]\nprovider = 'twilo'\n\
             [credential.third]\nprovider = 'vonage'\napi_key = 'abcd1234'\nsignature_secret = 's'\n\
             private_key = 'hunter2'\napplication_id = 'a'\n\
             [credential.fourth]\nprovider = 'exotel'\naccount_sid = 'acme1'\nclient_id = 'k'\nclient_secret = 't'\n\
             region = 'us'\n",
        );
        assert_eq!(credentials.iter().count(), 0);
        let said = errors.join("\n");
        for wanted in [
            "tandem.toml: [credential.main]: \"account_sid\" is not \"AC\" and 32 hexadecimal digits",
            "tandem.toml: [credential.main]: \"account_token\" is missing: beside the account SID",
            "tandem.toml: [credential.main]: unknown key \"acount_token\"; did you mean \"account_token\"?",
            "\"provider\" = \"twilo\" is not one of \"twilio\", \"vonage\"",
            "did you mean \"twilio\"?",
            "[credential.third]: \"private_key\" is not an RSA private key of at least 2048 bits in PEM",
            "[credential.fourth]: \"region\" is not one of \"in\", \"sg\"",
        ] {
            assert!(said.contains(wanted), "{wanted} is not in\n{said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }

    #[test]
    fn fields_that_belong_together_are_asked_for_together() {
        let (_, errors) = read_file(
            "[credential.pbx]\nprovider = 'asterisk'\nari_url = 'http://pbx:8088/ari'\nari_user = 'tandem'\n",
        );
        assert_eq!(errors, ["tandem.toml: [credential.pbx]: \"ari_password\" is missing: ARI needs it"]);
    }

    #[test]
    fn one_table_instead_of_many_says_how_to_write_it() {
        let (_, errors) = read_file("[[credential]]\nname = 'a'\n");
        assert!(errors[0].contains("write [credential.NAME]"), "{errors:?}");
    }
}
