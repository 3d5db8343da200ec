// What the tests of the page need: the service on PostgreSQL and Redis behind the Gateway's own configuration,
// the reference agent, and a browser. Everything that is started here ends with the process.
import { execFileSync, spawn } from 'node:child_process';
import { AsyncLocalStorage } from 'node:async_hooks';
import { connect, createServer } from 'node:net';
import { createServer as createHttpServer } from 'node:http';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const ROOT = new URL('../..', import.meta.url).pathname;
export const PICTURES = join(ROOT, 'target/page-tests');
const SECRET = 'a secret that the Auth server shares with us';
const { HITL, AGENT, TEST_DATABASE_URL, TEST_REDIS_URL, PSQL = 'psql' } = process.env;

export const folder = mkdtempSync(join(tmpdir(), 'aura-hitl-page.'));
mkdirSync(PICTURES, { recursive: true });
const started = [];
const name = `aura_hitl_page_${process.pid}`;
export const databaseUrl = TEST_DATABASE_URL.replace(/\/[^/]*$/, `/${name}`);

export const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

/** How long anything that must come is waited for, in seconds: also on a machine that is slow or busy. What has to
 * be fast is measured, where it has to be. */
export const PATIENCE = 60;

export async function until(what, look, seconds = PATIENCE) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
    await sleep(50);
  }
}

export function start(program, args, env = {}) {
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  child.said = '';
  for (const pipe of [child.stdout, child.stderr]) pipe.on('data', (data) => { child.said += data; });
  child.isOver = new Promise((done) => child.on('exit', done));
  started.push(child);
  return child;
}

export function sql(statement) {
  return execFileSync(PSQL, [databaseUrl, '-XAtqc', statement]).toString().trim();
}

export function redis(...args) {
  return execFileSync('redis-cli', ['-u', TEST_REDIS_URL, ...args]).toString().trim();
}

export const ports = { service: await freePort(), gateway: await freePort(), agent: await freePort(), auth: await freePort(), frame: await freePort() };
export const gateway = `http://127.0.0.1:${ports.gateway}`;
export const service = `http://127.0.0.1:${ports.service}`;
export const inbox = `${gateway}/api/aura/hitl/inbox/`;
/** Allowed to frame the page; the same server by another name is not. */
export const frames = { allowed: `http://127.0.0.1:${ports.frame}`, refused: `http://localhost:${ports.frame}` };

const answers = (url) => async () => {
  try { return (await fetch(url)).status < 600; } catch { return false; }
};

let running;
export async function startService() {
  running = start(HITL, ['serve'], {
    HOST: '127.0.0.1', PORT: String(ports.service), DATABASE_URL: databaseUrl, REDIS_URL: TEST_REDIS_URL, JWT_SECRET: SECRET, RUST_LOG: 'warn',
    AURA_HITL_RATE_LIMIT_PER_SECOND: '0', AURA_HITL_JWT_LEEWAY_SECONDS: '0', AURA_HITL_MAX_PENDING_PER_PERSON: '100000', AURA_HITL_INBOX_FRAME_ANCESTORS: frames.allowed,
    ...JSON.parse(process.env.PAGE_SETTINGS ?? '{}'),
  });
  await until(`the service: ${running.said}`, async () => {
    if (running.exitCode !== null) throw new Error(running.said);
    try { return (await fetch(`${service}/health/ready`)).ok; } catch { return false; }
  });
}

