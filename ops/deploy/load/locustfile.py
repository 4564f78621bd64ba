"""The guide's load: three questions to one upload, 1 to 3 seconds of thinking between them.

    locust -f locustfile.py --headless -u 500 -r 50 -t 60s --host http://127.0.0.1:8000

Needs a collection that embeds text; SUSUI_COLLECTION names it (default: `load`). `ops/deploy/load/run` does all of it.
"""

import itertools
import os
import random

from locust import HttpUser, between, task

COLLECTION = os.environ.get("SUSUI_COLLECTION", "load")
QUESTIONS = [
    "What should I do when a node dies at night?",
    "How do I upgrade without downtime?",
    "Which ports does a node need?",
    "How fresh is a search after a write?",
    "What does status 503 mean?",
    "How many copies should a shard have?",
    "How are documents split into chunks?",
    "Where does a coordinator keep uploads?",
]
SENTENCE = "Document {0} says that copy {1} of a shard takes over when the primary is silent for {2} seconds. "
numbers = itertools.count()
runs = os.getpid()


class Reader(HttpUser):
    wait_time = between(1, 3)

    @task(3)
    def query(self):
        body = {"query": random.choice(QUESTIONS), "collection": COLLECTION}
        self.client.post("/api/v1/query", json=body, name="query")

    @task(1)
    def upload(self):
        number = next(numbers)
        text = "".join(SENTENCE.format(number, copy, copy + number) for copy in range(5))
        body = {"id": f"load-{runs}-{number}", "text": text, "collection": COLLECTION}
        self.client.post("/api/v1/documents", json=body, name="upload")
