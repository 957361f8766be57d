"""One evaluation from its plan to its summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from evaluation import summary
from evaluation.errors import EvaluationError, refusing
from evaluation.plan import Batch, Plan
from evaluation.plots import plots
from evaluation.progress import Progress
from evaluation.store import Store
from evaluation.workers import Workers, described, rendered
from files.pictures import write_bytes
from files.replacing import advice
from plots.figure import check_available


def evaluate(plan: Plan, make_workers: Callable[[], Workers]) -> str:
    """Make what is missing in the plan's output folder, and then its summary.

    Args:
        plan: what to evaluate.
        make_workers: called where there is something to compute.

    Returns:
        The summary as text.

    Raises:
        EvaluationError: the plan cannot be carried out, or the output cannot be written; what is there is whole, and a
            later run goes on from it.
    """
    with refusing("", ValueError):
        check_available()
    prompts = plan.prompts.read()
    with closing(Store(plan, prompts)) as store:
        if missing := store.missing():
            with closing(make_workers()) as workers:
                _make(plan, prompts, store, missing, workers)
        with _writing(plan.output):
            return _sum_up(plan, prompts, store)


def _make(plan: Plan, prompts: Sequence[str], store: Store, missing: Sequence[Batch], workers: Workers) -> None:
    print("Starting ComfyUI ...", file=sys.stderr, flush=True)
    description = described(workers)
    with _writing(plan.output):
        store.begin(description)
    per_prompt = len(plan.seeds) * len(plan.cells)
    total = len(plan.pairs) * len(prompts) * per_prompt
    to_do = sum(len(batch.prompts) for batch in missing) * per_prompt
    with closing(Progress(plan, total, total - to_do)) as progress:
        for batch, pictures in rendered(missing, workers):
            with _writing(plan.output):
                store.write(batch, pictures)
            progress.add(batch.pair, pictures)


def _sum_up(plan: Plan, prompts: Sequence[str], store: Store) -> str:
    found = [
        point
        for index, pair in enumerate(plan.pairs)
        for point in summary.points(plan, pair.name, store.collect(index))
    ]
    text = summary.to_markdown(plan, len(prompts), found)
    write_bytes(plan.output / "summary.md", text.encode())
    write_bytes(plan.output / "summary.csv", summary.to_csv(found).encode())
    for name, file in plots(plan, len(prompts), found).items():
        write_bytes(plan.output / name, file)
    return text


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Of a file that is replaced, the second name is that which it should get.
        of = f": {Path(error.filename2).name}" if error.filename2 else ""
        raise EvaluationError(
            f"output: {folder} cannot be written ({error.strerror or error}{of}); {advice(error)}, and run this again: "
            "what is done is kept."
        ) from None
