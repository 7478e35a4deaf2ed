"""What ``ARM[@BUDGET]`` on the command line stands for."""

from __future__ import annotations

from collections.abc import Sequence

from paretune.errors import UserError
from paretune.runner.ledger import Ledger
from paretune.study.quantity import Quantity


def find_arm(ledger: Ledger, name: str) -> str:
    """The id of the arm that is called ``name`` or begins or ends with it.

    Raises:
        UserError: no arm, or several.
    """
    arms = list(ledger.arms())
    if name in arms:
        return name
    found = [a for a in arms if name and (a.startswith(name) or a.endswith(name))]
    if len(found) == 1:
        return found[0]
    problem = "several arms match" if found else "no such arm"
    raise UserError(f"{problem} '{name}' in {ledger.folder}; there is {', '.join(found or arms)}")


def find_budget(arm_id: str, budget: str, have: Sequence[int], what: str) -> int:
    """The one of ``have`` (tokens, ascending, not empty) that ``budget`` means; the last for "".

    A budget is rounded up to a whole step, so it is the first that is not before it.

    Args:
        what: what there is at each budget, for the message: "checkpoint".

    Raises:
        UserError: not a quantity, or nothing near it.
    """
    if not budget:
        return have[-1]
    try:
        wanted = Quantity.parse(budget)
    except ValueError as error:
        raise UserError(f"{arm_id}@{budget}: {error}") from None
    reached = [tokens for tokens in have if wanted.unit == "tok" and tokens >= wanted.amount]
    if not reached or reached[0] > 2 * wanted.amount:
        shown = ", ".join(str(tokens) for tokens in have)
        raise UserError(f"{arm_id}@{budget}: no {what} at that budget; there is {shown}")
    return reached[0]
