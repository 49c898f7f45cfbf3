"""Deliberate faults in the scheduling core, each of which a named test must catch: `python -m bench.mutants`.

Each fault is one small replacement in a copy of the source, which must match exactly once, so that the list
can't outlive the code. The named tests run first on the unchanged copy, where they must pass, and then on
each fault, where its own must fail. Prints a table; exits with 1 if a fault survives or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = Path("serving/fairserve/core")


@dataclass(frozen=True)
class Mutant:
    """One fault: what it does, where, and who notices."""

    name: str
    file: str
    old: str
    new: str
    test: str


UNIT = "tests/unit/core/"
PROPERTY = "tests/property/"
_RUNS_AT_SNAPSHOT = (
    "test_a_call_that_runs_at_the_snapshot_keeps_its_interaction_open_and_is_no_settled_service"
)
MUTANTS = (
    Mutant(
        "no lift",
        "counters.py",
        "            member.counter = floor\n",
        "            pass\n",
        UNIT + "test_order.py::test_an_idle_tenant_saves_up_no_credit",
    ),
    Mutant(
        "lift to zero",
        "counters.py",
        "        floor = self.floor()\n",
        "        floor = 0\n",
        UNIT + "test_memory.py::test_after_a_restart_a_newcomer_has_no_credit",
    ),
    Mutant(
        "lift to whoever is ahead",
        "counters.py",
        "        floor = self.floor()\n",
        "        first = self.first()\n        floor = self.floor() if first is None else first.counter\n",
        UNIT
        + "test_order.py::test_a_newcomer_starts_at_the_smallest_counter_not_at_that_of_whoever_is_ahead",
    ),
    Mutant(
        "charge only at the end",
        "scheduler.py",
        "        ticket.units = units = int(\n",
        "        ticket.units = units = 0 * int(\n",
        UNIT + "test_order.py::test_the_charge_falls_at_dispatch_not_at_the_end",
    ),
    Mutant(
        "no charge beyond the prediction",
        "scheduler.py",
        "        if ticket.charged_output < output_tokens <= MOST_TOKENS:\n",
        "        if False:\n",
        UNIT + "test_order.py::test_what_exceeds_the_prediction_is_charged_while_the_call_runs",
    ),
    Mutant(
        "no refund",
        "scheduler.py",
        "        if units == before:\n",
        "        if units <= before:\n",
        UNIT + "test_order.py::test_settling_replaces_the_prediction_by_the_actual_cost",
    ),
    Mutant(
        "a refund moves nobody forward",
        "scheduler.py",
        "            self.order.fell(flow)\n",
        "            pass\n",
        UNIT + "test_order.py::test_a_refund_moves_who_gets_it_forward",
    ),
    Mutant(
        "cancelled calls cost nothing",
        "scheduler.py",
        "        self._charge(ticket, usage)\n        self._inflight_tokens -=",
        "        self._charge(ticket, usage if outcome is Outcome.COMPLETED else Usage(0, 0))\n"
        "        self._inflight_tokens -=",
        UNIT + "test_order.py::test_settling_replaces_the_prediction_by_the_actual_cost",
    ),
    Mutant(
        "accounts off by a unit",
        "scheduler.py",
        "        tenant.service += units - before\n",
        "        tenant.service += units - before + 1\n",
        PROPERTY + "test_core_machine.py::TestSchedulerMachine",
    ),
    Mutant(
        "an application's weight is charged to the tenant",
        "scheduler.py",
        "        tenant.counter += int(units / tenant_weight)\n",
        "        tenant.counter += int(units / tenant_weight / application_weight)\n",
        UNIT + "test_order.py::test_an_applications_weight_moves_share_inside_its_tenant_only",
    ),
    Mutant(
        "tenants' weights ignored",
        "flows.py",
        "        self.weight = settings.weight\n",
        "        self.weight = 1.0\n",
        PROPERTY + "test_core_fairness.py::test_the_bound_is_kept_where_it_is_broken_without_fairness",
    ),
    Mutant(
        "one level of counters",
        "orders.py",
        "        tenant = self.tenants.first()\n",
        "        tenant = min(\n"
        "            (t for t in self._backlog.tenants.values() if t.queued),\n"
        "            key=lambda t: min(f.counter for f in t.flows.values() if f.waiting),\n"
        "            default=None,\n"
        "        )\n",
        PROPERTY + "test_core_games.py::test_splitting_a_user_gains_nothing_above_the_tenants_share",
    ),
    Mutant(
        "newest first inside a flow",
        "flows.py",
        "        begins = self.first\n",
        "        begins = self.last\n",
        UNIT + "test_order.py::test_inside_a_flow_calls_are_first_come_first_served",
    ),
    Mutant(
        "no continuation rule",
        "flows.py",
        "        if continuations_first or begins is None or continues is None:\n",
        "        if begins is None or continues is None:\n",
        UNIT + "test_order.py::test_inside_a_flow_continuations_go_first",
    ),
    Mutant(
        "no bound on the head start",
        "orders.py",
        "    return round(UNIT * settings.continuation_head_start) if",
        "    return 10**30 if",
        UNIT + "test_order.py::test_a_continuation_jumps_between_flows_by_a_bounded_head_start",
    ),
    Mutant(
        "continuations are refused",
        "scheduler.py",
        "        limited = self._limits_calls or (begins and self._limits_beginnings)\n",
        "        limited = self._limits_calls or self._limits_beginnings\n",
        PROPERTY + "test_core_promises.py::test_an_admitted_interaction_is_never_refused",
    ),
    Mutant(
        "a hold cuts interactions",
        "scheduler.py",
        "        if begins and tenant.held:\n",
        "        if tenant.held:\n",
        PROPERTY + "test_core_promises.py::test_a_hold_refuses_all_beginnings_and_no_continuation",
    ),
    Mutant(
        "a hold ends with the overload",
        "scheduler.py",
        "        if begins and tenant.held:\n",
        "        if begins and tenant.held and self.armed:\n",
        UNIT + "test_throttle.py::test_a_held_tenant_begins_nothing_overloaded_or_not",
    ),
    Mutant(
        "a claim continues what was never admitted",
        "scheduler.py",
        "        begins = interaction is None\n",
        "        begins = interaction is None and call.interaction is None\n",
        UNIT + "test_throttle.py::test_a_forged_id_continues_nothing",
    ),
    Mutant(
        "an interaction never idles out",
        "interactions.py",
        "            and (self.active > 0 or now - self.touched <= rules.idle_timeout_s)\n",
        "",
        UNIT + "test_throttle.py::test_past_its_rules_an_interaction_begins_anew_and_meets_the_limit",
    ),
    Mutant(
        "limits hold before overload",
        "scheduler.py",
        "        if limited and (self.armed or self._limits_always):\n",
        "        if limited:\n",
        PROPERTY + "test_core_promises.py::test_before_overload_nobody_is_refused",
    ),
    Mutant(
        "a window counts refused calls",
        "scheduler.py",
        "                return self._refused(call, flow, interaction, refusal, now)\n",
        "                throttle.admit(part, now)\n"
        "                return self._refused(call, flow, interaction, refusal, now)\n",
        UNIT + "test_throttle.py::test_refused_interactions_are_not_counted",
    ),
    Mutant(
        "Retry-After a tenth short",
        "limits.py",
        "        return until(times[self._oldest] + limit.window_s, now)\n",
        "        return 0.9 * until(times[self._oldest] + limit.window_s, now)\n",
        PROPERTY + "test_core_promises.py::test_a_retry_after_retry_after_is_admitted",
    ),
    Mutant(
        "the loosest limit wins",
        "throttle.py",
        "        if retry_after_s > worst_s:\n",
        "        if worst is None and retry_after_s > 0.0:\n",
        UNIT + "test_throttle.py::test_the_most_restrictive_limit_wins",
    ),
    Mutant(
        "an exhausted application refuses the innocent",
        "sharing.py",
        "self._tenants.total < self.limit.count or not self._is_above_share(tenant, user)\n",
        "self._tenants.total < self.limit.count\n",
        PROPERTY + "test_core_sharing.py::test_nobody_is_refused_its_max_min_share_of_an_exhausted_limit",
    ),
    Mutant(
        "others' departures let nobody in",
        "sharing.py",
        "self._fewest(tenant, user, min(departures, self.EXACT)) or departures\n",
        "departures\n",
        PROPERTY
        + "test_core_sharing.py::test_a_shared_limit_names_the_first_time_at_which_a_caller_is_admitted",
    ),
    Mutant(
        "Retry-After of a shared limit a departure short",
        "sharing.py",
        "        return until(self._log[departures - 1][0] + self.limit.window_s, now)\n",
        "        return until(self._log[max(0, departures - 2)][0] + self.limit.window_s, now)\n",
        PROPERTY
        + "test_core_sharing.py::test_a_shared_limit_names_the_first_time_at_which_a_caller_is_admitted",
    ),
    Mutant(
        "many names have many shares of an application",
        "sharing.py",
        "        if not self._tenants.is_above(tenant, self.limit.count):\n            return False\n",
        "",
        UNIT + "test_throttle.py::test_a_tenant_of_many_names_has_one_tenants_share_of_an_application",
    ),
    Mutant(
        "a full queue refuses whoever comes last",
        "overflow.py",
        "        if begins and own.tenant is victim and plan.excess(own, call) >= plan.excess(flow):\n",
        "        if begins:\n",
        UNIT
        + "test_queue_bounds.py::test_a_full_queue_refuses_the_newest_beginning_call_of_the_deepest_flow",
    ),
    Mutant(
        "the mean price follows labels",
        "scheduler.py",
        "            self.traffic.observe(ticket.units / ticket.rate)\n",
        "            self.traffic.observe(part.application.typical)\n",
        PROPERTY + "test_core_games.py::test_mislabelling_gains_at_most_one_over_one_minus_lambda",
    ),
    Mutant(
        "the loudest user shapes a profile",
        "learning.py",
        "_middle([part.output_tokens for part in users], outputs)",
        "max([part.output_tokens for part in users])",
        UNIT + "test_learning.py::test_one_user_with_many_calls_shapes_nothing",
    ),
    Mutant(
        "of two the mean shapes a profile",
        "learning.py",
        "    return min(max(now, lower), upper)\n",
        "    return (lower + upper) / 2.0\n",
        UNIT + "test_learning.py::test_one_of_two_tenants_shapes_nothing",
    ),
    Mutant(
        "one user is enough for a profile",
        "learning.py",
        "_FEWEST_USERS: Final = 3\n",
        "_FEWEST_USERS: Final = 1\n",
        UNIT + "test_learning.py::test_too_few_users_move_nothing",
    ),
    Mutant(
        "a profile catches up with idle time",
        "learning.py",
        "        share = min(elapsed_s, _CATCH_UP_S) / (_HOUR_S + _CATCH_UP_S)\n",
        "        share = min(elapsed_s, _HOUR_S) / _HOUR_S\n",
        UNIT + "test_learning.py::test_after_an_idle_hour_no_hour_changes_a_profile_by_more_than_its_factor",
    ),
    Mutant(
        "a restart keeps the samples of nobody",
        "state.py",
        "            known.learner.profile = self.learned\n",
        "            known.learner.profile, known.learner.samples = self.learned, 10**6\n",
        UNIT + "test_learning.py::test_after_a_restart_a_stranger_shapes_nothing",
    ),
    Mutant(
        "a restart forgets the floor",
        "state.py",
        "            tenant.counter, tenant.queue.base = self.counter, self.floor\n",
        "            tenant.counter = self.counter\n",
        UNIT + "test_memory.py::test_after_a_restart_a_newcomer_has_no_credit",
    ),
    Mutant(
        "debts are forgotten",
        "memory.py",
        "                if order.owes(flow) or not self._is_over(flow, now):\n",
        "                if not self._is_over(flow, now):\n",
        UNIT + "test_memory.py::test_a_flow_with_debts_a_window_or_an_open_interaction_is_remembered",
    ),
    Mutant(
        "a restart cuts who was being served",
        "state.py",
        "                        0.0 if known.active else now - known.touched,\n",
        "                        now - known.touched,\n",
        UNIT + "test_memory.py::" + _RUNS_AT_SNAPSHOT,
    ),
    Mutant(
        "charges that nobody settles survive a restart",
        "state.py",
        "tenant.service - unsettled,",
        "tenant.service,",
        PROPERTY + "test_core_machine.py::TestSchedulerMachine",
    ),
    Mutant(
        "service elsewhere is lifted away",
        "scheduler.py",
        "        self.order.lift(flow)\n",
        "",
        UNIT + "test_order.py::test_service_elsewhere_counts_from_where_who_is_idle_would_begin",
    ),
    Mutant(
        "a clock that comes back stops time",
        "scheduler.py",
        "            self._ahead += told - now\n",
        "            return told + self._ahead\n",
        UNIT + "test_bad_input.py::test_a_clock_that_jumps_ahead_and_comes_back_stops_nothing",
    ),
    Mutant(
        "a forgotten charge is refunded",
        "scheduler.py",
        "            ticket.tenant_weight = ticket.application_weight = math.inf\n",
        "            pass\n",
        UNIT + "test_order.py::test_a_change_of_order_forgives_what_runs_as_well",
    ),
    Mutant(
        "a new application cuts what was open",
        "scheduler.py",
        "            self._moved_at = self._told + self._ahead\n",
        "            pass\n",
        UNIT
        + "test_throttle.py::test_an_open_interaction_outlives_its_application_and_is_found_by_a_new_one",
    ),
    Mutant(
        "no head start between users of one tenant",
        "scheduler.py",
        "self.tenant_settings(name), head_start(self.discipline, self.settings))\n",
        "self.tenant_settings(name), 0)\n",
        UNIT + "test_order.py::test_a_continuation_has_its_head_start_between_users_of_one_tenant_too",
    ),
    Mutant(
        "the end of a call is no traffic",
        "scheduler.py",
        "        interaction.tokens += tokens\n"
        "        if now > interaction.touched:\n"
        "            interaction.touched = now\n",
        "        interaction.tokens += tokens\n",
        UNIT + "test_throttle.py::test_the_end_of_a_call_is_traffic",
    ),
    Mutant(
        "a change of settings ranks nobody anew",
        "scheduler.py",
        "        self.overflow.forget()\n",
        "",
        UNIT + "test_queue_bounds.py::test_a_changed_weight_holds_for_who_is_furthest_over_its_share",
    ),
    Mutant(
        "the mean price counts cancelled calls",
        "scheduler.py",
        "            self.traffic.observe(ticket.units / ticket.rate)\n",
        "        self.traffic.observe(ticket.units / ticket.rate)\n",
        UNIT + "test_cost.py::test_calls_that_were_cut_short_do_not_cheapen_the_mean",
    ),
    Mutant(
        "a call that left the queue keeps its interaction open",
        "scheduler.py",
        "        if ticket.interaction is not None:\n            self._left(ticket.interaction, now, 0)\n",
        "",
        UNIT + "test_throttle.py::test_a_call_that_left_the_queue_keeps_no_interaction_open",
    ),
    Mutant(
        "no amnesty at a change of policy",
        "scheduler.py",
        "            self._forgive()\n",
        "",
        UNIT + "test_order.py::test_what_waits_at_a_change_of_policy_owes_nothing",
    ),
    Mutant(
        "a tenant's debt is forgotten with its flows",
        "memory.py",
        "                and not order.tenant_owes(tenant)\n",
        "",
        UNIT + "test_memory.py::test_a_tenant_that_owes_is_remembered_after_its_flows",
    ),
    Mutant(
        "a tenant's call is settled by the weight of now",
        "scheduler.py",
        "        weight = ticket.tenant_weight\n",
        "        weight = tenant.weight\n",
        UNIT + "test_order.py::test_a_call_is_settled_by_the_weights_at_its_dispatch",
    ),
    Mutant(
        "a user's call is settled by the weight of now",
        "scheduler.py",
        "        weight = ticket.application_weight\n",
        "        weight = ticket.part.application.weight\n",
        UNIT + "test_order.py::test_a_call_is_settled_by_the_weights_at_its_dispatch",
    ),
)


def run(source: Path, tests: list[str]) -> int:
    """pytest's exit status for these tests on this source: 0 all pass, 1 some fail."""
    with tempfile.TemporaryDirectory() as scratch:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-o",
                f"pythonpath={source / 'serving'} . operator",
                *tests,
            ],
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": f"{source / 'serving'}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_STORAGE_DIRECTORY": scratch,
            },
            stdout=subprocess.DEVNULL,
            check=False,
        ).returncode


def try_out(source: Path, mutant: Mutant) -> str:
    """What became of one fault: `caught`, or what is wrong."""
    path = source / CORE / mutant.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return f"MATCHES {original.count(mutant.old)} TIMES in {mutant.file}"
    try:
        path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
        status = run(source, [mutant.test])
    finally:
        path.write_text(original, encoding="utf-8")
    return {0: "SURVIVES", 1: "caught"}.get(status, f"PYTEST EXITS WITH {status}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="faults whose name contains this")
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if options.only is None or options.only in mutant.name]
    if not mutants:
        parser.error(f"no fault is named like {options.only!r}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "serving", source / "serving", ignore=ignored)
        if run(source, sorted({mutant.test for mutant in mutants})):
            print("the named tests fail without any fault", file=sys.stderr)
            return 1
        wrong = 0
        for mutant in mutants:
            result = try_out(source, mutant)
            wrong += result != "caught"
            print(f"{result:9} {mutant.name:50} {mutant.test.rpartition('::')[2]}", flush=True)
    print(f"{len(mutants) - wrong} of {len(mutants)} faults caught")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
