"""The steps that stay are those of a run that was never stopped."""

import random

import pytest

from pgjax.checkpoints import retention

TOTAL = 60


def value_at(step):
  return {"val/acc": round(random.Random(step).random(), 1)}


class Disk:
  """The saved steps of a run, and what each one's run.json has."""

  def __init__(self, plan):
    self.plan, self.saved = plan, {}

  def start(self):
    opened = retention.Retention(self.plan)
    for step, (scores, planned) in self.saved.items():
      opened.add(step, scores, planned=planned)
    return opened

  def save(self, opened, step, scores, *, planned):
    if step not in self.saved:
      opened.add(step, scores, planned=planned)
      self.saved[step] = (scores, planned)
      kept = opened.preserved(self.saved)
      self.saved = {s: facts for s, facts in self.saved.items() if s in kept}


def run(plan, stops=(), every=5):
  """The steps on the disk after a run with an evaluation every N steps; stops: (step, when)."""
  disk, step, evaluated = Disk(plan), 0, True
  stops = list(stops)
  opened = disk.start()
  while True:
    if not evaluated:  # A resumed run evaluates what was interrupted.
      scores = value_at(step)
      planned = disk.saved[step][1] or opened.due(step, scores)
      opened.add(step, scores, planned=planned)
      disk.saved[step], evaluated = (scores, planned), True
    if step == TOTAL:
      return sorted(disk.saved)
    step += 1
    now = [when for at, when in stops if at == step][:1]
    if now == ["in the evaluation"] and step % every == 0:
      disk.save(opened, step, {}, planned=opened.due(step, {}))
      stops.remove((step, now[0]))
      opened, evaluated = disk.start(), False
      continue
    scores = value_at(step) if step % every == 0 else {}
    if opened.due(step, scores):
      disk.save(opened, step, scores, planned=True)
    if now:
      disk.save(opened, step, scores, planned=opened.due(step, scores))
      stops.remove((step, now[0]))
      opened = disk.start()


PLANS = {
  "last": dict(keep_last=1, every_steps=8),
  "two": dict(keep_last=2, every_steps=8),
  "best": dict(keep_last=1, every_steps=7, keep_best="val/acc"),
  "best only": dict(keep_last=1, keep_best="-val/acc"),
  "all": dict(keep_last=3, every_steps=4, keep_every_steps=20, keep_best="val/acc"),
}


@pytest.mark.parametrize("name", PLANS)
def test_stops_change_nothing_in_the_end(name):
  plan = retention.Plan(TOTAL, **PLANS[name])
  straight = run(plan)
  rng = random.Random(name)
  for _ in range(200):
    steps = sorted(rng.sample(range(1, TOTAL), rng.randint(1, 5)))
    stops = [(step, rng.choice(["in the evaluation", "after it"])) for step in steps]
    assert run(plan, stops) == straight, stops


def test_a_run_without_planned_steps_has_two_after_stops():
  """So that a damaged one has another before it."""
  opened = retention.Retention(retention.Plan(100))
  for step in (10, 20, 30):
    opened.add(step, {}, planned=False)
  assert opened.preserved([10, 20, 30]) == {20, 30}


def test_values_of_another_metric_are_not_compared():
  saved = {1: {"val/acc": 0.9, "val/loss": 0.1}, 2: {"val/acc": 0.5, "val/loss": 0.7}}
  for best, kept in (("val/acc", 1), ("val/loss", 2), ("-val/loss", 1)):
    opened = retention.Retention(retention.Plan(9, keep_last=1, keep_best=best))
    for step, scores in saved.items():
      opened.add(step, scores, planned=True)
    opened.add(3, {}, planned=True)
    assert opened.preserved([1, 2, 3]) == {kept, 3}, best
    assert opened.due(4, {"val/acc": 0.95, "val/loss": 0.05}) == (best != "val/loss")
