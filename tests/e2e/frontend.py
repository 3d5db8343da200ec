"""Reads answers as the frontend does, for scripts/e2e.

    frontend.py json FILE PATH          a value of a JSON answer: data.requestId, content.0.status
    frontend.py check FILE [FIRST]      every event as its JSON Schema has it, ids from FIRST (1) up
                                        without a gap, and [DONE] at the end; else says what is not
    frontend.py types FILE              the events' types in order
    frontend.py ids FILE                the events' ids in order
    frontend.py field FILE TYPE NAME    a field of the last event of a type
    frontend.py encoded TEXT            a text as browsers put it into an address
    frontend.py text FILE               what the content events say, put together

A value that is not there is an empty line.
"""

import json
import pathlib
import sys
import time
import urllib.parse

SCHEMA = pathlib.Path(__file__).parents[2] / "examples/aura_agent/events.schema.json"


def blocks(path):
    """The events of a stream, each as its fields; one that is not complete yet is left out."""
    with open(path, encoding="utf-8", newline="") as stream:
        for block in stream.read().split("\n\n")[:-1]:
            lines = [line for line in block.split("\n") if not line.startswith(":")]
            if lines:
                fields = (line.partition(":") for line in lines)
                yield [(name, value.removeprefix(" ")) for name, _, value in fields]


def events(path):
    for block in blocks(path):
        fields = dict(block)
        if "event" in fields:
            yield fields.get("id"), fields["event"], json.loads(fields["data"])


def check(path, first=1):
    # Only here: it takes longer to load than all the rest.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    found = list(blocks(path))
    assert found and found[-1] == [("data", "[DONE]")], "does not end with [DONE]"
    before = None
    for number, block in enumerate(found[:-1], int(first)):
        assert [name for name, *_ in block] == ["id", "event", "data"], f"not id, event, data: {block}"
        (_, id_), (_, kind), (_, data) = block
        assert id_ == str(number), f"id {id_} instead of {number}"
        data = json.loads(data)
        assert data["type"] == kind, f"{kind} says {data['type']}"
        stamp = data["timestamp"]
        assert type(stamp) is int and abs(stamp - time.time()) < 600, f"timestamp {stamp}"
        problem = best_match(validator.iter_errors(data))
        assert problem is None, f"{kind}: {problem.json_path}: {problem.message}"
        if kind == "hitl":
            for question in (data, data["data"]):
                same = [question["id"], question["action"], question["params"]]
                assert same == [data["requestId"], data["actionType"], data["context"]], question
        if kind in ("error", "failed") and before:
            assert before.get("content") == data["error"], f"{kind} without content before it"
        before = data
    last = json.loads(dict(found[-2])["data"])["type"]
    assert last in ("end", "failed", "error"), f"ends with {last}"


def at(value, path):
    for name in path.split("."):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError):
            return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main(what, path, *more):
    if what == "json":
        with open(path, encoding="utf-8") as answer:
            text = answer.read()
        try:
            print(at(json.loads(text), *more))
        except ValueError:
            print("")
    elif what == "check":
        try:
            check(path, *more)
        except (AssertionError, KeyError, ValueError) as problem:
            sys.exit(f"{type(problem).__name__}: {problem}")
    elif what == "encoded":
        print(urllib.parse.quote(path))
    elif what == "types":
        print(" ".join(kind for _, kind, _ in events(path)))
    elif what == "ids":
        print(" ".join(id_ or "-" for id_, _, _ in events(path)))
    elif what == "field":
        kind, name = more
        values = [at(data, name) for _, found, data in events(path) if found == kind]
        print(values[-1] if values else "")
    elif what == "text":
        print("".join(data["content"] for _, kind, data in events(path) if kind == "content"))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
