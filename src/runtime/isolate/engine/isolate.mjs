// What an isolate is before a session's code runs in it: everything that is not named here is taken away.
//
// The walls are the permissions of the cell (files) and the sandbox around the engine (all else). What is taken away here are the
// ways to the engine's own process that neither of them closes: descriptors by number, signals to oneself, an abort.

import { Console } from "node:console";
import { Readable, Writable } from "node:stream";
import { inspect } from "node:util";
import { parentPort, workerData as inbox } from "node:worker_threads";
import { namespace, setPlace } from "./fs.mjs";

const ALLOWED = new Set(`Object Function Array Number parseFloat parseInt Infinity NaN undefined Boolean String Symbol Date Promise RegExp
  Error AggregateError EvalError RangeError ReferenceError SyntaxError TypeError URIError SuppressedError globalThis JSON Math Intl ArrayBuffer
  SharedArrayBuffer Atomics Uint8Array Int8Array Uint16Array Int16Array Uint32Array Int32Array BigUint64Array BigInt64Array Uint8ClampedArray
  Float16Array Float32Array Float64Array DataView Map BigInt Set Iterator WeakMap WeakSet Proxy Reflect FinalizationRegistry WeakRef
  decodeURI decodeURIComponent encodeURI encodeURIComponent escape unescape eval isFinite isNaN Temporal DisposableStack AsyncDisposableStack
  WebAssembly console queueMicrotask AbortController AbortSignal Blob ByteLengthQueuingStrategy CompressionStream CountQueuingStrategy
  CryptoKey CustomEvent DecompressionStream DOMException ErrorEvent Event EventTarget File FormData MessageChannel MessageEvent MessagePort
  Performance PerformanceEntry PerformanceMark PerformanceMeasure PromiseRejectionEvent ReadableStream ReadableStreamDefaultReader
  ReadableByteStreamController ReadableStreamBYOBReader ReadableStreamBYOBRequest ReadableStreamDefaultController TextDecoder TextEncoder
  TextDecoderStream TextEncoderStream TransformStream TransformStreamDefaultController URL URLPattern URLSearchParams WritableStream
  WritableStreamDefaultWriter WritableStreamDefaultController atob btoa crypto Crypto SubtleCrypto performance process clearImmediate
  clearInterval clearTimeout gc setImmediate setInterval setTimeout structuredClone Buffer global self`.split(/\s+/));

// A window of output on its way; past it the isolate waits. Pieces, and how much is allocated between two looks at the heap.
const WINDOW_BYTES = 256 << 10, PIECE_BYTES = 64 << 10, STEP_BYTES = 4 << 20, PAGE_OF_WASM = 64 << 10;

const own = process, port = parentPort, post = port.postMessage.bind(port);
const leave = Deno.exit, memoryUsage = Deno.memoryUsage, collect = globalThis.gc, wait = Atomics.wait, load = Atomics.load, add = Atomics.add;
const { apply, construct } = Reflect, slice = Uint8Array.prototype.slice;
// What its cell says: what to run, then standard input. It is taken before it is an event, so nobody else can come by the port.
const stdin = new Readable({ read() {} });
const message = await new Promise((ok) => {
  let whole = false;
  const dispatchEvent = ({ data: word }) => {
    if (word?.url !== undefined) ok(word);
    if (word?.input === undefined || whole) return true;
    if (word.input.length > 0) stdin.push(word.input);
    if (word.eof) { whole = true; stdin.push(null); }
    return true;
  };
  Object.defineProperty(inbox, "dispatchEvent", { value: dispatchEvent });
  inbox.ref();
  inbox.start();
  post({ here: true });
});
// From here on it is standard input alone that keeps an isolate waiting for words of its cell.
inbox.unref();
const credit = new Int32Array(message.credit);

const used = () => { const { heapTotal, external } = memoryUsage(); return heapTotal + external; };

function emit(stream, bytes) {
  for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
    const data = slice.call(bytes, at, at + PIECE_BYTES);
    post({ out: stream, data: new Uint8Array(data) });
    add(credit, 0, data.length);
    for (let waiting = load(credit, 0); waiting > WINDOW_BYTES; waiting = load(credit, 0)) wait(credit, 0, waiting);
  }
}
const writer = (stream) => new Writable({ decodeStrings: true, write(chunk, _, done) { emit(stream, chunk); done(); } });
const stdout = writer(1), stderr = writer(2);

