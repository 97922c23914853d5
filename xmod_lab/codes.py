"""What a language code means: X-MOD's own (``en_XX``), BCP-47 (``gsw``, ``zh-Hans``), ISO 639 (``de``, ``deu``).

A code that is spelt like a known one is that one, always. Any other is read by its parts (langcodes, CLDR's likely scripts
and regions), so that ``de`` finds ``de_DE`` where that is the only German, and ``zh`` finds neither of two. A code that
stands for no single language, such as those of families (``sla``) and ``mul``, is none.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from langcodes import Language, tag_distance
from langcodes.registry_parser import parse_registry

from xmod_lab.errors import UnknownLanguageError, nearest, shown

_NO_REGION = "XX"  # en_XX: English of no country
_SCRIPT_OF_SUFFIX = {
    "rom": "Latn",
    "zaw": "Qaag",
}  # hi_IN_rom, my_MM_zaw of CC-100: romanised; Zawgyi (CLDR's code)
NO_SLOT = "none"  # in place of a slot's name: text goes through no slot
_LONGEST = 64  # letters of a code: it is a part of file names, and of parameter names
_RELATED = 25  # the distance up to which langcodes, too, takes one language for a match of another
# What torch.nn.ModuleDict has itself, smart_apply by transformers, which cannot be a key of one; written down, since torch takes
# seconds to ask
_METHODS = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval "
    "extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys load_state_dict modules "
    "mtia named_buffers named_children named_modules named_parameters parameters pop register_backward_hook register_buffer "
    "register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook "
    "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter "
    "register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory smart_apply "
    "state_dict to to_empty train training type update values xpu zero_grad".split()
)


class Meaning(NamedTuple):
    """A code in parts. ``script``: written, or implied by the region, else ``None``; ``region``: written, else ``None``, as
    is XX; ``likely``: CLDR's (script, region) for it; ``without_region``: no region was written, not even XX."""

    language: str
    script: str | None
    region: str | None
    likely: tuple[str | None, str | None]
    without_region: bool


@lru_cache(maxsize=4096)
def meaning(code: str) -> Meaning | None:
    """The parts of ``code``; ``None`` where it is no language tag (``shared``), or one of no single language (``sla``)."""
    if collective_fault(code):
        return None
    tag, _, suffix = code.rpartition("_")
    if not tag or suffix not in _SCRIPT_OF_SUFFIX:
        tag, suffix = code, ""
    try:
        found = Language.get(tag.replace("_", "-")).prefer_macrolanguage()  # cmn is zh
    except ValueError:
        return None
    if (
        found.language is None or len(found.language) > 3
    ):  # BCP-47 has no language of four letters or more
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
    """The entries of IANA's registry for languages, by subtag; those for private use by their range, ``qaa..qtz``."""
    return {entry["Subtag"]: entry for entry in parse_registry() if entry["Type"] == "language"}


def collective_fault(code: str) -> str | None:
    """Why ``code`` names no single language, or ``None``."""
    first = code.replace("_", "-").split("-")[0].lower()
    try:
        first = Language.get(first).language or first  # bih is bh
    except ValueError:
        return None
    entry = _languages().get(first, {})
    if entry.get("Scope") in ("collection", "special"):  # of languages; mul, und, zxx, mis
        return (
            f"language code '{code}' stands for no single language ({entry['Description'][0]}); write the code of one, or, where it has none, "
            "one of qaa to qtz, which are free for private use"
        )
    return None


def code_fault(code: str) -> str | None:
    """Why ``code`` cannot name a language, or ``None``."""
    return slot_fault(code) or collective_fault(code)


def tag_fault(code: str) -> str | None:
    """Why ``code`` is not the code of a language (ISO 639, BCP 47), or ``None``. Its region may be any."""
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
        f"language code '{code}' is not the code of a language (ISO 639, BCP 47); write one such as eu, eu_ES, gsw or zh-Hans, or, "
        f"where the language has none, one of qaa to qtz, which are free for private use.{meant}"
    )


