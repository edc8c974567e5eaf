"""The error for a setting that does not exist, with a suggestion.

The suggestion comes from the whole vocabulary: the settings that are allowed in this place, those of other places, and
the names that Azure ML's files have for them (`dialects`). No I/O.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from router.config.dialects import leaf_names
from router.config.schema import SettingsError

_MIN_SIMILARITY = 0.6
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name in any spelling: `maxReplicas`, `max-replicas`, `MAX_REPLICAS`."""
    return tuple(word.lower() for word in _WORD.findall(name))


_AZUREML_NAMES = {_words(name): setting for name, setting in leaf_names().items()}
"""Settings by the words of the names that they have in files of Azure ML: `maxQueueWaitMs`, `max_queue_wait_ms`."""


def unknown_setting(
    name: str,
    known: Iterable[str],
    where: str = "",
    *,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    spell: Callable[[str], str] = str,
) -> SettingsError:
    """Return the error for a setting that does not exist. It suggests the most similar of the `known` names, in the
    spelling that `spell` returns, or the place of the setting if `elsewhere` has it, by name.

    The error omits the value: that of a misspelt `primary_key` is a key.
    """
    known = set(known)
    suggestion = _AZUREML_NAMES.get(_words(name), "")
    if suggestion not in known:
        suggestion = most_similar(name, known, exactly=True) or ""
    if not suggestion:
        if name in elsewhere:
            return SettingsError(name, None, f"no such setting here; it belongs to {elsewhere[name]}", where)
        suggestion = most_similar(name, known) or ""
    hint = f"; did you mean {spell(suggestion)}?" if suggestion else ""
    return SettingsError(name, None, f"no such setting{hint}", where)


def most_similar(name: str, known: Collection[str], *, exactly: bool = False) -> str | None:
    """Return the known name with the same words in another spelling. Unless `exactly`, also the shortest one that has
    all words of `name`, or the one with the most similar letters."""
    words = _words(name)
    by_words = {_words(each): each for each in sorted(known)}
    if exactly or words in by_words:
        return by_words.get(words)
    longer = [each for other, each in by_words.items() if words and set(words) <= set(other)]
    if longer:
        return min(longer, key=lambda each: (len(_words(each)), each))
    by_lower_case = {each.lower(): each for each in sorted(known)}
    similar = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=_MIN_SIMILARITY)
    return by_lower_case[similar[0]] if similar else None
