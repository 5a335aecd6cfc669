r"""Which words does the COCO caption evaluation see in a caption?

Those of Stanford CoreNLP 3.4.1's PTBTokenizer (-preserveLines -lowerCase), which pycocoevalcap
runs, less its dropped punctuation. The patterns are our own, written from the documented grammar
(PTBLexer.flex) and compared with Java's output (tests/golden/captions_ptb.json); docs/scores.md
lists known differences. At each position the rule with the longest match wins, including what must
follow (`before`); of equal ones the first in LEXER_RULES.

Oddities: brackets become words ("-lrb-"), "50¢" ends in the word "cents", "$" and "#" remain, an
emoji beyond U+FFFF vanishes, Chinese without spaces is one word, "\n" in a caption is a space.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# pycocoevalcap's list also has brackets in upper case, which no lower-cased token equals.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def _points(ranges: str) -> frozenset[int]:
  ends = (each.partition("-")[::2] for each in ranges.split())
  return frozenset(p for a, b in ends for p in range(int(a, 16), int(b or a, 16) + 1))


# Code points beyond ASCII that join words without being letters, and those that are tokens by
# themselves. All others that are neither letters nor digits separate words.
_JOINING = _points("""2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F
  591-5BD 5BF 5C1-5C2 5C4-5C5 5C7 615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C
  7A6-7B0 7EB-7F3 900-903 93C 93E-94E 951-955 962-963 981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7
  9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF B82 BBE-BC2 BC6-BC8 BCA-BCD C01-C03 C3E-C56
  D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD""")
_ALONE = _points("""A1 A6-A9 AC AE-B1 B4-B8 BF D7 F7 37E 387 589 5BE 5C0 5C3 5C6 5F3-5F4 600-603
  606-60A 60C 614 61B 61E-61F 66A 66D 6D4 700-70D 7F6-7F8 964-965 E4F 1FBD 2016-2017 2020-2023
  2030-2038 203B 203E-2042 2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129
  212E 213A-213B 2140-2144 214A-214D 214F 2190-2BFF 3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40
  FF5B-FF65""")
# Characters beyond ASCII that the patterns below name.
_NAMED = frozenset(
  "\xa0\xad\u2010\u2011\u058a\u0085\u2026\u0091\u0092\u0093\u0094\u0096\u0097\u2013\u2014\u2015"
  "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\xab\xbb\xa2\xa3\xa4\xa5\x80\u20a0"
  "\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6\xb2\xb3\xb9\xbc\xbd\xbe\u2044\u3001\u066b\u066c"
)
_LETTER_SHADOW, _DIGIT_SHADOW, _JOINING_SHADOW = "\xe0", "\u0660", "\u0301"
_ALONE_SHADOW, _SPACE_SHADOW, _GONE_SHADOW = "\xd7", "\u2003", "\x01"


_FRACTIONS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_CURRENCY = {"\xa2": "cents", "\xa3": "#"} | dict.fromkeys("\x80\xa4\u20a0\u20ac", "$")
_QUOTES = (
  dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
  | dict.fromkeys("\u0092\u2019\u203a", "'")
  | dict.fromkeys("\u0093\u201c\xab", "``")
  | dict.fromkeys("\u0094\u201d\xbb", "''")
)
_ROUND = {"(": "-lrb-", ")": "-rrb-"}
_BRACKETS = _ROUND | {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def _shadow(char: str) -> str:
  """A representative of the character's kind, so that the patterns name one of each kind."""
  if char < "\x80" or char in _NAMED:
    return char
  point = ord(char)
  if point > 0xFFFF:
    return _GONE_SHADOW
  if 0x2070 <= point <= 0x208E or 0x2150 <= point <= 0x215E:  # Small digits and fractions.
    return char
  if char.isalpha():
    return _LETTER_SHADOW
  if char.isdecimal():
    return _DIGIT_SHADOW
  if point in _JOINING:
    return _JOINING_SHADOW
  if point in _ALONE:
    return _ALONE_SHADOW
  return _SPACE_SHADOW if char.isspace() and char not in "\u1680\u202f\u205f" else _GONE_SHADOW


class LexerRule(NamedTuple):
  """One kind of token: its pattern, and its words."""

  pattern: re.Pattern[str]  # Group "token", then what must follow it.
  written: Callable[[str], list[str]]
  length: int | None = None  # Only this number of characters is read; the rest is scanned again.


def _same(token: str) -> list[str]:
  return [token]


