//! Media over TCP and WebSocket: framing and the dialects spoken on it.
