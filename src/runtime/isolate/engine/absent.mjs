// In the place of every module that isolates have not.

throw new Error("an isolate has no such module: docs/runtimes.md lists those that there are");
