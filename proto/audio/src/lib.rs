//! Sound: PCM frames, G.711, resampling, tones, transcoding.
