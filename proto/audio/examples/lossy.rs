//! Sound through a codec and a network that loses packets, as the agent hears it: for `bench/quality`.
//!
//! `lossy CODEC RATE_HZ MASK conceal|silence <pcm >pcm`, PCM16 little-endian; MASK is a file with one character for each packet
//! of 20 ms: `x` for a lost one.

use std::io::{Read, Write};

use tandem_audio::format::{Codec, MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, Ptime, SampleRate};
use tandem_audio::pcm;
use tandem_audio::transcode::{Decoder, Encoder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [codec, rate, mask, how] = &arguments[..] else {
        return Err("usage: lossy CODEC RATE_HZ MASK conceal|silence <pcm >pcm".into());
    };
    let codec = Codec::ALL
        .into_iter()
        .find(|known| known.to_string().starts_with(codec.as_str()))
        .ok_or("no such codec")?;
    let rate = SampleRate::from_hz(rate.parse()?).ok_or("no such rate")?;
    let mask = std::fs::read(mask)?;
    let is_lost = |packet: usize| mask.get(packet) == Some(&b'x');
    let (mut input, mut output) = (Vec::new(), Vec::new());
    std::io::stdin().read_to_end(&mut input)?;
    let mut samples = vec![0; input.len() / 2];
    pcm::read_le(&input, &mut samples);

    let mut encoder = Encoder::new(rate, codec);
    let mut decoder =
        if how == "conceal" { Decoder::concealing(codec, rate) } else { Decoder::new(codec, rate) };
    let frame = rate.samples(Ptime::MS_20);
    let packets: Vec<Vec<u8>> = samples
        .chunks_exact(frame)
        .map(|samples| {
            let mut payload = [0; MAX_PAYLOAD_OCTETS];
            let len = encoder.encode(samples, &mut payload);
            payload[..len].to_vec()
        })
        .collect();
    let mut heard = [0; MAX_PACKET_SAMPLES];
    for (n, packet) in packets.iter().enumerate() {
        let len = match (is_lost(n), packets.get(n + 1)) {
            (false, _) => decoder.decode(packet, &mut heard),
            (true, Some(next)) if !is_lost(n + 1) => decoder.recover(next, &mut heard[..frame]),
            (true, _) => decoder.conceal(&mut heard[..frame]),
        };
        output.extend(heard[..len].iter().flat_map(|sample| sample.to_le_bytes()));
    }
    std::io::stdout().write_all(&output)?;
    Ok(())
}
