"""What the gateways say they sent: one JSON line before each message, one after its confirmation."""

import json
from pathlib import Path

from times import instant


class Event:
    """One event as it was sent."""

    def __init__(self, gateway, text, note):
        self.gateway = gateway
        self.note = note
        self.identity = identity(text)
        self.epoch = text.get("epoch")
        self.sequence = text.get("sequence")
        self.text = text

    def content(self):
        return content(self.text)

    def project(self):
        """What is summed by and not billed: copies may differ in it."""
        return (self.text["data"].get("attributes") or {}).get("project")


def identity(text):
    return (text.get("source"), text.get("id"))


def content(text):
    """What is billed of an event: equal for copies, different for conflicts. Conditions of a price are part of it too, but no
    gateway here sends any; and whether it is an estimate and what it corrects, which no two contents of one event here
    differ in."""
    data = text["data"]
    task = data.get("task") or {}
    outcome = text["type"] == "llm.task.v1"
    model = (None, None) if outcome else (data["provider"], data["model"])
    units = () if outcome else tuple(sorted(units_of(data).items()))
    of_task = (task.get("id"), task.get("type"), task.get("parent"))
    return (text["subject"], instant(text["time"]), model, units, of_task, data.get("outcome"))


def content_or_none(text):
    """The same; None of what is no event."""
    try:
        return content(text)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def units_of(data):
    """Units per class of a usage event, from what it states or from the payload of its provider."""
    if "usage" in data:
        units = dict(data["usage"])
    else:
        body, form = data["provider_usage"]["body"], data["provider_usage"]["format"]
        if form == "openai.chat":
            cached = body["prompt_tokens_details"]["cached_tokens"]
            reasoning = body["completion_tokens_details"]["reasoning_tokens"]
            units = {"input": body["prompt_tokens"] - cached, "cache_read": cached,
                     "output": body["completion_tokens"] - reasoning, "reasoning": reasoning}
        elif form == "anthropic.messages":
            units = {"input": body["input_tokens"], "cache_read": body["cache_read_input_tokens"],
                     "cache_write_5m": body["cache_creation_input_tokens"], "output": body["output_tokens"]}
        else:
            raise ValueError(f"no gateway here sends {form}")
    return {name: count for name, count in units.items() if count}


class Journals:
    def __init__(self, folder):
        self.events = []  # those that can be taken apart
        self.whole = []  # bodies that cannot
        self.messages = 0
        for path in sorted(Path(folder).glob("*.jsonl")):
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            for line in lines:
                if "message" in line:
                    self.read(line)

    def read(self, line):
        self.messages += 1
        if line["notes"] == ["whole"]:
            self.whole.append(line["body"])
            return
        body = json.loads(line["body"])
        events = body if isinstance(body, list) else [body]
        for text, note in zip(events, line["notes"], strict=True):
            self.events.append(Event(line["gateway"], text, note))
