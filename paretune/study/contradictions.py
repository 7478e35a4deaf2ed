"""Keys of a study file that are right by themselves and do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretune.study.mistakes import Mistake
from paretune.study.sources import Arithmetic, PocketProse, PythonPackages
from paretune.study.tasks import named_twice

if TYPE_CHECKING:
    from paretune.study.config import StudyConfig


def contradictions(study: StudyConfig) -> list[Mistake]:
    """Every mistake of that kind, with its place in the study file."""
    found = []
    data = study.target.data
    if not study.target.learned:
        reason = (
            "kl and reverse_kl show no learning: give a metric that does, such as bits_per_byte"
        )
        found.append(Mistake(("target", "metrics"), reason))
    if study.regime == "cpt":
        if study.target.samples is not None:
            reason = "samples are answers to prompts: they are for regime ift"
            found.append(Mistake(("target", "samples"), reason))
        if "exact_match" in study.target.metrics:
            reason = "exact_match needs prompts and responses: it is for regime ift"
            found.append(Mistake(("target", "metrics"), reason))
        if isinstance(data, Arithmetic):
            reason = "arithmetic gives prompts and responses: set regime: ift"
            found.append(Mistake(("target", "data", "from"), reason))
    if study.regime == "ift":
        if "cloze" in study.target.metrics:
            reason = "cloze needs running text: it is for regime cpt"
            found.append(Mistake(("target", "metrics"), reason))
        if isinstance(data, PythonPackages | PocketProse):
            reason = f"{data.from_} has no prompts: set regime: cpt"
            found.append(Mistake(("target", "data", "from"), reason))
    for index, text in enumerate(study.source.texts):
        if isinstance(text.data, Arithmetic):
            reason = "arithmetic gives prompts and responses, and a source text is running text"
            found.append(Mistake(("source", "texts", index, "data", "from"), reason))
    taken = {text.name for text in study.source.texts}
    for side, tasks in (("target", study.target.tasks), ("source", study.source.tasks)):
        for mistake in named_twice(tasks, taken):
            found.append(Mistake((side, "tasks", *mistake.path), mistake.message))
    for name, files in study.mirror.items():
        if "{split}" not in files:
            reason = "put {split} where the file names differ by split, such as data/{split}.jsonl"
            found.append(Mistake(("mirror", name), reason))
    known = study.metric_names()
    asked = [
        (("frontier", "learning"), study.frontier.learning, study.learning_metrics()),
        (("frontier", "forgetting"), study.frontier.forgetting, study.forgetting_metrics()),
    ]
    if study.repeat_best is not None:
        asked.append((("repeat_best", "metric"), study.repeat_best.metric, known))
    for path, metric, scored in asked:
        if metric is not None and metric not in scored:
            reason = f"'{metric}' is not scored here; there is {', '.join(scored)}"
            found.append(Mistake(path, reason))
    return found
