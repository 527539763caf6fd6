"""Plans by name and their controls, each different plan once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...interventions import Plan
from ...lens.errors import InputError

UNTOUCHED = "untouched model"
"""The condition that all others are compared with."""

Controls = Mapping[str, str | Plan | Sequence[Plan]]


@dataclass(frozen=True, eq=False)
class NamedPlans:
    """Conditions and what is run for them."""

    plans: tuple[Plan | None, ...]  # every different one; the first leaves the model untouched
    of: Mapping[str, int]  # the plan of each condition
    controls: Mapping[str, tuple[int, ...]]  # of a condition, the plans that are its control

    @classmethod
    def of_names(
        cls, plans: Mapping[str, Plan | None], controls: Controls | None = None
    ) -> "NamedPlans":
        """The conditions; InputError for a control of nothing, or that is no plan."""
        if not plans:
            raise InputError("there are no plans to compare: give a name and a plan for each")
        if UNTOUCHED in plans:
            raise InputError(f"{UNTOUCHED!r} is what all plans are compared with: another name")
        number: dict[Plan | None, int] = {None: 0}

        def numbered(plan: Plan | None) -> int:
            if not isinstance(plan, Plan | None):
                raise InputError(f"{plan!r} is no plan: write Plan(operation, …)")
            # A plan without operations is no plan.
            return number.setdefault(plan or None, len(number))

        of = {name: numbered(plan) for name, plan in plans.items()}
        found: dict[str, tuple[int, ...]] = {}
        for name, control in (controls or {}).items():
            if name not in of:
                raise InputError(f"a control for {name!r}, which is none of the plans")
            if isinstance(control, str) and control not in of:
                raise InputError(f"the control {control!r} of {name!r} is none of the plans")
            several = [control] if isinstance(control, str | Plan) else list(control)
            if not several:
                raise InputError(f"the control of {name!r} has no plan")
            found[name] = tuple(of[c] if isinstance(c, str) else numbered(c) for c in several)
        return cls(tuple(number), of, found)

    def name(self, number: int) -> str:
        """What a plan is called: its condition, or whose control it is."""
        known: dict[int, str] = {plan: name for name, plan in reversed([*self.of.items()])}
        known |= {
            plan: f"the control of {name}"
            for name, plans in self.controls.items()
            for plan in plans
            if plan not in known
        }
        return known.get(number, UNTOUCHED)
