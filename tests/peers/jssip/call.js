// JsSIP outside of a browser: its signaling is all its own, and the browser's half of WebRTC is replaced by a plain RTP port
// that somebody else holds.
//
//   node call.js WEBSOCKET-URL TARGET RTP-PORT STEP...
//
// Steps, one after the other: `register PASSWORD`, `call`, `hold`, `resume`, `info KEY`, `wait MS`, `bye`,
// `unregister`, `called` (waits for a call and answers it), `ended` (waits for the other side's BYE). Each prints a
// line when it is done; the last line is `done`. Anything that goes wrong prints why and ends the program with 1.
'use strict';

const WebSocket = require('ws');
// Certificates of tests are their own authority.
const ca = process.env.CA_FILE && require('fs').readFileSync(process.env.CA_FILE);
global.WebSocket = class extends WebSocket {
  constructor(url, protocols) { super(url, protocols, ca ? { ca } : {}); }
};
global.window = global;
if (!global.navigator) global.navigator = { userAgent: 'node' };

const [url, target, rtpPort, ...steps] = process.argv.slice(2);

class Connection extends EventTarget {
  constructor() {
    super();
    this.signalingState = 'stable';
    this.iceGatheringState = 'complete';
    this.iceConnectionState = 'connected';
    this.connectionState = 'connected';
    this.direction = 'sendrecv';
    this.version = 1;
    this.senders = [];
  }
  describe(type) {
    const sdp = ['v=0', `o=jssip 1 ${this.version++} IN IP4 127.0.0.1`, 's=-', 'c=IN IP4 127.0.0.1', 't=0 0',
      `m=audio ${rtpPort} RTP/AVP 0 101`, 'a=rtpmap:0 PCMU/8000', 'a=rtpmap:101 telephone-event/8000',
      'a=ptime:20', `a=${this.direction}`, ''].join('\r\n');
    return { type, sdp };
  }
  async createOffer() { return this.describe('offer'); }
  async createAnswer() { return this.describe('answer'); }
  async setLocalDescription(description) {
    this.localDescription = description;
    this.signalingState = description.type === 'offer' ? 'have-local-offer' : 'stable';
  }
  async setRemoteDescription(description) {
    this.remoteDescription = description;
    this.signalingState = description.type === 'offer' ? 'have-remote-offer' : 'stable';
  }
  addTrack() {}
  addStream() {}
  getSenders() { return this.senders; }
  getReceivers() { return []; }
  createDTMFSender() { return null; }
  close() { this.signalingState = 'closed'; }
}
global.RTCPeerConnection = Connection;
global.RTCSessionDescription = class { constructor(init) { Object.assign(this, init); } };
const stream = { getTracks: () => [], getAudioTracks: () => [], getVideoTracks: () => [] };

const JsSIP = require('jssip');
if (process.env.JSSIP_DEBUG) JsSIP.debug.enable('JsSIP:*');
else JsSIP.debug.disable('JsSIP:*');

const fail = (why) => { console.log(`failed: ${why}`); process.exit(1); };
setTimeout(() => fail('not over after 60 s'), 60000).unref();
process.on('unhandledRejection', (error) => fail(error && error.stack));

const host = new URL(url).host;
const password = steps[steps.indexOf('register') + 1];
const socket = new JsSIP.WebSocketInterface(url);
const ua = new JsSIP.UA({
  sockets: [socket],
  uri: `sip:${process.env.SIP_USER || 'jssip'}@${process.env.SIP_DOMAIN || host}`,
  ...(steps.includes('register') ? { password } : {}),
  register: false,
  session_timers: process.env.SESSION_TIMERS === '1',
  hack_via_tcp: false,
});

let session;
let incoming;
ua.on('newRTCSession', ({ originator, session: fresh }) => { if (originator === 'remote') incoming = fresh; });

const event = (emitter, good, bad = []) => new Promise((resolve) => {
  emitter.once(good, resolve);
  for (const name of bad) emitter.once(name, (data) => fail(`${name}: ${data && data.cause}`));
});
const changed = (verb) => new Promise((resolve) => {
  if (!session[verb]({ useUpdate: false }, resolve)) fail(`${verb} is not possible now`);
});

const verbs = {
  async register() { steps.shift(); const done = event(ua, 'registered', ['registrationFailed']); ua.register(); await done; },
  async unregister() { const done = event(ua, 'unregistered'); ua.unregister(); await done; },
  async call() {
    session = ua.call(target, { mediaStream: stream, mediaConstraints: { audio: false, video: false },
      rtcOfferConstraints: {}, pcConfig: {}, eventHandlers: {} });
    await event(session, 'confirmed', ['failed']);
  },
  async called() {
    while (!incoming) await new Promise((resolve) => setTimeout(resolve, 10));
    session = incoming;
    const done = event(session, 'confirmed', ['failed']);
    session.answer({ mediaStream: stream, mediaConstraints: { audio: false, video: false } });
    await done;
  },
  async hold() { session.connection.direction = 'sendonly'; await changed('hold'); },
  async resume() { session.connection.direction = 'sendrecv'; await changed('unhold'); },
  async info() {
    const key = steps.shift();
    const done = new Promise((resolve) => session.sendInfo('application/dtmf-relay', `Signal=${key}\r\nDuration=160\r\n`,
      { eventHandlers: { succeeded: resolve, onSuccessResponse: resolve, onErrorResponse: () => fail('INFO was refused') } }));
    await Promise.race([done, new Promise((resolve) => setTimeout(resolve, 500))]);
  },
  async wait() { await new Promise((resolve) => setTimeout(resolve, Number(steps.shift()))); },
  async bye() { const done = event(session, 'ended'); session.terminate(); await done; },
  async ended() { if (!session.isEnded()) await event(session, 'ended', ['failed']); },
};

(async () => {
  const connected = event(ua, 'connected', ['disconnected']);
  ua.start();
  await connected;
  while (steps.length) {
    const verb = steps.shift();
    if (!verbs[verb]) fail(`${verb} is no step`);
    await verbs[verb]();
    console.log(verb);
  }
  // Lets the last message leave.
  setTimeout(() => { console.log('done'); process.exit(0); }, 200);
})();
