// The engine of V8Isolate: one process, a worker with narrowed permissions (a "cell") for each session, in it an isolate for each
// execution. It is the only code here that may do everything; it never evaluates anything of a session.
//
// Standard input and output carry one JSON value a line. Both are moved to other descriptors first, so that what an isolate can
// name as 0 or 1 is /dev/null.

import { builtinModules } from "node:module";

const HERE = new URL(".", import.meta.url);
// How often memory is looked at, in milliseconds.
const LOOK_MS = 20, PAGE = 4096, WAIT_MS = 5, STILL_MS = 1000, PATIENCE_MS = 3000, HALT_MS = 50, TICKS_PER_S = 100;
// How often a worker is let go on, at first and at last, and when it has done so by itself.
const NUDGE_MS = 1, NUDGE_MS_MAX = 50, NUDGED_MS = 1000;

// Where the engine's inspector listens, as its command line says: inside the engine's sandbox, whose network is its own.
const INSPECTOR = "127.0.0.1:9229";

const encoder = new TextEncoder(), decoder = new TextDecoder();

// An exit would wait for whoever is connected to the inspector, which is this process itself.
const leave = () => Deno.kill(Deno.pid, "SIGKILL");

function fail(why) {
  Deno.stderr.writeSync(encoder.encode(`isolates: ${why}\n`));
  leave();
}

// Every builtin module must be named in the import map: one that nobody decided about would be open to isolates.
const decided = JSON.parse(Deno.readTextFileSync(new URL("imports.json", HERE))).imports;
const undecided = builtinModules.filter((name) => !(name in decided));
if (undecided.length > 0) fail(`this Deno has modules that are not decided about: ${undecided.join(" ")}`);

const input = Deno.openSync("/proc/self/fd/0", { read: true });
const output = Deno.openSync("/proc/self/fd/1", { write: true });
{
  const libc = Deno.dlopen("libc.so.6", {
    open: { parameters: ["buffer", "i32"], result: "i32" },
    dup2: { parameters: ["i32", "i32"], result: "i32" },
  });
  const nowhere = libc.symbols.open(encoder.encode("/dev/null\0"), 2);
  if (nowhere < 0 || [0, 1].some((number) => libc.symbols.dup2(nowhere, number) !== number)) fail("descriptors could not be moved");
  libc.close();
}

// What is written goes out in order; whoever made it learns when it is out.
let outgoing = Promise.resolve();
function tell(message, then) {
  const bytes = encoder.encode(JSON.stringify(message) + "\n");
  outgoing = outgoing.then(async () => {
    for (let at = 0; at < bytes.length;) at += await output.write(bytes.subarray(at));
    then?.();
  }).catch(leave);
}

// To terminate a worker asks its event loop, which a loop of the program's own never reaches. The inspector asks V8, which stops wherever it is.
// Address of a worker → its session with the inspector, as long as the worker lives; and the inspector's name of it → its address.
const inspected = new Map(), targets = new Map();
let asked = 0, inspector;
function ask(method, params, sessionId) { inspector.send(JSON.stringify({ id: ++asked, method, params, sessionId })); }
async function inspect() {
  const [own] = await (await fetch(`http://${INSPECTOR}/json/list`)).json();
  inspector = new WebSocket(own.webSocketDebuggerUrl);
  inspector.onmessage = ({ data }) => {
    const { method, params } = JSON.parse(data);
    if (method === "Target.attachedToTarget") {
      const { url, targetId } = params.targetInfo;
      inspected.set(url, params.sessionId);
      targets.set(targetId, url);
    } else if (method === "Target.targetDestroyed") {
      inspected.delete(targets.get(params.targetId));
      targets.delete(params.targetId);
    }
  };
  inspector.onclose = inspector.onerror = () => fail("its inspector does not answer");
  await new Promise((open) => { inspector.onopen = open; });
  ask("Target.setAutoAttach", { autoAttach: true, waitForDebuggerOnStart: false, flatten: true });
}
await inspect();

