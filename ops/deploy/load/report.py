"""What a load did, beside the guide's targets. Called by `run`; reads the processes of the cluster in SUSUI_DEV_DIR.

    report.py usage                    CPU seconds of now, as JSON
    report.py locust STATS.csv BEFORE  the table of a locust run begun at BEFORE (the JSON of `usage`)
    report.py ab OUTPUT.txt BEFORE     the table of an ab run
    report.py calls WAIT_MS FILES      calls one after the other, beside the guide's targets for each; WAIT_MS is what the language
                                       model behind the coordinator takes for an answer by itself, FILES a collection for uploads
"""

import csv
import json
import os
import random
import re
import statistics
import sys
import time
import urllib.request
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


def post(path, body):
    """Milliseconds of the call, and its answer."""
    request = urllib.request.Request(
        os.environ["SUSUI_URL"] + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    return (time.monotonic() - began) * 1000, answer


def indexed(accepted):
    """Waits until an upload is searchable."""
    while True:
        with urllib.request.urlopen(f"{os.environ['SUSUI_URL']}/api/v1/jobs/{accepted['job_id']}", timeout=10) as response:
            job = json.load(response)
        if job["terminal"]:
            if job["status"] != "done":
                sys.exit(f"the upload failed: {job}")
            return
        time.sleep(0.02)


def prose(name, size):
    line = f"In {name}, line {{}} says that a copy takes over when the primary is silent.\n"
    return "".join(line.format(count) for count in range(size // len(line) + 1))[:size]


def cancel(accepted):
    url = f"{os.environ['SUSUI_URL']}/api/v1/jobs/{accepted['job_id']}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=10).close()


# Questions, searches and uploads that are measured, one after the other.
QUESTIONS, SEARCHES, UPLOADS = 40, 200, 3
# Bytes of an upload, and of one that is followed until it is searchable, which is its embedding on the CPU.
MEGABYTE, FOLLOWED = 1_000_000, 50_000


def calls(wait_ms, files):
    collection = os.environ["SUSUI_COLLECTION"]
    questions, searches, uploads, searchable = [], [], [], []
    for number in range(QUESTIONS):
        query = f"What should an operator do when node {number} dies at night?"
        took, answer = post("/api/v1/query", {"query": query, "collection": collection})
        if answer["generator"] == "extractive":
            sys.exit(f"no language model answered: {answer.get('degraded')}")
        questions.append(took)
    for number in range(SEARCHES):
        draw = random.Random(number)
        vector = [draw.gauss(0, 1) for _ in range(384)]
        searches.append(post("/api/v1/search", {"vector": vector, "collection": collection})[0])
    for name in [f"upload {number}" for number in range(UPLOADS)]:
        took, accepted = post("/api/v1/documents", {"text": prose(name, MEGABYTE), "collection": files})
        uploads.append(took)
        cancel(accepted)
    began = time.monotonic()
    indexed(post("/api/v1/documents", {"text": prose("the last upload", FOLLOWED), "collection": files})[1])
    searchable.append((time.monotonic() - began) * 1000)
    # What is measured, the guide's target, how much of each call is the model's own waiting.
    rows = [
        ("query with LLM", questions, "< 2000", wait_ms),
        ("vector search", searches, "< 50", 0),
        ("upload of 1 MB", uploads, "< 1000", 0),
        ("50 KB searchable", searchable, "", 0),
    ]
    columns = ["calls", "p50 ms", "max ms", "the LLM's ms", "ours p50 ms", "target ms"]
    print(f"{'':18}" + "".join(f"{column:>14}" for column in columns))
    for name, took, target, waited in rows:
        p50 = statistics.median(took)
        figures = [len(took), f"{p50:.1f}", f"{max(took):.1f}", f"{waited:.0f}", f"{p50 - waited:.1f}", target]
        print(f"{name:18}" + "".join(f"{figure:>14}" for figure in figures))


def main():
    verb = sys.argv[1]
    if verb == "calls":
        calls(float(sys.argv[2]), sys.argv[3])
        return
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
