// Loaded by Bun before the program that it was started for, whose source is not there yet. 5 = init.
import { closeSync, readSync, writeSync } from "node:fs";
writeSync(5, "r");
const bytes = readSync(5, Buffer.alloc(1));
closeSync(5);
if (bytes === 0) process.exit(0);
