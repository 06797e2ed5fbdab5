"""The comparison: case by case, each written when it is finished, so that it resumes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hyperattention_ref.models.replacement import Outcome, Replacement, chosen_layers
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.progress import Step
from hyperattention_ref.pages.results_folder import ResultsFolder, file_stamps
from hyperattention_ref.pages.threads import available_cores, limited_threads
from hyperattention_ref.perplexity.language_model import LanguageModel, read_text
from hyperattention_ref.perplexity.methods import EXACT, Method, methods
from hyperattention_ref.perplexity.report import Case, PerplexityReport, Row
from hyperattention_ref.perplexity.settings import PerplexitySettings
from hyperattention_ref.perplexity.texts import Text

PACKAGES = ("hyperattention-ref", "numpy", "numba", "torch", "transformers")


@dataclass(frozen=True)
class Comparison:
    """What all cases share."""

    model: LanguageModel
    text: Text
    settings: PerplexitySettings

    def run(self, name: str, method: Method | None, count: int) -> Case:
        """Prefill with the last `count` layers replaced, or with none; after a short one, which may compile."""
        model = self.model.model
        if method is None:
            self.model.prefill(self.text.ids[: self.settings.min_seq_len + 1])
            hidden, seconds = self.model.prefill(self.text.ids)
            return Case(name, 0, 0, 0.0, seconds, tuple(self.model.losses(hidden, self.text)))
        layers = chosen_layers(model, f"last:{count}")
        replacement = Replacement(method.attention, self.settings.min_seq_len, layers)
        with replacement.within(model):
            self.model.prefill(self.text.ids[: self.settings.min_seq_len + 1])
            hidden, seconds = self.model.prefill(self.text.ids)
        replaced = sum(calls[Outcome.REPLACED] > 0 for calls in replacement.report.layers.values())
        losses = tuple(self.model.losses(hidden, self.text))
        return Case(name, count, replaced, method.logits_per_query, seconds, losses)


def compare(
    model: str, path: Path, out: Path, settings: PerplexitySettings, command: str, step: Step
) -> PerplexityReport:
    """Run every case that has no result in `out` yet.

    Parameters
    ----------
    model : name or folder of a causal language model.
    path : a text file in UTF-8.
    out : folder for one JSON file per case, written when the case is finished.
    settings : what to compare.
    command : that was given, for the report.
    step : called with the name of the case that begins, how many are finished, and how many there are.

    Raises
    ------
    ValueError : as `read_text` and `LanguageModel`; `layers` beyond the model's; `out` holds something else.
    """
    facts = environment(PACKAGES) | {"threads": available_cores()}
    step("reading the text and the model", 0, 1)
    text = read_text(model, path, settings)
    with limited_threads(available_cores()):
        language_model = LanguageModel(model, text.ids)
        counts = layer_counts(settings, language_model.n_layers)
        folder = ResultsFolder(out, "perplexity_run.json", "cases")
        digest = hashlib.sha256(text.ids.tobytes()).hexdigest()
        record = {"model": model, "files": file_stamps(model), "text": digest, "settings": settings.to_dict()}
        folder.claim(record | {"environment": facts}, "a comparison of another model, text, machine or settings")
        shared = Comparison(language_model, text, settings)
        wanted: list[tuple[str, Method | None, int]] = [(EXACT, None, 0)]
        wanted += [(name, method, count) for count in counts for name, method in methods(settings).items()]
        cases: list[Case] = []
        for name, method, count in wanted:
            words = f"{name}, last {count} layers" if count else name
            step(words, len(cases), len(wanted))
            part = re.sub(r"\W+", "_", words)
            cases.append(folder.once(part, partial(shared.run, name, method, count), Case))
    return PerplexityReport(
        model=Path(model).name,
        text=path.name,
        n_layers=language_model.n_layers,
        scored=settings.n - text.first,
        settings=settings,
        rows=tuple(Row.of(case, cases[0]) for case in cases),
        command=command,
        environment=facts,
    )


def layer_counts(settings: PerplexitySettings, n_layers: int) -> tuple[int, ...]:
    """The numbers of replaced layers that the settings mean for a model."""
    if settings.layers is None:
        return tuple(sorted({max(1, n_layers // 3), n_layers}))
    if any(count > n_layers for count in settings.layers):
        raise ValueError(f"layers is {', '.join(map(str, settings.layers))}; the model has {n_layers} layers")
    return settings.layers