def _always(*words: str) -> Callable[[str], list[str]]:
  return lambda token: list(words)


_nothing = _always()


def _through(table: dict[str, str]) -> Callable[[str], list[str]]:
  """Replaces each key of the table in a token."""
  pieces = re.compile("|".join(map(re.escape, table)), re.IGNORECASE)
  return lambda token: [pieces.sub(lambda piece: table[piece[0].lower()], token)]


def _softened(token: str) -> list[str]:
  return [token.replace("\xad", "") or "-"]


_quotes = _through(_QUOTES | {"&apos;": "'"})
_hard_spaces = _through({" ": "\xa0", "(": "-lrb-", ")": "-rrb-"})


def _kind(pattern: str, written=_same, *, before: str = "", length=None) -> LexerRule:
  return LexerRule(re.compile(f"(?P<token>{pattern}){before and f'(?:{before})'}"), written, length)


def _one_of(choices: str, flags: str = "i") -> str:
  """A pattern for one of these words; the longest first, since `re` takes the first match."""
  longest_first = sorted(choices.split(), key=len, reverse=True)
  return f"(?{flags}:{'|'.join(map(re.escape, longest_first))})"


_DIGIT = "[0-9\u0660]"
_LETTER = "[A-Za-z\xe0]"
_EITHER = "[A-Za-z\xe00-9\u0660]"
_SPACE = "[ \t\xa0\u2003]"
_SPACE_OR_END = "[ \t\xa0\u2003\n]"
_PAUSE = "[,;:\u3001]"

# Words. "end.Next" and "yes!but" are one word each, and entities such as &eacute; are letters.
_OF_WORD = "(?:[A-Za-z\xe0\xad\u0301]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_RUN = f"{_OF_WORD}(?:{_OF_WORD}|{_DIGIT})*"
_WORD = f"{_RUN}(?:[.!?]{_RUN})*"
_FILE_ENDINGS = _one_of(
  "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl"
  " png ppt ps py sql tar txt wav x xml zip"
)
_FILE = rf"(?:{_OF_WORD}|{_DIGIT})+(?:\.(?:{_OF_WORD}|{_DIGIT})+)*\.{_FILE_ENDINGS}"

# Apostrophes. Some words include theirs, others are split there ("dog's", "don't").
_APOSTROPHE = "(?:['\u0092\u2019]|(?i:&apos;))"
_INSIDE = "(?:[`'\u0091\u0092\u2018\u2019\u201b]|(?i:&apos;))"
_ENDING = f"{_APOSTROPHE}(?i:[dms]|ll|re|ve)"
_NOT = f"[nN]{_INSIDE}[tT]"
_WITH_APOSTROPHE = (
  r"(?i:c'mon|cont'd\.?|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores)"
  f"|(?i:dunkin|ol|somethin){_APOSTROPHE}|(?i:cap{_APOSTROPHE}n|c{_APOSTROPHE}est)"
  f"|{_APOSTROPHE}(?i:cause|em|till?|[2-9]0s)"
  f"|[A-HJ-XZn]{_INSIDE}{_LETTER}{{2,}}"  # O'Neil; not I'll, nor y'all.
  f"|{_LETTER}+[aeiouyAEIOUY]{_INSIDE}[A-Zaeiou]{_LETTER}*"  # Shi'ite
  f"|{_APOSTROPHE}[nN]{_APOSTROPHE}?|[dDjJlL]{_APOSTROPHE}"  # Last: prefixes of those above.
)