/** Another service, on SQLite, with these rules: embedded, or with a Redis of its own and the reference agent. */
export async function startWithPolicy(policy, { hasAgent = false } = {}) {
  const [port, home] = [await freePort(), mkdtempSync(join(folder, 'policy.'))];
  writeFileSync(join(home, 'policy.toml'), policy);
  const address = `http://127.0.0.1:${port}`;
  const children = [];
  const redisPort = hasAgent && await freePort();
  const REDIS_URL = `redis://127.0.0.1:${redisPort}`;
  if (hasAgent) {
    children.push(start('redis-server', ['--bind', '127.0.0.1', '--port', String(redisPort), '--save', '', '--dir', home]));
    await until('its Redis', () => new Promise((done) => connect(redisPort, '127.0.0.1').on('connect', function connected() { this.end(); done(true); }).on('error', () => done(false))));
  }
  const child = start(HITL, ['serve'], {
    HOST: '127.0.0.1', PORT: String(port), DATABASE_URL: `sqlite:${join(home, 'ledger.db')}`, JWT_SECRET: SECRET, RUST_LOG: 'warn',
    AURA_HITL_RATE_LIMIT_PER_SECOND: '0', AURA_HITL_POLICY_FILE: join(home, 'policy.toml'), ...(hasAgent && { REDIS_URL }),
  });
  await until('the service with rules', async () => {
    if (child.exitCode !== null) throw new Error(child.said);
    try { return (await fetch(`${address}/health/ready`)).ok; } catch { return false; }
  });
  children.push(child);
  const agentPort = hasAgent && await freePort();
  const agent = `http://127.0.0.1:${agentPort}`;
  if (hasAgent) {
    children.push(start(AGENT, [], {
      PORT: String(agentPort), AURA_SERVICE_URL: address, REDIS_URL, JWT_SECRET: SECRET,
      AURA_PATIENCE_SECONDS: '300', AURA_PACE_MILLIS: '100', AURA_HEARTBEAT_SECONDS: '0',
    }));
    await until('its agent', answers(`${agent}/`));
  }
  return { address, agent, inbox: `${address}/api/aura/hitl/inbox/`, stop: () => { for (const one of children) one.kill('SIGKILL'); } };
}

export async function stopService() {
  running.kill('SIGKILL');
  await running.isOver;
}

export async function startWorld() {
  execFileSync(PSQL, [TEST_DATABASE_URL, '-qc', `CREATE DATABASE ${name}`]);
  await startService();
  const conf = readFileSync(join(ROOT, 'config/gateway/nginx.conf'), 'utf8')
    .replace('listen 8080;', `listen 127.0.0.1:${ports.gateway};`)
    .replace('127.0.0.1:8081', `127.0.0.1:${ports.service}`).replace('127.0.0.1:8082', `127.0.0.1:${ports.service}`)
    .replace('127.0.0.1:9000', `127.0.0.1:${ports.agent}`).replace('127.0.0.1:8001', `127.0.0.1:${ports.auth}`);
  mkdirSync(join(folder, 'gateway'));
  writeFileSync(join(folder, 'nginx.conf'), conf);
  start('nginx', ['-p', join(folder, 'gateway'), '-c', join(folder, 'nginx.conf'), '-g', 'daemon off;'], { TZ: 'UTC' });
  start(AGENT, [], {
    PORT: String(ports.agent), AURA_SERVICE_URL: `${gateway}/api`, REDIS_URL: TEST_REDIS_URL, JWT_SECRET: SECRET,
    AURA_PATIENCE_SECONDS: '300', AURA_PACE_MILLIS: '100', AURA_HEARTBEAT_SECONDS: '0',
  });
  createHttpServer((_request, response) => {
    response.setHeader('Content-Type', 'text/html');
    response.end(`<!doctype html><title>결재</title><iframe src="${inbox}" width="1200" height="700"></iframe>`);
  }).listen(ports.frame).unref();
  await until('the Gateway', answers(`${gateway}/`));
  await until('the agent', answers(`http://127.0.0.1:${ports.agent}/`));
}

export function endWorld() {
  for (const child of started) child.kill('SIGKILL');
  try { execFileSync(PSQL, [TEST_DATABASE_URL, '-qc', `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`], { stdio: 'ignore' }); } catch { /* Its server ends too. */ }
  rmSync(folder, { recursive: true, force: true });
}

