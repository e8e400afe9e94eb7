use super::*;
use crate::llm::Said;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that answers one request with `answer` (in these pieces) and gives back what it was asked.
async fn server(answer: Vec<String>) -> (String, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let len = stream.read(&mut buffer).await.unwrap();
            request.extend_from_slice(&buffer[..len]);
            let text = String::from_utf8_lossy(&request);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
                .map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                break;
            }
        }
        for piece in answer {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
        String::from_utf8(request).unwrap()
    });
    (url, task)
}

fn stream_head() -> String {
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n".into()
}

fn chunk(content: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": content}}]}))
}

async fn ask(url: &str) -> Vec<LlmEvent> {
    let config = LlmConfig {
        url: url.to_owned(),
        model: "small".into(),
        key: Some(SecretString::from("secret-key".to_owned())),
    };
    let history = vec![
        Said { role: Role::Agent, text: "Hello.".into() },
        Said { role: Role::Caller, text: "Hi.".into() },
    ];
    let request = Request { history, text: "Are you open?".into(), replaces: false };
    let mut answer = OpenAi::new(config).unwrap().open().respond(request);
    let mut events = Vec::new();
    while let Some(event) = answer.recv().await {
        events.push(event);
    }
    events
}

fn text(events: &[LlmEvent]) -> String {
    events
        .iter()
        .filter_map(|event| if let LlmEvent::Text(text) = event { Some(text.as_str()) } else { None })
        .collect()
}

#[tokio::test]
async fn an_answer_is_streamed_and_the_request_is_a_chat_completion() {
    let pieces = vec![stream_head(), chunk("We are "), chunk("open."), "data: [DONE]\n\n".into()];
    let (url, asked) = server(pieces).await;
    let events = ask(&url).await;
    assert_eq!(text(&events), "We are open.");
    assert_eq!(events.last(), Some(&LlmEvent::Done));
    let request = asked.await.unwrap();
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1"));
    assert!(request.to_lowercase().contains("authorization: bearer secret-key"));
    let body: Value = serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["stream"], true);
    assert_eq!(body["messages"][0]["role"], "system");
    assert_eq!(body["messages"][1], json!({"role": "assistant", "content": "Hello."}));
    assert_eq!(body["messages"][3], json!({"role": "user", "content": "Are you open?"}));
}

#[tokio::test]
async fn the_hang_up_mark_is_an_event_and_not_spoken_even_in_two_pieces() {
    let pieces = vec![stream_head(), chunk("Goodbye. [hang"), chunk(" up]"), "data: [DONE]\n\n".into()];
    let (url, _) = server(pieces).await;
    let events = ask(&url).await;
    assert_eq!(text(&events), "Goodbye. ");
    assert!(events.contains(&LlmEvent::HangUp));
}

#[tokio::test]
async fn an_http_error_is_a_failure_without_the_key() {
    let answer = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 9\r\nConnection: close\r\n\r\nwrong key";
    let (url, _) = server(vec![answer.into()]).await;
    let events = ask(&url).await;
    let [LlmEvent::Failed { message }] = events.as_slice() else { panic!("{events:?}") };
    assert!(message.contains("401") && message.contains("wrong key") && !message.contains("secret-key"));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_a_failure() {
    let (url, _) = server(vec![stream_head(), chunk("We are")]).await;
    let events = ask(&url).await;
    assert!(matches!(events.last(), Some(LlmEvent::Failed { .. })), "{events:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert!(matches!(ask(&url).await.as_slice(), [LlmEvent::Failed { .. }]));
}

#[test]
fn the_url_may_be_given_at_any_depth() {
    for url in ["http://h", "http://h/", "http://h/v1", "http://h/v1/chat/completions"] {
        assert_eq!(completions_url(url), "http://h/v1/chat/completions");
    }
}
