// The page: JsSIP over the browser's own WebRTC. Its microphone is a tone, and its ear looks for that tone in what comes back.
'use strict';

const JsSIP = require('jssip');

const TONE_HZ = 1000;
// Of an analyser that sees 48 000 samples a second: a bin has 23 Hz.
const FFT = 2048;
// A tone that came back is the loudest that is heard, and far above what codecs and silence leave.
const LOUD_DB = -45;
const HEARD_WITHIN_MS = 20000;
// So many looks in a row must find it: one may be an accident.
const LOOKS = 5;

const say = (line) => fetch('/said', { method: 'POST', body: line });
const fail = async (why) => { await say(`failed: ${why}`); throw new Error(why); };
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
window.addEventListener('unhandledrejection', ({ reason }) => say(`failed: ${reason && (reason.stack || reason)}`));

const event = (emitter, good, bad = []) => new Promise((resolve) => {
  emitter.once(good, resolve);
  for (const name of bad) emitter.once(name, (data) => fail(`${name}: ${data && data.cause}`));
});

// The codec's payload type first: whoever answers takes the first that it knows.
const preferring = (codec, sdp) => {
  const map = new RegExp(`^a=rtpmap:(\\d+) ${codec}/`, 'mi').exec(sdp);
  return sdp.replace(/^(m=audio \d+ \S+) (.*)$/m, (_, head, formats) => {
    const rest = formats.trim().split(' ').filter((format) => format !== map[1]);
    return [head, map[1], ...rest].join(' ');
  });
};

(async () => {
  const { url, target, user, domain, codec, steps } = await (await fetch('/plan')).json();
  const context = new AudioContext({ sampleRate: 48000 });
  await context.resume();
  const microphone = context.createMediaStreamDestination();
  const tone = new OscillatorNode(context, { frequency: TONE_HZ });
  tone.connect(new GainNode(context, { gain: 0.5 })).connect(microphone);
  tone.start();
  const ear = new AnalyserNode(context, { fftSize: FFT, smoothingTimeConstant: 0 });

  const ua = new JsSIP.UA({
    sockets: [new JsSIP.WebSocketInterface(url)],
    uri: `sip:${user}@${domain}`,
    ...(steps.includes('register') ? { password: steps[steps.indexOf('register') + 1] } : {}),
    register: false,
    session_timers: false,
  });
  let session;
  let incoming;
  const listen = (connection) => connection.addEventListener('track', ({ track }) => {
    // Chromium plays into Web Audio only what some element plays.
    const element = Object.assign(new Audio(), { srcObject: new MediaStream([track]), muted: true });
    element.play();
    context.createMediaStreamSource(new MediaStream([track])).connect(ear);
  });
  ua.on('newRTCSession', ({ originator, session: fresh }) => {
    // Of a call of ours there is one already.
    if (fresh.connection) listen(fresh.connection);
    else fresh.on('peerconnection', ({ peerconnection }) => listen(peerconnection));
    fresh.on('sdp', (description) => {
      if (description.originator === 'local' && description.type === 'offer') {
        description.sdp = preferring(codec, description.sdp);
      }
    });
    if (originator === 'remote') incoming = fresh;
  });

  const figures = async () => {
    const stats = [...(await session.connection.getStats()).values()];
    const inbound = stats.find((one) => one.type === 'inbound-rtp') || {};
    const transport = stats.find((one) => one.type === 'transport') || {};
    const format = stats.find((one) => one.id === inbound.codecId) || {};
    return { inbound, transport, format };
  };
  const loudest = () => {
    const bins = new Float32Array(ear.frequencyBinCount);
    ear.getFloatFrequencyData(bins);
    const at = bins.indexOf(Math.max(...bins));
    return { hz: (at * context.sampleRate) / FFT, db: bins[at] };
  };

  const options = { mediaStream: microphone.stream, pcConfig: { iceServers: [] } };
  const verbs = {
    async register() { steps.shift(); const done = event(ua, 'registered', ['registrationFailed']); ua.register(); await done; },
    async call() { session = ua.call(target, options); await event(session, 'confirmed', ['failed']); },
    async called() {
      while (!incoming) await wait(10);
      session = incoming;
      const done = event(session, 'confirmed', ['failed']);
      session.answer(options);
      await done;
    },
    // Waits until its own tone comes back.
    async tone() {
      const end = Date.now() + HEARD_WITHIN_MS;
      let heard;
      for (let looks = 0; looks < LOOKS;) {
        await wait(50);
        heard = loudest();
        looks = Math.abs(heard.hz - TONE_HZ) < 50 && heard.db > LOUD_DB ? looks + 1 : 0;
        if (Date.now() > end) await fail(`no tone: ${JSON.stringify(heard)} ${JSON.stringify(await figures())}`);
      }
      const { inbound, transport, format } = await figures();
      await say(`heard ${heard.hz.toFixed(0)} Hz at ${heard.db.toFixed(0)} dB, ${inbound.packetsReceived} packets of `
        + `${format.mimeType}, DTLS ${transport.tlsVersion} ${transport.dtlsRole}, ${transport.srtpCipher}, `
        + `lost ${inbound.packetsLost}`);
      if (!format.mimeType.toLowerCase().endsWith(codec.toLowerCase())) await fail(`${format.mimeType} is not ${codec}`);
    },
    // Waits until nothing of it comes any more.
    async silence() {
      const end = Date.now() + HEARD_WITHIN_MS;
      for (let looks = 0; looks < LOOKS;) {
        await wait(50);
        looks = loudest().db < LOUD_DB ? looks + 1 : 0;
        if (Date.now() > end) await fail(`no silence: ${JSON.stringify(loudest())}`);
      }
    },
    async hold() { await new Promise((resolve) => session.hold({ useUpdate: false }, resolve)); },
    async resume() { await new Promise((resolve) => session.unhold({ useUpdate: false }, resolve)); },
    // Other credentials, the same certificate: a laptop that moves to another network.
    async restart() {
      const changed = new Promise((resolve) => session.renegotiate({ rtcOfferConstraints: { iceRestart: true } }, resolve));
      await changed;
    },
    async keys() { session.sendDTMF(steps.shift(), { transportType: 'RFC2833' }); },
    async wait() { await wait(Number(steps.shift())); },
    async bye() { const done = event(session, 'ended'); session.terminate(); await done; },
    async ended() { if (!session.isEnded()) await event(session, 'ended', ['failed']); },
  };

  const connected = event(ua, 'connected', ['disconnected']);
  ua.start();
  await connected;
  while (steps.length) {
    const verb = steps.shift();
    if (!verbs[verb]) await fail(`${verb} is no step`);
    await verbs[verb]();
    await say(verb);
  }
  await say('done');
})();
