"""How are findings reported? As text, as one HTML file without scripts or links, and as data."""

import base64
import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pgjax.data_check.findings import ERROR, WARNING, Finding
from pgjax.data_check.scan import Spread
from pgjax.visualization import html_page

WIDTH = 110  # Characters.


def verdict(findings: Sequence[Finding]) -> str:
  """The number of errors and warnings."""
  counts = {level: sum(f.level == level for f in findings) for level in (ERROR, WARNING)}
  named = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
  return " and ".join(named) or "no problems found"


def text(findings: Sequence[Finding]) -> str:
  """The findings, each with its examples."""
  lines = []
  for finding in findings:
    lines.append(f"{finding.level}: {finding.sentence}")
    lines += [f"    {example}" for example in finding.examples]
    if (more := finding.count - len(finding.examples)) > 0:
      lines.append(f"    and {more:,} more")
  return "\n".join(lines)


def report(facts: Mapping[str, Mapping[str, Any]]) -> str:
  """All facts, a paragraph per data set."""
  paragraphs = []
  for name, of in facts.items():
    lines = [name]
    for key, value in _lines(of):
      first, *more = textwrap.wrap(value, WIDTH - 12, break_on_hyphens=False) or [""]
      lines += [f"  {key:<10}{first}", *(" " * 12 + line for line in more)]
    paragraphs.append("\n".join(lines))
  return "\n\n".join(paragraphs)


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  lines = [("data", facts["data"]), ("examples", f"{facts['examples']:,}")]
  if "columns" in facts:
    columns = [f"{name} ({_types(types)})" for name, types in facts["columns"].items()]
    lines.append(("columns", ", ".join(columns)))
  if facts.get("read_as"):
    lines.append(("read as", "; ".join(facts["read_as"])))
  if images := facts.get("images"):
    read = f"{images['read']:,} read in {images['looked_at']:,} examples"
    lines.append(("images", f"{read}, {images['different']:,} different"))
    if images["per_example"] and images["per_example"].max > 1:
      lines.append(("", f"of an example: {spread(images['per_example'])}"))
    if images["width"]:
      sizes = f"width {spread(images['width'])}; height {spread(images['height'])}"
      lines.append(("", sizes))
  lines += _text_lines(facts["texts"])
  if masks := facts.get("masks"):
    text = masks.get("why_not")
    if masks["mean_iou"] is not None:
      text = f"after encoding {masks['looked_at']} of them, "
      text += f"mean IoU {masks['mean_iou']:.3f}, lowest {masks['least_iou']:.3f}"
    lines.append(("masks", f"{masks['number']:,}; {text}"))
  return lines


def _types(types: Mapping[str, int]) -> str:
  if len(types) == 1:
    return next(iter(types))
  return ", ".join(f"{count:,} {name}" for name, count in types.items())


def _text_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  looked_at = facts["looked_at"]
  share = f"{facts['cut'] / looked_at:.2%}" if looked_at else "none"
  lines = [
    ("tokens", f"{spread(facts['tokens'])}; text_len={facts['room']} truncates {share}"),
    ("prefixes", f"tokens {spread(facts['prefix_tokens'])}; {_common(facts['prefixes'])}"),
  ]
  if facts["answers"]["number"]:
    answers = f"tokens {spread(facts['answer_tokens'])}; {_common(facts['answers'])}"
    lines.append(("answers", answers))
  if "boxes" in facts:
    boxes = facts["boxes"]
    classes = ", ".join(f"{name or 'no label'} {count:,}" for name, count in boxes["classes"])
    masks = f", {boxes['with_mask']:,} with a mask" if boxes["with_mask"] else ""
    most = f"at most {boxes['most_in_an_answer']} in one"
    without = f"{boxes['answers_without']:,} answers without"
    text = f"{boxes['objects']:,} in answers{masks}, {most}; {without}; {classes}"
    lines.append(("boxes", text))
  return lines


def spread(of: Spread | None) -> str:
  """ "min 3, median 5, 99% 9, max 12", or "all 64"."""
  if of is None:
    return "none"
  if of.min == of.max:
    return f"all {of.min:,}"
  return f"min {of.min:,}, median {of.median:,}, 99% {of.p99:,}, max {of.max:,}"


def _common(facts: Mapping[str, Any]) -> str:
  number, text = facts["number"], f"{facts['different']:,} different"
  repeated = [(_cut(value), count) for value, count in facts["commonest"] if count > 1]
  if repeated:
    shares = [f"{value!r} {count / number:.1%}" for value, count in repeated]
    return f"{text}; most frequent {', '.join(shares)}"
  return f"{text}, such as {_cut(facts['commonest'][0][0])!r}" if number else text


def _cut(text: str) -> str:
  return text if len(text) <= 60 else text[:57] + "..."


def page(
  title: str, spec: str, facts: Mapping[str, Any], findings: Sequence[Finding], pictures
) -> str:
  """HTML; `pictures` are (title, PNG bytes, (prompt, answer)). Texts of the data are escaped."""
  parts = [f'<p class="verdict">{html.escape(verdict(findings).capitalize())}</p>']
  for finding in findings:
    more = [f"and {n:,} more"] if (n := finding.count - len(finding.examples)) > 0 else []
    examples = "".join(f"<li>{html.escape(example)}</li>" for example in [*finding.examples, *more])
    parts.append(
      f'<div class="finding {finding.level}"><b>{finding.level}</b> '
      f"{html.escape(finding.sentence)}<ul>{examples}</ul></div>"
    )
  parts.append("<h2>The data</h2>")
  parts += [
    f"<h3>{html.escape(name)}</h3>{html_page.facts_list(_lines(of))}" for name, of in facts.items()
  ]
  parts.append("<h2>What the model receives</h2>")
  for name, png, texts in pictures:
    data = base64.b64encode(png).decode()
    prompt, answer = (html.escape(text.strip()) for text in texts)
    parts.append(
      f"<figure><figcaption>prompt: {prompt}\nanswer: {answer}</figcaption>"
      f'<img class="drawn" src="data:image/png;base64,{data}" alt="{html.escape(name)}"></figure>'
    )
  return html_page.page(title, {"config": spec}, "".join(parts))


def as_json(spec: str, facts: Mapping[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
  """The same as data."""
  return dict(
    config=spec,
    errors=sum(f.level == ERROR for f in findings),
    warnings=sum(f.level == WARNING for f in findings),
    findings=[dict(level=f.level, **f._asdict()) for f in findings],
    data={name: _plain(of) for name, of in facts.items()},
  )


def _plain(value: Any) -> Any:
  if isinstance(value, Spread):
    return value._asdict()
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  return value
