"""What the gateways say they sent: one JSON line before each message, one after its confirmation."""

import json
from pathlib import Path


class Event:
    """One event as it was sent."""

    def __init__(self, gateway, text, note):
        self.gateway = gateway
        self.note = note
        self.identity = (text.get("source"), text.get("id"))
        self.epoch = text.get("epoch")
        self.sequence = text.get("sequence")
        self.text = text

    def content(self):
        """What is billed: equal for copies, different for conflicts."""
        data = self.text["data"]
        task = data.get("task") or {}
        model = (None, None) if self.outcome() else (data["provider"], data["model"])
        units = () if self.outcome() else tuple(sorted(units_of(data).items()))
        return (self.text["subject"], model, units, task.get("id"), task.get("type"), data.get("outcome"))

    def outcome(self):
        return self.text["type"] == "llm.task.v1"


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
