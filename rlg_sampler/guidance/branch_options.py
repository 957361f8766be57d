"""Which `model_options` each branch of a guided MODEL samples with.

Every MODEL brings its own attention patches, CFG functions and wrappers, and a branch must see those of its MODEL.
Nodes placed after the guided MODEL (or the sampler itself) add to the options as well, and those additions are
meant for both branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP, merge_nested_dicts

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Options = dict[str, Any]
KEY = "rlg"  # of everything we attach to a MODEL or its options


class NotCopied:
    """Something in the options of a run: packs that copy these deeply would copy a model with it, and miss the run."""

    def __deepcopy__(self, _: Any) -> NotCopied:
        return self


def sampling_options(patcher: ModelPatcher, options: Options | None = None) -> Options:
    """The options a stock sampler would run `patcher` with: its `model_options` plus its wrappers and callbacks.

    Args:
        options: in place of its `model_options`.
    """
    wrappers = {kind: {k: v for k, v in keyed.items() if k != KEY} for kind, keyed in patcher.wrappers.items()}
    attached = {"transformer_options": {"wrappers": wrappers, "callbacks": patcher.callbacks}}
    return merge_nested_dicts(patcher.model_options if options is None else options, attached)


def same_options(a: Any, b: Any) -> bool:
    """Whether two options act alike: the same structure holding the same objects, or equal plain values.

    Objects copied along with a clone count as different. That only costs a shared batch: each branch then samples with
    the options of its own MODEL, which hold equal copies.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        filled = {k for k in a.keys() | b.keys() if not (_empty(a.get(k)) and _empty(b.get(k)))}
        return all(same_options(a.get(k), b.get(k)) for k in filled)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_options(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, str | int | float | bool) and type(a) is type(b) and a == b)


def added_options(current: Mapping[str, Any], before: Mapping[str, Any]) -> Options:
    """What `current` holds that `before` does not, compared by identity."""
    added: Options = {}
    for key, value in current.items():
        old = before.get(key)
        if isinstance(value, dict):
            if inner := added_options(value, old if isinstance(old, dict) else {}):
                added[key] = inner
        elif isinstance(value, list):
            olds = old if isinstance(old, list) else []
            if new := [item for item in value if not any(item is o for o in olds)]:
                added[key] = new
        elif value is not old:
            added[key] = value
    return added


def with_wrapper_first(options: Mapping[str, Any], wrapper: Any) -> Options:
    """A copy of `options` with our outermost APPLY_MODEL wrapper; what it does not change is not copied."""
    transformer = options.get("transformer_options", {})
    wrappers = transformer.get("wrappers", {})
    others = {k: v for k, v in wrappers.get(WrappersMP.APPLY_MODEL, {}).items() if k != KEY}
    wrappers = {**wrappers, WrappersMP.APPLY_MODEL: {KEY: [wrapper], **others}}
    return {**options, "transformer_options": {**transformer, "wrappers": wrappers}}


def _empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_empty(v) for v in value.values())
    return value is None or (isinstance(value, list) and not value)
