// One session: it may read and write its own directory and nothing else, and so may every isolate that it makes. It never
// evaluates anything of the session itself; it keeps one isolate ready, and gives each execution a fresh one.
//
// Its words to the engine are messages; the engine's to it and its own to an isolate go through ports: main.mjs says why.

import { Worker as Isolate } from "node:worker_threads";

const YOUNG_MB = 16;
// To make an isolate stops the cell for as long as that takes, and with it the output of one that runs: the next one is made when
// the engine has told of an execution's end, or after this time.
const AHEAD_MS = 100;
const here = new URL(import.meta.url), settings = { root: here.searchParams.get("root"), memory: Number(here.searchParams.get("memory")) };
let ready, made = 0, closing = false;
const runs = new Map();

function make() {
  const limits = { maxOldGenerationSizeMb: Math.ceil(settings.memory / (1 << 20)), maxYoungGenerationSizeMb: YOUNG_MB };
  // The address is another one for each isolate: by it the engine's inspector finds it.
  const address = new URL(`isolate.mjs?${settings.root}/${++made}`, import.meta.url);
  const { port1: inbox, port2: theirs } = new MessageChannel();
  const given = { workerData: theirs, transferList: [theirs], resourceLimits: limits };
  const isolate = new Isolate(address, { stdout: true, stderr: true, env: {}, ...given });
  const own = { isolate, inbox, address: address.href, credit: new SharedArrayBuffer(8), run: undefined, ended: {}, here: false };
  isolate.on("message", (message) => heard(own, message));
  isolate.on("error", (error) => { if (error?.code === "ERR_WORKER_OUT_OF_MEMORY") own.ended.oom = true; });
  isolate.on("exit", (code) => gone(own, code));
  self.postMessage({ made: own.address });
  return own;
}

// What comes from an isolate is as little trusted as what runs in it: it can only speak for itself.
function heard(own, message) {
  if (message.here && !own.here) {
    own.here = true;
    self.postMessage({ here: own.address });
  }
  if (own.run === undefined) return;
  if ((message.out === 1 || message.out === 2) && message.data instanceof Uint8Array) self.postMessage({ run: own.run, out: message.out, data: message.data });
  if (message.exiting) {
    own.ended.cpuUs = Number(message.exiting.cpuUs) || 0;
    own.ended.memory = Number(message.exiting.memory) || 0;
  }
  if (message.oom) { own.ended.oom = true; end(own); }
}

// The flag is for an isolate that looks at it before V8 is through with ending it; one that waits for its output to go is woken.
function end(own) {
  const shared = new Int32Array(own.credit);
  Atomics.store(shared, 1, 1);
  Atomics.store(shared, 0, 0);
  Atomics.notify(shared, 0);
  own.isolate.terminate();
}

function gone(own, code) {
  own.inbox.close();
  if (own === ready) { ready = undefined; return; }
  if (own.run === undefined || !runs.delete(own.run)) return;
  self.postMessage({ run: own.run, ended: { code, ...own.ended } });
}

function prepare() {
  if (!closing) ready ??= make();
}

function start(message) {
  const own = ready ?? make();
  ready = undefined;
  own.run = message.run;
  runs.set(message.run, own);
  self.postMessage({ run: message.run, thread: own.isolate.threadId, address: own.address });
  const { url, args, env, memory } = message;
  own.inbox.postMessage({ url, args, env, memory, root: settings.root, credit: own.credit });
  setTimeout(prepare, AHEAD_MS);
}

const { port1: inbox, port2: theirs } = new MessageChannel();
inbox.onmessage = ({ data: message }) => {
  if (message.url !== undefined) {
    start(message);
  } else if (message.input !== undefined) {
    runs.get(message.input)?.inbox.postMessage({ input: message.data, eof: message.eof });
  } else if (message.written !== undefined) {
    const own = runs.get(message.written);
    if (!own) return;
    const credit = new Int32Array(own.credit);
    Atomics.sub(credit, 0, message.bytes);
    Atomics.notify(credit, 0);
  } else if (message.over) {
    prepare();
  } else if (message.end !== undefined) {
    const own = runs.get(message.end);
    if (own) end(own);
  } else if (message.closing) {
    closing = true;
    for (const own of [...runs.values(), ...ready ? [ready] : []]) end(own);
  }
};
self.postMessage({ port: theirs }, [theirs]);
setTimeout(prepare, 0);
