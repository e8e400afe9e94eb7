// Chromium without a window, in which page.js calls. What the page says is printed, a line each; the last is `done`.
//
//   node call.js WEBSOCKET-URL TARGET CODEC STEP...
//
// Steps, one after the other: `register PASSWORD`, `call`, `called` (waits for a call and answers it), `tone` (waits until the page's
// own tone comes back), `silence`, `hold`, `resume`, `restart` (of ICE), `keys DIGITS`, `wait MS`, `bye`, `ended`. Anything that goes
// wrong prints why and ends the program with 1.
'use strict';

const { spawn } = require('child_process');
const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');

const LIMIT_MS = 90000;

const [url, target, codec, ...steps] = process.argv.slice(2);
const plan = { url, target, codec, steps, user: process.env.SIP_USER || 'browser', domain: process.env.SIP_DOMAIN || new URL(url).host };

const page = require('esbuild').buildSync({
  entryPoints: [path.join(__dirname, 'page.js')], bundle: true, write: false, define: { global: 'window' }, logLevel: 'error',
}).outputFiles[0].text;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'tandem-browser-'));
let chromium;
const end = (status) => {
  if (chromium) chromium.kill('SIGKILL');
  try { fs.rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 }); } catch { /* the next boot does */ }
  process.exit(status);
};
const fail = (why) => { console.log(`failed: ${why}`); end(1); };
setTimeout(() => fail(`not over after ${LIMIT_MS} ms`), LIMIT_MS).unref();
process.on('SIGTERM', () => end(1));

const files = {
  '/': ['text/html', '<!doctype html><script src="/page.js"></script>'],
  '/page.js': ['text/javascript', page],
  '/plan': ['application/json', JSON.stringify(plan)],
};
const server = http.createServer((request, response) => {
  if (request.url === '/said') {
    let line = '';
    request.on('data', (piece) => { line += piece; });
    request.on('end', () => {
      response.end();
      console.log(line);
      if (line === 'done') end(0);
      if (line.startsWith('failed')) end(1);
    });
    return;
  }
  const [type, text] = files[request.url] || [];
  response.writeHead(type ? 200 : 404, { 'content-type': type || 'text/plain' });
  response.end(text);
});
server.listen(0, '127.0.0.1', () => {
  // A page of this host may use WebRTC as one of a secure origin may. The pipes end Chromium when this program ends, however it
  // does. It runs without its sandbox: tests run as root, in containers, and the page is our own.
  chromium = spawn('chromium', [
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--mute-audio', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-extensions',
    '--autoplay-policy=no-user-gesture-required', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream',
    '--allow-loopback-in-peer-connection', '--ignore-certificate-errors', '--remote-debugging-pipe',
    '--enable-logging=stderr', '--log-level=2',
    `--user-data-dir=${folder}`, `http://127.0.0.1:${server.address().port}/`,
  ], { stdio: ['ignore', 'ignore', process.env.BROWSER_DEBUG ? 'inherit' : 'ignore', 'pipe', 'pipe'] });
  chromium.stdio[4].resume();
  chromium.on('error', (error) => fail(`chromium: ${error.message}: scripts/setup.sh test installs it`));
  chromium.on('exit', (status) => fail(`chromium ended with ${status}`));
});