// A worker that the inspector has a session with waits up to half a second before its first line for a debugger that lets it go
// on, and again before the first message of its maker for one that stops it at breakpoints. The first wait is ended here, by words
// that are lost on a worker which does not wait yet, so they are repeated until it is there; for the second, words to workers go
// through ports, which are not waited at.
const waking = new Set();
function wake(address) {
  waking.add(address);
  nudge(address, NUDGE_MS, performance.now() + NUDGED_MS);
}
function nudge(address, after, until) {
  if (performance.now() > until) waking.delete(address);
  if (!waking.has(address)) return;
  const session = inspected.get(address);
  if (session !== undefined) ask("Runtime.runIfWaitingForDebugger", {}, session);
  setTimeout(nudge, after, address, Math.min(2 * after, NUDGE_MS_MAX), until);
}

const cells = new Map(), runs = new Map();

function open({ cell: id, root, memory, spare }) {
  const library = HERE.pathname;
  const permissions = { read: [root, library], write: [root], net: false, env: false, run: false, ffi: false, sys: false, import: false };
  const address = new URL(`cell.mjs?${new URLSearchParams({ root, memory })}`, HERE);
  const worker = new Worker(address, { type: "module", name: `cell-${id}`, deno: { permissions } });
  const cell = { worker, post: () => {}, spare, isOpen: !spare };
  cells.set(id, cell);
  worker.onmessage = ({ data }) => {
    if (!data.port) return heard(id, data);
    waking.delete(address.href);
    cell.post = (message) => data.port.postMessage(message);
    if (cell.isOpen) tell({ ev: "opened", cell: id });
  };
  worker.onerror = (event) => { event.preventDefault(); fail(`a cell failed: ${event.message}`); };
  wake(address.href);
}

// A spare one is a session's once.
function claim({ cell: id }) {
  const cell = cells.get(id);
  if (!cell?.spare || !cell.isOpen) fail("a cell was claimed that is no spare one");
  cell.spare = false;
  tell({ ev: "opened", cell: id });
}

// The first isolate of a spare cell waits for a program.
function here(id, address) {
  waking.delete(address);
  const cell = cells.get(id);
  if (!cell || cell.isOpen) return;
  cell.isOpen = true;
  tell({ ev: "opened", cell: id });
}

function heard(cell, message) {
  if (message.made !== undefined) return wake(message.made);
  if (message.here !== undefined) return here(cell, message.here);
  const run = runs.get(message.run);
  if (!run) return;
  if (message.thread !== undefined) {
    run.thread = `worker-${message.thread}`;
    run.address = message.address;
    tell({ ev: "started", run: message.run });
  } else if (message.out !== undefined) {
    const data = message.data;
    tell({ ev: "out", run: message.run, stream: message.out, data: data.toBase64() }, () => {
      cells.get(run.cell)?.post({ written: message.run, bytes: data.length });
    });
  } else if (message.ended) {
    Object.assign(run.last, message.ended);
    over(message.run);
  }
}

// An execution is over when its thread is: V8 stops a worker where it looks for interrupts. One that was
// stopped in the midst of a call of the engine's may stay without ever running again: then the engine is of no use to others.
async function over(id) {
  const run = runs.get(id);
  if (run.over) return;
  run.over = true;
  halt(run);
  let still = 0, ticks = -1;
  while (run.thread && still < STILL_MS / WAIT_MS) {
    const now = counted(run.thread);
    if (!now) break;
    still = now.ticks === ticks && performance.now() - run.told > PATIENCE_MS ? still + 1 : 0;
    ticks = now.ticks;
    await new Promise((ok) => setTimeout(ok, WAIT_MS));
  }
  runs.delete(id);
  inspected.delete(run.address);
  run.done = true;
  if (still > 0) tell({ ev: "worn" });
  const { code = null, cpuUs = run.cpuUs, memory = run.peak, oom = false } = run.last;
  const full = Deno.build.os === "linux" && code !== 0 && await isFull();
  tell({ ev: "ended", run: id, code, cpuUs: Math.round(Math.max(cpuUs, run.cpuUs)), memory: Math.max(memory, run.peak), oom, full });
  cells.get(run.cell)?.post({ over: true });
}

