//! The programs of the matrix, in each language: every language's row says the same.
//!
//! JavaScript here is what Node, Bun and Deno have in common: the global `process`, and `import()` for modules.

/// What the matrix says in one language.
pub struct Speech {
    /// Its name on the wire.
    pub language: &'static str,
    /// Prints 42.
    pub hello: &'static str,
    /// Prints the first line of its input, its first argument and the variable `WORD`, with bars between.
    pub echo: &'static str,
    /// Ends with exit code 3.
    pub exit_3: &'static str,
    /// Is no sentence of the language.
    pub broken: &'static str,
    /// Prints the file `kept`, and makes `kept-too` of it; fails where `kept-too` is there already.
    pub copy_kept: &'static str,
    /// Never ends.
    pub endless: &'static str,
    /// Prints the path of the program that runs it.
    pub itself: &'static str,
}

/// All of them.
pub const SPEECHES: [Speech; 5] = [
    Speech {
        language: "python",
        hello: "print(6 * 7)",
        echo: "import os, sys\nprint(input(), sys.argv[1], os.environ['WORD'], sep='|')",
        exit_3: "raise SystemExit(3)",
        broken: "def (",
        copy_kept: "text = open('kept').read()\nprint(text)\nopen('kept-too', 'x').write(text)",
        endless: "while True: pass",
        itself: "import sys\nprint(sys.executable)",
    },
    Speech {
        language: "bash",
        hello: "echo $((6 * 7))",
        echo: "read -r line\necho \"$line|$1|$WORD\"",
        exit_3: "exit 3",
        broken: "if then fi )",
        copy_kept: "set -eC\ncat kept\ncat kept > kept-too",
        endless: "while :; do :; done",
        itself: "echo \"$BASH\"",
    },
    Speech {
        language: "javascript",
        hello: "console.log(6 * 7);",
        echo: "let input = '';\nprocess.stdin.setEncoding('utf8');\nprocess.stdin.on('data', (part) => { input += part; });\n\
               process.stdin.on('end', () => console.log([input.trim(), process.argv[2], process.env.WORD].join('|')));",
        exit_3: "process.exit(3);",
        broken: "const = ;",
        copy_kept: "import('node:fs').then((fs) => {\n  const text = fs.readFileSync('kept', 'utf8');\n  console.log(text);\n  \
                    fs.writeFileSync('kept-too', text, { flag: 'wx' });\n});",
        endless: "for (;;) {}",
        itself: "console.log(process.execPath);",
    },
    Speech {
        language: "typescript",
        hello: "const answer: number = 6 * 7;\nconsole.log(answer);",
        echo: "const host = (globalThis as any).process;\nlet input: string = '';\nhost.stdin.setEncoding('utf8');\n\
               host.stdin.on('data', (part: string) => { input += part; });\n\
               host.stdin.on('end', () => console.log([input.trim(), host.argv[2], host.env.WORD].join('|')));",
        exit_3: "const code: number = 3;\n(globalThis as any).process.exit(code);",
        broken: "const : number = ;",
        copy_kept: "(import('node:fs' as any) as Promise<any>).then((fs: any) => {\n  const text: string = fs.readFileSync('kept', 'utf8');\n  \
                    console.log(text);\n  fs.writeFileSync('kept-too', text, { flag: 'wx' });\n});",
        endless: "const on: boolean = true;\nwhile (on) {}",
        itself: "console.log((globalThis as any).process.execPath);",
    },
    Speech {
        language: "wasm",
        hello: include_str!("../fixtures/wasm/hello.wat"),
        echo: include_str!("../fixtures/wasm/echo.wat"),
        exit_3: "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))\n\
                 (memory (export \"memory\") 1) (func (export \"_start\") (call $exit (i32.const 3))))",
        broken: "(module (func",
        copy_kept: include_str!("../fixtures/wasm/copy_kept.wat"),
        endless: "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop $on (br $on))))",
        // Only a shell could be asked, and there is none.
        itself: include_str!("../fixtures/wasm/hello.wat"),
    },
];
