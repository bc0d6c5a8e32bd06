// What a program can find out about how it began, and each way to end; run both ways, so nothing here may print a time or an id.
// Blocks are divided by lines of `//== NAME`.
//== an expression
console.log(1 + 1)
//== nothing at all
//== the outside
console.log(import.meta.url, globalThis.process?.argv.slice(1).join(" "), globalThis.process?.cwd(), globalThis.process?.env.SESSION)
//== variables
console.log(JSON.stringify(Object.entries(process.env).sort()))
export {}
//== its own source
import fs from "node:fs"
import { fileURLToPath } from "node:url"
const own = fileURLToPath(import.meta.url)
console.log(own, fs.readFileSync(own, "utf8").length, fs.statSync(own).isFile(), fs.statSync(own).size, fs.statSync(own).mode, fs.readdirSync("/workspace").join())
//== a module of the session
import fs from "node:fs"
fs.writeFileSync("/workspace/part.mjs", "export const value = " + 41)
const { value } = await import("/workspace/part.mjs")
console.log(value + 1)
fs.unlinkSync("/workspace/part.mjs")
//== a syntax error
console.log("never"
//== an error that nobody catches
function inner() { throw new TypeError("wrong ä") }
console.log("before"); inner()
//== a promise that nobody catches
console.log("before"); await Promise.reject(new Error("rejected"))
//== an exit code
import process from "node:process"
process.on("exit", (code) => console.log("exit", code)); process.exit(7)
//== a code to end with
import process from "node:process"
process.exitCode = 3; setTimeout(() => console.log("later"), 20)
//== both streams
for (let i = 0; i < 200; i++) { console.log("out " + i); console.error("err " + i) }
//== much output
console.log("x".repeat(300000).length); console.log("é".repeat(70000))
//== standard input
import fs from "node:fs"
import process from "node:process"
console.log(JSON.stringify(fs.readFileSync(0, "utf8")), process.stdin.isTTY ?? null, process.stdout.isTTY ?? null)
//== events of standard input
import process from "node:process"
process.stdin.on("data", (data) => console.log("data", String(data))); process.stdin.on("end", () => console.log("end"))
//== a file that is written and not closed
import fs from "node:fs"
const stream = fs.createWriteStream("/workspace/out.txt"); stream.write("one"); stream.end("two")
stream.on("finish", () => { console.log(fs.readFileSync("/workspace/out.txt", "utf8")); fs.unlinkSync("/workspace/out.txt") })
//== a signal of its own
import process from "node:process"
process.kill(process.pid, "SIGTERM"); setTimeout(() => console.log("lived"), 1000)
//== a stack
function f() { return new Error("here").stack.split("\n").slice(0, 3).map((line) => line.trim()).join(" | ") }
console.log(f())
//== globals
console.log(Object.getOwnPropertyNames(globalThis).sort().join())
//== numbers by chance differ
console.log(Math.random() !== Math.random(), new Set([crypto.randomUUID(), crypto.randomUUID()]).size)
//== a read that is refused or not
import fs from "node:fs"
try { console.log(fs.readFileSync("/etc/hostname", "utf8").length > 0) } catch (error) { console.log(error.code ?? error.name) }
//== a program that is refused or not
try { const { spawnSync } = await import("node:child_process"); console.log(spawnSync("true").error?.code ?? "ran") } catch (error) { console.log(error.code ?? error.name) }
