//! The built-in voice agent: speech-to-text, language model, text-to-speech, turn-taking.