def slot_fault(code: object) -> str | None:
    """Why ``code`` cannot name a slot, or ``None``: it is a part of parameter names and of paths."""
    plain = isinstance(code, str) and re.fullmatch(
        rf"[A-Za-z][A-Za-z0-9_-]{{0,{_LONGEST - 1}}}", code
    )
    if not plain or code in ("True", "False", "None"):
        return (
            f"language code {shown(code)} cannot be used; allowed are letters, digits, _ and -, beginning with a letter, e.g. "
            f"el_GR, {_LONGEST} at most (YAML reads no, on and the like as values: quote them)"
        )
    if code in _METHODS:
        return f"language code '{code}' is the name of a method of torch's containers; write e.g. '{code}_XX'"
    if code == NO_SLOT:
        return f"language code '{code}' cannot be used: as a slot it means no slot; write e.g. '{code}_XX'"
    return None


def known_codes(slots: list[str], aliases: dict[str, str]) -> list[str]:
    """Every language of a model, in the order of its ``slots``; ``aliases``: code -> slot, of those that go through a slot of
    another name. A slot that others share is a language itself if its name is a language's."""
    sharing: dict[str, list[str]] = {}
    for code, slot in aliases.items():
        sharing.setdefault(slot, []).append(code)
    own = {slot for slot in slots if slot not in sharing or meaning(slot)}
    return [
        code for slot in slots for code in ([slot] if slot in own else []) + sharing.get(slot, [])
    ]


def resolve(code: str, known: list[str]) -> str:
    """The one of ``known`` that ``code`` means.

    Raises:
        UnknownLanguageError: none of them, or several; it names the known codes, the nearest and the related.
    """
    if code in known:
        return code
    asked = meaning(code)
    fitting = [other for other in known if asked and _fits(asked, meaning(other))]
    alike = [
        other for other in fitting if asked[:3] == meaning(other)[:3]
    ]  # the same parts, spelt otherwise
    found = alike if len(alike) == 1 else fitting
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownLanguageError(
            f"language '{code}' may be {' or '.join(found)} of this model; write which"
        )
    if fault := collective_fault(code):
        raise UnknownLanguageError(f"{fault}; this model knows: {', '.join(known)}")
    raise UnknownLanguageError(
        f"unknown language '{code}'; this model knows: {', '.join(known)}.{suggestion(code, known)} "
        "A new language is added with: python -m xmod_lab.pretrain +lang=NAME"
    )


def _fits(asked: Meaning, other: Meaning | None) -> bool:
    """Whether ``other`` contradicts no part of ``asked``. XX, like no region, stands for every region: en-GB finds en_XX."""
    return (
        other is not None
        and asked.language == other.language
        and asked.script in (None, other.likely[0])
        and (asked.region is None or other.region in (None, asked.region))
    )


def clashing(code: str, others: Iterable[str]) -> list[str]:
    """Those of ``others`` that are the language of ``code`` in another spelling, or itself: two of them in one model could
    not be told apart. Another script, or a region of its own, makes another language: ``de_CH`` beside ``de_DE``."""
    own = meaning(code)
    return [other for other in others if other == code or (own and _same(own, meaning(other)))]


def _same(a: Meaning, b: Meaning | None) -> bool:
    if b is None or (a.language, a.likely[0]) != (b.language, b.likely[0]):
        return False
    return a.without_region or b.without_region or a.likely[1] == b.likely[1]


def related(code: str, known: Iterable[str]) -> list[str]:
    """At most three of ``known``, the nearest first: the same language in another script or region, then others that are
    close by langcodes' distance."""
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
    """The nearest of ``known`` in spelling and the related ones, as the end of a message; or nothing."""
    known = list(known)
    words = nearest(code, known)
    others = [other for other in related(code, known) if f"'{other}'" not in words]
    return words + (f" Related: {', '.join(others)}." if others else "")


def _tag(parts: Meaning) -> str:
    return "-".join(part for part in (parts.language, *parts.likely) if part)
