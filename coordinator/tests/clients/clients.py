"""Drives the unmodified `openai` and `ollama` clients against a coordinator; started by tests/api/clients.rs.

Arguments: the coordinator's URL, a collection, the model of its language model backend, the embedder's name. Ends with 0 if all went as it should.
"""

import asyncio
import math
import sys

import ollama
import openai

url, collection, model, embedder = sys.argv[1:]
rag = f"rag/{collection}"
question = [{"role": "user", "content": "What makes lift?"}]


def check(condition, what):
    if not condition:
        raise SystemExit(f"not as it should be: {what}")


def with_openai():
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

    names = [listed.id for listed in client.models.list()]
    check({rag, model, embedder} <= set(names), f"models {names}")
    check(client.models.retrieve(rag).id == rag, "one model")

    for name in (model, rag):
        answer = client.chat.completions.create(model=name, messages=question, max_tokens=50, temperature=0.5, seed=1)
        choice = answer.choices[0]
        check(answer.object == "chat.completion" and choice.message.role == "assistant", answer)
        check("wing" in choice.message.content and choice.finish_reason == "stop", answer)
        check(answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0, answer)
    check(answer.citations[0]["document_id"] == "aero", answer)

    for name in (model, rag):
        chunks = list(
            client.chat.completions.create(
                model=name, messages=question, stream=True, stream_options={"include_usage": True}
            )
        )
        check(len({chunk.id for chunk in chunks}) == 1, "one id for all chunks")
        check(chunks[0].choices[0].delta.role == "assistant", chunks[0])
        deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        check(len(deltas) > 1 and "wing" in "".join(deltas), deltas)
        check(chunks[-2].choices[0].finish_reason == "stop", chunks[-2])
        check(not chunks[-1].choices and chunks[-1].usage.completion_tokens > 0, chunks[-1])

    answer = client.completions.create(model=model, prompt="Lift is")
    check(answer.object == "text_completion" and "wing" in answer.choices[0].text, answer)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(model=model, prompt="Lift is", stream=True)]
    check("wing" in "".join(pieces), pieces)

    # The client asks for base64 unless told otherwise.
    coded = client.embeddings.create(model=embedder, input=["lift", "drag"])
    plain = client.embeddings.create(model=embedder, input=["lift", "drag"], encoding_format="float")
    check(len(coded.data) == 2 and coded.data[1].index == 1, coded)
    pairs = zip(coded.data[0].embedding, plain.data[0].embedding, strict=True)
    check(all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs), "base64 and numbers agree")

    for wrong, expected in (
        (lambda: client.chat.completions.create(model="rag/none", messages=question), openai.NotFoundError),
        (lambda: client.chat.completions.create(model=model, messages=[]), openai.BadRequestError),
        (lambda: client.chat.completions.create(model=model, messages=question, temperature=9), openai.BadRequestError),
        (lambda: client.embeddings.create(model="unknown", input="x"), openai.NotFoundError),
    ):
        try:
            wrong()
        except expected as error:
            check(error.body["message"] and "type" in error.body, error.body)
        else:
            check(False, f"no {expected.__name__}")


def with_ollama():
    client = ollama.Client(host=url)

    names = [listed.model for listed in client.list().models]
    check({rag, model} <= set(names), f"models {names}")
    check("completion" in client.show(rag).capabilities, "show")

    for name in (model, rag):
        answer = client.chat(model=name, messages=question, options={"num_predict": 50, "temperature": 0.5})
        check(answer.done and "wing" in answer.message.content and answer.eval_count > 0, answer)
        records = list(client.chat(model=name, messages=question, stream=True))
        check(len(records) > 2 and records[-1].done and not records[0].done, records)
        check("wing" in "".join(record.message.content for record in records), records)

        answer = client.generate(model=name, prompt="What makes lift?")
        check(answer.done and "wing" in answer.response and answer.total_duration > 0, answer)
        records = list(client.generate(model=name, prompt="What makes lift?", system="Be brief.", stream=True))
        check("wing" in "".join(record.response for record in records) and records[-1].done_reason == "stop", records)

    both = client.embed(model=embedder, input=["lift", "drag"]).embeddings
    check(len(both) == 2 and math.isclose(sum(x * x for x in both[0]), 1.0, abs_tol=1e-3), "embed")
    check(len(client.embeddings(model=embedder, prompt="lift").embedding) == len(both[0]), "embeddings")

    try:
        client.chat(model="rag/none", messages=question)
    except ollama.ResponseError as error:
        check(error.status_code == 404 and "none" in error.error, error)
    else:
        check(False, "no ResponseError")


async def with_async_clients():
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    text = ""
    async for chunk in await client.chat.completions.create(model=rag, messages=question, stream=True):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    check("wing" in text, text)
    text = ""
    async for record in await ollama.AsyncClient(host=url).chat(model=rag, messages=question, stream=True):
        text += record.message.content
    check("wing" in text, text)


with_openai()
with_ollama()
asyncio.run(with_async_clients())
print(f"openai {openai.__version__} and ollama: all as it should be")
