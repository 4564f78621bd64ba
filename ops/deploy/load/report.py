"""What a load did, beside the guide's targets. Called by `run`; reads the processes of the cluster in SUSUI_DEV_DIR.

    report.py usage                    CPU seconds of now, as JSON
    report.py locust STATS.csv BEFORE  the table of a locust run begun at BEFORE (the JSON of `usage`)
    report.py ab OUTPUT.txt BEFORE     the table of an ab run
"""

import csv
import json
import os
import re
import sys
import time
from pathlib import Path

# Requests/s, milliseconds, megabytes, percent of the machine: the guide's own.
TARGETS = {"requests/s": ">= 100", "p50 ms": "< 100", "p99 ms": "< 500", "memory MB": "< 3000", "CPU %": "< 50"}


def processes():
    """Pids of this cluster's nodes and coordinator."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_ours = any(os.environ["SUSUI_DEV_DIR"].encode() in argument for argument in arguments)
        if is_ours and os.path.basename(arguments[0]) in (b"susui-node", b"susui-coordinator"):
            yield directory


def usage():
    ticks, peak_kb, count = 0, 0, 0
    for directory in processes():
        fields = (directory / "stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
        peak_kb += int(re.search(r"VmHWM:\s+(\d+)", (directory / "status").read_text())[1])
        count += 1
    if count != 4:
        sys.exit(f"{count} of 4 processes run")
    return {"cpu_s": ticks / os.sysconf("SC_CLK_TCK"), "peak_mb": peak_kb / 1024, "at_s": time.monotonic()}


def of_machine(before):
    """Memory: the sum of each process' peak. CPU: of all cores, the load's own processes not counted."""
    after = usage()
    share = (after["cpu_s"] - before["cpu_s"]) / (after["at_s"] - before["at_s"]) / os.cpu_count()
    return {"memory MB": f"{after['peak_mb']:.0f}", "CPU %": f"{share * 100:.0f}"}


def locust(path):
    with open(path, newline="") as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        figures = {
            "requests": row["Request Count"],
            "failed": row["Failure Count"],
            "requests/s": f"{float(row['Requests/s']):.1f}",
            "p50 ms": row["50%"],
            "p99 ms": row["99%"],
        }
        yield ("all" if name == "Aggregated" else name), figures


def ab(path):
    text = Path(path).read_text()

    def number(pattern):
        found = re.search(pattern, text)
        return found[1] if found else "0"

    failed = int(number(r"Failed requests:\s+(\d+)")) + int(number(r"Non-2xx responses:\s+(\d+)"))
    figures = {
        "requests": number(r"Complete requests:\s+(\d+)"),
        "failed": str(failed),
        "requests/s": number(r"Requests per second:\s+([\d.]+)"),
        "p50 ms": number(r"\n\s+50%\s+(\d+)"),
        "p99 ms": number(r"\n\s+99%\s+(\d+)"),
    }
    yield "all", figures


def main():
    verb = sys.argv[1]
    if verb == "usage":
        print(json.dumps(usage()))
        return
    before = json.loads(Path(sys.argv[3]).read_text())
    rows = dict({"locust": locust, "ab": ab}[verb](sys.argv[2]))
    rows["all"] |= of_machine(before)
    columns = ["requests", "failed", *TARGETS]
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for name, figures in rows.items():
        print(f"{name:10}" + "".join(f"{figures.get(column, ''):>12}" for column in columns))
    print(f"{'target':10}" + "".join(f"{TARGETS.get(column, '0' if column == 'failed' else ''):>12}" for column in columns))
    if any(int(figures["failed"]) for figures in rows.values()) or int(rows["all"]["requests"]) == 0:
        sys.exit(1)


main()
