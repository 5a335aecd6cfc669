"""When does the official VQA evaluation (`vqa.vqav2`) consider two answers equal?

It cleans answers as on visualqa.org/evaluation.html, with the oddities of its program: a sign next
to a space is deleted and any other becomes a space, a comma between digits deletes every sign, and
a full stop is deleted unless a digit follows.
"""

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = "zero one two three four five six seven eight nine ten"

# The words to restore if one of their apostrophes is missing ("couldnt've").
_APOSTROPHES = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
  haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
  might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
  shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
  someone's something'd something'd've something'll that's there'd there'd've there're there's
  they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
  what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
  why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
  you've
"""


def _replacements() -> dict[str, str]:
  table = {"somebody'd": "somebodyd", "none": "0"}  # The first is an oddity of the official table.
  table |= {word: str(number) for number, word in enumerate(_NUMBERS.split())}
  for form in _APOSTROPHES.split():
    table |= {form[:i] + form[i + 1 :]: form for i, char in enumerate(form) if char == "'"}
  return table


REPLACEMENTS = _replacements()


def spaces(answer: str) -> str:
  """Every answer's cleaning: newlines and tabs become spaces, and outer spaces are stripped."""
  return answer.replace("\n", " ").replace("\t", " ").strip()


def cleaned(answer: str) -> str:
  """Lower case, without signs and articles, number words as digits, apostrophes restored."""
  has_digit_comma, out = re.search(r"\d,\d", answer) is not None, answer
  for sign in PUNCTUATION:
    deleted = has_digit_comma or f"{sign} " in answer or f" {sign}" in answer
    out = out.replace(sign, "" if deleted else " ")
  out = re.sub(r"\.(?!\d)", "", out)
  words = [word for word in out.lower().split() if word not in ARTICLES]
  return " ".join(REPLACEMENTS.get(word, word) for word in words)
