"""From samples to figures and tables. Pure, except for reading what the host says of itself."""

import math
import os
import platform
import re
import statistics

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def percentile(samples, share):
    """Nearest rank: the smallest sample that at least `share` of all are not above."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures(samples_s):
    """Samples in seconds as figures in milliseconds."""
    milliseconds = [sample * 1000 for sample in samples_s]
    return {
        "n": len(milliseconds),
        "p50_ms": round(percentile(milliseconds, 0.50), 4),
        "p99_ms": round(percentile(milliseconds, 0.99), 4),
        "min_ms": round(min(milliseconds), 4),
        "max_ms": round(max(milliseconds), 4),
    }


def milliseconds(value):
    """Three significant digits, without an exponent."""
    if value is None:
        return "–"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 3)}f}"


def timing_table(rows):
    """`rows`: dictionaries with name, back_to_back, spaced (figures or None), target and perhaps why."""
    lines = [
        "| what | p50 ms | p99 ms | n | spaced p50 ms | spaced p99 ms | n | to reach (p50 / p99) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        cells = [row["name"]]
        if row.get("why"):
            lines.append(f"| {row['name']} | {row['why']} | | | | | | {row.get('target') or '–'} |")
            continue
        for kind in ("back_to_back", "spaced"):
            found = row.get(kind)
            cells += [milliseconds(found[key]) for key in ("p50_ms", "p99_ms")] if found else ["–", "–"]
            cells.append(str(found["n"]) if found else "–")
        cells.append(row.get("target") or "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def slower(timings, there):
    """How many times as long as on the host of the promises this one takes, by what both ran: `there` has its milliseconds by name. The
    median, and each of them; None where nothing of it ran here."""
    here = {row["name"]: row.get("back_to_back", {}).get("p50_ms") for row in timings}
    each = {name: here[name] / there[name] for name in there if here.get(name)}
    return (statistics.median(each.values()), each) if each else None


def promise(target):
    """The numbers of a target: p50 and p99 in milliseconds and what v1 adds, or one number of a figure."""
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![a-z])\d[\d,]*\.?\d*", target or "")]


def promises_here(timings, figures, factor, adds):
    """The promises in times and rates as they would be on a host that takes `factor` times as long, beside what was measured. `adds`: whether
    the placement in groups counts, which some promises allow for."""
    lines = ["| what | measured here | promised there | which is here |", "| --- | ---: | ---: | ---: |"]
    for row in timings:
        numbers = promise(row.get("target"))
        if not numbers or "back_to_back" not in row and "spaced" not in row:
            continue
        found = row.get("back_to_back") or row["spaced"]
        more = numbers[2] if len(numbers) > 2 and adds else 0
        there = [number + more for number in numbers[:2]]
        here = [number * factor + more for number in numbers[:2]]
        keys = ["p50_ms", "p99_ms"][: len(here)]
        cells = [" / ".join(milliseconds(value) for value in values) for values in ([found[key] for key in keys], there, here)]
        lines.append(f"| {row['name']} | {cells[0]} | {cells[1]} | {cells[2]} ms |")
    for row in figures:
        unit = next((unit for unit in ("/s", "ms") if (row.get("target") or "").endswith(unit)), None)
        if unit and row["figure"].endswith(unit):
            there = promise(row["target"])[0]
            here = there / factor if unit == "/s" else there * factor
            lines.append(f"| {row['name']} | {row['figure']} | {row['target']} | {here:,.0f} {unit} |")
    return lines


def markdown(report):
    """The whole block for docs/performance.md."""
    host = report["host"]
    lines = [
        f"Measured {report['date']} by `scripts/bench{' --quick' if report['quick'] else ''}`, commit {report['commit']}.",
        "",
        f"Host: Linux {host['kernel']}, {host['cores']} cores ({host['cpu']}), {host['memory_mib']} MiB of memory, {host['distribution']}; "
        f"control groups: {host['cgroups']}; server run by {host['user']}.",
        f"Load average {host['load_before']} before and {host['load_after']} after; "
        f"CPU periods throttled meanwhile: {host['throttled_periods']}; processor time that the host of this machine took: {host['stolen']}.",
        "",
        *timing_table(report["timings"]),
        "",
        "| what | figure | to reach |",
        "| --- | ---: | --- |",
    ]
    lines += [f"| {row['name']} | {row['figure']} | {row.get('target') or '–'} |" for row in report["figures"]]
    lines += comparison(report)
    lines += ["", "Walls that do not stand as designed on this host: " + (", ".join(report["weaker_walls"]) or "none") + "."]
    return "\n".join(lines)


def comparison(report):
    """The part of the block that says what the promises are on this host."""
    if not report.get("slower"):
        return []
    factor, each = report["slower"]
    told = ", ".join(f"{name} {value:.2f}" for name, value in each.items())
    # What v1 adds is the placement where memory and pids are its controllers.
    cgroups = report["host"]["cgroups"]
    adds = not cgroups.startswith("v2 only") and not {"memory", "pids"} <= set(cgroups.replace("(", " ").replace(")", " ").split())
    return [
        "",
        f"The promises were made on another host. By the programs that ran on both, this one takes {factor:.2f} times as long (the median of {told}):",
        "",
        *promises_here(report["timings"], report["figures"], factor, adds),
    ]


def put_between_markers(text, block):
    """`text` with what stands between the markers replaced; the error names what is missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the page needs one line {BEGIN} and one line {END} after it")
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + block + "\n" + text[text.index(END) :]


def first_match(path, pattern, default):
    """The first group of `pattern` in a file of the kernel's; `default` where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(pattern, file.read(), re.MULTILINE)
    except OSError:
        return default
    return found.group(1).strip() if found else default


def cgroup_kind():
    """unified, hybrid or v1, with the controllers that v2 has."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    has_v1 = any(fields[2] == "cgroup" and not fields[3].startswith("name=") for fields in mounts)
    v2 = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    controllers = first_match(f"{v2}/cgroup.controllers", r"(.+)", "none") if v2 else "none"
    if v2 and has_v1:
        return f"hybrid (v2 has {controllers})"
    return f"v2 only ({controllers})" if v2 else "v1 only"


def stolen_share():
    """Gives what tells, later, which share of the processors' time another machine on the same hardware has had since (proc_stat(5))."""

    def read():
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        return ticks[7], sum(ticks)

    before = read()

    def since():
        (stolen, all_of_it), (stolen_before, all_before) = read(), before
        return f"{100 * (stolen - stolen_before) / max(1, all_of_it - all_before):.0f} %"

    return since


def throttled_periods():
    """Sum over the `cpu.stat` of the group this process is in and those above it; None where no file tells."""
    total = None
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        groups = [line.strip().split(":", 2) for line in file]
    for _, controllers, path in groups:
        roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] if not controllers else [f"/sys/fs/cgroup/{controllers}"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in roots:
            value = first_match(f"{root}{path}/cpu.stat", r"^nr_throttled (\d+)", None)
            if value is not None:
                total = (total or 0) + int(value)
    return total


def host():
    """What a reader must know of the machine to compare."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": first_match("/proc/cpuinfo", r"^model name\s*:\s*(.+)$", platform.machine()),
        "memory_mib": int(first_match("/proc/meminfo", r"^MemTotal:\s+(\d+)", "0")) // 1024,
        "distribution": first_match("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)', "unknown distribution"),
        "cgroups": cgroup_kind(),
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
    }
