//! The DNS client behind [`tandem_sip::resolve`]: asks what the state machine wants to know, all questions of a step at
//! once.
//!
//! Answers stay in a bounded cache for as long as their TTL says. What takes longer than [`RESOLVE_MAX`] counts as not
//! there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use tandem_sip::resolve::{
    ADDRESSES_MAX, Answer, NAPTR_MAX, Naptr, Question, Resolution, SRV_MAX, Srv, Target,
};

/// All questions of one destination together. A caller waits for no longer.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// One question to one server, before it is asked again.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// How often a question is asked.
const ATTEMPTS: usize = 2;
/// Answers in the cache. Full: the oldest go.
const CACHE_MAX: u64 = 1_024;
/// How long "there is none" is believed, whatever its TTL: a new record is found soon.
const NONE_MAX: Duration = Duration::from_secs(30);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Resolver(Option<Arc<TokioResolver>>);

impl Resolver {
    /// One that asks this server, or the system's.
    pub(super) fn new(server: Option<SocketAddr>) -> Self {
        let builder = match server {
            Some(address) => {
                let mut server = NameServerConfig::udp_and_tcp(address.ip());
                for connection in &mut server.connections {
                    connection.port = address.port();
                }
                let config = ResolverConfig::from_name_servers(vec![server]);
                Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
            }
            None => TokioResolver::builder_tokio(),
        };
        let resolver = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = QUESTION_MAX;
            options.attempts = ATTEMPTS;
            options.cache_size = CACHE_MAX;
            options.negative_max_ttl = Some(NONE_MAX);
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            builder.build()
        });
        match resolver {
            Ok(resolver) => Self(Some(Arc::new(resolver))),
            Err(error) => {
                tracing::warn!(%error, "there is no DNS: only addresses can be called; set TANDEM_SIP_DNS");
                Self(None)
            }
        }
    }

    /// Where a request is to be tried, in order; none: nowhere, and the text says what was asked.
    pub(super) async fn resolve(self, mut resolution: Resolution) -> Result<Vec<Target>, String> {
        let asking = async {
            loop {
                let questions: Vec<Question> = std::iter::from_fn(|| resolution.poll_question()).collect();
                if questions.is_empty() {
                    return;
                }
                let answers = join_all(questions.iter().map(|question| self.ask(question))).await;
                for (question, answer) in questions.iter().zip(answers) {
                    resolution.handle_answer(question, answer);
                }
            }
        };
        let in_time = tokio::time::timeout(RESOLVE_MAX, asking).await.is_ok();
        match resolution.targets() {
            Some(targets) if !targets.is_empty() => Ok(targets),
            _ if self.0.is_none() => Err("there is no DNS server; set TANDEM_SIP_DNS".to_owned()),
            _ if !in_time => Err(format!("no answer in {} s", RESOLVE_MAX.as_secs())),
            _ => Err(format!("DNS has none of {}", asked(resolution.asked()))),
        }
    }

    /// What DNS says; a failure is an empty list.
    async fn ask(&self, question: &Question) -> Answer {
        match question {
            Question::Naptr(name) => {
                let records = self.records(name, RecordType::NAPTR, |data| match data {
                    RData::NAPTR(naptr) => Some(Naptr {
                        order: naptr.order,
                        preference: naptr.preference,
                        flags: String::from_utf8_lossy(&naptr.flags).into(),
                        service: String::from_utf8_lossy(&naptr.services).into(),
                        replacement: naptr.replacement.to_utf8().into(),
                    }),
                    _ => None,
                });
                Answer::Naptr(records.await.into_iter().take(NAPTR_MAX).collect())
            }
            Question::Srv(name) => {
                let records = self.records(name, RecordType::SRV, |data| match data {
                    RData::SRV(srv) => Some(Srv {
                        priority: srv.priority,
                        weight: srv.weight,
                        port: srv.port,
                        target: srv.target.to_utf8().into(),
                    }),
                    _ => None,
                });
                Answer::Srv(records.await.into_iter().take(SRV_MAX).collect())
            }
            Question::Addresses(name) => {
                let Some(resolver) = &self.0 else { return Answer::Addresses(Vec::new()) };
                let found = resolver.lookup_ip(&**name).await;
                Answer::Addresses(
                    found.map(|found| found.iter().take(ADDRESSES_MAX).collect()).unwrap_or_default(),
                )
            }
        }
    }

    async fn records<T>(&self, name: &str, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Vec<T> {
        let Some(resolver) = &self.0 else { return Vec::new() };
        // With its last dot: search domains are for hosts.
        match resolver.lookup(format!("{name}."), kind).await {
            Ok(found) => found.answers().iter().filter_map(|record| read(&record.data)).collect(),
            Err(error) => {
                tracing::debug!(name, %kind, %error, "DNS has no answer");
                Vec::new()
            }
        }
    }
}

fn asked(questions: &[Question]) -> String {
    let text = |question: &Question| match question {
        Question::Naptr(name) => format!("NAPTR {name}"),
        Question::Srv(name) => format!("SRV {name}"),
        Question::Addresses(name) => format!("A, AAAA {name}"),
    };
    questions.iter().map(text).collect::<Vec<_>>().join("; ")
}