// The heap has its limit from V8. Buffers lie outside it: each is weighed before it is made.
// Ends here and now: in a loop of our own V8's word for it can't be swallowed by a call that the session makes next.
function stop() {
  leave(137);
  for (;;);
}
let unweighed = 0;
function weigh(bytes) {
  // Asked to end: some calls swallow V8's own way.
  if (load(credit, 1) !== 0) stop();
  unweighed += bytes;
  if (!(unweighed >= STEP_BYTES)) return;
  unweighed = 0;
  if (used() + bytes <= message.memory) return;
  collect?.();
  if (used() + bytes <= message.memory) return;
  post({ oom: true });
  stop();
}
const total = (parts) => Array.isArray(parts) ? parts.reduce((sum, part) => sum + (part?.byteLength ?? part?.size ?? part?.length ?? 0), 0) : 0;
function weighed(kind, bytesOf) {
  const proxy = new Proxy(kind, {
    construct(target, args, newTarget) {
      weigh(bytesOf(args));
      return construct(target, args, newTarget === proxy ? target : newTarget);
    },
  });
  Object.defineProperty(kind.prototype, "constructor", { value: proxy });
  return proxy;
}
for (const name of ["ArrayBuffer", "SharedArrayBuffer"]) globalThis[name] = weighed(globalThis[name], ([length]) => Number(length) || 0);
for (const name of ["Int8", "Uint8", "Int16", "Uint16", "Int32", "Uint32", "Float16", "Float32", "Float64", "BigInt64", "BigUint64"]) {
  const kind = globalThis[`${name}Array`];
  if (kind) globalThis[`${name}Array`] = weighed(kind, ([what]) => typeof what === "number" ? what * kind.BYTES_PER_ELEMENT : (what?.byteLength ?? 0));
}
globalThis.Uint8ClampedArray = weighed(Uint8ClampedArray, ([what]) => typeof what === "number" ? what : 0);
WebAssembly.Memory = weighed(WebAssembly.Memory, ([what]) => (Number(what?.initial) || 0) * PAGE_OF_WASM);
// So is what a call makes at once; what comes later, from a promise, is the kernel's to count.
function weighedCalls(of, names) {
  for (const name of names) {
    const call = of?.[name];
    if (typeof call !== "function") continue;
    const value = { [name](...args) {
      const made = apply(call, this, args);
      weigh(made?.byteLength ?? made?.size ?? made?.length ?? 0);
      return made;
    } }[name];
    Object.defineProperty(of, name, { value, writable: true, configurable: true });
  }
}
weighedCalls(globalThis, ["structuredClone"]);
weighedCalls(Buffer, ["alloc", "allocUnsafe", "allocUnsafeSlow", "concat", "copyBytesFrom", "from"]);
weighedCalls(TextEncoder.prototype, ["encode"]);
weighedCalls(Object.getPrototypeOf(Uint8Array.prototype), ["slice", "toReversed", "toSorted", "with", "map", "filter"]);
weighedCalls(ArrayBuffer.prototype, ["slice", "transfer", "transferToFixedLength"]);
weighedCalls(SharedArrayBuffer.prototype, ["slice"]);
for (const name of ["Blob", "File"]) globalThis[name] = weighed(globalThis[name], ([parts]) => total(parts));
for (const [of, name] of [[ArrayBuffer.prototype, "resize"], [SharedArrayBuffer.prototype, "grow"]]) {
  const call = of[name];
  Object.defineProperty(of, name, { value(length) { weigh(Number(length) || 0); return apply(call, this, [length]); } });
}
{
  const call = WebAssembly.Memory.prototype.grow;
  WebAssembly.Memory.prototype.grow = function grow(pages) { weigh(pages * PAGE_OF_WASM); return apply(call, this, [pages]); };
}

const readable = (text) => String(text).replaceAll(message.root, "");
let exitCode, exiting = false, asked = false;
function exit(code) {
  if (code !== undefined) exitCode = code;
  const last = Number(exitCode ?? 0) & 255;
  if (!exiting) { exiting = true; own.emit("exit", last); }
  leave(last);
}
function die(error) {
  emit(2, new TextEncoder().encode(`Uncaught ${readable(error?.stack ?? inspect(error))}\n`));
  exit(1);
}
own.on("uncaughtException", die);
own.on("unhandledRejection", die);
own.on("exit", () => {
  exiting = true;
  const { user, system } = own.threadCpuUsage();
  post({ exiting: { cpuUs: user + system, memory: used() } });
});

const EVENTS = new Set(["exit", "beforeExit", "uncaughtException", "unhandledRejection"]);
const listen = (how) => (event, listener) => {
  if (EVENTS.has(event)) {
    if (event.startsWith("un")) own.removeListener(event, die);
    own[how](event, listener);
  }
  return curated;
};
const curated = {
  argv: [own.execPath, `/workspace/${message.url.split("/").pop()}`, ...message.args], env: { ...message.env }, execArgv: [], execPath: own.execPath,
  stdout, stderr, exit, platform: own.platform, arch: own.arch, version: own.version, versions: { ...own.versions },
  release: { name: "node" }, pid: 1, ppid: 0, title: "isolate", argv0: "isolate", features: {}, config: {},
  cwd: () => "/workspace", nextTick: own.nextTick.bind(own), hrtime: own.hrtime.bind(own), uptime: own.uptime.bind(own),
  memoryUsage: () => ({ ...memoryUsage() }), emitWarning: (text) => emit(2, new TextEncoder().encode(`${readable(text)}\n`)),
  on: listen("on"), once: listen("once"), addListener: listen("on"), off: (event, listener) => { own.off(event, listener); return curated; },
  removeListener: (event, listener) => { own.off(event, listener); return curated; }, listenerCount: (event) => own.listenerCount(event),
  emit: own.emit.bind(own),
  // Only who asks for it waits for its end.
  get stdin() {
    if (!asked) {
      asked = true;
      inbox.ref();
      stdin.once("close", () => inbox.unref()).once("end", () => inbox.unref());
    }
    return stdin;
  },
  get exitCode() { return exitCode; },
  set exitCode(code) { exitCode = code; own.exitCode = Number(code) & 255; },
};
curated.hrtime.bigint = own.hrtime.bigint.bind(own.hrtime);

const deno = namespace(Deno, { exit, args: [...message.args], cwd: curated.cwd });
globalThis.gc = undefined;
for (const name of Object.getOwnPropertyNames(globalThis)) {
  if (!ALLOWED.has(name)) delete globalThis[name];
}
for (let scope = Object.getPrototypeOf(globalThis); scope && scope !== EventTarget.prototype && scope !== Object.prototype; scope = Object.getPrototypeOf(scope)) {
  for (const name of Object.getOwnPropertyNames(scope)) delete scope[name];
}
Object.defineProperty(globalThis, "Deno", { value: deno });
Object.defineProperty(globalThis, "process", { value: curated, writable: true, configurable: true });
globalThis.console = new Console(stdout, stderr);
setPlace(message.root, emit);

post({ exiting: { cpuUs: 0, memory: used() } });
try { await import(message.url); } catch (error) { die(error); }
