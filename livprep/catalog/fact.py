"""The form of all facts: frozen, and no key that nobody reads."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Fact(BaseModel):
    """A group of facts of catalog.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_template(template: str) -> str:
    before, number, after = template.partition("{n}")
    if not number or "{" in before + after or "}" in before + after:  # else `format` would do more than put it in
        raise ValueError("expected {n} once, where the number stands, and no other braces")
    return template


Template = Annotated[str, AfterValidator(_check_template)]
"""A file or folder name with a number in it, such as `volume-{n}`."""


def number_in(template: str, name: str) -> int | None:
    """Number in `name` if it has the form of `template` (`volume-{n}`), without regard to case."""
    before, _, after = template.partition("{n}")
    match = re.fullmatch(f"{re.escape(before)}([0-9]{{1,6}}){re.escape(after)}", name, re.IGNORECASE)
    return int(match[1]) if match else None