# Abbreviations include their full stop; in upper case only where the lower-case word is common.
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_SHORT = _one_of(
  "al Ala Apr Ariz Assn Aug Bancorp Bhd Bldg Blvd Bros Calif Co Colo Conn Corp Cos Ct Dak Dec Ed.D"
  " Esq est etc ext Feb Fla Fri Ga Inc Ind Intl Jan Jr Jul Jun Kan Kans Ky Ltd Mar Md Mich Minn Mo"
  " Mon Mont Neb Nev Nov Oct Okla Penn Ph.D Plc Pte Ptes Pty Ptys Ppty Ppte Rd Rt Sep Sept seq sq"
  " Sr Sys tel Tenn Thu Thurs Tue Tues Univ Va Vt Wed Wis Wisc Wyo"
)
_SHORT_IF_UPPER = (
  "A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
_TITLE = _one_of(
  "Adj Adm Adv Alex Assoc Asst Atty Attys Ave Brig Capt cf Cie Cmdr Col Comdr Cpl Dept Det Dr Drs"
  " Elec Ens Ft Gen Gov Govs Hon Insp Invt Jos Lieut Lt Maj Messrs Mfg Mlle Mme Mr Mrs Ms Msgr Mt"
  " Mtg Natl Pfc Ph Pres Prof Profs Pvt Rep Reps Rev Sen Sens Sfc Sgt Spc St Ste Supt Supts vs"
  " TREAS Wm"
)
_BEFORE_NUMBERS = _one_of("art arts ca fig figs no nos op pp prop")
# Such a word after "B." begins a sentence, so the full stop is not part of the letter.
_STARTS = _one_of(
  "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many"
  " More Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They"
  " This We What When While Yet You",
  flags="",
)

# Numbers.
_NUMBER = f"[-+]?(?:{_DIGIT}*(?:[.:,\xad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_DATE = f"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"
_FRACTION = rf"(?:{_DIGIT}{{1,4}}[- \xa0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}"
_RAISED = "[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)"
_AREA = r"\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0]){1,2}"
_PHONE = (
  rf"(?:{_AREA})[0-9]{{3,4}}[- \xa0]?[0-9]{{3,5}}"
  r"|\+{0,2}(?:[0-9]{2,4}\.){1,2}[0-9]{3,4}\.[0-9]{3,5}"
)

# Several words in one.
_NOBLE = f"(?:[dDlLoO]{_INSIDE}{_EITHER})?{_EITHER}+"  # Also "d'Or" in "Val-d'Or".
_HYPHENED = f"{_NOBLE}(?:[-_\u058a\u2010\u2011]{_NOBLE})*"
_NUMBERED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9\xad]+))+"
_FEW_HYPHENS = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_SLASHED = rf"{_FEW_HYPHENS}(?:\\?/{_FEW_HYPHENS}){{1,2}}"
_AMPERSANDS = "[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+"

