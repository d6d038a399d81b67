"""Figures for Prometheus. Those that mean the same as vLLM's have its names; the others begin with `sdrpn:`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from sdrpn.host.power import PowerMeter
from sdrpn.runtime.answer import Answer, Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.scheduler import Load
from sdrpn.runtime.server.about import About
from sdrpn.runtime.server.admission import Admission

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_STAGES = (
    "preprocess",
    "vision",
    "trunk",
    "rpn",
    "roi_decode",
    "crop_preprocess",
    "crop_vision",
    "crop_trunk",
    "tail_prefill",
)


class Metrics:
    """All figures of one server, with the label `model_name`."""

    def __init__(
        self,
        model: str,
        load: Callable[[], Load],
        admission: Admission,
        power: PowerMeter | None = None,
        about: About | None = None,
    ) -> None:
        """Args:
        load: what the scheduler has to do now
        power: of the GPU, where there is one
        about: what the server answers with
        """
        self._registry, self._model = CollectorRegistry(), model

        def histogram(name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            found = Histogram(name, text, ("model_name",), buckets=buckets, registry=self._registry)
            found.labels(model)
            return found

        def counter(name: str, text: str, *labels: str) -> Counter:
            found = Counter(name, text, ("model_name", *labels), registry=self._registry)
            if not labels:
                found.labels(model)
            return found

        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts: text, picture and crops.")
        self._generated = counter("vllm:generation_tokens", "Tokens of answers.")
        self._queries = counter("vllm:prefix_cache_queries", "Tokens of prompts that were looked up in the caches.")
        self._hits = counter("vllm:prefix_cache_hits", "Tokens of prompts that were known.")
        self._success = counter("vllm:request_success", "Answers, by how they ended.", "finished_reason")
        self._first = histogram("vllm:time_to_first_token_seconds", "From the request to its first token.")
        self._total = histogram("vllm:e2e_request_latency_seconds", "From the request to its last token.")
        self._queued = histogram("vllm:request_queue_time_seconds", "Waiting for a place.")
        self._prefill = histogram("vllm:request_prefill_time_seconds", "From a place to the first token.")
        self._decode = histogram("vllm:request_decode_time_seconds", "From the first token to the last.")
        self._between = histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer, on average.")
        self._lengths = histogram("vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._stall = histogram("sdrpn:longest_token_wait_seconds", "The longest wait between two tokens of an answer.")
        self._stage = Histogram(
            "sdrpn:stage_seconds",
            "Seconds of each stage of a request that ran it.",
            ("model_name", "stage"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._looks = counter("sdrpn:looks", "Questions of looks.")
        self._regions = counter("sdrpn:roi", "Answers and looks with a map, by whether it had a region.", "found")
        self._gates = counter("sdrpn:gate", "Answers, by whether the gate let them look again.", "again")
        self._crops = counter("sdrpn:crop_tokens", "Tokens of crops.")
        self._refused = counter("sdrpn:requests_refused", "Requests without an answer, by status.", "status")
        self._gone = counter("sdrpn:clients_gone", "Requests whose client went away.")
        self._reloads = counter("sdrpn:reloads", "Reloads of the bundle, by outcome.", "outcome")
        self._registry.register(_Now(model, load, admission, power))
        if about is not None:
            self._registry.register(about)

    def answered(self, answer: Answer, queued_s: float) -> None:
        """An answer is complete. `queued_s`: before it got a place."""
        times, tokens = answer.timings, answer.tokens
        prompt = tokens.prompt + tokens.roi
        self._prompt.labels(self._model).inc(prompt)
        self._generated.labels(self._model).inc(tokens.generated)
        self._queries.labels(self._model).inc(prompt)
        self._hits.labels(self._model).inc(tokens.cached)
        self._crops.labels(self._model).inc(tokens.roi)
        self._success.labels(self._model, answer.finish_reason).inc()
        self._lengths.labels(self._model).observe(tokens.generated)
        self._queued.labels(self._model).observe(queued_s + times.waited_s)
        self._first.labels(self._model).observe(queued_s + times.first_token_s)
        self._total.labels(self._model).observe(queued_s + times.total_s)
        self._prefill.labels(self._model).observe(max(0.0, times.first_token_s - times.waited_s))
        self._decode.labels(self._model).observe(max(0.0, times.total_s - times.first_token_s))
        if tokens.generated > 1:
            self._between.labels(self._model).observe(
                max(0.0, times.total_s - times.first_token_s) / (tokens.generated - 1)
            )
            self._stall.labels(self._model).observe(times.longest_wait_s)
        if answer.gate_score is not None:
            self._gates.labels(self._model, _word(answer.roi_map is not None)).inc()
        if answer.roi_map is not None:
            self._regions.labels(self._model, _word(bool(answer.boxes_xyxy_px))).inc()
        self._observe_stages(times)

    def looked(self, looks: Iterable[Look]) -> None:
        """Looks at one picture are complete."""
        looks = list(looks)
        self._looks.labels(self._model).inc(len(looks))
        for look in looks:
            self._regions.labels(self._model, _word(bool(look.boxes))).inc()
        self._observe_stages(looks[0].timings)

    def refused(self, status: int) -> None:
        """A request ended with an error."""
        self._refused.labels(self._model, str(status)).inc()

    def gone(self) -> None:
        """A client went away before its reply was complete."""
        self._gone.labels(self._model).inc()

    def reloaded(self, outcome: str) -> None:
        """A reload ended: "done" or "failed"."""
        self._reloads.labels(self._model, outcome).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _observe_stages(self, times: Timings) -> None:
        for stage in _STAGES:
            seconds = getattr(times, f"{stage}_s")
            if seconds > 0:
                self._stage.labels(self._model, stage).observe(seconds)


class _Now:
    """What is read when somebody asks."""

    def __init__(self, model: str, load: Callable[[], Load], admission: Admission, power: PowerMeter | None) -> None:
        self._model, self._load, self._admission, self._power = model, load, admission, power

    def collect(self) -> Iterable[Metric]:
        """As prometheus-client calls it."""
        load = self._load()
        yield self._gauge("vllm:num_requests_running", "Requests with a slot: the batch size.", load.running)
        waiting = load.waiting + self._admission.waiting
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for one.", waiting)
        yield self._gauge("sdrpn:unit_of_work_seconds", "How long the current unit of work has run.", load.unit_s)
        steps, tokens = sum(load.batches.values()), sum(size * count for size, count in load.batches.items())
        yield self._counter("sdrpn:decode_steps", "Decode steps.", steps)
        yield self._counter("sdrpn:decode_step_tokens", "Tokens of decode steps; divided by them: batch.", tokens)
        yield self._batch_sizes(load.batches)
        latest = {} if self._power is None else self._power.latest
        if "watts" in latest:
            yield self._gauge("sdrpn:gpu_power_watts", "Power of the GPU or module.", latest["watts"])
        if "device_memory_bytes" in latest:
            yield self._gauge("sdrpn:gpu_memory_used_bytes", "Memory in use.", latest["device_memory_bytes"])

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return ()

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        found = GaugeMetricFamily(name, text, labels=("model_name",))
        found.add_metric((self._model,), value)
        return found

    def _batch_sizes(self, batches: Mapping[int, int]) -> Metric:
        found = HistogramMetricFamily("sdrpn:decode_batch_size", "Answers of a decode step.", labels=("model_name",))
        buckets = [(str(most), sum(count for size, count in batches.items() if size <= most)) for most in _BATCHES]
        tokens = sum(size * count for size, count in batches.items())
        found.add_metric((self._model,), [*buckets, ("+Inf", sum(batches.values()))], tokens)
        return found

    def _counter(self, name: str, text: str, value: float) -> Metric:
        found = CounterMetricFamily(name, text, labels=("model_name",))
        found.add_metric((self._model,), value)
        return found


def _word(value: bool) -> str:
    return "yes" if value else "no"