/** What belongs to the test that runs. Each has a tenant, so that nobody else's requests are in its way. */
export const here = new AsyncLocalStorage();
export const tenant = () => here.getStore().tenant;

const tokens = new Map();
export function token(user = 'user123', { role = 'user', seconds = 3600 } = {}) {
  const key = [user, tenant(), role, seconds].join();
  if (seconds < 3600 || !tokens.has(key)) {
    tokens.set(key, execFileSync(HITL, ['token', '--sub', user, '--tenant', tenant(), '--role', role, '--ttl', String(seconds)], { env: { ...process.env, JWT_SECRET: SECRET, REDIS_URL: TEST_REDIS_URL, DATABASE_URL: databaseUrl } }).toString().trim());
  }
  return tokens.get(key);
}

export async function call(method, path, body, { user = 'user123', headers = {} } = {}) {
  const response = await fetch(`${here.getStore().service ?? service}${path}`, {
    method,
    headers: { Authorization: `Bearer ${token(user)}`, 'X-Tenant-ID': tenant(), 'X-User-ID': user, 'Content-Type': 'application/json', ...headers },
    body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body),
  });
  return { http: response.status, ...(await response.json()) };
}

let number = 0;
/** Registers a request; its body may be JSON text, where JavaScript would lose digits. */
export async function register(fields = {}, { user = 'user123', context } = {}) {
  number += 1;
  const requestId = fields.requestId ?? `req-page-${process.pid}-${number}`;
  const all = { requestId, sessionId: `session_page_${number}`, actionType: 'send_email', message: `Request ${number}`, ...fields };
  const text = JSON.stringify(all).replace(/}$/, context === undefined ? '}' : `,"context":${context}}`);
  const answer = await call('POST', '/aura/hitl/requests', text, { user });
  if (answer.http !== 201) throw new Error(JSON.stringify(answer));
  return requestId;
}

/** Writes a request to Redis, as Aura does. */
export function writeToRedis(fields, session = `session_user123_${Date.now()}${number++}`) {
  const requestId = fields.requestId ?? `req_${Math.random().toString(16).slice(2, 14).padEnd(12, '0')}`;
  const request = { requestId, sessionId: session, actionType: 'send_email', context: { to: 'a@b.c' }, status: 'pending', userId: 'user123', tenantId: tenant(), createdAt: 8123456789, ...fields };
  redis('SET', `hitl:request:${requestId}`, JSON.stringify(request), 'EX', '1800');
  turnTo(requestId, session);
  return { requestId, session };
}

/** The agent of this session waits for this request from now on. */
export function turnTo(requestId, session) {
  redis('SET', `hitl:session:${session}`, JSON.stringify({ sessionId: session, requestId, userId: 'user123', tenantId: tenant() }), 'EX', '3600');
}

/** Lets the reference agent work; what it says, as a list of [event, data]. */
export function letWork(prompt, session, user = 'user123') {
  const run = { events: [] };
  run.isOver = (async () => {
    const response = await fetch(`${here.getStore().agent ?? `${gateway}/api`}/aura/test/stream`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${token(user)}`, 'X-Tenant-ID': tenant(), 'X-User-ID': user, 'Content-Type': 'application/json', Accept: 'text/event-stream' },
      body: JSON.stringify({ prompt, context: { sessionId: session } }),
    });
    let unread = '';
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      unread += chunk;
      const blocks = unread.split('\n\n');
      unread = blocks.pop();
      for (const block of blocks) {
        const [event, data] = ['event', 'data'].map((field) => new RegExp(`^${field}: (.*)$`, 'm').exec(block)?.[1]);
        if (event) run.events.push([event, JSON.parse(data)]);
      }
    }
  })();
  run.asked = () => until('the agent asks', () => run.events.find(([event]) => event === 'hitl')?.[1]);
  run.end = async () => { await run.isOver; return run.events.at(-1)[0]; };
  return run;
}
