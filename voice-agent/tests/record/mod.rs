//! A control plane that only takes messages.

// Each test binary uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_api::v1::conversation_service_server::{ConversationService, ConversationServiceServer};
use tandem_api::v1::{Conversation, GetConversationRequest, Message, PutMessageRequest, PutMessageResponse};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct Kept {
    messages: Vec<Message>,
    tokens: Vec<String>,
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Kept>>);

#[tonic::async_trait]
impl ConversationService for Service {
    async fn get_conversation(
        &self,
        _: Request<GetConversationRequest>,
    ) -> Result<Response<Conversation>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn put_message(
        &self,
        request: Request<PutMessageRequest>,
    ) -> Result<Response<PutMessageResponse>, Status> {
        let mut kept = self.0.lock().unwrap();
        let token =
            request.metadata().get("x-tandem-service-token").map(|token| token.to_str().unwrap().to_owned());
        kept.tokens.push(token.unwrap_or_default());
        let message = request.into_inner().message.unwrap();
        match kept.messages.iter_mut().find(|known| known.message_id == message.message_id) {
            Some(known) => *known = message,
            None => kept.messages.push(message),
        }
        Ok(Response::new(PutMessageResponse {}))
    }
}

/// Where the record goes.
pub struct ControlPlane {
    pub url: String,
    service: Service,
}

impl ControlPlane {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Service::default();
        let server =
            tonic::transport::Server::builder().add_service(ConversationServiceServer::new(service.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { url, service }
    }

    /// The messages, when there are so many.
    pub async fn messages(&self, count: usize) -> Vec<Message> {
        for _ in 0..300 {
            let messages = self.service.0.lock().unwrap().messages.clone();
            if messages.len() >= count {
                return messages;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("fewer than {count} messages: {:?}", self.service.0.lock().unwrap().messages);
    }

    pub fn tokens(&self) -> Vec<String> {
        self.service.0.lock().unwrap().tokens.clone()
    }
}
