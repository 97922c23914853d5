"""What a language code means: X-MOD's own (``en_XX``), BCP-47 (``gsw``, ``zh-Hans``) or ISO 639
(``de``, ``deu``).

An exact match always wins. Other codes are split into language, script and region (langcodes,
CLDR's likely scripts and regions). So ``de`` finds ``de_DE`` if it is the only German. ``zh`` is
refused if there are two kinds of Chinese. Codes of language families (``sla``) or of several
languages (``mul``) are refused.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from langcodes import Language, tag_distance
from langcodes.registry_parser import parse_registry

from xmod_lab.errors import UnknownLanguageError, nearest, shown

_NO_REGION = "XX"  # en_XX: English without a country
# CC-100's hi_IN_rom is romanised; my_MM_zaw is in the Zawgyi encoding (CLDR's code: Qaag)
_SCRIPT_OF_SUFFIX = {"rom": "Latn", "zaw": "Qaag"}
NO_SLOT = "none"  # instead of a slot's name: text goes through no slot
_LONGEST = 64  # characters of a code, because it is a part of file names and parameter names
_RELATED = 25  # distance up to which languages match; langcodes uses the same limit
# Attributes of torch.nn.ModuleDict (smart_apply: of transformers). They cannot be keys of one. They
# are listed here because importing torch takes seconds.
_METHODS = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children clear compile "
    "cpu cuda double dump_patches eval extra_repr float forward get_buffer get_extra_state "
    "get_parameter get_submodule half ipu items keys load_state_dict modules mtia "
    "named_buffers named_children named_modules named_parameters parameters pop "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook "
    "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module "
    "register_parameter register_state_dict_post_hook register_state_dict_pre_hook "
    "requires_grad_ set_extra_state set_submodule share_memory smart_apply state_dict to "
    "to_empty train training type update values xpu zero_grad".split()
)


class Meaning(NamedTuple):
    """A code in parts.

    Args:
        script: as written or as implied by the region, else ``None``.
        region: as written; ``None`` for XX or no region.
        likely: CLDR's likely (script, region) of the code.
        without_region: no region was written, not even XX.
    """

    language: str
    script: str | None
    region: str | None
    likely: tuple[str | None, str | None]
    without_region: bool


@lru_cache(maxsize=4096)
def meaning(code: str) -> Meaning | None:
    """The parts of ``code``.

    ``None`` if it is not a language tag (``shared``), or names several languages (``sla``).
    """
    if collective_fault(code):
        return None
    tag, _, suffix = code.rpartition("_")
    if not tag or suffix not in _SCRIPT_OF_SUFFIX:
        tag, suffix = code, ""
    try:
        found = Language.get(tag.replace("_", "-")).prefer_macrolanguage()  # cmn is zh
    except ValueError:
        return None
    if found.language is None or len(found.language) > 3:  # BCP-47 has at most three letters
        return None
    script = found.script or _SCRIPT_OF_SUFFIX.get(suffix)
    region = None if found.territory == _NO_REGION else found.territory
    full = Language.make(found.language, script=script, territory=region).maximize()
    return Meaning(
        language=found.language,
        script=full.script if script or region else None,
        region=region,
        likely=(full.script, full.territory),
        without_region=found.territory is None,
    )


@lru_cache(maxsize=1)
def _languages() -> dict[str, dict]:
    """Subtag -> entry of IANA's language registry. The codes for private use are one entry,
    ``qaa..qtz``."""
    return {entry["Subtag"]: entry for entry in parse_registry() if entry["Type"] == "language"}


def collective_fault(code: str) -> str | None:
    """The message if ``code`` names several languages or none, else ``None``."""
    first = code.replace("_", "-").split("-")[0].lower()
    try:
        first = Language.get(first).language or first  # bih is bh
    except ValueError:
        return None
    entry = _languages().get(first, {})
    if entry.get("Scope") in ("collection", "special"):  # families; mul, und, zxx, mis
        return (
            "write the code of a single language, or one of qaa to qtz (private use) if it has no "
            f"code: language code '{code}' stands for no single language "
            f"({entry['Description'][0]})"
        )
    return None


def code_fault(code: str) -> str | None:
    """The message if ``code`` cannot name a language, else ``None``."""
    return slot_fault(code) or collective_fault(code)


def tag_fault(code: str) -> str | None:
    """The message if ``code`` is not the code of a language (ISO 639, BCP 47), else ``None``.

    Its region is not checked.
    """
    known, found = _languages(), meaning(code)
    if found is not None and (found.language in known or "qaa" <= found.language <= "qtz"):
        return None
    named = [
        tag
        for tag, entry in known.items()
        if code.casefold() in map(str.casefold, entry["Description"])
    ]
    meant = f" {code} is '{named[0]}'." if named else ""
    return (
        "write the code of a language such as eu, eu_ES, gsw or zh-Hans, or one of qaa to qtz "
        f"(private use) if it has no code: language code '{code}' is not the code of a language "
        f"(ISO 639, BCP 47).{meant}"
    )


def slot_fault(code: object) -> str | None:
    """The message if ``code`` cannot name a slot, else ``None``.

    A slot's name is a part of parameter names and of paths.
    """
    plain = isinstance(code, str) and re.fullmatch(
        rf"[A-Za-z][A-Za-z0-9_-]{{0,{_LONGEST - 1}}}", code
    )
    if not plain or code in ("True", "False", "None"):
        return (
            f"language code {shown(code)} cannot be used; allowed are letters, digits, _ and -, "
            f"with a letter first, {_LONGEST} at most, e.g. el_GR (quote words that YAML reads as "
            "values, such as no and on)"
        )
    if code in _METHODS:
        return (
            f"write e.g. '{code}_XX': language code '{code}' is the name of a method of torch's "
            "containers"
        )
    if code == NO_SLOT:
        return (
            f"write e.g. '{code}_XX': language code '{code}' cannot be used, because the slot "
            f"'{code}' means no slot"
        )
    return None


def known_codes(slots: list[str], aliases: dict[str, str]) -> list[str]:
    """Every language of a model, in the order of its ``slots``.

    A shared slot counts as a language if its name is the code of a language.

    Args:
        aliases: code -> slot, for languages that use a slot with another name.
    """
    sharing: dict[str, list[str]] = {}
    for code, slot in aliases.items():
        sharing.setdefault(slot, []).append(code)
    own = {slot for slot in slots if slot not in sharing or meaning(slot)}
    return [
        code for slot in slots for code in ([slot] if slot in own else []) + sharing.get(slot, [])
    ]


def resolve(code: str, known: list[str]) -> str:
    """The code in ``known`` that ``code`` means.

    Raises:
        UnknownLanguageError: there is none, or there are several. The message names the known, the
            nearest and the related codes.
    """
    if code in known:
        return code
    asked = meaning(code)
    fitting = [other for other in known if asked and _fits(asked, meaning(other))]
    alike = [  # the same parts in another spelling
        other for other in fitting if asked[:3] == meaning(other)[:3]
    ]
    found = alike if len(alike) == 1 else fitting
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownLanguageError(
            f"write {' or '.join(found)}: language '{code}' may be each of them in this model"
        )
    if fault := collective_fault(code):
        raise UnknownLanguageError(f"{fault}; this model knows: {', '.join(known)}")
    raise UnknownLanguageError(
        f"unknown language '{code}'; this model knows: {', '.join(known)}."
        f"{suggestion(code, known)} "
        "A new language is added with: python -m xmod_lab.pretrain +lang=NAME"
    )


def _fits(asked: Meaning, other: Meaning | None) -> bool:
    """Whether the parts of ``other`` agree with all parts of ``asked``.

    XX and a missing region agree with every region: en-GB finds en_XX.
    """
    return (
        other is not None
        and asked.language == other.language
        and asked.script in (None, other.likely[0])
        and (asked.region is None or other.region in (None, asked.region))
    )


def clashing(code: str, others: Iterable[str]) -> list[str]:
    """The codes in ``others`` that are the same language as ``code``, in any spelling.

    One model cannot have two of them, because users could not tell them apart. Another script or
    another region makes another language: ``de_CH`` and ``de_DE``.
    """
    own = meaning(code)
    return [other for other in others if other == code or (own and _same(own, meaning(other)))]


def _same(a: Meaning, b: Meaning | None) -> bool:
    if b is None or (a.language, a.likely[0]) != (b.language, b.likely[0]):
        return False
    return a.without_region or b.without_region or a.likely[1] == b.likely[1]


def related(code: str, known: Iterable[str]) -> list[str]:
    """At most three related codes in ``known``, the nearest first.

    The same language in another script or region comes first, then languages that are close by
    langcodes' distance.
    """
    own = meaning(code)
    found = []
    for other in known:
        theirs = meaning(other)
        if own and theirs:
            away = tag_distance(_tag(own), _tag(theirs))
            if own.language == theirs.language or away <= _RELATED:
                found.append((own.language != theirs.language, away, other))
    return [other for *_, other in sorted(found, key=lambda entry: entry[:2])[:3]]


def suggestion(code: str, known: Iterable[str]) -> str:
    """The end of a message: the nearest spelling and related codes in ``known``, or nothing."""
    known = list(known)
    words = nearest(code, known)
    others = [other for other in related(code, known) if f"'{other}'" not in words]
    return words + (f" Related: {', '.join(others)}." if others else "")


def _tag(parts: Meaning) -> str:
    return "-".join(part for part in (parts.language, *parts.likely) if part)