# Addresses and markup.
_FREE = r'[^\s"<>()|]'
_PATH = rf"(?:/{_FREE}{{2,}}(?<![-.!?,{{}}]))?"
_URL = rf"(?i:https?)://{_FREE}{{2,}}(?<![-.!?,{{}}])"
_HOST = (
  rf"(?i:www)\.(?:(?![.!?{{}},]){_FREE})+\.(?:(?:(?![.!?{{}},]){_FREE})+\.)*[a-zA-Z]{{2,4}}{_PATH}"
  rf"|(?:[a-z#%&*+~\xa1-\uffff]+\.)+(?i:com|net|org|edu){_PATH}"
)
_MAIL = r'(?:<|&lt;)?[a-zA-Z0-9][^\s"<>()|{}]*@[^\s"<>()|{}.]+(?:\.[^\s"<>()|{}.]+)*(?:>|&gt;)?'
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"""{_NAME}(?: *= *(?:'[^'\n]*'|"[^"\n]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|{_NAME}(?: +{_ATTRIBUTE})* */?|/{_NAME}) *>"

# Faces.
_EYE = "[-^x=~<>']"
_ASIAN_FACE = rf"{_EYE}_{_EYE}|\({_EYE}[_.]?{_EYE}\)"
_SMILEY = r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]"

_IN_TWO = ("cannot", "gonna", "gotta", "lemme", "gimme", "wanna")

LEXER_RULES = [
  _kind(r"(?i:c\+\+|[cf]\#)"),
  _kind(_one_of(" ".join(_IN_TWO)), length=3),
  _kind("'(?i:tis|twas)", length=2),
  _kind(_WORD, _softened, before=_ENDING),
  _kind("[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", _softened, before=_NOT),
  _kind(_WORD, _softened),
  _kind(_WITH_APOSTROPHE),
  _kind(f"[yY]{_APOSTROPHE}", before=_LETTER),
  _kind(_ENDING, _quotes, before="[^A-Za-z]"),
  _kind(_NOT, _quotes),
  _kind(f"{_APOSTROPHE}[0-9][0-9]", before=_SPACE_OR_END),
  _kind(_TAG, _hard_spaces),
  _kind(f"{_URL}|{_HOST}"),
  _kind(_MAIL),
  _kind(rf"@[a-zA-Z_][a-zA-Z_0-9]*|\#{_OF_WORD}+"),
  _kind(_DATE),
  _kind(_NUMBER, _softened),
  _kind(_RAISED),
  _kind(_FRACTION, _hard_spaces),
  _kind("[\xbc\xbd\xbe\u2153-\u215e]", _through(_FRACTIONS)),
  _kind(r"[A-Z]*\$|\#"),
  _kind(
    "[\xa2\xa3\xa4\xa5\x80\u20a0\u20a4\u20ac\u060b\u0e3f\uffe0\uffe1\uffe5\uffe6]",
    _through(_CURRENCY),
  ),
  _kind("[A-Za-z]", before=rf"\.{_SPACE}+{_STARTS}{_SPACE_OR_END}"),
  _kind(rf"{_BEFORE_NUMBERS}\.", before=f"{_SPACE_OR_END}?{_DIGIT}"),
  _kind(rf"(?:{_SHORT}|{_SHORT_IF_UPPER})\.", before=r"[\s\S][\s\S]"),
  _kind(rf"(?:{_TITLE}|M(?i:iss)|{_INITIALS}|[A-Za-z])\."),
  _kind(_INITIALS, before=_SPACE_OR_END),
  _kind(_FILE, before=f"{_SPACE_OR_END}|[.?!,]"),
  _kind(rf"{_WORD}\.", _softened, before=_PAUSE),
  _kind(_PHONE, _hard_spaces),
  _kind(_SLASHED),
  _kind("(?i:pro-|anti-)"),
  _kind(rf"{_NUMBERED}\.", _softened, before=_PAUSE),
  _kind(_NUMBERED, _softened),
  _kind(rf"{_HYPHENED}\.", before=_PAUSE),
  _kind(_HYPHENED),
  _kind(_AMPERSANDS, _through({"&amp;": "&"})),
  _kind('"|(?i:&quot;)', _always("``"), before="[A-Za-z0-9$]"),
  _kind('"|(?i:&quot;)', _always("''")),
  _kind("'", _always("`"), before=r"[A-Za-z][^ \t\n\xa0]"),
  _kind(_ENDING, _quotes),
  _kind("''|'|(?i:&apos;)|[`\x91-\x94\xab\xbb\u2018-\u201f\u2039\u203a]{1,2}", _quotes),
  _kind(_SMILEY, _through(_ROUND), before="[^A-Za-z0-9]"),
  _kind(_ASIAN_FACE, _through(_ROUND)),
  _kind(r"[()\[\]{}]", _through(_BRACKETS)),
  _kind("<<|>>"),
  _kind("<|(?i:&lt;)", _always("<")),
  _kind(">|(?i:&gt;)", _always(">")),
  _kind("(?i:&[mn]dash;|&MD;)|-{3,4}|[\x96\x97\u2013-\u2015]", _always("--")),
  _kind("-+"),
  _kind(r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026]", _always("...")),
  _kind(r"@+|_+|\#+|\*+|(?:\\\*){1,3}"),
  _kind(rf"{_PAUSE}|[?!]+|[.=/]"),
  _kind("(?i:&amp;)", _always("&")),
  _kind(r"&\#[0-9]+;"),
  _kind(r"[+%&~^|\\\xd7\u2044\u207a-\u208e]"),
  _kind("[\x00\x01]|[ \t\xa0\u2003]+|(?i:&nbsp;)", _nothing),
]
_PLAIN = re.compile(r"([A-Za-z]+)[ \n]")


def words(caption: str) -> str:
  """The words that pycocoevalcap scores, separated by single spaces."""
  caption = re.sub("\r\n|[\r\n\x0b\x0c\u2028\u2029]", " ", caption)
  shadow = (caption if caption.isascii() else "".join(map(_shadow, caption))) + "\n\n"
  tokens: list[str] = []
  start = 0
  while start < len(caption):
    plain = _PLAIN.match(shadow, start)
    if plain and plain[1].lower() not in _IN_TWO:  # Most words; the rules are for the others.
      tokens.append(plain[1])
      start = plain.end()
    else:
      written, end = _longest(shadow, start)
      tokens += written(caption[start:end])
      start = end
  return " ".join(token for token in map(str.lower, tokens) if token not in DROPPED)


def _longest(shadow: str, start: int) -> tuple[Callable[[str], list[str]], int]:
  """The words and the end of the longest token; a character that matches no rule is skipped."""
  written, end, longest = _nothing, start + 1, start
  for rule in LEXER_RULES:
    match = rule.pattern.match(shadow, start)
    if match and match.end() > longest:
      written, end, longest = rule.written, match.end("token"), match.end()
      if rule.length is not None:
        end = start + rule.length
  return written, end
