#!/usr/bin/env python3
"""The same session on every runtime that can serve it here: same_everywhere.py URL TOKEN [LANGUAGE].

Asks `language.list` which runtimes run the language (javascript when none is named), does the same things on each, and says whether
all answers were the same. Ends with 1 when they were not.
"""

import sys

from example import Connection

CODE = {
    "javascript": {"hello": "console.log([6, 7].reduce((a, b) => a * b))", "broken": "throw new Error('no')", "endless": "for (;;) {}"},
    "python": {"hello": "print(6 * 7)", "broken": "raise SystemExit('no')", "endless": "while True: pass"},
    "bash": {"hello": "echo $((6 * 7))", "broken": "exit 1", "endless": "while :; do :; done"},
}


def transcript(connection, language, runtime):
    """What a client sees of one session, without what differs by nature: ids, times, the engine's own words."""
    session = connection.call("session.create", language=language, runtimeType=runtime)

    def command(**fields):
        return connection.call("session.execute", sessionId=session["sessionId"], command=fields)

    def code(name, **fields):
        return command(type="execute_code", code=CODE[language][name], **fields)

    lines = []
    written = command(type="write_file", path="notes/a.txt", content="one\ntwo\n")
    lines.append(f"write_file: {written['result']}")
    lines.append(f"copy_file: {command(type='copy_file', source='notes/a.txt', destination='notes/b.txt')['result']}")
    lines.append(f"read_file: {command(type='read_file', path='notes/b.txt')['result']['content']!r}")
    listed = command(type="list_directory", path=".", recursive=True)
    lines.append(f"list_directory: {sorted(entry['path'] for entry in listed['result']['entries'])}")
    hello = code("hello")
    lines.append(f"execute_code: {hello['result']['stdout']!r}, exit code {hello['result']['exitCode']}")
    broken = code("broken")
    lines.append(f"code that fails: {broken['errorKind']}")
    endless = code("endless", timeoutSeconds=1)
    lines.append(f"code that never ends: {endless['errorKind']}, timedOut {endless['result']['timedOut']}")
    lines.append(f"and then again: {code('hello')['result']['stdout']!r}")
    lines.append(f"delete_file: {command(type='delete_file', path='notes', recursive=True)['result']}")
    missing = command(type="read_file", path="notes/b.txt")
    lines.append(f"a file that is gone: {missing['errorKind']}")
    closed = connection.call("session.close", sessionId=session["sessionId"])
    lines.append(f"closed: {closed['closed']}")
    return lines


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        return print(__doc__.strip())
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: same_everywhere.py URL TOKEN [LANGUAGE]   (same_everywhere.py --help says more)")
    connection = Connection(sys.argv[1], sys.argv[2])
    language = sys.argv[3] if len(sys.argv) == 4 else "javascript"
    if language not in CODE:
        sys.exit(f"error: this demonstration speaks {', '.join(CODE)}")
    rows = connection.call("language.list")["languages"]
    runtimes = next(row["runtimes"] for row in rows if row["name"] == language)
    if not runtimes:
        sys.exit(f"error: no runtime here runs {language}\nhint: `codebeaker languages` and `codebeaker runtimes` say why")
    seen = {runtime: transcript(connection, language, runtime) for runtime in runtimes}
    first = runtimes[0]
    print("\n".join(seen[first]))
    print(f"\n{language} on {first}: the transcript above")
    different = 0
    for runtime in runtimes[1:]:
        lines = [line for line in zip(seen[first], seen[runtime]) if line[0] != line[1]]
        different += bool(lines)
        print(f"{language} on {runtime}: {'NOT the same' if lines else 'the same'}")
        for expected, found in lines:
            print(f"  {expected}\n  {found}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
