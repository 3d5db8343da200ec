// Agents wait, clients decide, and each agent notes when it was woken: the same for this service and for
// Restate's awakeables. Reads what to do as JSON from standard input, and writes the measurements as JSON
// to standard output. Both sides are called with the same HTTP client; one process plays agents and
// clients of both.

import { randomUUID } from "node:crypto";
import { text } from "node:stream/consumers";

import * as restate from "@restatedev/restate-sdk";
import { createClient } from "redis";
import { Pool } from "undici";

// Restate's SDK asks for Node 22; Debian 12 and 13 have older ones, which lack only this of what it uses.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((...both) => ([resolve, reject] = both));
  return { promise, resolve, reject };
};

const plan = JSON.parse(await text(process.stdin));

/** Requests in Redis, as agents write them, and the channels on which those agents listen. */
async function ourAgents({ base, redis, people }) {
  const writer = await createClient({ url: redis }).connect();
  const listener = await createClient({ url: redis }).connect();

  /** Waits until the person's list shows so many of their requests, or a full page of them. */
  async function listed({ user, tenant, token }, count) {
    const headers = { authorization: `Bearer ${token}`, "x-tenant-id": tenant, "x-user-id": user };
    const deadline = Date.now() + 60_000;
    while (Date.now() < deadline) {
      const answer = await fetch(`${base}/api/aura/hitl/requests?scope=mine&size=100`, { headers });
      if (!answer.ok) throw new Error(`a list was answered ${answer.status}: ${await answer.text()}`);
      const { data } = await answer.json();
      if (data.numberOfElements >= Math.min(count, 100)) return;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    throw new Error(`the list of ${user} does not show ${count} requests within a minute`);
  }

  return {
    base,
    async suspend(count, woken) {
      const waiting = Array.from({ length: count }, async (_unused, number) => {
        const { user, tenant, token } = people[number % people.length];
        const id = `req_${randomUUID().replaceAll("-", "").slice(0, 16)}`;
        const session = `session_${user}_${id}`;
        const key = number;
        await listener.subscribe(`hitl:channel:${session}`, () => woken(key, performance.now()));
        const owner = { sessionId: session, requestId: id, userId: user, tenantId: tenant };
        const request = {
          ...owner,
          actionType: "send_email",
          context: { to: "a@b.c", subject: "Weekly report", attachments: 2 },
          status: "pending",
          createdAt: Math.floor(Date.now() / 1000),
        };
        await writer.set(`hitl:request:${id}`, JSON.stringify(request), { EX: 1800 });
        await writer.set(`hitl:session:${session}`, JSON.stringify(owner), { EX: 3600 });
        return {
          path: `/api/aura/hitl/approve/${id}`,
          method: "POST",
          headers: {
            authorization: `Bearer ${token}`,
            "x-tenant-id": tenant,
            "x-user-id": user,
            "content-type": "application/json",
          },
          body: JSON.stringify({ userId: user }),
        };
      });
      const calls = await Promise.all(waiting);
      // People decide what their lists show. Restate's agents are suspended in its store by now, too.
      for (const [number, person] of people.slice(0, count).entries()) {
        await listed(person, Math.ceil((count - number) / people.length));
      }
      return calls;
    },
    async close() {
      await Promise.all([writer.close(), listener.close()]);
    },
  };
}

/** Handlers that wait for an awakeable each; their server is in this process. */
async function restateAgents({ ingress, admin, port }) {
  const agents = new Map();
  const agent = restate.service({
    name: "agent",
    handlers: {
      wait: async (context, id) => {
        const { id: awakeable, promise } = context.awakeable();
        agents.get(id)?.suspended(awakeable);
        await promise;
        agents.get(id)?.woken();
      },
    },
  });
  await restate.serve({ services: [agent], port });
  const headers = { "content-type": "application/json" };
  const known = await fetch(`${admin}/deployments`, {
    method: "POST",
    headers,
    body: JSON.stringify({ uri: `http://127.0.0.1:${port}` }),
  });
  if (!known.ok) throw new Error(`Restate does not take the agents: ${await known.text()}`);
  const pool = new Pool(ingress, { connections: 64 });
  return {
    base: ingress,
    async suspend(count, woken) {
      const waiting = Array.from({ length: count }, (_unused, number) => {
        const id = randomUUID();
        return new Promise((resolve, reject) => {
          agents.set(id, {
            suspended: (awakeable) =>
              resolve({
                path: `/restate/awakeables/${awakeable}/resolve`,
                method: "POST",
                headers,
                body: JSON.stringify({ approved: true }),
              }),
            woken: () => woken(number, performance.now()),
          });
          const body = JSON.stringify(id);
          pool
            .request({ path: "/agent/wait/send", method: "POST", headers, body })
            .then(async ({ statusCode, body }) => {
              const answer = await body.text();
              if (statusCode >= 300) reject(new Error(`${statusCode}: ${answer}`));
            }, reject);
        });
      });
      return Promise.all(waiting);
    },
    async close() {
      await pool.close();
    },
  };
}

/** Suspends so many agents, decides them with so many clients at once, and waits until all are woken. */
async function measure(side, count, clients) {
  const began = new Array(count);
  const latencies = new Array(count);
  let left = count;
  let done;
  const allWoken = new Promise((resolve) => (done = resolve));
  const calls = await side.suspend(count, (number, at) => {
    if (latencies[number] !== undefined) return;
    latencies[number] = at - began[number];
    left -= 1;
    if (left === 0) done();
  });
  const pool = new Pool(side.base, { connections: clients, pipelining: 1 });
  let next = 0;
  const start = performance.now();
  const client = async () => {
    while (next < count) {
      const number = next;
      next += 1;
      began[number] = performance.now();
      const { statusCode, body } = await pool.request(calls[number]);
      const answer = await body.text();
      if (statusCode >= 300) throw new Error(`a decision was answered ${statusCode}: ${answer}`);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  const seconds = (performance.now() - start) / 1000;
  await allWoken;
  await pool.close();
  latencies.sort((a, b) => a - b);
  const quantile = (share) => latencies[Math.min(count - 1, Math.floor(count * share))];
  return { perSecond: count / seconds, p50: quantile(0.5), p99: quantile(0.99) };
}

const make = { service: ourAgents, restate: restateAgents };
const side = await make[plan.side](plan);
const measured = [];
for (const { count, clients } of plan.runs) measured.push(await measure(side, count, clients));
await side.close();
console.log(JSON.stringify(measured));
process.exit(0);
