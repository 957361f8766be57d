"""`python dev.py evaluate`: `python -m evaluation` with the host of dev.py; without a plan, of the demo's pair."""

from __future__ import annotations

import sys

from demo.run import demo_models
from demo.server import REPO
from evaluation.__main__ import carry_out, parse

PLAN = REPO / "evaluation" / "demo.yaml"


def main() -> int:
    options = parse(sys.argv[1:], default_plan=PLAN)
    if options.plan.resolve() == PLAN:
        options.models.append(demo_models())
    return carry_out(options)


if __name__ == "__main__":
    sys.exit(main())