// Asked again until the thread is gone: between two turns of the program there is nothing to stop.
function halt(run) {
  if (run.halting || run.done) return;
  run.halting = true;
  const session = inspected.get(run.address);
  if (session !== undefined) ask("Runtime.terminateExecution", {}, session);
  setTimeout(() => { run.halting = false; halt(run); }, HALT_MS);
}

function counted(thread) {
  try { return threads().get(thread); } catch { return { ticks: -1 }; }
}

async function isFull() {
  const { statfs } = await import("node:fs/promises");
  try {
    const { bavail, ffree } = await statfs("/workspace");
    return bavail === 0 || ffree === 0;
  } catch { return false; }
}

// Name of a thread → what the kernel counts of it.
function threads() {
  const found = new Map();
  for (const { name } of Deno.readDirSync("/proc/self/task")) {
    try {
      const text = Deno.readTextFileSync(`/proc/self/task/${name}/stat`);
      const end = text.lastIndexOf(")"), fields = text.slice(end + 2).split(" ");
      found.set(text.slice(text.indexOf("(") + 1, end), { faults: Number(fields[7]) + Number(fields[9]), ticks: Number(fields[11]) + Number(fields[12]) });
    } catch { /* it has just ended */ }
  }
  return found;
}

// What an isolate holds is at most what its thread has touched for the first time, and at most what the engine has grown by since
// it began. Both are the kernel's counts, which no isolate can change.
const resident = () => Number(Deno.readTextFileSync("/proc/self/statm").split(" ")[1]) * PAGE;

function look() {
  if (runs.size === 0) return;
  const all = resident(), counts = threads();
  let worst;
  for (const [id, run] of runs) {
    const now = counts.get(run.thread);
    if (!now) continue;
    const since = now.faults - (run.faults ?? now.faults);
    run.faults = now.faults;
    run.cpuUs = now.ticks * (1e6 / TICKS_PER_S);
    run.least = Math.min(run.least, all);
    run.bound = Math.min(run.bound + since * PAGE, all - run.least);
    run.peak = Math.max(run.peak, run.bound);
    if (run.bound > run.memory && !run.last.oom && (!worst || run.bound > worst[1].bound)) worst = [id, run];
  }
  if (worst) end(worst[0], { oom: true });
}
// Isolates share the engine's descriptors: while one has them all, nothing can be looked at.
setInterval(() => { try { look(); } catch { /* the next time */ } }, LOOK_MS);

function run(message) {
  if (cells.get(message.cell)?.spare) fail("a cell that is nobody's was to run a program");
  runs.set(message.run, { cell: message.cell, memory: message.memory, least: resident(), bound: 0, peak: 0, cpuUs: 0, told: Infinity, last: {} });
  cells.get(message.cell)?.post(message);
}

function end(id, why) {
  const run = runs.get(id);
  if (!run) return;
  Object.assign(run.last, why);
  run.told = Math.min(run.told, performance.now());
  cells.get(run.cell)?.post({ end: id });
  halt(run);
  // A cell tells of its isolate's end; of one that stays it can't.
  setTimeout(() => { if (runs.has(id)) over(id); }, PATIENCE_MS);
}

// A cell that is told to close ends its isolates; each is over when its thread is.
async function close({ cell: id }) {
  const cell = cells.get(id);
  for (const [run, one] of runs) if (one.cell === id) end(run, {});
  cell?.post({ closing: true });
  while ([...runs.values()].some((run) => run.cell === id)) await new Promise((ok) => setTimeout(ok, 5));
  cell?.worker.terminate();
  cells.delete(id);
  tell({ ev: "closed", cell: id });
}

function take(message) {
  switch (message.op) {
    case "open": return open(message);
    case "claim": return claim(message);
    case "run": return run(message);
    case "input": return cells.get(runs.get(message.run)?.cell)?.post({ input: message.run, data: Uint8Array.fromBase64(message.data), eof: message.eof });
    case "end": return end(message.run, {});
    case "close": return close(message);
  }
}

tell({ ev: "up" });
let rest = "";
for await (const chunk of input.readable) {
  const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
  rest = lines.pop();
  for (const line of lines) take(JSON.parse(line));
}
leave();
